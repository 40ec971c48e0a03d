"""What an average does as a teacher: few labels alone, the Pi model, mean teacher and pseudo-labels, with ten seeds.

    python -m examples.mean_teacher.teachers runs/teachers         # trains what it lacks yet, two processes at a time
    python -m examples.mean_teacher.teachers runs/teachers --draw  # only reads it

The runs are RUNS/VARIANT/seed0, ..., for tools.report. Writes `teachers.json` and `teachers.png` beside this file.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
from matplotlib.figure import Figure

from examples import results
from examples.mean_teacher.configs import default
from reporting.runs import Run

FOLDER = pathlib.Path(__file__).parent
NUM_SEEDS = 10
DURATION = default.get_config().duration
# By name the fields of `config.loss` that differ from the config.
VARIANTS: dict[str, dict[str, Any]] = {
    "supervised": {"weight": 0.0},
    "Pi model": {"teacher": "none"},
    "mean teacher": {},
    "pseudo-labels": {"threshold": 0.95, "weight": 3.0},
}
CURVES = {"raw": ("network", "#D55E00"), "teacher": ("average", "#0072B2")}  # in words, and in Okabe and Ito's colours
# Pairs of what is compared, each a variant and a curve.
PAIRS = (
    (("supervised", "teacher"), ("supervised", "raw")),
    (("mean teacher", "teacher"), ("mean teacher", "raw")),
    (("mean teacher", "raw"), ("supervised", "teacher")),
    (("mean teacher", "raw"), ("Pi model", "raw")),
    (("mean teacher", "teacher"), ("Pi model", "teacher")),
    (("mean teacher", "teacher"), ("pseudo-labels", "teacher")),
)


def config_of(variant: str, seed: int, duration: str = DURATION) -> ml_collections.ConfigDict:
    """The config of a run."""
    config = default.get_config()
    config.seed, config.duration = seed, duration
    config.checkpoint_every = "100%"
    for name, value in VARIANTS[variant].items():
        config.loss[name] = value
    return config


def read(folder: pathlib.Path, num_seeds: int = NUM_SEEDS) -> dict[str, Any]:
    """By variant and curve the test accuracy in % [seeds][evaluations], its steps, and the seconds of all runs."""
    variants, seconds, steps = {}, {}, []
    for variant in VARIANTS:
        workdirs = results.workdirs(variant, folder, num_seeds)
        runs = [Run.read(workdir) for workdir in workdirs]
        steps = [*runs[0].curves["raw", "test"]]
        variants[variant] = {
            curve: [[round(100 * line["accuracy"], 2) for line in run.curves[curve, "test"].values()] for run in runs]
            for curve in CURVES
        }
        seconds[variant] = results.seconds(workdirs)
    return {"seconds": seconds, "steps": steps, "variants": variants}


def last(result: Mapping[str, Any], variant: str, curve: str) -> np.ndarray:
    """The accuracy at the end of each training, [seeds]."""
    return np.array(result["variants"][variant][curve])[:, -1]


def table(result: Mapping[str, Any]) -> str:
    """A line for each variant: network and average at the end, each with the paired difference to the supervised."""
    header = ["training", "network", "minus supervised", "worst seed", "average", "minus supervised", "worst seed"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for variant in VARIANTS:
        cells = [variant]
        for curve in CURVES:
            ours = last(result, variant, curve)
            apart = ours - last(result, "supervised", curve)
            cells += [
                results.in_words(ours),
                results.in_words(apart, sign="+") if apart.any() else "",
                f"{ours.min():.1f}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def findings(result: Mapping[str, Any]) -> str:
    """Differences at the end, paired by seed, and where the average of mean teacher is ahead of its network."""
    lines = []
    for ours, theirs in PAIRS:
        name, other = (f"{variant}, {CURVES[curve][0]}" for variant, curve in (ours, theirs))
        lines.append(f"{name} minus {other}: {results.in_words(last(result, *ours) - last(result, *theirs), sign='+')}")
    student, teacher = (np.array(result["variants"]["mean teacher"][curve]) for curve in CURVES)
    ahead = results.in_words((teacher - student)[:, 0], sign="+")
    lines.append(f"mean teacher, average minus network at step {result['steps'][0]}: {ahead}")
    return "\n".join(lines)


def draw(result: Mapping[str, Any]) -> Figure:
    """The accuracy of network and average over training, of each seed and in the mean."""
    figure = Figure(figsize=(5, 5.5), layout="constrained")
    all_axes = figure.subplots(2, 2, sharex=True, sharey=True).flat
    for axis, variant in zip(all_axes, VARIANTS, strict=True):
        for curve, (words, colour) in CURVES.items():
            values = np.array(result["variants"][variant][curve])
            axis.plot(result["steps"], values.T, color=colour, alpha=0.25, linewidth=0.6)
            axis.plot(result["steps"], values.mean(axis=0), color=colour, linewidth=2, label=words)
        ends = " / ".join(f"{last(result, variant, curve).mean():.1f}" for curve in CURVES)
        axis.set_title(f"{variant}: {ends}", loc="left", fontsize=9.5)
        axis.set_xticks([0, result["steps"][-1]])
        axis.tick_params(labelsize=9.5)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(fontsize=9.5, loc="lower right", frameon=False)
    means = [np.mean(curve, axis=0) for variant in result["variants"].values() for curve in variant.values()]
    figure.axes[0].set_ylim(bottom=np.floor(np.min(means)) - 2)
    num_seeds = len(result["variants"]["supervised"]["raw"])
    figure.supylabel("accuracy on test images, %", fontsize=9.5)
    figure.supxlabel(f"step of training ({num_seeds} seeds and their mean)", fontsize=9.5)
    return figure


if __name__ == "__main__":
    results.main(__doc__, FOLDER / "teachers.json", VARIANTS, NUM_SEEDS, config_of, read, table, findings, draw)
