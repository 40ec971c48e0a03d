"""Weight averages as step-size schedules: `average <- average + s(t) * (params - average)`.

`t = 1, 2, ...` counts the updates of that average and `s` is an ordinary `optax.Schedule`. Every known average is one
choice of `s`:

    state = init(params)
    for t, params in enumerate(iterates, start=1):
        state = update(state, params, schedule(t))

After `T` updates the average is a weighted sum of the iterates `p_0 .. p_T`, with weights that follow from `s` alone:

    w_0 = prod_t (1 - s(t)),    w_i = s(i) * prod_{j > i} (1 - s(j))

This `kernel` sums to 1 and tells before training starts what the average will be: see `describe`. It also turns stored
averages into other ones after training: see `synthesize`.

A schedule takes `t >= 1` as an int or a NumPy array, giving float64, or as a JAX array, traced or not, giving JAX's
default float. Where its formula says 1 it returns exactly 1. A function whose argument is out of its range raises a
ValueError that names it. This module knows nothing of models or of training.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

# ---- The averages ---------------------------------------------------------------------------------------------------


def ema(decay: float, debias: bool = True) -> optax.Schedule:
    """Exponential moving average: `s(t) = 1 - d`, or with exact bias correction `(1 - d) / (1 - d**t)`.

    The average to start with. With bias correction `s(1) = 1`: the first update copies the parameters and nothing of
    the random initialisation remains. The result equals Adam's corrected moment (Kingma & Ba 2015, algorithm 1) at
    every `t`, without a second copy: the correction sits in the step size. Without it the initial parameters keep the
    weight `d**t`.

    Args:
        decay: `d` in [0, 1), per update. Typical: a half-life of 1 % to 10 % of training; 0.999 to 0.9999 in diffusion
            (Ho et al. 2020) and in image classification (Szegedy et al. 2016).
        debias: whether to forget the initial parameters.
    """
    _require("decay", decay, 0 <= decay < 1, "in [0, 1)")
    if not debias or decay == 0:
        return soft_update(1 - decay)
    # 1 - d**t loses its digits in float32 when d is near 1; expm1 with log(d) taken in float64 does not.
    log_decay = math.log(decay)
    return lambda t: _numpy(t).where(t == 1, 1.0, -(1 - decay) / _numpy(t).expm1(t * log_decay))


def warmup_ema(decay: float) -> optax.Schedule:
    """EMA whose decay grows at first: `s(t) = 1 - min(d, (1 + t) / (10 + t))`.

    What `tf.train.ExponentialMovingAverage(num_updates=...)` made customary. Use it to match others (diffusers begins
    one update later: `starting_at(..., 1)`); bias correction (`ema`) does the same without a constant. The initial
    parameters keep a weight that falls as `t**-9` until the decay is reached.

    Args:
        decay: `d` in [0, 1), per update, reached after about `9 / (1 - d)` updates. Typical: 0.999 to 0.9999.
    """
    _require("decay", decay, 0 <= decay < 1, "in [0, 1)")
    return lambda t: _numpy(t).maximum(1 - decay, 9 / (10 + t))


def running_mean() -> optax.Schedule:
    """The mean of all iterates but the initial one: `s(t) = 1 / t`.

    Polyak & Juditsky 1992, Ruppert 1988. The optimal average near a minimum of a convex problem; elsewhere it remembers
    the beginning of training for too long, unless it starts late: `starting_at`, `swa`.
    """
    return lambda t: 1 / t


def polynomial_decay_mean(eta: float) -> optax.Schedule:
    """A mean that forgets the beginning polynomially: `s(t) = (eta + 1) / (t + eta)`.

    Shamir & Zhang 2013 ("Stochastic gradient descent for non-smooth optimization", section 4). The weight of iterate
    `i` is about proportional to `i**eta`, with `eta >= 0`, typically 3; 0 is the running mean. An average of all of
    training with no horizon to choose.
    """
    _require("eta", eta, 0 <= eta < math.inf, "at least 0")
    return lambda t: _numpy(t).where(t == 1, 1.0, (eta + 1) / (t + eta))


def power_ema(width: float) -> optax.Schedule:
    """The power-function average: `s(t) = 1 - (1 - 1/t)**(gamma + 1)` with the exponent of `width_to_gamma(width)`.

    Karras et al. 2024 (EDM2, section 3.1). Iterate `i` has the weight `(i/t)**(gamma + 1) - ((i - 1)/t)**(gamma + 1)`:
    an average with one horizon for every length of training, the same share of what has been trained so far. Two of
    them, snapshotted, are a good basis for `synthesize`.

    Args:
        width: standard deviation of the profile as a share of training, in (0, 1 / sqrt(12)], which is that of the
            running mean. Typical: 0.05 to 0.15.
    """
    exponent = width_to_gamma(width) + 1

    def schedule(t: ArrayLike) -> ArrayLike:
        xp = _numpy(t)
        # In float32 the power of a number near 1 would lose its digits.
        return xp.where(t == 1, 1.0, -xp.expm1(exponent * xp.log1p(-1 / xp.maximum(t, 2))))

    return schedule


def soft_update(tau: float) -> optax.Schedule:
    """The target network of actor-critics and self-supervision: `s(t) = tau`.

    DDPG (Lillicrap et al. 2016), SAC, MoCo. An EMA of decay `1 - tau` that starts at the initial parameters and
    keeps the weight `(1 - tau)**t` on them: right where training itself depends on the average from its first step.

    Args:
        tau: in (0, 1]. Typical: 0.001 to 0.005 in Q-learning.
    """
    _require("tau", tau, 0 < tau <= 1, "in (0, 1]")
    return lambda t: 0 * t + float(tau)


def cosine_update(tau: float, duration: int) -> optax.Schedule:
    """A soft update that comes to rest: `s(t) = tau * (1 + cos(pi * t / T)) / 2`, and 0 from `t = T` on.

    The target network of BYOL (Grill et al. 2020, section 3.3); DINO and MoCo v3 move theirs by the same formula.

    Args:
        tau: in (0, 1], the step size at the start. Typical: 0.004 in BYOL and DINO, 0.01 in MoCo v3.
        duration: `T >= 1`, in updates. Typical: all of training.
    """
    _require("tau", tau, 0 < tau <= 1, "in (0, 1]")
    _require("duration", duration, duration >= 1, "at least 1")
    # The same as the square of a sine of what is left, which keeps its digits near the end in float32.
    return lambda t: tau * _numpy(t).sin(math.pi / 2 / duration * _numpy(t).maximum(duration - t, 0)) ** 2


def hard_update(period: int) -> optax.Schedule:
    """The target network of DQN: `s(t) = 1` if `t % period == 0`, else 0. The same as `optax.periodic_update`.

    Mnih et al. 2015. A copy that stays as it is for `period >= 1` updates, typically 1,000 to 10,000: a delay, not an
    average.
    """
    _require("period", period, period >= 1, "at least 1")
    return lambda t: _numpy(t).where(t % period == 0, 1.0, 0.0)


# ---- What changes when an average moves -----------------------------------------------------------------------------


def starting_at(schedule: optax.Schedule, start: int) -> optax.Schedule:
    """1 for `t <= start`, then `schedule(t - start)`: for `start >= 0` updates the average is the parameters."""
    _require("start", start, start >= 0, "at least 0")
    if start == 0:
        return schedule
    return lambda t: _numpy(t).where(t <= start, 1.0, schedule(_numpy(t).maximum(t - start, 1)))


def every(schedule: optax.Schedule, interval: int) -> optax.Schedule:
    """`schedule(t // interval)` when `interval >= 1` divides `t`, else 0: an average that moves less often.

    The schedule counts firings, so its decay is one per firing: see `half_life_to_decay`.
    """
    _require("interval", interval, interval >= 1, "at least 1")
    if interval == 1:
        return schedule
    return lambda t: _numpy(t).where(t % interval == 0, schedule(_numpy(t).maximum(t // interval, 1)), 0.0)


def restart_every(schedule: optax.Schedule, period: int) -> optax.Schedule:
    """`schedule((t - 1) % period + 1)`, and 1 where that argument is 1 and `t > 1`: the average begins anew.

    For learning rates that restart every `period >= 1` updates (Loshchilov & Hutter 2017): no average spans two cycles.
    """
    _require("period", period, period >= 1, "at least 1")

    def restarted(t: Any) -> ArrayLike:
        since = (t - 1) % period + 1
        return _numpy(t).where((since == 1) & (t > 1), 1.0, schedule(since))

    return restarted


def swa(start: int, interval: int) -> optax.Schedule:
    """Stochastic weight averaging: the mean of every `interval`-th iterate after `start`.

    Izmailov et al. 2018, with a start at 75 % of training and an interval of one epoch. With an interval of 1, the tail
    mean.
    """
    return starting_at(every(running_mean(), interval), start)


# The averages by name. A new one is a schedule above and its name here.
SCHEDULES: Mapping[str, Callable[..., optax.Schedule]] = {
    "ema": ema,
    "warmup_ema": warmup_ema,
    "running_mean": running_mean,
    "polynomial_decay_mean": polynomial_decay_mean,
    "power_ema": power_ema,
    "soft_update": soft_update,
    "cosine_update": cosine_update,
    "hard_update": hard_update,
}


# ---- The update -----------------------------------------------------------------------------------------------------


def init(params: Any) -> Any:
    """An average that has seen no update: a copy of `params`, floats (real and complex) in at least float32.

    A copy, because a state that holds the same buffer twice cannot be donated; float32, because a bfloat16 average
    stops moving: at decay 0.99 its steps already fall below half a unit in the last place.
    """

    def copy(leaf: jax.Array) -> jax.Array:
        new = jnp.copy(leaf)
        return new.astype(jnp.promote_types(leaf.dtype, jnp.float32)) if _is_inexact(leaf) else new

    return jax.tree.map(copy, params)


def update(average: Any, params: Any, step_size: ArrayLike) -> Any:
    """Moves `average` towards `params`: `average + step_size * (params - average)`.

    This form drifts by 2e-6 of the norm over 5,000 float32 updates, `(1 - s) * average + s * params` by 8e-5. Neither
    follows a constant difference whose steps are below half a unit in the last place: in float32 one of 2**-24 / s of
    the average's size, 0.06 % at a decay of 0.9999. The noise of training carries an average over that.

    Args:
        average: tree of arrays.
        params: tree of the same structure and shapes.
        step_size: scalar in [0, 1]; at exactly 1 the result is an exact copy of `params`, at exactly 0 of `average`.

    Returns:
        The new average, each leaf with the dtype it had. Leaves that are not floats are copied from `params`.
    """

    def move(a: jax.Array, p: jax.Array) -> jax.Array:
        if not _is_inexact(p):
            return jnp.copy(p)  # or average and parameters would share a buffer
        dtype = jnp.promote_types(a.dtype, jnp.float32)
        # An array step size would otherwise promote a bfloat16 leaf, and change the type of the carry.
        s, old, new = jnp.asarray(step_size, dtype), a.astype(dtype), p.astype(dtype)
        return jnp.where(s == 1, new, jnp.where(s == 0, old, old + s * (new - old))).astype(a.dtype)

    return jax.tree.map(move, average, params)


# ---- Kernels --------------------------------------------------------------------------------------------------------


def kernel(schedule: optax.Schedule, num_updates: int) -> np.ndarray:
    """The weight that an average gives to each iterate after `num_updates >= 0` updates.

    Returns:
        float64 [num_updates + 1], the weight on the initial parameters first; the sum is 1.
    """
    _require("num_updates", num_updates, num_updates >= 0, "at least 0")
    t = np.arange(1, num_updates + 1)
    s = np.broadcast_to(np.asarray(schedule(t), np.float64), t.shape)  # optax's constant schedule returns a scalar
    # What is left of a weight after all later updates; nothing is later than the last one.
    left = np.append(np.cumprod((1 - s)[::-1])[::-1], 1.0)
    return np.append(1.0, s) * left


@dataclasses.dataclass(frozen=True)
class Description:
    """What an average is after some number of updates, from its kernel. The age of the last iterate is 0.

    Attributes:
        num_updates: that number.
        initial_weight: weight on the initial parameters.
        mean_age: mean age of an iterate, in updates.
        half_life: how many of the newest iterates hold half of the weight.
        relative_width: standard deviation of the age, as a share of `num_updates`.
        effective_number: how many iterates of equal weight would average out independent noise as well:
            `1 / sum(w**2)`.
    """

    num_updates: int
    initial_weight: float
    mean_age: float
    half_life: float
    relative_width: float
    effective_number: float


def describe(schedule: optax.Schedule | np.ndarray, num_updates: int) -> Description:
    """Describes an average, given by its schedule or its kernel, float64 [num_updates + 1], after >= 1 updates."""
    _require("num_updates", num_updates, num_updates >= 1, "at least 1")
    weights = kernel(schedule, num_updates) if callable(schedule) else schedule
    age = np.arange(num_updates, -1, -1)
    mean_age = np.sum(weights * age)
    newest = np.append(0.0, np.cumsum(weights[::-1]))  # weight of the 0, 1, 2, ... newest iterates
    return Description(
        num_updates=num_updates,
        initial_weight=float(weights[0]),
        mean_age=float(mean_age),
        half_life=float(np.interp(0.5, newest, np.arange(num_updates + 2))),
        relative_width=float(np.sqrt(np.sum(weights * (age - mean_age) ** 2)) / num_updates),
        effective_number=float(1 / np.sum(weights**2)),
    )


def synthesize(
    target: optax.Schedule | np.ndarray, num_updates: int, snapshots: Sequence[tuple[optax.Schedule, int]]
) -> tuple[np.ndarray, float]:
    """How to make an average that was not kept from snapshots of others that were.

    The post-hoc EMA of Karras et al. 2024 (EDM2, section 3.2), for averages of any kind: what matters is only how well
    a linear combination of the snapshots' kernels fits the target's. Snapshots of the raw parameters are those of
    `soft_update(1.0)`.

    Args:
        target: the schedule of the average to make, or its kernel, float64 [num_updates + 1].
        num_updates: when, in updates.
        snapshots: at least one (schedule, number of updates when the snapshot was taken, at most `num_updates`).

    Returns:
        A coefficient for each snapshot, which sum to 1, fitted by least squares; and the error of the fit, the norm of
        the difference of the kernels over the norm of the target's.
    """
    _require("snapshots", snapshots, len(snapshots) > 0, "at least one")
    wanted = kernel(target, num_updates) if callable(target) else np.asarray(target, np.float64)
    columns = np.zeros((num_updates + 1, len(snapshots)))
    for column, (schedule, step) in zip(columns.T, snapshots, strict=True):
        _require("step of a snapshot", step, 0 <= step <= num_updates, f"at most num_updates = {num_updates}")
        column[: step + 1] = kernel(schedule, step)
    # With a sum of 1 by construction: then a fit that is not perfect is still an average, not a scaled one.
    first, others = columns[:, :1], columns[:, 1:]
    u, singular, vt = np.linalg.svd(others - first, full_matrices=False)
    # Where kernels hardly differ, a fit may take coefficients of thousands, of opposite signs, which amplify the
    # rounding of what is stored. It goes without those directions, and without those that rounding makes up.
    amounts = u.T @ (wanted - first[:, 0]) / np.maximum(singular, 1e-12 * np.max(singular, initial=1e-200))
    free = vt.T @ np.where(np.abs(amounts) < 1e3, amounts, 0)
    coefficients = np.append(1 - free.sum(), free)
    error = np.linalg.norm(columns @ coefficients - wanted) / np.linalg.norm(wanted)
    return coefficients, float(error)


# ---- Conversions ----------------------------------------------------------------------------------------------------


def half_life_to_decay(half_life: float, interval: int = 1) -> float:
    """The decay per firing, every `interval` updates, at which weights halve in `half_life` updates: `2**(-i / h)`."""
    _require("half_life", half_life, half_life > 0, "above 0")
    _require("interval", interval, interval >= 1, "at least 1")
    return 2 ** (-interval / half_life)


def decay_to_half_life(decay: float, interval: int = 1) -> float:
    """The inverse of `half_life_to_decay`: `-interval / log2(d)` updates."""
    _require("decay", decay, 0 < decay < 1, "in (0, 1)")
    _require("interval", interval, interval >= 1, "at least 1")
    return -interval / math.log2(decay)


def scale_decay(decay: float, batch_ratio: float) -> float:
    """The decay for a batch `batch_ratio` times as large: `d ** batch_ratio` (Busbridge et al. 2023)."""
    _require("decay", decay, 0 <= decay < 1, "in [0, 1)")
    _require("batch_ratio", batch_ratio, batch_ratio > 0, "above 0")
    return decay**batch_ratio


def gamma_to_width(gamma: float) -> float:
    """Width of the power-function average, `sqrt((g + 1) / ((g + 2)**2 * (g + 3)))` (Karras et al. 2024, eq. 126)."""
    _require("gamma", gamma, 0 <= gamma < math.inf, "at least 0")
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def width_to_gamma(width: float) -> float:
    """The exponent at which the power-function average has this width: the inverse of `gamma_to_width`."""
    _require("width", width, 0 < width <= 12**-0.5, "above 0 and at most 1 / sqrt(12) = 0.2887")
    # (gamma + 2)**2 * (gamma + 3) = (gamma + 1) / width**2, of which the largest root is the decreasing branch.
    ratio = width**-2
    return max(0.0, float(np.roots([1, 7, 16 - ratio, 12 - ratio]).real.max()))


def _is_inexact(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _numpy(t: ArrayLike) -> ModuleType:
    """The library whose functions suit `t`: NumPy keeps float64, JAX can trace."""
    return jnp if isinstance(t, jax.Array) else np


def _require(name: str, value: Any, holds: bool, right: str) -> None:
    if not holds:
        raise ValueError(f"{name} = {value}: must be {right}")
