r"""How much do averaged weights gain over raw ones, over several seeds?

    python -m benchmarks.seeds --config=configs/digits.py --seeds=10 --name=digits
    python -m benchmarks.seeds --config=configs/digits.py --seeds=10 --name=digits_cosine \
        --config.optimizer.schedule=cosine

Trains the config once per seed, prints a table and writes `benchmarks/results/NAME.json`: the scores of every seed,
their mean and spread, the mean difference paired over seeds with its interval, the resolved config and the hardware.
"""

import datetime
import json
import pathlib
import tempfile

import numpy as np
from absl import app, flags
from ml_collections import config_flags

import environment
import evaluation
import train
from tools import report

_CONFIG = config_flags.DEFINE_config_file("config", help_string="File with the config.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds: 0, 1, ...", lower_bound=2)
_NAME = flags.DEFINE_string("name", None, "Of the result.", required=True)


def run(seed: int) -> dict[str, dict[str, float]]:
    """Trains with one seed; returns the final metrics of every curve, and the seconds of training as "time"."""
    config = _CONFIG.value.copy_and_resolve_references()
    config.seed = seed
    with tempfile.TemporaryDirectory() as workdir:
        train.train_and_evaluate(config, workdir)
        path = pathlib.Path(workdir)
        timing = json.loads((path / "timing.jsonl").read_text().splitlines()[-1])
        metrics = {
            line["curve"]: {key: value for key, value in line.items() if isinstance(value, float)}
            for line in report.last_evaluation(report.read(path))
        }
        _RESOLVED.update(json.loads((path / "config.json").read_text()))
    return metrics | {"time": {"train_seconds": timing["train_seconds"]}}


_RESOLVED: dict[str, object] = {}


def summarize(results: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over the seeds of each curve's accuracy, and of each paired difference."""
    summary = {}
    for curve in results[0]:
        if curve == "time":
            continue
        mean, low, high = evaluation.mean_interval(np.array([result[curve]["accuracy"] for result in results]))
        summary[curve] = {
            "mean": mean,
            "low": low,
            "high": high,
            "standard_deviation": float(np.std([result[curve]["accuracy"] for result in results], ddof=1)),
        }
        if curve.endswith("-raw"):
            summary[curve]["seeds_above_zero"] = sum(result[curve]["accuracy_low"] > 0 for result in results)
    return summary


def main(argv: list[str]) -> None:
    """Trains once per seed and writes the result."""
    del argv
    results = [run(seed) for seed in range(_SEEDS.value)]
    summary = summarize(results)
    result = {
        "date": datetime.date.today().isoformat(),
        "environment": environment.describe(),
        "config": {key: value for key, value in _RESOLVED.items() if key != "seed"},
        "summary": summary,
        "seeds": results,
    }
    path = pathlib.Path(__file__).parent / "results" / f"{_NAME.value}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    seconds = [r["time"]["train_seconds"] for r in results]
    print(f"\n{_NAME.value}: accuracy over {len(results)} seeds, training {min(seconds):.0f} .. {max(seconds):.0f} s")
    for curve, values in summary.items():
        line = "{:10} {mean:8.2%}, 95 % interval {low:.2%} .. {high:.2%}, standard deviation {standard_deviation:.2%}"
        text = line.format(curve, **values)
        if "seeds_above_zero" in values:
            text += f"; interval of the test images above 0 in {values['seeds_above_zero']} of {len(results)} seeds"
        print(text)
    print(f"Written to {path}")


if __name__ == "__main__":
    app.run(main)
