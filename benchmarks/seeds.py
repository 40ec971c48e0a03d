r"""How much better are averaged weights than raw ones, over several seeds?

    python -m benchmarks.seeds --config=configs/digits.py --seeds=10 --name=digits
    python -m benchmarks.seeds --config=configs/digits.py --seeds=10 --name=digits_cosine \
        --config.optimizer.schedule=cosine
    python -m benchmarks.seeds --config=configs/mnist_posthoc.py --seeds=3 --name=mnist_posthoc \
        --posthoc=ema:half_life=5% --basis=narrow --basis=wide

Trains the config once per seed, prints a table and writes `benchmarks/results/NAME.json`: what each seed scored, mean
and spread over the seeds, the difference paired over the seeds, the resolved config and the hardware.
"""

import datetime
import json
import pathlib
import sys
import tempfile
from typing import Any

import ml_collections
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

import train
from reporting.runs import last_evaluation, read_metrics
from runtime import environment, intervals
from runtime.errors import UserError
from tools import command_line, posthoc

_CONFIG = config_flags.DEFINE_config_file("config", help_string="File with the config.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds: 0, 1, ...", lower_bound=2)
_POSTHOC = flags.DEFINE_multi_string("posthoc", [], "Average to make after training; see tools.posthoc.")
_BASIS = flags.DEFINE_multi_string("basis", [], "Stored weights to make it of; default: all.")
_NAME = flags.DEFINE_string("name", None, "Of the result.", required=True)


def run(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Trains once; returns the resolved config, the lines of the last evaluation and the seconds spent in training."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        train.train_and_evaluate(config, workdir)
        if _POSTHOC.value:
            lines = posthoc.posthoc(workdir, _POSTHOC.value, _BASIS.value or None)
            posthoc.write(workdir, lines)
        timing = json.loads((workdir / "timing.jsonl").read_text().splitlines()[-1])
        return {
            "config": json.loads((workdir / "config.json").read_text()),
            "metrics": last_evaluation(read_metrics(workdir)),
            "train_seconds": timing["train_seconds"],
        }


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each curve and paired difference the accuracy over the seeds: mean, 95 % interval (Student's t), spread."""
    rows = []
    for lines in zip(*(run["metrics"] for run in runs), strict=True):
        accuracies = np.array([line["accuracy"] for line in lines])
        mean, low, high = intervals.mean_interval(accuracies)
        spread = float(np.std(accuracies, ddof=1))
        row = {"curve": lines[0]["curve"], "mean": mean, "low": low, "high": high, "standard_deviation": spread}
        if "accuracy_low" in lines[0]:
            row["seeds_with_interval_above_0"] = sum(line["accuracy_low"] > 0 for line in lines)
        rows.append(row)
    return rows


def main(argv: list[str]) -> None:
    """Trains once per seed, prints the table and writes the result."""
    del argv
    logging.set_verbosity(logging.WARNING)
    runs = []
    for seed in range(_SEEDS.value):
        config = ml_collections.ConfigDict(_CONFIG.value)
        config.seed = seed
        try:
            runs.append(run(config))
        except UserError as error:
            sys.exit(f"error: {error}")
    rows = summarize(runs)
    result = {
        "date": datetime.date.today().isoformat(),
        "environment": environment.describe(),
        "config": {name: value for name, value in runs[0]["config"].items() if name != "seed"},
        "summary": rows,
        "seeds": [{"metrics": run["metrics"], "train_seconds": run["train_seconds"]} for run in runs],
    }
    path = pathlib.Path(__file__).parent / "results" / f"{_NAME.value}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")

    seconds = sorted(run["train_seconds"] for run in runs)
    print(f"\n{_NAME.value}: {len(runs)} seeds, training {seconds[0]:.0f} .. {seconds[-1]:.0f} s each; accuracy")
    for row in rows:
        above = row.get("seeds_with_interval_above_0")
        text = "{curve:8} {mean:7.2%}  ({low:.2%} .. {high:.2%}), standard deviation {standard_deviation:.2%}"
        note = "" if above is None else f"; interval over the test images above 0 in {above} of {len(runs)} seeds"
        print(text.format(**row) + note)
    print(f"Written to {path}")


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
