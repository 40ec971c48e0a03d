"""Episodes that judge an actor and its critics: what it earns, and how far they are from that."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from examples.td3 import pendulum
from runtime.score_metrics import Sets
from train import Experiment


@functools.partial(jax.jit, static_argnames=("apply_fn", "beyond"))
def play(
    apply_fn: Any, variables: Any, keys: jax.Array, gamma: float, temperature: float, beyond: int
) -> tuple[jax.Array, jax.Array]:
    """Plays episodes without noise: each one's return, and the mean bias of the values of its actions.

    The bias is the mean value by all critics minus the discounted rewards that followed, for each action of the
    episode. Critics bootstrap at the time limit, so what they estimate goes on for ever, and so do these rewards: the
    limit is lifted, and for `beyond` more steps rewards are added up (and, as the values of SAC have it, the entropy
    of the actions after the first). What comes later than that weighs less than `gamma ** beyond`.
    """

    def episode(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        def act(carry: Any, key: jax.Array) -> tuple[Any, Any]:
            observation, environment = carry
            action, log_prob = apply_fn(variables, observation, key, method="act")
            value = apply_fn(variables, observation, action, method="value").mean(axis=0)
            unlimited = environment._replace(time=jnp.zeros_like(environment.time))
            observation, environment, reward, *_ = pendulum.step(key, unlimited, action)
            return (observation, environment), (value, reward, log_prob)

        def add(later: jax.Array, step: Any) -> tuple[jax.Array, jax.Array]:
            reward, log_prob = step
            worth = reward + gamma * later
            return worth - temperature * log_prob, worth

        start, following = jax.random.split(key)
        _, (values, rewards, log_probs) = jax.lax.scan(
            act, pendulum.reset(start), jax.random.split(following, pendulum.MAX_STEPS + beyond)
        )
        _, worth = jax.lax.scan(add, jnp.zeros(()), (rewards, log_probs), reverse=True)
        return rewards[: pendulum.MAX_STEPS].sum(), (values - worth)[: pendulum.MAX_STEPS].mean()

    return jax.vmap(episode)(keys)


def evaluate(experiment: Experiment, weights: dict[str, Any], split: str) -> Sets:
    """The mean return of episodes, and the mean bias of the values in them; see `play`."""
    gamma, temperature = experiment.config.loss.gamma, experiment.config.loss.temperature
    beyond = math.ceil(math.log(1e-3, gamma))
    found = {}
    for name, variables in weights.items():
        keys = experiment.eval_data[split]
        returns, bias = jax.device_get(play(experiment.state.apply_fn, variables, keys, gamma, temperature, beyond))
        found[name] = {"return": (returns.mean(), returns), "bias": (bias.mean(), bias)}
    return found
