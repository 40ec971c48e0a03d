"""Does training run faster when the device repeats the step, or when the host dispatches each?

    python -m benchmarks.dispatch

For every shipped config whose data set is there, the training program is timed both ways in turns: `step`, one dispatch
a batch, and `chunk`, one dispatch for many. `chunk / step` is the ratio of their times and `rule` what
`dispatch.suits_chunks` says. `rule / step at most` is the upper end of the interval of what following the rule costs: 1
where it says "step", for then it is the same program.
"""

import functools
import importlib
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags, logging

import train
from benchmarks import measure
from runtime.dispatch import Dispatcher, suits_chunks
from runtime.errors import UserError
from tools import finished

_ROUNDS = flags.DEFINE_integer("rounds", 8, "How often the two take turns.", lower_bound=measure.MIN_ROUNDS)

SECONDS = 0.5  # of a turn, about


def create_call(experiment: train.Experiment, *, chunked: bool) -> Callable[[], float]:
    """A function that measures the seconds of a training step, as the mean over as many as fit into a turn."""
    advance = Dispatcher(experiment.train_program, chunked)
    (state, sums), done = jax.tree.map(jnp.copy, (experiment.state, experiment.sums)), 0

    def call(num_steps: int) -> float:
        nonlocal state, sums, done
        started = time.perf_counter()
        state, sums, _ = advance(state, sums, experiment.train_data, done, done + num_steps)
        done += num_steps
        return (time.perf_counter() - started) / num_steps

    call(1)  # which compiles
    num_steps = max(1, int(SECONDS / call(2)))
    return functools.partial(call, num_steps)


def measure_config(name: str) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """A row of the table, and all that was timed for it."""
    config = importlib.import_module(f"configs.{name}").get_config()
    experiment = finished.create_experiment(config)
    chunked = suits_chunks(experiment.train_program, experiment.state, experiment.train_data)
    calls = {way: create_call(experiment, chunked=way == "chunk") for way in ("step", "chunk")}
    seconds = measure.interleaved(calls, _ROUNDS.value)
    row = {"config": name, "model": config.model.name, "batch": config.batch_size}
    row |= {f"{name} ms": 1e3 * measure.summary(values)["median"] for name, values in seconds.items()}
    ratio = measure.paired_ratio(seconds["chunk"], seconds["step"])
    row |= {f"chunk / step {key}".removesuffix(" ratio"): value for key, value in ratio.items()}
    row |= {"rule": "chunk" if chunked else "step", "rule / step at most": ratio["high"] if chunked else 1.0}
    return row, seconds


def main(argv: list[str]) -> None:
    """Measures every config and writes the result."""
    del argv
    logging.set_verbosity(logging.WARNING)
    rows, seconds = [], {}
    configs = pathlib.Path(__file__).parent.parent / "configs"
    for name in sorted(path.stem for path in configs.glob("[!_]*.py") if path.stem != "default"):
        try:
            row, seconds[name] = measure_config(name)
        except UserError as error:
            print(f"{name} is left out: {error}", flush=True)
            continue
        rows.append(row)
        print(row, flush=True)
    measure.write("dispatch", rows, seconds=seconds)


if __name__ == "__main__":
    app.run(main)
