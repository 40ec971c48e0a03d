r"""Do curves differ when a model computes in bfloat16 instead of float32?

    python -m benchmarks.precision --config=configs/cifar10_small.py --name=cifar10_small_precision \
        --config.duration="200 steps" --config.log_every="10 steps" --config.eval_every="50 steps"

Trains the config once in each, from the same seed, prints both curves and writes `benchmarks/results/NAME.json`: all
metrics, the dtypes that parameters, averages and optimizer ended with, times, the resolved config and the hardware.
"""

import datetime
import json
import math
import pathlib
import sys
import tempfile
from typing import Any

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

import train
from reporting.runs import read_metrics
from runtime import environment
from runtime.errors import UserError
from tools import command_line

_CONFIG = config_flags.DEFINE_config_file("config", help_string="File with the config.")
_NAME = flags.DEFINE_string("name", None, "Of the result.", required=True)


def run(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Trains once; returns the resolved config, all metrics, the dtypes of the state's floats, and the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        state, _ = train.train_and_evaluate(config, workdir)
        fields = ("params", "batch_stats", "opt_state", "ema_params", "ema_batch_stats")
        return {
            "config": json.loads((workdir / "config.json").read_text()),
            "metrics": read_metrics(workdir),
            "dtypes": {
                field: sorted({str(leaf.dtype) for leaf in jax.tree.leaves(getattr(state, field))}) for field in fields
            },
            "timing": [json.loads(line) for line in (workdir / "timing.jsonl").read_text().splitlines()],
        }


def main(argv: list[str]) -> None:
    """Trains in float32 and bfloat16, prints the curves and writes the result."""
    del argv
    logging.set_verbosity(logging.WARNING)
    runs = {}
    for dtype in ("float32", "bfloat16"):
        config = ml_collections.ConfigDict(_CONFIG.value)
        config.model.dtype = dtype
        try:
            runs[dtype] = run(config)
        except UserError as error:
            sys.exit(f"error: {error}")
    result = {"date": datetime.date.today().isoformat(), "environment": environment.describe(), "runs": runs}
    path = pathlib.Path(__file__).parent / "results" / f"{_NAME.value}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")

    print(f"\n{'curve':6} {'step':>6} {'metric':9}" + "".join(f"{dtype:>10}" for dtype in runs))
    for lines in zip(*(run["metrics"] for run in runs.values()), strict=True):
        name = "loss" if lines[0]["curve"] == "train" else "accuracy"
        if name in lines[0] and not lines[0]["curve"].endswith("-raw"):
            values = "".join(f"{math.nan if line[name] is None else line[name]:10.4f}" for line in lines)
            print(f"{lines[0]['curve']:6} {lines[0]['step']:6} {name:9}{values}")
    for dtype, run_ in runs.items():
        print(f"{dtype}: {run_['timing'][-1]['train_seconds']:.0f} s of training; dtypes {run_['dtypes']}")
    print(f"Written to {path}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=command_line.parse)
