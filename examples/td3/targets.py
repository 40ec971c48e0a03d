"""What a target does for an actor and its critics, and what clipped double Q-learning does: each with the other or not.

    python -m examples.td3.targets runs/td3         # trains what it does not have yet, two processes at a time
    python -m examples.td3.targets runs/td3 --draw  # only draws what it has stored

The runs are RUNS/VARIANT/seed0, ..., for tools.report. Writes `targets.json` and `targets.png` beside this file.
"""

import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
from matplotlib.figure import Figure

from configs import default as project
from examples import results
from examples.td3.configs import default

FOLDER = pathlib.Path(__file__).parent
NUM_SEEDS = 10
TARGETS: dict[str, ml_collections.ConfigDict | None] = {
    "none": None,
    "soft 0.05": project.average("soft_update", tau=0.05),
    "soft 0.005": project.average("soft_update", tau=0.005),
    "hard 399": project.average("hard_update", period="399 steps"),
}
CRITICS = {"single": 1, "clipped": 2}
COLOURS = {"single": "#D55E00", "clipped": "#0072B2"}  # Okabe and Ito's
# By name: the target and the critics.
VARIANTS = {f"{target}, {critics}": (target, critics) for target, critics in itertools.product(TARGETS, CRITICS)}
SOLVED = -200  # a return from which on the pendulum is swung up from any start


def config_of(variant: str, seed: int, duration: str = "10000 steps") -> ml_collections.ConfigDict:
    """The config of a run."""
    target, critics = VARIANTS[variant]
    config = default.get_config()
    config.seed, config.duration = seed, duration
    config.log_every = config.eval_every = "5%"
    config.checkpoint_every = "100%"
    average = TARGETS[target]
    if average is None:
        config.averages, config.loss.target = ml_collections.ConfigDict(), "none"
    else:
        config.averages.target = average
    config.model.num_critics = CRITICS[critics]
    return config


def read(folder: pathlib.Path, num_seeds: int = NUM_SEEDS) -> dict[str, Any]:
    """Return and bias of each variant [seeds][evaluations], their steps, and the seconds of all runs."""
    workdirs = {variant: results.workdirs(variant, folder, num_seeds) for variant in VARIANTS}
    return {
        "seconds": {variant: results.seconds(runs) for variant, runs in workdirs.items()},
        "steps": results.steps(next(iter(workdirs.values()))[0], "return"),
        "variants": {
            variant: results.read(runs, ["raw"], ["return", "bias"])["raw"] for variant, runs in workdirs.items()
        },
    }


def at_the_end(variant: Mapping[str, Any]) -> np.ndarray:
    """The return of each seed after training."""
    return results.last(variant, "return")


def over_training(variant: Mapping[str, Any]) -> np.ndarray:
    """The mean return of the evaluations of each seed."""
    return np.mean(variant["return"], axis=1)


def bias(variant: Mapping[str, Any]) -> np.ndarray:
    """The mean bias of the evaluations in the second half of each seed's training."""
    values = np.array(variant["bias"])
    return values[:, values.shape[1] // 2 :].mean(axis=1)


QUANTITIES = {"return at the end": at_the_end, "return over training": over_training, "bias, second half": bias}


def table(result: Mapping[str, Any]) -> str:
    """For each quantity and target a line with both kinds of critics, and their difference, paired by seed."""
    lines = []
    for words, quantity in QUANTITIES.items():
        header = [words, *CRITICS, "clipped minus single"]
        lines += ["", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        for target in TARGETS:
            values = {critics: quantity(result["variants"][f"{target}, {critics}"]) for critics in CRITICS}
            cells = [target, *(results.in_words(x, ".0f") for x in values.values())]
            cells.append(results.in_words(values["clipped"] - values["single"], ".0f", "+"))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines[1:])


def findings(result: Mapping[str, Any]) -> str:
    """What the target does, with either kind of critics, paired by seed; and in how many seeds the task is solved."""
    lines, variants = [], result["variants"]
    pairs = [(target, "none") for target in TARGETS if target != "none"] + [("soft 0.005", "hard 399")]
    for critics, (target, other) in itertools.product(CRITICS, pairs):
        ours, theirs = (over_training(variants[f"{name}, {critics}"]) for name in (target, other))
        lines.append(f"{critics}, {target} minus {other}, over training: {results.in_words(ours - theirs, '.0f', '+')}")
    for name, variant in variants.items():
        ends = at_the_end(variant)
        lines.append(
            f"{name}: {np.sum(ends >= SOLVED)} of {len(ends)} seeds at {SOLVED} or above, worst {ends.min():.0f}"
        )
    return "\n".join(lines)


def draw(result: Mapping[str, Any]) -> Figure:
    """Return and bias of each seed and their mean over training, a row for each target."""
    figure = Figure(figsize=(5, 8.5), layout="constrained")
    all_axes = figure.subplots(len(TARGETS), 2, sharex=True, sharey="col")
    for row, target in zip(all_axes, TARGETS, strict=True):
        for axis, metric in zip(row, ("return", "bias"), strict=True):
            for critics, colour in COLOURS.items():
                values = np.array(result["variants"][f"{target}, {critics}"][metric])
                axis.plot(result["steps"], values.T, color=colour, alpha=0.25, linewidth=0.6)
                axis.plot(result["steps"], values.mean(axis=0), color=colour, linewidth=2, label=critics)
            axis.set_title(f"{target}: {metric}", loc="left", fontsize=9.5)
            axis.set_xticks([0, result["steps"][-1]])
            axis.tick_params(labelsize=9.5)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    all_axes[0, 1].set_yscale("symlog", linthresh=10)
    all_axes[-1, 0].legend(fontsize=9.5, loc="lower right", frameon=False)
    num_seeds = len(result["variants"]["none, single"]["return"])
    figure.supxlabel(f"step of training ({num_seeds} seeds and their mean)", fontsize=9.5)
    return figure


if __name__ == "__main__":
    results.main(__doc__, FOLDER / "targets.json", VARIANTS, NUM_SEEDS, config_of, read, table, findings, draw)
