"""What the timings share: variants take turns, ratios are paired, and results say where and with what they were taken.

Processors change their speed from minute to minute, and other work comes and goes. So only what was timed in turns is
compared, round by round; seconds of two different runs are not.
"""

import contextlib
import datetime
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

import train
from runtime import environment
from runtime.dispatch import Dispatcher
from train_state import CustomTrainState

# Packages that only the benchmarks use, to compare with.
PEERS = ("torch",)
# Below this number of rounds even the whole range covers the median with less than 95 %.
MIN_ROUNDS = 6
# How busy the machine was before: the mean number of running processes over the last minute.
LOAD_AT_START = os.getloadavg()[0]


def interleaved(variants: Mapping[str, Callable[[], float | None]], rounds: int) -> dict[str, list[float]]:
    """Times variants in turns: A B C, C B A, A B C, ..., so that a steady drift favours none.

    Args:
        variants: by name, what to time. One that times itself, to leave something out, returns its seconds.
        rounds: how many times each is called.

    Returns:
        For each name the seconds of each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in list(variants)[:: 1 if number % 2 == 0 else -1]:
            started = time.perf_counter()
            own = variants[name]()
            seconds[name].append(time.perf_counter() - started if own is None else own)
    return seconds


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of some measurements, in their unit, and their number `n`."""
    return {"median": float(np.median(values)), "min": min(values), "max": max(values), "n": len(values)}


def paired_ratio(values: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """The ratio of two variants: the median over the rounds of each round's own ratio, with a 95 % interval.

    The interval runs from the k-th smallest ratio to the k-th largest, for the largest k at which it covers the median
    of any distribution with at least 95 %: timings have rare large values, under which an interval that assumes a
    normal distribution says little.

    Args:
        values: of one variant, a number a round.
        reference: of the other, in the same rounds.

    Returns:
        `ratio`, `low` and `high`.

    Raises:
        ValueError: there are fewer than `MIN_ROUNDS` rounds.
    """
    if len(values) < MIN_ROUNDS:
        raise ValueError(f"rounds = {len(values)}: an interval needs at least {MIN_ROUNDS}")
    ratios = np.sort(np.asarray(values) / np.asarray(reference))
    k = int(scipy.stats.binom.ppf(0.025, len(ratios), 0.5))  # the coverage is 1 - 2 P(fewer than k below the median)
    return {"ratio": float(np.median(ratios)), "low": float(ratios[k - 1]), "high": float(ratios[-k])}


_COMPILED: list[float] = []


def _on_event(event: str, duration_secs: float, **_: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _COMPILED.append(duration_secs)


jax.monitoring.register_event_duration_secs_listener(_on_event)


def compile_seconds() -> float:
    """How long XLA has been compiling in this process so far."""
    return sum(_COMPILED)


def create_training(experiment: train.Experiment) -> Callable[[int], tuple[CustomTrainState, float]]:
    """This project's training with nothing around it.

    Args:
        experiment: what to train; its state is used up.

    Returns:
        A function that takes a number of further steps, waits for them, and returns the state and their mean loss.
    """
    advance = Dispatcher(experiment.train_program, experiment.config.chunked)
    state, done = experiment.state, 0

    def take(num_steps: int) -> tuple[CustomTrainState, float]:
        nonlocal state, done
        sums = jax.tree.map(jnp.zeros_like, experiment.sums)
        state, sums, _ = advance(state, sums, experiment.train_data, done, done + num_steps)
        done += num_steps
        loss, count = jax.device_get(sums["loss"])
        return state, float(loss / count)

    return take


def create_triad(num_floats: int, num_arrays: int = 1) -> Callable[[], float]:
    """What moving memory costs: `a <- a + s * (b - a)`, which reads two floats and writes one, 12 bytes per float.

    Args:
        num_floats: length of each float32 array.
        num_arrays: how many arrays `a` take turns, with one `b`. One may stay in the cache; several averages do not.

    Returns:
        A function that measures the seconds of one `a <- a + s * (b - a)` of `num_floats`.
    """

    def cycle(arrays: tuple[jax.Array, ...], source: jax.Array, s: jax.Array, count: int) -> tuple[jax.Array, ...]:
        return jax.lax.fori_loop(0, count, lambda _, arrays: tuple(a + s * (source - a) for a in arrays), arrays)

    program = jax.jit(cycle, donate_argnums=0)
    arrays = tuple(jnp.zeros(num_floats) + i for i in range(num_arrays))
    source, s = jnp.ones(num_floats), jnp.float32(0.5)
    count = max(1, 2**26 // (num_floats * num_arrays))
    arrays = jax.block_until_ready(program(arrays, source, s, count))

    def measure() -> float:
        nonlocal arrays
        started = time.perf_counter()
        arrays = jax.block_until_ready(program(arrays, source, s, count))
        return (time.perf_counter() - started) / (count * num_arrays)

    return measure


def matrix_rate(dtype: str) -> float:
    """Floating-point operations per second of a product of square matrices of this type, the best of five."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(matrix))

    def seconds() -> float:
        started = time.perf_counter()
        jax.block_until_ready([product(matrix) for _ in range(10)])
        return (time.perf_counter() - started) / 10

    return 2 * size**3 / min(seconds() for _ in range(5))


def write(name: str, rows: Sequence[Mapping[str, Any]], **details: Any) -> None:
    """Prints a table and writes `benchmarks/results/NAME.json`.

    Args:
        name: of the result.
        rows: lines of the table, with the same keys.
        **details: what else to keep, such as every single measurement.
    """
    columns = [
        [key, *(f"{row[key]:.4g}" if isinstance(row[key], float) else str(row[key]) for row in rows)] for key in rows[0]
    ]
    for line in zip(*([text.rjust(max(map(len, column))) for text in column] for column in columns), strict=True):
        print("  ".join(line))
    surroundings = environment.describe()
    for peer in PEERS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            surroundings["packages"][peer] = metadata.version(peer)
    surroundings["load_at_start"] = LOAD_AT_START
    # The processors that this process may use, where the system tells them apart from those there are.
    affinity = getattr(os, "sched_getaffinity", None)
    surroundings["usable_cpus"] = len(affinity(0)) if affinity else os.cpu_count()
    if "torch" in sys.modules:
        surroundings["torch_threads"] = sys.modules["torch"].get_num_threads()
    result = {"date": datetime.date.today().isoformat(), "environment": surroundings, "rows": rows, **details}
    path = pathlib.Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"Written to {path}", flush=True)
