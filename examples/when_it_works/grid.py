"""When does averaging help? Batch size x learning rate x width, with wrong and with right labels.

    python -m examples.when_it_works.grid           # trains what grid.json does not have yet, then draws
    python -m examples.when_it_works.grid --draw    # draws what grid.json has

Writes `grid.json` and `grid.png` beside this file. Remove `grid.json` to train everything again.
"""

import contextlib
import datetime
import io
import itertools
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from matplotlib.figure import Figure
from scipy import stats

import train
from configs import digits_noise
from reporting.runs import last_evaluation, read_metrics
from runtime import caching, environment, intervals
from runtime.errors import UserError
from runtime.files import replace_file

FOLDER = pathlib.Path(__file__).parent
PANELS = ((0.4, 32), (0.4, 128), (0.4, 512), (0.0, 128))  # label noise, width of both hidden layers
BATCH_SIZES = (8, 32, 128)
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1)
NUM_SEEDS = 5
AXES = ("label_noise", "width", "batch_size", "learning_rate")
Cell = Mapping[str, Any]  # of these, and with the accuracies "raw" and "ema" of each seed when it is trained
CELLS = [
    dict(zip(AXES, (*panel, batch_size, rate), strict=True))
    for panel, batch_size, rate in itertools.product(PANELS, BATCH_SIZES, LEARNING_RATES)
]
# Okabe and Ito's colours, with markers and dashes for those who see none.
STYLES = (("s-", "#D55E00"), ("^--", "#0072B2"), ("D-.", "#009E73"))


def train_once(cell: Cell, seed: int, duration: str) -> tuple[float | None, float | None]:
    """The test accuracy of the raw and of the averaged weights after a training; None if it was given up on."""
    config = digits_noise.get_config()
    config.seed = seed
    config.label_noise = cell["label_noise"]
    config.model.hidden_sizes = (cell["width"], cell["width"])
    config.batch_size = cell["batch_size"]
    config.optimizer.learning_rate = cell["learning_rate"]
    config.duration = duration
    config.log_every = config.eval_every = config.checkpoint_every = "100%"
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        try:
            train.train_and_evaluate(config, folder)
        except UserError:  # too many steps whose loss or gradient is not finite
            return None, None
        scores = {line["curve"]: line["accuracy"] for line in last_evaluation(read_metrics(pathlib.Path(folder)))}
    return scores["raw"], scores["ema"]


def run(path: pathlib.Path, cells: Sequence[Cell], num_seeds: int, duration: str = "10 epochs") -> None:
    """Trains every cell with every seed, but for cells that the file has, and adds each to the file when it is done."""
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "environment": environment.describe(),
        "cells": [],
    }
    if path.exists():
        result = json.loads(path.read_text())
    known = [{name: cell[name] for name in AXES} for cell in result["cells"]]
    missing = [cell for cell in cells if cell not in known]
    started = time.monotonic()
    for number, cell in enumerate(missing, 1):
        raw, ema = zip(*(train_once(cell, seed, duration) for seed in range(num_seeds)), strict=True)
        result["cells"].append({**cell, "raw": raw, "ema": ema})  # of seeds 0, 1, ...
        minutes = (time.monotonic() - started) / 60
        replace_file(path, json.dumps(result, indent=1) + "\n")
        left = minutes / number * (len(missing) - number)
        print(f"{number * num_seeds}/{len(missing) * num_seeds} runs, {left:.0f} min left: {cell}", flush=True)


def failed(cell: Cell) -> bool:
    """Whether training was given up on in a seed, or ended near the 10 % of a guess."""
    return None in cell["raw"] or bool(np.mean(cell["raw"]) < 0.2)


def accuracy(cell: Cell, curve: str) -> np.ndarray:
    """Test accuracy of each seed, in %; NaN where training was given up on."""
    return 100 * np.array(cell[curve], float)


def gain(cell: Cell) -> np.ndarray:
    """Averaged minus raw accuracy of each seed, in points; NaN where training failed."""
    return np.where(failed(cell), np.nan, accuracy(cell, "ema") - accuracy(cell, "raw"))


def panels(cells: Sequence[Cell]) -> dict[str, list[tuple[int, list[Cell]]]]:
    """Of each panel, by its name, the batch sizes and their cells in the order of learning rates."""
    found: dict[str, list[tuple[int, list[Cell]]]] = {}
    for (noise, width, batch_size), row in itertools.groupby(cells, key=lambda cell: [cell[axis] for axis in AXES[:3]]):
        labels = f"{100 * noise:.0f} % wrong" if noise else "right"
        found.setdefault(f"width {width}, {labels} labels", []).append((batch_size, list(row)))
    return found


def table(cells: Sequence[Cell]) -> str:
    """Two tables: of each cell the mean raw accuracy, and the mean gain with half the width of its 95 % interval."""

    def level(cell: Cell) -> str:
        return f"{accuracy(cell, 'raw').mean():.1f} %"

    def added(cell: Cell) -> str:
        mean, low, _ = intervals.mean_interval(gain(cell))
        return f"{mean:+.1f} ± {mean - low:.1f}"

    header = ["network and labels", "batch size", *(f"rate {x:g}" for x in sorted({c["learning_rate"] for c in cells}))]
    tables = []
    for title, text in {"Raw accuracy:": level, "Gain, in points:": added}.items():
        lines = [title, "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        for name, rows in panels(cells).items():
            for batch_size, row in rows:
                found = " | ".join("failed" if failed(cell) else text(cell) for cell in row)
                lines.append(f"| {name} | {batch_size} | {found} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def findings(cells: Sequence[Cell]) -> str:
    """How the gain goes with learning rate / batch size, and what averaging adds to the best cell; over the seeds."""
    lines = []
    for name, rows in panels(cells).items():
        some = [cell for _, row in rows for cell in row if not failed(cell)]
        gains = np.transpose([gain(cell) for cell in some])  # [seed, cell]
        _, low, high = intervals.mean_interval(gains)
        lines.append(f"{name}: of {len(some)} intervals, {np.sum(low > 0)} above 0 and {np.sum(high < 0)} below")
        ratios = [cell["learning_rate"] / cell["batch_size"] for cell in some]
        rank = intervals.mean_interval(np.array([stats.spearmanr(ratios, of_seed).statistic for of_seed in gains]))
        lines.append("    rank correlation of gain and rate / batch size {:.2f} ({:.2f} .. {:.2f})".format(*rank))
        best = {}
        for curve, what in (("raw", "raw     "), ("ema", "averaged")):
            scores = np.transpose([accuracy(cell, curve) for cell in some])
            # The other seeds choose the cell: otherwise what is luck in one of them would count as a good choice.
            best[curve] = np.array([of[np.delete(scores, i, 0).mean(0).argmax()] for i, of in enumerate(scores)])
            cell = some[scores.mean(0).argmax()]
            where = f"batch size {cell['batch_size']}, rate {cell['learning_rate']:g}"
            lines.append(f"    best {what} {best[curve].mean():.1f} % ({where})")
        difference = intervals.mean_interval(best["ema"] - best["raw"])
        lines.append("    best averaged minus best raw {:+.1f} ({:+.1f} .. {:+.1f}) points".format(*difference))
    return "\n".join(lines)


def draw(cells: Sequence[Cell]) -> Figure:
    """The gain, and beside it the level of the raw weights; a row for each panel."""
    rows = panels(cells)
    # Five inches and 9.5 points: on a phone of 360 pixels the text is 9.5 pixels high.
    figure = Figure(figsize=(5, 1 + 2 * len(rows)), layout="constrained")
    all_axes = figure.subplots(len(rows), 2, sharex=True, sharey="col", squeeze=False)
    for axes, (name, lines) in zip(all_axes, rows.items(), strict=True):
        for (batch_size, row), style in zip(lines, STYLES, strict=False):
            ratios = [cell["learning_rate"] / batch_size for cell in row]
            for axis, values in zip(axes, ([gain(c) for c in row], [accuracy(c, "raw") for c in row]), strict=True):
                mean, low, _ = intervals.mean_interval(np.stack(values, axis=1))
                label = f"batch size {batch_size}"
                axis.errorbar(ratios, mean, mean - low, fmt=style[0], color=style[1], label=label, capsize=2, ms=5)
        axes[0].axhline(0, color="black", linewidth=0.8)
        for axis, title in zip(axes, (f"{name}\naveraged minus raw, points", "raw accuracy, %"), strict=True):
            axis.set_title(title, loc="left", fontsize=9.5)
            axis.set_xscale("log")
            axis.set_xticks([1e-4, 1e-3, 1e-2], ["0.0001", "0.001", "0.01"])
            axis.grid(alpha=0.25)
            axis.tick_params(labelsize=9.5)
            axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*all_axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9.5)
    figure.supxlabel(
        f"learning rate / batch size (bars: 95 % intervals over {len(cells[0]['raw'])} seeds)", fontsize=9.5
    )
    return figure


def main() -> None:
    logging.set_verbosity(logging.WARNING)
    if sys.argv[1:] == []:
        with tempfile.TemporaryDirectory() as folder:
            caching.enable(folder)  # the seeds of a cell share compiled programs
            run(FOLDER / "grid.json", CELLS, NUM_SEEDS)
    elif sys.argv[1:] != ["--draw"]:
        sys.exit(__doc__)
    cells = json.loads((FOLDER / "grid.json").read_text())["cells"]
    print(f"{table(cells)}\n\n{findings(cells)}")
    draw(cells).savefig(FOLDER / "grid.png", dpi=160)


if __name__ == "__main__":
    main()
