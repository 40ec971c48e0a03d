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

from absl import logging

import caching
import environment
import train
from configs import digits
from errors import UserError
from tools.runs import last_evaluation, read_metrics

FOLDER = pathlib.Path(__file__).parent
PANELS = ((0.4, 32), (0.4, 128), (0.4, 512), (0.0, 128))  # label noise, width of both hidden layers
BATCH_SIZES = (8, 32, 128)
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1)
NUM_SEEDS = 5
AXES = ("label_noise", "width", "batch_size", "learning_rate")
CELLS = [
    dict(zip(AXES, (*panel, batch_size, rate), strict=True))
    for panel, batch_size, rate in itertools.product(PANELS, BATCH_SIZES, LEARNING_RATES)
]


def train_once(cell: Mapping[str, Any], seed: int, duration: str) -> tuple[float | None, float | None]:
    """The test accuracy of the raw and of the averaged weights after a training; None if it was given up on."""
    config = digits.get_config()
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


def run(path: pathlib.Path, cells: Sequence[Mapping[str, Any]], num_seeds: int, duration: str = "10 epochs") -> None:
    """Trains every cell with every seed, but for cells that the file has, and adds each to the file when it is done."""
    result = {"date": datetime.date.today().isoformat(), "environment": environment.describe(), "cells": []}
    if path.exists():
        result = json.loads(path.read_text())
    known = [{name: cell[name] for name in AXES} for cell in result["cells"]]
    missing = [cell for cell in cells if cell not in known]
    started = time.monotonic()
    for number, cell in enumerate(missing, 1):
        raw, ema = zip(*(train_once(cell, seed, duration) for seed in range(num_seeds)), strict=True)
        result["cells"].append({**cell, "raw": raw, "ema": ema})  # of seeds 0, 1, ...
        minutes = (time.monotonic() - started) / 60
        path.write_text(json.dumps(result, indent=1) + "\n")
        left = minutes / number * (len(missing) - number)
        print(f"{number * num_seeds}/{len(missing) * num_seeds} runs, {left:.0f} min left: {cell}", flush=True)


def main() -> None:
    logging.set_verbosity(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        caching.enable(folder)  # the seeds of a cell share compiled programs
        run(FOLDER / "grid.json", CELLS, NUM_SEEDS)


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    main()
