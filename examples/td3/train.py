"""Continuous control by an actor and critics whose targets are an average of both: TD3 (Fujimoto et al. 2018).

    python main.py --config=examples/td3/configs/default.py --workdir=runs/td3
    python main.py --config=examples/td3/configs/sac.py --workdir=runs/sac
    python main.py --config=examples/td3/configs/default.py --workdir=runs/none --config.loss.target=none \
        --config.averages.target.kind=none

Each step acts in an environment, puts what happened into the buffer, and learns from a batch of it
(`examples/replay.py`). Actor and critics are parts of one model with one objective, in which the loss of each takes the
other as constant; how often each moves is that of its group in `config.optimizer.groups`. The target networks of both
are one average, the one that `config.loss.target` names.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from examples import replay
from examples.td3 import pendulum
from examples.td3.episodes import evaluate
from examples.td3.networks import ActorCritics
from input_pipeline import Data
from runtime.errors import UserError
from train import Task
from train_state import CustomTrainState

LIMIT = pendulum.MAX_TORQUE


def create_model(
    example: tuple[jax.Array, jax.Array],
    *,
    num_critics: int = 2,
    hidden_sizes: tuple[int, ...] = (256, 256),
    stochastic: bool = False,
) -> ActorCritics:
    """An actor and critics; 2 of these for clipped double Q-learning, 1 without."""
    if num_critics < 1:
        raise UserError(f"model.num_critics = {num_critics}: must be at least 1")
    return ActorCritics(example[1].shape[-1], LIMIT, num_critics, hidden_sizes, stochastic)


def explore(state: CustomTrainState, keys: jax.Array, observation: jax.Array, *, noise: float) -> jax.Array:
    """The actor's actions with noise [environments, 1]."""
    action, _ = state.apply_fn({"params": state.params}, observation, keys[0], method="act")
    return jnp.clip(action + noise * LIMIT * jax.random.normal(keys[1], action.shape), -LIMIT, LIMIT)


def create_data(
    config: Any,
    mesh: jax.sharding.Mesh,
    *,
    environments: int = 4,
    acts: int = 1,
    buffer_size: int = 50_000,
    warmup: int = 1_000,
    noise: float = 0.1,
) -> Data:
    """Environments, and a buffer with random actions in it.

    Args:
        config: resolved.
        mesh: the devices.
        environments: how many act at once.
        acts: actions of each of them between two steps of training.
        buffer_size: number of the latest transitions that are kept.
        warmup: number of transitions by random actions before the first step.
        noise: standard deviation of what is added to the actor's actions, as a share of the largest.

    Raises:
        UserError: another environment is asked for.
    """
    del mesh
    if config.dataset != "Pendulum-v1":
        raise UserError(f"dataset = {config.dataset!r}: must be 'Pendulum-v1', the only environment of this fork")

    def at_random(keys: jax.Array, observation: jax.Array) -> jax.Array:
        return jax.random.uniform(keys[0], (len(observation), 1), minval=-LIMIT, maxval=LIMIT)

    return replay.create_data(
        config,
        pendulum,
        functools.partial(explore, noise=noise),
        at_random,
        environments=environments,
        acts=acts,
        buffer_size=buffer_size,
        warmup=warmup,
    )


def loss_fn(
    params: Any,
    state: CustomTrainState,
    batch: dict[str, jax.Array],
    *,
    target: str = "target",
    gamma: float = 0.99,
    smoothing: float = 0.2,
    smoothing_clip: float = 0.5,
    target_actor: bool = True,
    temperature: float = 0.0,
) -> Any:
    """The squared errors of the critics, minus the value of what the actor would do.

    Args:
        params: of actor and critics.
        state: with the averages.
        batch: transitions.
        target: name of the average that next actions and their values are from; "none" for the networks themselves.
        gamma: discount.
        smoothing: standard deviation of the noise on next actions, as a share of the largest action.
        smoothing_clip: largest absolute value of that noise, as the same share.
        target_actor: whether next actions are those of the target's actor; False for the actor itself, as in SAC.
        temperature: what the entropy of a stochastic actor is worth (SAC, Haarnoja et al. 2018).
    """
    act, value = (functools.partial(state.apply_fn, method=method) for method in ("act", "value"))
    own, fixed = {"params": params}, {"params": jax.lax.stop_gradient(params)}
    slow = fixed if target == "none" else {"params": state.ema_params[target]}
    keys = jax.random.split(state.step_key("actions"), 3)

    observation = batch["next_observation"]
    action, log_prob = act(slow if target_actor else fixed, observation, keys[0])
    noise = jnp.clip(smoothing * jax.random.normal(keys[1], action.shape), -smoothing_clip, smoothing_clip)
    action = jnp.clip(action + LIMIT * noise, -LIMIT, LIMIT)
    later = value(slow, observation, action).min(axis=0) - temperature * log_prob
    aim = batch["reward"] + gamma * jnp.where(batch["terminated"], 0, later)
    values = value(own, batch["observation"], batch["action"])
    error = jnp.square(values - aim).sum(axis=0)

    action, log_prob = act(own, batch["observation"], keys[2])
    worth = value(fixed, batch["observation"], action)
    # As published: the first critic's in TD3, the lowest in SAC.
    actor = temperature * log_prob - (worth.min(axis=0) if temperature else worth[0])
    metrics = {"loss": (error.sum(), error.size), "value": (values.sum(), values.size)}
    return error.mean() + actor.mean(), (metrics, {})


TASK = Task(
    loss_fn,
    score_fn=None,
    metrics={"return": "higher"},
    evaluate=evaluate,
    create_model=create_model,
    create_data=create_data,
    num_train=lambda config: None,
    needs=lambda loss: () if loss["target"] == "none" else (loss["target"],),
)
