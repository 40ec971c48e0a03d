"""Does training run faster when the device repeats the step, or when the host dispatches each?

    python -m benchmarks.dispatch

For every shipped config whose data set is there, the training program is timed both ways in turns: `step`, one dispatch
a batch, and `chunk`, one dispatch for many. `chunk / step` is the ratio of their times; `rule` is what
`dispatch.suits_chunks` says, and `rule / step at most` the upper end of the interval of what following it costs: 1 where
it says "step", for then it is the same program. On processors, ResNet-18 is timed on batches of 8 images: in a chunk, a
step of 128 would take minutes.
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

import dispatch
import train
from benchmarks import measure
from errors import UserError

_ROUNDS = flags.DEFINE_integer("rounds", 10, "How often the two take turns.", lower_bound=measure.MIN_ROUNDS)

SECONDS = 0.5  # of a turn, about


def create_call(experiment: train.Experiment, program: dispatch.Step, *, chunked: bool) -> Callable[[], float]:
    """A function that measures the seconds of a training step, as the mean over as many as fit into a turn."""
    advance = dispatch.Dispatcher(program, chunked=chunked, max_steps=0, sharding=train.replicated(experiment.mesh))
    data = experiment.train_data
    carry = jax.tree.map(jnp.copy, (experiment.state, create_sums(experiment)))
    done = 0

    def call(num_steps: int) -> float:
        nonlocal carry, done
        started = time.perf_counter()
        state, sums = carry
        carry = advance(state, sums, data, done, done + num_steps)
        done += num_steps
        return (time.perf_counter() - started) / num_steps

    call(1)  # which compiles
    num_steps = max(1, int(SECONDS / min(call(1), call(2))))
    return functools.partial(call, num_steps)


def create_sums(experiment: train.Experiment) -> train.Metrics:
    """Metric sums over no steps."""
    loss_fn = functools.partial(train.loss_fn, **experiment.config.loss)
    return train.create_zero_sums(loss_fn, experiment.state, experiment.train_data, experiment.mesh)()


def measure_config(name: str) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """A row of the table, and all that was timed for it."""
    config = importlib.import_module(f"configs.{name}").get_config()
    if config.model.name == "resnet" and config.model.depth == 18 and jax.default_backend() == "cpu":
        config.batch_size = 8
    experiment = train.set_up(config, pathlib.Path("none"), "refuse")
    loss_fn = functools.partial(train.loss_fn, **experiment.config.loss)
    program = train.create_train_program(loss_fn, experiment.mesh, config.accumulate)
    chunked = dispatch.suits_chunks(program, experiment.state, create_sums(experiment), experiment.train_data)
    calls = {name: create_call(experiment, program, chunked=name == "chunk") for name in ("step", "chunk")}
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
