"""Weight averages as step-size schedules: `average <- average + s(t) * (params - average)`.

`t = 1, 2, ...` counts the updates of that average and `s` is an ordinary `optax.Schedule`. Every known average is one
choice of `s`; the weight that the average gives to each iterate follows from `s` alone. This module knows nothing of
models or of training.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike


def ema(decay: float, debias: bool = True) -> optax.Schedule:
    """Exponential moving average: `s(t) = 1 - d`, or with exact bias correction `(1 - d) / (1 - d**t)`.

    With bias correction `s(1) = 1`: the first update copies the parameters and nothing of the random initialisation
    remains. The result equals Adam's corrected moment (Kingma & Ba 2015, algorithm 1) at every `t`, without a second
    copy: the correction sits in the step size. Without it the initial parameters keep the weight `d**t`.

    Args:
        decay: `d` in [0, 1), per update. 0.999 remembers about the last 1,000 updates.
        debias: whether to forget the initial parameters.

    Returns:
        The schedule: takes `t >= 1` (an int or NumPy array, giving float64, or a JAX array, giving float32).

    Raises:
        ValueError: if `decay` is outside [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay = {decay} is outside [0, 1)")
    if not debias or decay == 0:
        return lambda t: 0 * t + (1 - decay)
    # 1 - d**t loses its digits in float32 when d is near 1; expm1 with log(d) taken in float64 does not.
    log_decay = math.log(decay)

    def schedule(t: ArrayLike) -> ArrayLike:
        xp = jnp if isinstance(t, jax.Array) else np
        return xp.where(t == 1, 1.0, -(1 - decay) / xp.expm1(t * log_decay))

    return schedule


def half_life_to_decay(half_life: float) -> float:
    """The decay per update at which a weight halves within `half_life` updates: `2 ** (-1 / half_life)`.

    Raises:
        ValueError: if `half_life` is not positive.
    """
    if half_life <= 0:
        raise ValueError(f"half_life = {half_life} is not positive")
    return 2 ** (-1 / half_life)


# A new average is a schedule above and its name here.
SCHEDULES: Mapping[str, Callable[..., optax.Schedule]] = {"ema": ema}


@dataclasses.dataclass(frozen=True)
class Average:
    """Which average to keep. Plain values, compared by value, so that it can be a static part of a jitted state."""

    name: str
    kind: str  # a key of SCHEDULES
    arguments: tuple[tuple[str, float], ...]  # what that schedule takes, as (name, value)

    def step_size(self, count: ArrayLike) -> ArrayLike:
        """`s(t)` at update `count >= 1`."""
        return SCHEDULES[self.kind](**dict(self.arguments))(count)


def _is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def init(params: Any) -> Any:
    """An average that has seen no update: a copy of `params`, floats in at least float32.

    A copy, because a state that holds the same buffer twice cannot be donated; float32, because a bfloat16 average
    stops moving: at decay 0.99 its steps already fall below half a unit in the last place.
    """

    def copy(leaf: jax.Array) -> jax.Array:
        new = jnp.copy(leaf)
        return new.astype(jnp.promote_types(leaf.dtype, jnp.float32)) if _is_float(leaf) else new

    return jax.tree.map(copy, params)


def update(average: Any, params: Any, step_size: ArrayLike) -> Any:
    """Moves `average` towards `params`: `average + step_size * (params - average)`.

    This form drifts by 2e-6 of the norm over 5,000 float32 updates, `(1 - s) * average + s * params` by 8e-5.

    Args:
        average: tree of arrays.
        params: tree of the same structure and shapes.
        step_size: scalar in [0, 1]; at exactly 1 the result is an exact copy of `params`.

    Returns:
        The new average, each leaf with the dtype it had. Leaves that are not floats are copied from `params`.
    """

    def move(a: jax.Array, p: jax.Array) -> jax.Array:
        if not _is_float(p):
            return p
        dtype = jnp.promote_types(a.dtype, jnp.float32)
        # An array step size would otherwise promote a bfloat16 leaf, and change the type of the carry.
        s, old, new = jnp.asarray(step_size, dtype), a.astype(dtype), p.astype(dtype)
        return jnp.where(s == 1, new, old + s * (new - old)).astype(a.dtype)

    return jax.tree.map(move, average, params)
