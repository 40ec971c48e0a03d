r"""How much better are averaged weights than raw ones, over several seeds?

    python -m benchmarks.seeds --config=configs/digits.py --seeds=10 --name=digits
    python -m benchmarks.seeds --config=configs/digits.py --seeds=10 --name=digits_cosine \
        --config.optimizer.schedule=cosine
    python -m benchmarks.seeds --config=configs/mnist_posthoc.py --seeds=3 --name=mnist_posthoc \
        --posthoc=ema:half_life=5% --basis=narrow --basis=wide

Trains the config once per seed, prints a table and writes `benchmarks/results/NAME.json`: what each seed scored, mean
and spread over the seeds, the difference paired over the seeds, the resolved config and the hardware. With
`--workdirs=DIR` the runs stay in DIR/seed0, DIR/seed1, ..., for `python -m tools.report DIR/seed*`; they are continued
where they were interrupted, as those of tools.sweep.
"""

import datetime
import json
import pathlib
import sys
import tempfile
from typing import Any

import ml_collections
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from reporting.runs import last_evaluation, read_metrics
from runtime import environment, intervals
from runtime.errors import UserError
from runtime.files import local_path
from tools import command_line, posthoc, sweep

_CONFIG = config_flags.DEFINE_config_file("config", help_string="File with the config.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds: 0, 1, ...", lower_bound=2)
_POSTHOC = flags.DEFINE_multi_string("posthoc", [], "Average to make after training; see tools.posthoc.")
_BASIS = flags.DEFINE_multi_string("basis", [], "Stored weights to make it of; default: all.")
_NAME = flags.DEFINE_string("name", None, "Of the result.", required=True)
_WORKDIRS = flags.DEFINE_string("workdirs", "", "Folder to keep the runs in; empty: they are not kept.")


def read(workdir: pathlib.Path) -> dict[str, Any]:
    """The resolved config of a run, the lines of its last evaluation and the seconds spent in training."""
    if _POSTHOC.value:
        posthoc.write(workdir, posthoc.posthoc(workdir, _POSTHOC.value, _BASIS.value or None))
    timing = json.loads((workdir / "timing.jsonl").read_text().splitlines()[-1])
    return {
        "config": json.loads((workdir / "config.json").read_text()),
        "metrics": last_evaluation(read_metrics(workdir)),
        "train_seconds": timing["train_seconds"],
    }


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each curve and paired difference the run's first metric over the seeds: mean, 95 % interval, spread."""
    rows, metric = [], runs[0]["config"]["best_metric"]
    for lines in zip(*(run["metrics"] for run in runs), strict=True):
        values = np.array([line[metric] for line in lines])
        mean, low, high = intervals.mean_interval(values)
        spread = float(np.std(values, ddof=1))
        row = {"curve": lines[0]["curve"], "mean": mean, "low": low, "high": high, "standard_deviation": spread}
        if f"{metric}_low" in lines[0]:
            row["seeds_with_interval_above_0"] = sum(line[f"{metric}_low"] > 0 for line in lines)
        rows.append(row)
    return rows


def main(argv: list[str]) -> None:
    """Trains once per seed, prints the table and writes the result."""
    del argv
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = local_path(_WORKDIRS.value or temporary, "--workdirs")
            configs = {f"seed{seed}": ml_collections.ConfigDict(_CONFIG.value) for seed in range(_SEEDS.value)}
            for seed, config in enumerate(configs.values()):
                config.seed = seed
            waiting, failed = sweep.check(folder, configs)
            failed |= sweep.train_all(folder, waiting)
            if failed:
                raise UserError("\n".join(f"{workdir}: {reason}" for workdir, reason in failed.items()))
            runs = [read(folder / workdir) for workdir in configs]
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
    metric, proportions = (runs[0]["config"][name] for name in ("best_metric", "proportions"))
    print(f"\n{_NAME.value}: {len(runs)} seeds, training {seconds[0]:.0f} .. {seconds[-1]:.0f} s each; {metric}")
    form = ".2%" if metric in proportions else ".4g"
    for row in rows:
        mean, low, high, spread = (f"{row[name]:{form}}" for name in ("mean", "low", "high", "standard_deviation"))
        above = row.get("seeds_with_interval_above_0")
        note = "" if above is None else f"; interval over the examples above 0 in {above} of {len(runs)} seeds"
        print(f"{row['curve']:8} {mean:>7}  ({low} .. {high}), standard deviation {spread}{note}")
    print(f"Written to {path}")


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
