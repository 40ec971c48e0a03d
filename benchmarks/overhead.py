"""What do evaluation, logs and checkpoints cost, and what checkpoints alone?

    python -m benchmarks.overhead --config.duration="1 epochs"

Times `train.train_and_evaluate` on configs/mnist.py, which at the end of each epoch scores raw and averaged weights on
all test images and saves a checkpoint, against as many steps of the same training program with nothing around them,
and against the same run without checkpoints. They take turns, after one run of each, and start from the same state.
Loading the data and compiling are left out of all. All else that `main.py` does is in, such as the report at the end
and a checkpoint before the first step.

The rows below these say where the time of the whole run goes, in the thread that trains. `ratio` is to the bare steps,
but for "checkpoints": of the whole run to that without any, so that what their writing takes from training is in.
"""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from ml_collections import config_flags

import settings
import train
from benchmarks import measure
from reporting import page
from runtime import run_config
from runtime.checkpointing import Checkpoints
from runtime.dispatch import Dispatcher
from runtime.errors import UserError
from runtime.metric_writing import MetricWriter
from tools import command_line, finished

_CONFIG = config_flags.DEFINE_config_file("config", "configs/mnist.py", "File with the config.")
_ROUNDS = flags.DEFINE_integer("rounds", 6, "How often the two take turns.", lower_bound=measure.MIN_ROUNDS)

# What takes the time that the steps do not. Checkpoints are written in the background and waited for at the end.
PARTS: dict[str, list[tuple[Any, str]]] = {
    "evaluating": [(train, "evaluate")],
    "saving": [(Checkpoints, "__init__"), (Checkpoints, "save"), (Checkpoints, "__exit__")],
    "logging": [
        (MetricWriter, name) for name in ("__init__", "write_means", "write_scores", "write_progress", "__exit__")
    ],
    "report": [(page, "write")],
}


def run(experiment: train.Experiment, *, saving: bool) -> dict[str, float]:
    """A whole run on data that is loaded already; the seconds that it took, and those of its parts."""
    seconds = dict.fromkeys(PARTS, 0.0)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = function(*args, **kwargs)
            seconds[part] += time.perf_counter() - started
            return result

        return call

    with contextlib.ExitStack() as stack:
        workdir = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(mock.patch.object(settings, "prepare", return_value=experiment.config))
        stack.enter_context(mock.patch.object(train, "create_experiment", return_value=experiment))
        if not saving:
            stack.enter_context(mock.patch.object(Checkpoints, "save", return_value=None))
        for part, functions in PARTS.items():
            for owner, name in functions:
                stack.enter_context(mock.patch.object(owner, name, timed(part, getattr(owner, name))))
        started = time.perf_counter()
        train.train_and_evaluate(_CONFIG.value, workdir)
        page.write(workdir)
        whole = time.perf_counter() - started
        steps = json.loads((workdir / "timing.jsonl").read_text().splitlines()[-1])["train_seconds"]
    return {"whole run": whole, "steps": steps, **seconds, "rest": whole - steps - sum(seconds.values())}


def main(argv: list[str]) -> None:
    """Times both and writes the result."""
    del argv
    logging.set_verbosity(logging.WARNING)
    try:
        experiment = finished.create_experiment(_CONFIG.value)
    except UserError as error:
        sys.exit(f"error: {error}")
    runs: list[dict[str, float]] = []

    def fresh() -> train.Experiment:
        # A run overwrites the state and the sums that it starts from.
        state, sums = jax.block_until_ready(jax.tree.map(jnp.copy, (experiment.state, experiment.sums)))
        return dataclasses.replace(experiment, state=state, sums=sums)

    def whole() -> float:
        runs.append(run(fresh(), saving=True))
        return runs[-1]["whole run"]

    def without_checkpoints() -> float:
        return run(fresh(), saving=False)["whole run"]

    def bare() -> float:
        start = fresh()
        started = time.perf_counter()
        advance(start.state, start.sums, experiment.train_data, 0, experiment.config.duration)
        return time.perf_counter() - started

    advance = Dispatcher(experiment.train_program, experiment.config.chunked)
    with mock.patch.object(train, "Dispatcher", return_value=advance):  # every run would compile its own
        bare()
        whole()
        runs.clear()
        variants = {"bare steps": bare, "whole run": whole, "without checkpoints": without_checkpoints}
        seconds = measure.interleaved(variants, _ROUNDS.value)
    seconds |= {f"of it {part}": [one[part] for one in runs] for part in runs[0] if part != "whole run"}
    rows = []
    for name, values in seconds.items():
        row, ratio = measure.summary(values), measure.paired_ratio(values, seconds["bare steps"])
        rows.append({"what": name, "seconds": row.pop("median"), **row, **ratio})
    added = [a - b for a, b in zip(seconds["whole run"], seconds["without checkpoints"], strict=True)]
    row, ratio = measure.summary(added), measure.paired_ratio(seconds["whole run"], seconds["without checkpoints"])
    rows.append({"what": "checkpoints", "seconds": row.pop("median"), **row, **ratio})
    measure.write("overhead", rows, seconds=seconds, config=json.loads(run_config.to_json(experiment.config)))


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
