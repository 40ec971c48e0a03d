"""What target averages are needed for: learning from predictions of the weights that are being learned.

    python -m examples.bootstrapping docs/images/bootstrapping.png

Prints how fast three small problems of reinforcement learning approach their solution or run away from it, without a
target, with averages of the weights as targets and with copies, and draws it.

The expected updates of linear predictions are a linear map of weights and target, so its spectral radius is what a
step multiplies the error by in the long run: below 1 it converges, above 1 it diverges, from almost every start.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from matplotlib.figure import Figure

import averaging

GAMMA = 0.99
NONE = averaging.soft_update(1.0)  # the target is the weights
RATES = (0.001, 0.01, 0.1, 1.0)


# ---- A table of Q-values --------------------------------------------------------------------------------------------

# Five states in a row, and the end. Action 0 leads to the left, 1 to the right, and entering the end pays 1.
NEXT = np.array([[0, 1], [0, 2], [1, 3], [2, 4], [3, 5], [5, 5]])
REWARD = np.where((NEXT == 5) & (np.arange(6) < 5)[:, None], 1.0, 0.0)


def optimal_q() -> np.ndarray:
    """Q* of the chain by value iteration, float64 [states, actions]."""
    q, before = REWARD, np.zeros_like(REWARD)
    while np.any(q != before):
        q, before = REWARD + GAMMA * q.max(axis=1)[NEXT], q
    return q


def q_errors(schedule: optax.Schedule, num_steps: int = 4000) -> np.ndarray:
    """The largest error of Q-learning after each update of one random state and action, float64 [num_steps]."""
    with jax.enable_x64(True):
        return np.asarray(_learn_q(_step_sizes(schedule, num_steps)))


@jax.jit
def _learn_q(step_sizes: jax.Array) -> jax.Array:
    following, reward, optimum = jnp.asarray(NEXT), jnp.asarray(REWARD), optimal_q()

    def update(tables: tuple[jax.Array, jax.Array], now: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
        (q, target), (t, step_size) = tables, now
        s, a = jax.random.randint(jax.random.fold_in(jax.random.key(0), t), (2,), 0, jnp.array(REWARD.shape))
        q = q.at[s, a].add(0.5 * (reward[s, a] + GAMMA * target[following[s, a]].max() - q[s, a]))
        return (q, averaging.update(target, q, step_size)), jnp.abs(q - optimum).max()

    q = jnp.zeros_like(reward)
    return jax.lax.scan(update, (q, averaging.init(q)), (jnp.arange(len(step_sizes)), step_sizes))[1]


def _step_sizes(schedule: optax.Schedule, num_steps: int) -> np.ndarray:
    return np.asarray(schedule(np.arange(1, num_steps + 1)), np.float64)


# ---- Linear predictions ---------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """Policy evaluation without rewards, so that all values are 0, with every state updated equally often.

    Attributes:
        features: float64 [states, weights]; the predicted values are `features @ weights`.
        following: int [states], the state that the policy leads to.
        start: float64 [weights].
    """

    features: np.ndarray
    following: np.ndarray
    start: np.ndarray


# Baird's counterexample with seven states, and the two states of Tsitsiklis and Van Roy, of values w and 2w.
BAIRD = Problem(
    np.block([[2 * np.eye(6), np.zeros((6, 1)), np.ones((6, 1))], [np.zeros((1, 6)), 1, 2]]),
    np.full(7, 6),
    np.array([1.0, 1, 1, 1, 1, 1, 10, 1]),
)
TWO_STATES = Problem(np.array([[1.0], [2.0]]), np.array([1, 1]), np.array([1.0]))


def step(problem: Problem, both: jax.Array, step_size: ArrayLike, rate: ArrayLike, ridge: ArrayLike) -> jax.Array:
    """An expected update of semi-gradient TD(0), after which the target moves.

    Args:
        problem: what is predicted.
        both: weights and target, [2 * weights].
        step_size: of the average that the target is.
        rate: the learning rate.
        ridge: strength of a penalty of `ridge / 2 * sum(weights**2)`.
    """
    weights, target = jnp.split(both, 2)
    errors = GAMMA * (problem.features @ target)[problem.following] - problem.features @ weights
    weights += rate * (errors @ problem.features / len(errors) - ridge * weights)
    return jnp.concatenate([weights, averaging.update(target, weights, step_size)])


@jax.jit
def _map(problem: Problem, step_size: ArrayLike, rate: ArrayLike, ridge: ArrayLike) -> jax.Array:
    zeros = jnp.zeros(2 * problem.features.shape[1])
    return jax.jacfwd(lambda both: step(problem, both, step_size, rate, ridge))(zeros)


def matrix(problem: Problem, step_size: float, rate: float, ridge: float = 0.0) -> np.ndarray:
    """The linear map that a step is, float64 [2 * weights, 2 * weights]."""
    with jax.enable_x64(True):
        return np.asarray(_map(problem, step_size, rate, ridge))


def seen(problem: Problem) -> Problem:
    """The same problem without directions of the weights in which no value changes: there no weight moves either."""
    _, _, directions = np.linalg.svd(problem.features, full_matrices=False)
    return Problem(problem.features @ directions.T, problem.following, directions @ problem.start)


def growth(
    problem: Problem, schedule: optax.Schedule, period: int = 1, rate: float = 0.01, ridge: float = 0.0
) -> float:
    """What a step multiplies the error by in the long run, for a schedule that repeats itself after a period."""
    sizes = _step_sizes(schedule, period)
    maps = {size: matrix(seen(problem), size, rate, ridge) for size in set(sizes)}
    product = np.eye(len(maps[sizes[0]]))
    for size in sizes:
        product = maps[size] @ product
    return _radius(product) ** (1 / period)


def _radius(square: np.ndarray) -> float:
    return float(np.abs(np.linalg.eigvals(square)).max())


def full_fit(problem: Problem, ridge: float = 0.0) -> float:
    """What the error is multiplied by in the long run if the weights are fitted to each target completely."""
    fixed = matrix(seen(problem), step_size=0.0, rate=1.0, ridge=ridge)
    half = len(fixed) // 2
    return _radius(np.linalg.solve(np.eye(half) - fixed[:half, :half], fixed[:half, half:]))


def largest_rate(problem: Problem) -> float:
    """The learning rate from which on not even a target that stands still is approached."""
    return float(2 * len(problem.features) / np.linalg.norm(problem.features, ord=2) ** 2)


def largest_tau(problem: Problem, rate: float) -> float:
    """The tau below which a soft target converges."""
    return _boundary(lambda tau: growth(problem, averaging.soft_update(tau), rate=rate) < 1, 1e-3 * rate, 1.0)


def smallest_penalty(problem: Problem) -> float:
    """The `ridge` above which it converges without a target."""
    return _boundary(lambda ridge: growth(problem, NONE, ridge=ridge) < 1, 1.0, 1e-3)


def _boundary(converges: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where between a value at which it converges and one at which it does not this changes, by bisection."""
    while abs(inside / outside - 1) > 1e-9:
        middle = (inside * outside) ** 0.5
        inside, outside = (middle, outside) if converges(middle) else (inside, middle)
    return inside


def shortest_period(problem: Problem, rate: float, at_most: int = 10_000) -> int:
    """The smallest period at which a hard target converges.

    Raises:
        ValueError: there is none of `at_most` steps or fewer.
    """
    copy, keep = (matrix(seen(problem), size, rate) for size in (1.0, 0.0))
    since = np.eye(len(keep))
    for period in range(1, at_most + 1):
        if _radius(copy @ since) < 1:
            return period
        since = keep @ since
    raise ValueError(f"no period up to {at_most} converges")


def value_errors(
    problem: Problem, schedule: optax.Schedule, num_steps: int = 10_000, rate: float = 0.01, ridge: float = 0.0
) -> np.ndarray:
    """The norm of the predicted values, which should be 0, after each step; float64 [num_steps]."""
    with jax.enable_x64(True):
        return np.asarray(_predict(problem, _step_sizes(schedule, num_steps), rate, ridge))


@jax.jit
def _predict(problem: Problem, step_sizes: jax.Array, rate: ArrayLike, ridge: ArrayLike) -> jax.Array:
    def advance(both: jax.Array, step_size: jax.Array) -> tuple[jax.Array, jax.Array]:
        both = step(problem, both, step_size, rate, ridge)
        return both, jnp.linalg.norm(problem.features @ jnp.split(both, 2)[0])

    both = jnp.concatenate([problem.start, averaging.init(problem.start)])
    return jax.lax.scan(advance, both, step_sizes)[1]


# ---- What is found --------------------------------------------------------------------------------------------------


def findings() -> str:
    """All figures, as text."""
    soft, hard = averaging.soft_update, averaging.hard_update
    targets = {"no target": (NONE, 1)} | {f"tau {tau}": (soft(tau), 1) for tau in (0.05, 0.01, 0.001)}
    targets |= {f"copy {period}": (hard(period), period) for period in (100, 1000)}
    needed = [int(np.argmax(q_errors(soft(tau)) < 1e-4)) + 1 for tau in (1.0, 0.1, 0.01)]
    lines = [
        "Table: updates until Q-learning is within 0.0001 of Q*",
        f"no target {needed[0]:,}; tau 0.1 {needed[1]:,}; tau 0.01 {needed[2]:,}",
        "",
        "Factor of the error in a full fit, and its growth per step at a learning rate of 0.01, in millionths",
        f"{'':24}  full fit" + "".join(f"{name:>11}" for name in targets),
    ]
    for name, problem, ridge in (
        ("Baird", BAIRD, 0.0),
        ("two states", TWO_STATES, 0.0),
        ("two states, penalty 0.46", TWO_STATES, 0.46),
        ("two states, penalty 0.48", TWO_STATES, 0.48),
    ):
        factors = [growth(problem, schedule, period, ridge=ridge) for schedule, period in targets.values()]
        lines.append(
            f"{name:24}{full_fit(problem, ridge):10.4f}"
            + "".join(f"{1e6 * (factor - 1):+11,.1f}" for factor in factors)
        )
    lines += ["", "Baird converges with", "learning rate  tau below  tau / rate  copies every, at least"]
    for rate in RATES:
        tau = largest_tau(BAIRD, rate)
        lines.append(f"{rate:<13}  {tau:<9.5f}  {tau / rate:<10.3f}  {shortest_period(BAIRD, rate):,}")
    lines += ["", f"tau / rate at a learning rate of 0.00001: {largest_tau(BAIRD, 1e-5) / 1e-5:.3f}"]
    for what, of in (
        ("Fits diverge at learning rates", largest_rate),
        ("Penalties make targets unnecessary", smallest_penalty),
    ):
        lines.append(f"{what} above {of(BAIRD):.4f} (Baird) and {of(TWO_STATES):.4f} (two states)")
    return "\n".join(lines)


def draw() -> Figure:
    """Errors over steps in the three problems, and growth over tau."""
    soft, hard = averaging.soft_update, averaging.hard_update
    figure = Figure(figsize=(5, 8), layout="constrained")  # at 9.5 points, legible on a phone of 360 pixels
    table, baird, two, rates = figure.subplots(4)
    styles = {"no target": (NONE, "-", "#D55E00"), "τ = 0.05": (soft(0.05), "--", "#009E73")}
    styles |= {"τ = 0.01": (soft(0.01), "-.", "#0072B2"), "copy every 100": (hard(100), ":", "black")}
    for name, (schedule, dashes, colour) in styles.items():
        look: dict[str, Any] = {"linestyle": dashes, "color": colour, "label": name}
        table.semilogy(q_errors(schedule), **look)
        baird.semilogy(value_errors(BAIRD, schedule), **look)
        two.semilogy(value_errors(TWO_STATES, schedule), **look | {"label": None})
    penalised = value_errors(TWO_STATES, soft(0.01), ridge=0.6)
    two.semilogy(penalised, color="0.6", linewidth=2.5, label="τ = 0.01, penalty 0.6")
    taus = np.geomspace(1e-3, 1, 61)
    for name, problem, ridge, look in (
        ("Baird", BAIRD, 0.0, {"color": "#D55E00"}),
        ("two states", TWO_STATES, 0.0, {"color": "#0072B2", "linestyle": "--"}),
        ("two states, penalty 0.6", TWO_STATES, 0.6, {"color": "0.6", "linewidth": 2.5}),
    ):
        per_mille = [1000 * (growth(problem, soft(tau), ridge=ridge) - 1) for tau in taus]
        rates.semilogx(taus, per_mille, label=name, **look)
    rates.axhline(0, color="black", linewidth=0.8)
    threshold = largest_tau(BAIRD, 0.01)
    rates.plot(threshold, 0, "o", color="black")
    rates.annotate(f"{threshold:.4f}", (threshold, 0), (-34, 5), textcoords="offset points", fontsize=9.5)
    table.set(ylim=(1e-9, 3), title="Q-learning with a table: largest error")
    baird.set(ylim=(1, 1e8), title="Baird's counterexample: error of the values")
    two.set(ylim=(1e-2, 1e12), title="two states, values w and 2w: error of the values")
    rates.set(ylim=(-1.8, 7.5), title="growth of the error per step, in thousandths")
    two.set_xlabel("step", fontsize=9.5)
    rates.set_xlabel("τ (at 1 the target is the weights)", fontsize=9.5)
    for axes in (table, baird, two, rates):
        axes.set_title(axes.get_title(), fontsize=9.5)
        axes.tick_params(labelsize=9.5)
    for axes in (table, two, rates):
        axes.legend(fontsize=9.5)
    return figure


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    print(findings())
    draw().savefig(sys.argv[1], dpi=144, pil_kwargs={"optimize": True})
