"""Averages that a run did not keep, made after training from its snapshots and checkpoints.

    python -m tools.posthoc runs/mnist --average=ema:half_life=5% --average=power_ema:width=0.07
    python -m tools.posthoc runs/mnist --average=running_mean:start=75% --average=lawa:last=5

An average is written KIND:FIELD=VALUE,FIELD=VALUE with the kinds and fields of `config.averages`; lawa is the mean of
the raw weights of the last snapshots (or checkpoints, where there are no snapshots). Each average is fitted as a linear
combination of everything stored (see `averaging.synthesize`) and, where the fit is good enough, scored beside the raw
weights, at every step at which something is stored, or with --last only at the last. The scores go to
WORKDIR/posthoc.jsonl, which tools.report reads.

A run stores snapshots with --config.snapshot_every=6.25%. Two averages of kind power_ema, 0.05 and 0.10 wide, are a
good basis for others.
"""

import dataclasses
import functools
import json
import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import traverse_util

import averaging
import settings
import tools
import train
from configs import default
from reporting import page, runs
from runtime import averages, caching, fields
from runtime.errors import UserError
from runtime.files import local_path, replace_file
from runtime.progress import say
from runtime.sharding import replicated
from runtime.stored import Stored
from tools import command_line
from tools.finished import FinishedRun, Variables

RAW = averaging.soft_update(1.0)  # the raw weights, as an average


@dataclasses.dataclass(frozen=True)
class Target:
    """An average to make.

    Attributes:
        name: of its curve in files.
        kernel: its weights on the iterates when the last of these was stored; None if it takes more than these.
        batch_stats: where its batch statistics come from, as in `config.averages`.
    """

    name: str
    kernel: Callable[[Sequence[Stored]], np.ndarray | None]
    batch_stats: str


def mean_of_last(number: int) -> Callable[[Sequence[Stored]], np.ndarray | None]:
    """The kernel of the mean of the last snapshots, or checkpoints where there are no snapshots (LAWA).

    Kaddour 2022, "Stop wasting my time! Saving days of ImageNet and BERT training with latest weight averaging".
    """

    def kernel(earlier: Sequence[Stored]) -> np.ndarray | None:
        snapshots = [stored for stored in earlier if stored.is_snapshot] or earlier
        weights = np.zeros(earlier[-1].record.updates + 1)
        # Added up: where every step between two snapshots was rejected, they are of the same iterate.
        np.add.at(weights, [stored.record.updates for stored in snapshots[-number:]], 1 / number)
        return weights if len(snapshots) >= number else None

    return kernel


def parse(text: str, run: FinishedRun) -> Target:
    """Reads KIND:FIELD=VALUE,FIELD=VALUE.

    Args:
        text: such as "ema:half_life=5%".
        run: for durations in steps.

    Raises:
        UserError: there is no such kind or field, or its value is wrong.
    """
    kind, _, rest = text.partition(":")
    if kind == "lawa":
        known: dict[str, Any] = {"last": 5, "batch_stats": "average"}
    elif kind in averaging.SCHEDULES:
        defaults = default.average(kind).to_dict()
        known = {name: defaults[name] for name in sorted(averages.fields_of(kind).union(averages.SHARED_FIELDS))}
    else:
        raise UserError(f"--average={text}: {kind!r} must be one of {', '.join([*averaging.SCHEDULES, 'lawa'])}")
    given: dict[str, Any] = {}
    for name, equals, value in (part.partition("=") for part in rest.split(",") if part):
        if name not in known or not equals:
            raise UserError(f"--average={text}: {name!r} is not one of {kind}'s {'=, '.join(known)}=")
        try:
            is_bool = isinstance(known[name], bool)
            given[name] = {"True": True, "False": False}[value] if is_bool else type(known[name])(value)
        except (KeyError, ValueError) as error:
            raise UserError(f"--average={text}: {name} must be like its default, {known[name]}") from error
    name = text if ":" in text else f"{text}:"  # which no average that was tracked can have as its name
    if kind == "lawa":
        number, batch_stats = given.get("last", 5), given.get("batch_stats", "average")
        if number < 1 or batch_stats not in ("average", "copy", "recompute"):
            raise UserError(f"--average={text}: last must be at least 1, batch_stats average, copy or recompute")
        return Target(name, mean_of_last(number), batch_stats)
    average = default.average(kind, **given)
    config = default.get_config()
    config.averages = {kind: average}
    settings.check(config, train.find_task(config.task))
    num_train = settings.count_train(run.task, run.config)
    steps = functools.partial(
        fields.to_steps,
        batch_size=run.config.batch_size,
        num_examples=num_train and num_train - run.config.num_validation,
        total=run.config.duration,
    )
    try:
        made = averages.create(kind, averages.resolve(average, steps))
        averages.check_step_sizes(made, run.config.duration)
    except ValueError as error:
        raise UserError(f"--average={text}: {error}") from error
    return Target(name, lambda earlier: averaging.kernel(made.schedule, earlier[-1].record.updates), made.batch_stats)


def basis(stored: Stored, names: Sequence[str] | None, batch_stats: str) -> list[tuple[str, optax.Schedule]]:
    """The weights in a checkpoint or snapshot of which an average can be made, with the schedules that made them.

    Args:
        stored: the checkpoint or snapshot.
        names: the ones to use, "raw" and averages' names; None for all.
        batch_stats: where those of the average to make come from.
    """
    found = [("raw", RAW)]
    for average in stored.record.averages:
        if batch_stats == "average" and average.batch_stats == "copy":
            continue  # statistics that were copied are not the average's
        # One that joined later, or was changed and so began anew, is one that started later: until then it was the raw
        # weights. What it is by then its own record tells; another snapshot's may be of another average of this name.
        joined = stored.record.updates - stored.record.counts[average.name]
        found.append((average.name, averaging.starting_at(average.schedule, joined)))
    return [(name, schedule) for name, schedule in found if names is None or name in names]


def combine(coefficients: np.ndarray, weights: Sequence[Mapping[str, Any]]) -> Any:
    """The linear combination of trees of arrays, computed in float64."""

    def leaf(*leaves: np.ndarray) -> np.ndarray:
        return np.tensordot(coefficients, np.stack(leaves).astype(np.float64), 1).astype(leaves[0].dtype)

    return jax.tree.map(leaf, *weights)


def has_negative_variance(batch_stats: Mapping[str, Any]) -> bool:
    """Whether coefficients of both signs have made a variance negative."""
    return any((leaf < 0).any() for path, leaf in traverse_util.flatten_dict(batch_stats).items() if path[-1] == "var")


def posthoc(
    workdir: pathlib.Path,
    texts: Sequence[str],
    names: Sequence[str] | None = None,
    max_error: float = 0.05,
    *,
    last: bool = False,
) -> list[dict[str, Any]]:
    """Makes averages and scores them.

    Args:
        workdir: of the run.
        texts: the averages; see `parse`.
        names: the stored weights to make them of, "raw" and averages' names; None for all.
        max_error: of a fit that is scored.
        last: whether to score only at the last step at which something is stored.

    Returns:
        Lines as in `metrics.jsonl`, with the error of the fit as `fit_error`.

    Raises:
        UserError: there is no such run or average, or nothing to make it of.
    """
    run = FinishedRun.read(workdir)
    targets = [parse(text, run) for text in texts]
    available = {"raw"}.union(*(point.names for point in run.stored))
    if not run.stored:
        raise UserError(f'{workdir} stores no weights; a run with --config.snapshot_every="6.25%" stores 16 snapshots')
    for name in names or ():
        if name not in available:
            raise UserError(f"--basis={name}: {workdir} stores {', '.join(sorted(available))}")
    config, experiment = run.config, run.experiment
    if not experiment.state.batch_stats and any(target.batch_stats != "average" for target in targets):
        raise UserError("--average: the model has no batch statistics; leave batch_stats out")

    @functools.cache
    def read(index: int, name: str) -> Variables:
        return jax.device_get(run.weights(run.stored[index], name))

    lines = []
    for index, point in [*enumerate(run.stored)][-1 if last else 0 :]:
        step, num_updates = point.record.step, point.record.updates
        weights = {"raw": jax.device_put(read(index, "raw"), replicated(experiment.mesh))}
        fit_errors: dict[str, float] = {}
        for target in targets:
            sources = [(i, *pair) for i in range(index + 1) for pair in basis(run.stored[i], names, target.batch_stats)]
            kernel = target.kernel(run.stored[: index + 1])
            if kernel is None or not sources:
                continue
            snapshots = [(schedule, run.stored[i].record.updates) for i, _, schedule in sources]
            coefficients, error = averaging.synthesize(kernel, num_updates, snapshots)
            said = f"step {step}: the fit of {target.name} is off by {error:.2%}"
            if error > max_error:
                say(f"{said}, left out")
                continue
            combined = combine(coefficients, [read(i, name) for i, name, _ in sources])
            if target.batch_stats == "average" and has_negative_variance(combined["batch_stats"]):
                say(f"{said}, left out: a variance would be negative; batch_stats=recompute avoids that")
                continue
            say(said)
            if target.batch_stats == "copy":
                combined["batch_stats"] = read(index, "raw")["batch_stats"]
            combined = jax.device_put(combined, replicated(experiment.mesh))
            if target.batch_stats == "recompute":
                combined = run.recomputed(combined, config.recompute_batches)
            weights[target.name] = combined
            fit_errors |= {target.name: error, f"{target.name}-raw": error}
        if not fit_errors:
            continue
        # As in training: where there are validation images, the test images are scored once, at the end.
        for split in list(experiment.eval_data)[: None if step == config.duration else 1]:
            scores = train.evaluate_weights(experiment, weights, split)
            for name, metrics in scores.items():
                values = {metric: value if math.isfinite(value) else None for metric, value in metrics.items()}
                fit = {"fit_error": fit_errors[name]} if name in fit_errors else {}
                lines.append({"step": step, "curve": name, "split": split, **values, **fit})
    for target in targets:
        if target.name not in fit_errors:
            say(
                f"{target.name} could not be made at the end, at step {step}. More snapshots, or tracked averages "
                "that are more like it, fit better."
            )
    return lines


def write(workdir: pathlib.Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Puts lines into `posthoc.jsonl`, in place of older ones of the same curves."""
    path = workdir / "posthoc.jsonl"
    made = {line["curve"] for line in lines} - {"raw"}
    scored = {(line["step"], line["curve"], line["split"]) for line in lines}
    old = runs.read_lines(path, "curve")
    kept = [x for x in old if x["curve"] not in made and (x["step"], x["curve"], x["split"]) not in scored]
    replace_file(path, "".join(json.dumps(line) + "\n" for line in [*kept, *lines]))


def main() -> None:
    """Makes what the arguments ask for."""
    parser = tools.parser("posthoc", __doc__)
    parser.add_argument("workdir", type=local_path, help="folder of the run")
    average_help = "KIND:FIELD=VALUE,...; may be given repeatedly"
    parser.add_argument("--average", required=True, action="append", help=average_help)
    basis_help = "stored weights to make it of; may be given repeatedly; default: all"
    parser.add_argument("--basis", action="append", help=basis_help)
    parser.add_argument("--max_error", type=float, default=0.05, help="of a fit that is scored; default: %(default)s")
    parser.add_argument("--last", action="store_true", help="score only at the last step, where scoring takes long")
    args = parser.parse_args()
    try:
        caching.enable_if_possible(command_line.CACHE_DIR)
        lines = posthoc(args.workdir, args.average, args.basis, args.max_error, last=args.last)
        write(args.workdir, lines)
        say(page.write(args.workdir) if lines else "Nothing was made")
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    sys.exit(not lines)


if __name__ == "__main__":
    main()
