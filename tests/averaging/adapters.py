"""Weight averaging behind three functions, so that the same tests can be put to anyone's.

To put another project's averaging to them, write a function like those below and add it to `ADAPTERS`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import averaging
from train_state import Average, CustomTrainState


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An implementation of one average, which jit can trace.

    Attributes:
        init: parameters -> state.
        update: (state, updated parameters) -> state.
        value: state -> the average, a tree like the parameters.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any], Any]
    value: Callable[[Any], Any]


def ours(average: Average) -> Adapter:
    """averaging.py by itself."""

    def update(state, params):
        value, count = state
        return averaging.update(value, params, average.schedule(count + 1)), count + 1

    return Adapter(lambda params: (averaging.init(params), jnp.int32(0)), update, lambda state: state[0])


def ours_in_training(average: Average) -> Adapter:
    """The averages of a train state, whose parameters and batch statistics are both the parameters here."""

    def init(params):
        return CustomTrainState.create(
            apply_fn=None, params=params, tx=optax.identity(), batch_stats=params, rng=jax.random.key(0),
            averages=(average,),
        )  # fmt: skip

    def value(state):
        of_params, of_stats = state.ema_params[average.name], state.ema_batch_stats[average.name]
        return jax.tree.map(lambda a, b: jnp.where(a == b, a, jnp.nan), of_params, of_stats)  # one as the other

    return Adapter(init, lambda state, params: state.replace(params=params, batch_stats=params).apply_ema(), value)


def optax_incremental_update(average: Average) -> Adapter:
    """Any schedule, by optax's update."""

    def update(state, params):
        value, count = state
        return optax.incremental_update(params, value, average.schedule(count + 1)), count + 1

    return Adapter(lambda params: (jax.tree.map(jnp.copy, params), jnp.int32(0)), update, lambda state: state[0])


def optax_periodic_update(average: Average) -> Adapter:
    """A hard update, by optax's."""
    [(_, period)] = average.arguments

    def update(state, params):
        value, count = state
        return optax.periodic_update(params, value, count + 1, period), count + 1

    return Adapter(lambda params: (jax.tree.map(jnp.copy, params), jnp.int32(0)), update, lambda state: state[0])


ADAPTERS: dict[str, Callable[[Average], Adapter]] = {
    "averaging.py": ours,
    "CustomTrainState": ours_in_training,
    "optax.incremental_update": optax_incremental_update,
    "optax.periodic_update": optax_periodic_update,
}


def late(s: Callable[[int], float], start: int) -> Callable[[int], float]:
    return lambda t: 1.0 if t <= start else s(t - start)


def rare(s: Callable[[int], float], interval: int) -> Callable[[int], float]:
    return lambda t: s(t // interval) if t % interval == 0 else 0.0


D, W, G = 0.999, 0.1, 6.937203937601809  # a decay, a width, and the exponent of that width (Karras et al. 2024: 6.94)
DECAY = (("decay", D),)
# Every kind and what can be done to it, and the step size as its formula says, for a number of updates in Python.
AVERAGES: dict[str, tuple[Average, Callable[[int], float]]] = {
    average.name: (average, formula)
    for average, formula in [
        (Average("ema", "ema", DECAY), lambda t: (1 - D) / (1 - D**t)),
        (Average("biased_ema", "ema", (*DECAY, ("debias", False))), lambda t: 1 - D),
        (Average("warmup_ema", "warmup_ema", DECAY), lambda t: 1 - min(D, (1 + t) / (10 + t))),
        (Average("running_mean", "running_mean"), lambda t: 1 / t),
        (Average("polynomial", "polynomial_decay_mean", (("eta", 3.0),)), lambda t: 4 / (t + 3)),
        (Average("power_ema", "power_ema", (("width", W),)), lambda t: 1 - (1 - 1 / t) ** (G + 1)),
        (Average("soft_update", "soft_update", (("tau", 0.005),)), lambda t: 0.005),
        (
            Average("cosine_update", "cosine_update", (("duration", 900), ("tau", 0.02))),
            lambda t: 0.02 * (1 + math.cos(math.pi * min(t / 900, 1))) / 2,
        ),
        (Average("hard_update", "hard_update", (("period", 7),)), lambda t: float(t % 7 == 0)),
        (Average("late_ema", "ema", DECAY, start=30), late(lambda t: (1 - D) / (1 - D**t), 30)),
        (Average("rare_ema", "ema", DECAY, every=5), rare(lambda t: (1 - D) / (1 - D**t), 5)),
        (
            Average("restarted", "running_mean", restart_every=90),
            lambda t: 1.0 if t > 1 and (t - 1) % 90 == 0 else 1 / ((t - 1) % 90 + 1),
        ),
        (Average("swa", "running_mean", start=60, every=4), late(rare(lambda t: 1 / t, 4), 60)),
    ]
}


def reference(formula: Callable[[int], float], iterates: np.ndarray) -> np.ndarray:
    """The average after the last of these iterates, by the plain recursion in float64: [n + 1, ...] -> [...]."""
    average = iterates[0].astype(np.float64)
    for t, iterate in enumerate(iterates[1:], start=1):
        s = formula(t)
        average = (1 - s) * average + s * iterate
    return average
