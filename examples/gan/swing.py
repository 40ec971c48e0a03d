"""What averages of a generator do: five trainings of a GAN, their swing, and the game whose closed form is known.

    python -m tools.sweep --config=examples/gan/configs/default.py --workdir=runs/gan --seeds=5
    python -m examples.gan.swing runs/gan    # reads the runs; without a folder, what it has stored before

Writes `swing.json`, `swing.png` and, of the first seed, `samples.png` beside this file.
"""

import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from examples import results, samples
from examples.gan import bilinear
from runtime.files import replace_file

FOLDER = pathlib.Path(__file__).parent
# By name of the curve: in words, and in Okabe and Ito's colours.
CURVES = {
    "raw": ("raw", "#999999"),
    "ema01": ("EMA, half-life 1 %", "#D55E00"),
    "ema05": ("EMA, half-life 5 %", "#0072B2"),
    "ema20": ("EMA, half-life 20 %", "#009E73"),
    "mean": ("running mean", "#CC79A7"),
}


def swing(curve: Mapping[str, Any]) -> np.ndarray:
    """The mean change of the distance from one evaluation to the next in the second half of training, [seeds]."""
    values = np.array(curve["frechet"])
    return np.abs(np.diff(values[:, values.shape[1] // 2 - 1 :])).mean(axis=1)


def table(result: Mapping[str, Any]) -> str:
    """A line for each of the weights: distance at the end, paired difference, swing, precision and recall."""
    header = ["weights", "distance", "minus raw", "swing", "minus raw", "precision", "recall"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    raw = result["curves"]["raw"]
    for name, (words, _) in CURVES.items():
        curve = result["curves"][name]
        apart = results.last(curve, "frechet") - results.last(raw, "frechet")
        cells = [words, results.in_words(results.last(curve, "frechet"))]
        cells += ["" if name == "raw" else results.in_words(apart, sign="+"), f"{swing(curve).mean():.1f}"]
        cells += ["" if name == "raw" else results.in_words(swing(curve) - swing(raw), sign="+")]
        cells += [f"{results.last(curve, metric).mean():.2f}" for metric in ("precision", "recall")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(result: Mapping[str, Any]) -> Figure:
    """The game in the plane, and the distance of each seed over training with its mean."""
    figure = Figure(figsize=(5, 9), layout="constrained")
    game, *panels = figure.subplots(4, height_ratios=[1.25, 1, 1, 1])
    paths = bilinear.play(1500, 0.02)
    for name, words, colour in (
        ("raw", "players", "#999999"),
        ("ema", "EMA", "#0072B2"),
        ("mean", "running mean", "#CC79A7"),
    ):
        game.plot(paths[name].real, paths[name].imag, color=colour, label=words)
    game.set(aspect="equal")
    game.set_title("min over x, max over y of x * y", loc="left", fontsize=9.5)
    game.legend(fontsize=9.5, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, handlelength=0.8)
    for axis, names in zip(panels, (("raw", "ema01"), ("raw", "ema05"), ("raw", "ema20", "mean")), strict=True):
        for name in names:
            words, colour = CURVES[name]
            values = np.array(result["curves"][name]["frechet"])
            axis.semilogy(result["steps"], values.T, color=colour, alpha=0.3, linewidth=0.6)
            axis.semilogy(result["steps"], np.exp(np.log(values).mean(axis=0)), color=colour, linewidth=2, label=words)
        axis.axhline(result["floor"]["frechet"], color="black", linestyle=":", linewidth=1)
        axis.legend(fontsize=9.5, loc="upper right", frameon=False)
        axis.set_xticks([0, 4000, 8000])
        axis.set_ylabel("distance", fontsize=9.5)
    panels[-1].set_xlabel("step of training", fontsize=9.5)
    for axis in figure.axes:
        axis.tick_params(labelsize=9.5)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def main(folder: pathlib.Path | None) -> None:
    """Reads the runs if there is a folder, prints and draws."""
    path = FOLDER / "swing.json"
    if folder:
        workdirs = results.seeds(folder)
        curves, steps = results.read(workdirs, CURVES, samples.METRICS), results.steps(workdirs[0], "frechet")
        replace_file(path, json.dumps(results.about(workdirs) | {"steps": steps, "curves": curves}) + "\n")
        samples.draw_run(workdirs[0], FOLDER / "samples.png")
    result = json.loads(path.read_text())
    print(table(result))
    draw(result).savefig(FOLDER / "swing.png", dpi=144)


if __name__ == "__main__":
    if len(sys.argv) > 2 or any(argument.startswith("-") for argument in sys.argv[1:]):
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]) if sys.argv[1:] else None)
