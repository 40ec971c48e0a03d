"""What recomputing an average's batch statistics costs, beside scoring that average on the test set.

python -m benchmarks.recompute_cost --config=configs/cifar10_batch_stats.py
"""

import functools
import json
import sys

import jax
from absl import app, flags
from ml_collections import config_flags

import evaluation
from benchmarks import measure
from runtime import batch_statistics, run_config, sharding
from runtime.errors import UserError
from tools import command_line, finished

_CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/cifar10_batch_stats.py", help_string="File with the config."
)
_ROUNDS = flags.DEFINE_integer(
    "rounds", measure.MIN_ROUNDS, "How often each is timed, in turns.", lower_bound=measure.MIN_ROUNDS
)


def main(argv: list[str]) -> None:
    """Times both and writes the result."""
    del argv
    try:
        experiment = finished.create_experiment(_CONFIG.value)
    except UserError as error:
        sys.exit(f"error: {error}")
    state = experiment.state
    assert experiment.eval_step, "images are classified"
    raw = state.weights()["raw"]
    score = functools.partial(evaluation.score, {"raw": raw}, experiment.eval_data["test"], experiment.eval_step)
    recompute = functools.partial(
        batch_statistics.recompute,
        raw,
        experiment.train_data,
        state,
        batches=range(experiment.config.recompute_batches),
        sharding=sharding.split_batch(experiment.mesh),
    )

    def wait(function: functools.partial) -> None:
        jax.block_until_ready(function())

    variants = {"score": lambda: wait(score), "recompute": lambda: wait(recompute)}
    measure.interleaved(variants, 1)  # compiles
    seconds = measure.interleaved(variants, _ROUNDS.value)
    rows = []
    for name, values in seconds.items():
        row, ratio = measure.summary(values), measure.paired_ratio(values, seconds["score"])
        rows.append({"what": name, "seconds": row.pop("median"), **row, **ratio})
    measure.write("recompute_cost", rows, seconds=seconds, config=json.loads(run_config.to_json(experiment.config)))


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
