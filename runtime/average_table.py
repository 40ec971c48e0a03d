"""A description of the averages before training: what they will be in the end, and what became of older ones."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import averaging
from runtime.files import replace_file
from train_state import Average, CustomTrainState

MAX_BINS = 1000  # of a stored kernel


def write(workdir: pathlib.Path, state: CustomTrainState, num_steps: int, *, random_start: bool) -> list[str]:
    """Describes each average as it will be at the end of training, in `averages.json` and as text.

    Args:
        workdir: of the run.
        state: before the next step.
        num_steps: of the whole training.
        random_start: whether the parameters at step 0 were random.

    Returns:
        The lines of a table, and warnings of averages that would keep more than 1 % of their weight on random
        parameters, or be no average at all.
    """
    step, rejected, counts = jax.device_get((state.step, state.rejected["total"], state.ema_count))
    rows = [("average", "kind", "weight on start", "mean age", "half-life", "width", "effective number")]
    warnings, stored = [], {}
    for average in state.averages:
        count = int(counts[average.name])
        num_updates = max(1, count + num_steps - int(step))
        kernel = averaging.kernel(average.schedule, num_updates)
        description = averaging.describe(kernel, num_updates)
        rows.append(
            (
                average.name,
                to_text(average),
                f"{description.initial_weight:.2%}",
                f"{description.mean_age:.5g}",
                f"{description.half_life:.5g}",
                f"{description.relative_width:.2%}",
                f"{description.effective_number:.5g}",
            )
        )
        # An average that joined later started from trained parameters.
        if random_start and step - rejected == count and description.initial_weight > 0.01:
            warnings.append(
                f"Warning: {description.initial_weight:.1%} of the final weight of the average {average.name!r} would "
                "lie on the random initialisation. Shorter horizons, periods and intervals forget it, and so does the "
                "bias correction of kind 'ema'."
            )
        elif description.effective_number < 1.01 and average.kind != "hard_update":
            warnings.append(
                f"Warning: the average {average.name!r} would be a single iterate; see its start and every."
            )
        stored[average.name] = average.to_dict() | dataclasses.asdict(description) | _in_bins(kernel)
    replace_file(workdir / "averages.json", json.dumps(stored) + "\n")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows] if stored else []
    return [*table, *warnings]


def _in_bins(kernel: np.ndarray) -> dict[str, Any]:
    """The kernel, in at most `MAX_BINS` sums over as many iterates; the initial parameters have their own number."""
    weights = kernel[1:]
    per_bin = math.ceil(len(weights) / MAX_BINS)
    sums = np.add.reduceat(weights, np.arange(0, len(weights), per_bin))
    return {"iterates_per_bin": per_bin, "kernel": [float(f"{weight:.6g}") for weight in sums]}


def to_text(average: Average) -> str:
    """`ema(debias=True, decay=0.995), start=100`: what it is, and what differs from one that moves at every step."""
    arguments = dict(average.arguments)
    if "decay" in arguments:  # per firing there, per update in configs; so is a duration
        arguments["decay"] **= 1 / average.every
    if "duration" in arguments:
        arguments["duration"] *= average.every
    shown = (f"{key}={_digits(key, value)}" for key, value in arguments.items())
    defaults = {field.name: field.default for field in dataclasses.fields(average)}
    other = [
        f"{key}={getattr(average, key)}"
        for key in ("start", "every", "restart_every", "batch_stats")
        if getattr(average, key) != defaults[key]
    ]
    return ", ".join([f"{average.kind}({', '.join(shown)})", *other])


def _digits(key: str, value: float) -> str:
    """An argument, exact enough to be typed back: at least six digits, and four of what a decay lacks to 1."""
    if key == "decay":
        return f"{value:.{max(6, 3 - math.floor(math.log10(1 - value)))}g}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def changes(before: Sequence[Average], after: Sequence[Average]) -> list[str]:
    """A sentence for each average that a run does not continue as it was.

    Args:
        before: the averages of the checkpoint that the run continues from.
        after: those that it has from there on; see `Stored.restore_state`.
    """
    old, new = ({average.name: average for average in averages} for averages in (before, after))
    said = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            said.append(f"The average {name!r} starts from the restored parameters")
        elif name not in new:
            said.append(f"The average {name!r} is dropped")
        elif old[name] != new[name]:
            what = f"was {to_text(old[name])} and is now {to_text(new[name])}"
            if old[name].frozen != new[name].frozen:
                what = "leaves out other parameters, for others are frozen now"
            said.append(f"The average {name!r} {what}: it starts anew from the restored parameters")
    return said
