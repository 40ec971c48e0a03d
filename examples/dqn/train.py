"""Q-learning whose targets come from an average of the network, with replay (Mnih et al. 2015).

    python main.py --config=examples/dqn/configs/default.py --workdir=runs/dqn
    python main.py --config=examples/dqn/configs/default.py --workdir=runs/none --config.loss.target=none \
        --config.averages.target.kind=none

Each step acts in some environments, puts what happened into the buffer, and learns from a batch of it (replay.py). The
buffer and the environments are the state's `memory`; the target network is the average that `config.loss.target` names.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from examples import replay
from examples.dqn.environments import Environment, find
from input_pipeline import Data
from runtime.errors import UserError
from runtime.score_metrics import Sets
from train import Experiment, Task
from train_state import CustomTrainState


class QNetwork(nn.Module):
    """The value of each action: two hidden layers, by default those of CleanRL's dqn.py, after any convolutions."""

    num_actions: int
    hidden_sizes: tuple[int, ...]
    layer_norm: bool
    convolutions: tuple[int, ...]
    ndim: int  # of an observation

    @nn.compact
    def __call__(self, observation: jax.Array, train: bool) -> jax.Array:
        """Maps observations [..., *observation] to values [..., actions]."""
        x = observation
        for features in self.convolutions:
            x = nn.relu(nn.Conv(features, (3, 3), padding="VALID")(x))
        x = x.reshape(*x.shape[: x.ndim - self.ndim], -1)
        for size in self.hidden_sizes:
            x = nn.Dense(size)(x)
            x = nn.relu(nn.LayerNorm()(x) if self.layer_norm else x)
        return nn.Dense(self.num_actions)(x)


def create_model(
    example: tuple[jax.Array, jax.Array],
    *,
    hidden_sizes: tuple[int, ...] = (120, 84),
    layer_norm: bool = False,
    convolutions: tuple[int, ...] = (),
) -> QNetwork:
    """A network with a value for each action; layer normalisation is what can stand in for a target.

    Args:
        example: an observation and the values of its actions.
        hidden_sizes: width of each hidden layer.
        layer_norm: whether each is normalised.
        convolutions: features of each 3x3 convolution before them, for observations [height, width, channels].

    Raises:
        UserError: there are convolutions, and observations are no images.
    """
    shape = example[0].shape[1:]
    if convolutions and len(shape) != 3:
        raise UserError(f"model.convolutions = {convolutions}: observations are {list(shape)}, no images; set it to ()")
    return QNetwork(example[1].shape[-1], hidden_sizes, layer_norm, convolutions, len(shape))


def choose(keys: jax.Array, values: jax.Array, epsilon: jax.Array | float) -> jax.Array:
    """The actions of the highest values [environments, actions], or with probability `epsilon` random ones."""
    num, num_actions = values.shape
    random = jax.random.randint(keys[0], (num,), 0, num_actions)
    return jnp.where(jax.random.uniform(keys[1], (num,)) < epsilon, random, jnp.argmax(values, axis=-1))


def explore(state: CustomTrainState, keys: jax.Array, observation: jax.Array, *, steps: int) -> jax.Array:
    """The network's actions, with a share of random ones that falls from 1 to 0.05 in so many steps."""
    epsilon = jnp.maximum(0.05, 1 - 0.95 * state.step / steps)
    return choose(keys, state.apply_fn({"params": state.params}, observation, train=False), epsilon)


def create_data(
    config: Any,
    mesh: jax.sharding.Mesh,
    *,
    environment: str = "CartPole-v1",
    environments: int = 10,
    acts: int = 1,
    buffer_size: int = 10_000,
    warmup: int = 1_000,
    exploration: int | str = "50%",
) -> Data:
    """Environments, and a buffer with random actions in it.

    Args:
        config: resolved.
        mesh: the devices.
        environment: its name, see `environments.find`.
        environments: how many of them act at once.
        acts: actions of each of them between two steps of training.
        buffer_size: number of the latest transitions that are kept.
        warmup: number of transitions by random actions before the first step.
        exploration: steps during which the share of random actions falls.
    """
    del mesh
    found = find(environment)

    def at_random(keys: jax.Array, observation: jax.Array) -> jax.Array:
        return jax.random.randint(keys[0], observation.shape[:1], 0, found.num_actions)

    data = replay.create_data(
        config,
        found,
        functools.partial(explore, steps=int(exploration)),
        at_random,
        environments=environments,
        acts=acts,
        buffer_size=buffer_size,
        warmup=warmup,
    )
    return data._replace(example=(data.example[0], jnp.zeros((1, found.num_actions))))


def loss_fn(
    params: Any,
    state: CustomTrainState,
    batch: dict[str, jax.Array],
    *,
    target: str = "target",
    gamma: float = 0.99,
    double: bool = False,
) -> Any:
    """The squared error of the values of the actions taken.

    Args:
        params: of the network.
        state: with the averages.
        batch: transitions.
        target: name of the average whose values the next ones are; "none" for the network itself.
        gamma: discount.
        double: whether the network itself chooses the next action (double Q-learning, van Hasselt et al. 2016).
    """
    slow = jax.lax.stop_gradient(params) if target == "none" else state.ema_params[target]
    following = state.apply_fn({"params": slow}, batch["next_observation"], train=True)
    chooser = state.apply_fn({"params": jax.lax.stop_gradient(params)}, batch["next_observation"], train=True)
    chosen = jnp.argmax(chooser if double else following, axis=-1)[:, None]
    later = jnp.where(batch["terminated"], 0, jnp.take_along_axis(following, chosen, axis=-1)[:, 0])
    values = state.apply_fn({"params": params}, batch["observation"], train=True)
    value = jnp.take_along_axis(values, batch["action"][:, None], axis=-1)[:, 0]
    error = optax.squared_error(value, batch["reward"] + gamma * later)
    return error.mean(), ({"loss": (error.sum(), error.size), "value": (value.sum(), value.size)}, {})


@functools.partial(jax.jit, static_argnames=("apply_fn", "environment"))
def play(apply_fn: Any, variables: Any, keys: jax.Array, environment: Environment) -> tuple[jax.Array, jax.Array]:
    """Plays episodes greedily: the rewards of each [episodes, steps], and the value of the first action at its start.

    After its end an episode has rewards of 0.
    """

    def episode(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        observation, start = environment.reset(key)

        def act(carry: Any, unused: None) -> tuple[Any, jax.Array]:
            del unused
            observation, now, running = carry
            action = jnp.argmax(apply_fn(variables, observation, train=False))
            observation, now, reward, terminated, truncated, _ = environment.step(key, now, action)
            return (observation, now, running & ~(terminated | truncated)), jnp.where(running, reward, 0)

        _, rewards = jax.lax.scan(act, (observation, start, jnp.bool_(True)), length=environment.max_steps)
        return rewards, apply_fn(variables, observation, train=False).max()

    return jax.vmap(episode)(keys)


def evaluate(experiment: Experiment, weights: dict[str, Any], split: str) -> Sets:
    """The mean return of greedy episodes, and how far the value at their start is above what followed, discounted."""
    gamma, environment = experiment.config.loss.gamma, experiment.train_data.environment
    found = {}
    for name, variables in weights.items():
        played = play(experiment.state.apply_fn, variables, experiment.eval_data[split], environment)
        rewards, values = jax.device_get(played)
        returns, discounted = rewards.sum(axis=1), rewards @ np.float64(gamma) ** np.arange(rewards.shape[1])
        found[name] = {"return": (returns.mean(), returns), "overestimation": ((values - discounted).mean(), None)}
    return found


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
