"""How long an average should be to sample from: diffusion at a constant and at an annealed rate, five seeds of each.

    python -m tools.sweep --config=examples/diffusion/configs/default.py --workdir=runs/diffusion --seeds=5 \
        --grid optimizer.schedule=constant,cosine --judge=test
    python -m examples.diffusion.lengths runs/diffusion    # without a folder, what it has stored before

Makes averages of other lengths where a run does not have them yet. Writes `lengths.json`, `lengths.png` and, of the
first seed at the constant rate, `samples.png` beside this file.
"""

import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from examples import results, samples
from reporting import runs
from runtime.files import replace_file
from tools import posthoc

FOLDER = pathlib.Path(__file__).parent
SCHEDULES = {"constant": "#D55E00", "cosine": "#0072B2"}  # Okabe and Ito's colours
# By name of the curve: in words, and in a colour.
CURVES = {
    "raw": ("raw", "#999999"),
    "ema01": ("EMA, half-life 1 %", "#E69F00"),
    "ema05": ("EMA, half-life 5 %", "#009E73"),
    "ema20": ("EMA, half-life 20 %", "#CC79A7"),
    "uncorrected": ("decay 0.9999, uncorrected", "#000000"),
}
BASIS = ("power05", "power10")
WIDTHS = (0.03, 0.05, 0.07, 0.10, 0.13, 0.16, 0.20)
LENGTHS = {width: f"power_ema:width={width}" for width in WIDTHS}
METRICS = (*samples.METRICS, "loss")


def make_lengths(workdir: pathlib.Path) -> None:
    """Adds the averages of all lengths to a run that lacks some, as `tools.posthoc` with `--last` does."""
    made = {line["curve"] for line in runs.read_lines(workdir / "posthoc.jsonl", "curve")}
    if not made.issuperset(LENGTHS.values()):
        posthoc.write(workdir, posthoc.posthoc(workdir, [*LENGTHS.values()], BASIS, last=True))


def table(result: Mapping[str, Any], schedule: str) -> str:
    """A line for each of the weights: denoising loss, distance, both minus raw, precision and recall."""
    header = ["weights", "denoising loss", "minus raw, thousandths", "distance", "minus raw", "precision", "recall"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    curves = result["schedules"][schedule]
    for name, (words, _) in CURVES.items():
        values = {metric: results.last(curves[name], metric) for metric in METRICS}
        apart = {metric: values[metric] - results.last(curves["raw"], metric) for metric in METRICS}
        cells = [words, f"{values['loss'].mean():.4f}"]
        cells += ["" if name == "raw" else results.in_words(1000 * apart["loss"], sign="+")]
        cells += [results.in_words(values["frechet"])]
        cells += ["" if name == "raw" else results.in_words(apart["frechet"], sign="+")]
        cells += [f"{values[metric].mean():.3f}" for metric in ("precision", "recall")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def findings(result: Mapping[str, Any]) -> str:
    """The best length, and the best of all, for each schedule."""
    lines = [f"real images: distance {result['floor']['frechet']:.2f}"]
    for schedule, curves in result["schedules"].items():
        means = {width: results.last(curves[name], "frechet").mean() for width, name in LENGTHS.items()}
        width = min(means, key=lambda width: means[width])
        values = results.last(curves[LENGTHS[width]], "frechet")
        apart = values - results.last(curves["raw"], "frechet")
        lines.append(
            f"{schedule}: best width {width:.0%}, distance {results.in_words(values)}, minus raw "
            f"{results.in_words(apart, sign='+')}, {values.mean() / result['floor']['frechet']:.1f} times that of real"
        )
        lines.append(
            f"{schedule}: least loss {min(CURVES, key=lambda name: results.last(curves[name], 'loss').mean())}, "
            f"least distance {min(CURVES, key=lambda name: results.last(curves[name], 'frechet').mean())}"
        )
    return "\n".join(lines)


def draw(result: Mapping[str, Any]) -> Figure:
    """Distance over the length of the average, and over training."""
    figure = Figure(figsize=(5, 8), layout="constrained")
    length, *panels = figure.subplots(3, height_ratios=[1.4, 1, 1])
    for schedule, colour in SCHEDULES.items():
        curves = result["schedules"][schedule]
        values = np.stack([results.last(curves[name], "frechet") for name in LENGTHS.values()])
        raw = results.last(curves["raw"], "frechet").mean()
        length.plot([100 * width for width in WIDTHS], values, color=colour, alpha=0.35, linewidth=0.6)
        length.plot([100 * width for width in WIDTHS], values.mean(axis=1), "o-", color=colour, label=schedule)
        length.axhline(raw, color=colour, linestyle="--", linewidth=1, label=f"{schedule}, raw")
    length.set_title("distance at the end of training", loc="left", fontsize=9.5)
    length.set_xlabel("width of the average, % of training", fontsize=9.5)
    for axis, schedule in zip(panels, SCHEDULES, strict=True):
        for name, (words, colour) in CURVES.items():
            values = np.array(result["schedules"][schedule][name]["frechet"])
            axis.plot(result["steps"], values.T, color=colour, alpha=0.35, linewidth=0.6)
            axis.plot(result["steps"], values.mean(axis=0), "o-", color=colour, label=words)
        axis.set_title(f"distance in training, {schedule}", loc="left", fontsize=9.5)
        axis.set_xticks(result["steps"])
    panels[-1].set_xlabel("step of training", fontsize=9.5)
    for axis in figure.axes:
        axis.axhline(result["floor"]["frechet"], color="black", linestyle=":", linewidth=1, label="real images")
        axis.set_yscale("log")
        axis.legend(fontsize=9.5, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        axis.tick_params(labelsize=9.5)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def main(folder: pathlib.Path | None) -> None:
    """Reads the runs if there is a folder, prints and draws."""
    path = FOLDER / "lengths.json"
    if folder:
        workdirs = {name: results.seeds(folder / f"schedule={name}") for name in SCHEDULES}
        every = [workdir for some in workdirs.values() for workdir in some]
        for workdir in every:
            make_lengths(workdir)
        found = {
            name: results.read(some, CURVES, METRICS) | results.read(some, LENGTHS.values(), METRICS)
            for name, some in workdirs.items()
        }
        steps = results.steps(workdirs["constant"][0], "frechet")
        replace_file(path, json.dumps(results.about(every) | {"steps": steps, "schedules": found}) + "\n")
        samples.draw_run(workdirs["constant"][0], FOLDER / "samples.png")
    result = json.loads(path.read_text())
    print(*(f"{schedule}\n{table(result, schedule)}\n" for schedule in SCHEDULES), findings(result), sep="\n")
    draw(result).savefig(FOLDER / "lengths.png", dpi=144)


if __name__ == "__main__":
    if len(sys.argv) > 2 or any(argument.startswith("-") for argument in sys.argv[1:]):
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]) if sys.argv[1:] else None)
