"""What does one average cost?

    python -m benchmarks.average_cost

Times the optimizer (SGD with momentum) and 0, 8 and 16 averages on the state that training uses, without a model's
gradients: as one program a step, and as one program that loops over many. A line through the three, fitted by least
squares in each round, gives the milliseconds of one average. An average has to read itself and the parameters and to
write itself: 12 bytes per parameter. `memory time` is the time of the fastest loop that does just that, over one pair
of arrays, which a cache may hold, and over as many arrays as there are averages; the ratios are to these.

`bytes` are those that the compiled program takes for one more average beyond its 4 per parameter: kept in the state,
and for intermediate results.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging

import models
from benchmarks import measure
from train_state import Average, CustomTrainState

_NAME = flags.DEFINE_string("name", "average_cost", "Of the result.")
_ROUNDS = flags.DEFINE_integer("rounds", 10, "How often the variants take turns.", lower_bound=measure.MIN_ROUNDS)

NUM_AVERAGES = (0, 8, 16)
# Name, image shape, model, and how many steps to time at once: a multiple of every interval below.
SUBJECTS: tuple[tuple[str, tuple[int, ...], dict[str, Any], int], ...] = (
    ("CNN", (28, 28, 1), {"name": "cnn", "batch_norm": False, "dropout": 0.0}, 100),
    (
        "ResNet-18",
        (32, 32, 3),
        {"name": "resnet", "depth": 18, "width": 1, "zero_init_residual": False, "dropout": 0.0},
        10,
    ),
)
INTERVALS = (1, 10)  # `every` of the averages


def create_params(image_shape: tuple[int, ...], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a model's shapes, drawn from a normal distribution."""
    model = models.create_model(num_classes=10, dtype="float32", **fields)
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, *image_shape)))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)


def create_state(params: Any, num_averages: int, interval: int) -> CustomTrainState:
    """A state of training with so many averages, all different, that move every `interval` steps."""
    averages = tuple(
        Average(f"average{i}", "ema", (("decay", 0.99 + 1e-4 * i),), every=interval) for i in range(num_averages)
    )
    tx = optax.sgd(0.1, momentum=0.9)
    return CustomTrainState.create(apply_fn=None, params=params, tx=tx, rng=jax.random.key(0), averages=averages)


def step(state: CustomTrainState, factor: jax.Array) -> CustomTrainState:
    """A step of training whose gradient is `factor` times the parameters."""
    grads = jax.tree.map(lambda p: factor * p, state.params)
    ok = jnp.isfinite(factor)
    return state.accept_if(ok, state.apply_gradients(grads=grads)).apply_ema(moved=ok)


def chunk(state: CustomTrainState, factor: jax.Array, count: int) -> CustomTrainState:
    """Many steps in one program."""
    return jax.lax.fori_loop(0, count, lambda _, state: step(state, factor), state)


def create_call(state: CustomTrainState, num_steps: int, *, chunked: bool) -> tuple[Callable[[], float], Any]:
    """A function that measures the seconds of a step, as the mean over so many, and what memory its program takes."""
    factor = jnp.float32(1e-6)
    if chunked:
        program = jax.jit(chunk, donate_argnums=0).lower(state, factor, num_steps).compile()
    else:
        program = jax.jit(step, donate_argnums=0).lower(state, factor).compile()

    def call() -> float:
        nonlocal state
        started = time.perf_counter()
        if chunked:
            state = program(state, factor, num_steps)
        else:
            for _ in range(num_steps):
                state = program(state, factor)
        jax.block_until_ready(state)
        return (time.perf_counter() - started) / num_steps

    call()  # to warm up
    return call, program.memory_analysis()


def measure_average(
    params: Any, triads: Mapping[str, Callable[[], float]], num_steps: int, *, chunked: bool, interval: int
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """The cost of one average: a row of the table, and all that was timed for it."""
    # Created by jit, or all averages would be copied one by one.
    states = {n: jax.jit(functools.partial(create_state, params, n, interval))() for n in NUM_AVERAGES}
    calls, memory = {}, {}
    for n in NUM_AVERAGES:
        calls[str(n)], memory[n] = create_call(states.pop(n), num_steps, chunked=chunked)
    seconds = measure.interleaved({**calls, **triads}, _ROUNDS.value)
    slopes = np.polyfit(NUM_AVERAGES, [seconds[str(n)] for n in NUM_AVERAGES], deg=1)[0]
    row = {"every": interval, "ms": 1e3 * float(np.median(slopes))}
    for name in triads:
        ratio = measure.paired_ratio(slopes, seconds[name])
        row |= {f"{name} ms": 1e3 * float(np.median(seconds[name]))} | {f"{name} {key}": ratio[key] for key in ratio}
    few, many = NUM_AVERAGES[0], NUM_AVERAGES[-1]
    num_bytes = 4 * sum(x.size for x in jax.tree.leaves(params))
    for name in ("argument", "temp"):
        total = getattr(memory[many], f"{name}_size_in_bytes") - getattr(memory[few], f"{name}_size_in_bytes")
        row[f"{name} bytes"] = total / (many - few) - (num_bytes if name == "argument" else 0)
    return row, seconds


def main(argv: list[str]) -> None:
    """Measures each model, program and interval, and writes the result."""
    del argv
    logging.set_verbosity(logging.WARNING)
    rows, seconds = [], []
    for name, image_shape, fields, num_steps in SUBJECTS:
        params = create_params(image_shape, fields)
        num_floats = sum(x.size for x in jax.tree.leaves(params))
        triads = {"pair": measure.create_triad(num_floats), "cycle": measure.create_triad(num_floats, NUM_AVERAGES[-1])}
        for chunked in (False, True):
            for interval in INTERVALS:
                row, timed = measure_average(params, triads, num_steps, chunked=chunked, interval=interval)
                rows.append({"model": name, "parameters": num_floats, "program": "loop" if chunked else "step", **row})
                seconds.append(timed)
    measure.write(_NAME.value, rows, seconds=seconds)


if __name__ == "__main__":
    app.run(main)
