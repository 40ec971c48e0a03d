"""Q-learning of CartPole whose targets come from an average of the network, with replay (Mnih et al. 2015).

    python main.py --config=examples/dqn/configs/default.py --workdir=runs/dqn
    python main.py --config=examples/dqn/configs/default.py --workdir=runs/none --config.loss.target=none \
        --config.averages.target.kind=none

Each step acts in some environments, puts what happened into the buffer, and learns from a batch of it. The buffer and
the environments are the state's `memory`; the target network is the average that `config.loss.target` names.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct

from examples.dqn import cartpole
from input_pipeline import Data
from runtime.score_metrics import Sets
from streams import stream_key
from train import Experiment, Task
from train_state import CustomTrainState

NUM_EPISODES = 32  # of an evaluation; the same starts for all weights, steps and seeds


class QNetwork(nn.Module):
    """The value of each action: two hidden layers, by default those of CleanRL's dqn.py."""

    num_actions: int
    hidden_sizes: tuple[int, ...]
    layer_norm: bool

    @nn.compact
    def __call__(self, observation: jax.Array, train: bool) -> jax.Array:
        """Maps observations [..., 4] to values [..., actions]."""
        x = observation
        for size in self.hidden_sizes:
            x = nn.Dense(size)(x)
            x = nn.relu(nn.LayerNorm()(x) if self.layer_norm else x)
        return nn.Dense(self.num_actions)(x)


def create_model(
    example: tuple[jax.Array, jax.Array], *, hidden_sizes: tuple[int, ...] = (120, 84), layer_norm: bool = False
) -> QNetwork:
    """A network with a value for each action; layer normalisation is what can stand in for a target."""
    return QNetwork(example[1].shape[-1], hidden_sizes, layer_norm)


class Replay(struct.PyTreeNode):
    """The training data: environments, and a buffer of what happened in them."""

    batch_size: int = struct.field(pytree_node=False)
    acts: int = struct.field(pytree_node=False)
    exploration: int = struct.field(pytree_node=False)

    def batch(self, state: CustomTrainState) -> tuple[dict[str, jax.Array], Any]:
        """Acts, with a share of random actions that falls from 1 to 0.05, and draws a batch of transitions."""
        epsilon = jnp.maximum(0.05, 1 - 0.95 * state.step / self.exploration)

        def act(memory: Any, key: jax.Array) -> tuple[Any, None]:
            values = state.apply_fn({"params": state.params}, memory["observation"], train=False)
            return advance(memory, key, values, epsilon), None

        memory, _ = jax.lax.scan(act, state.memory, jax.random.split(state.step_key("act"), self.acts))
        rows = jax.random.randint(state.step_key("replay"), (self.batch_size,), 0, memory["seen"])
        return jax.tree.map(lambda x: x[rows], memory["buffer"]), memory


def advance(memory: Any, key: jax.Array, values: jax.Array, epsilon: jax.Array) -> Any:
    """Takes one action in each environment, the best or with probability `epsilon` a random one, and remembers it."""
    num, num_actions = values.shape
    keys = jax.random.split(key, num + 2)
    random = jax.random.randint(keys[0], (num,), 0, num_actions)
    action = jnp.where(jax.random.uniform(keys[1], (num,)) < epsilon, random, jnp.argmax(values, axis=-1))
    stepped = jax.vmap(cartpole.step)(keys[2:], memory["environments"], action)
    observation, environments, reward, terminated, _, info = stepped
    happened = {
        "observation": memory["observation"],
        "action": action,
        "reward": reward,
        # What the action led to, also at the time limit, after which rewards could go on.
        "next_observation": info["final_observation"],
        "terminated": terminated,
    }
    size = len(memory["buffer"]["reward"])
    places = (memory["written"] + jnp.arange(num)) % size
    buffer = jax.tree.map(lambda all_, new: all_.at[places].set(new), memory["buffer"], happened)
    return {
        "observation": observation,
        "environments": environments,
        "buffer": buffer,
        "written": (memory["written"] + num) % size,
        "seen": jnp.minimum(memory["seen"] + num, size),
    }


def create_data(
    config: Any,
    mesh: jax.sharding.Mesh,
    *,
    environments: int = 10,
    acts: int = 1,
    buffer_size: int = 10_000,
    warmup: int = 1_000,
    exploration: str = "50%",
) -> Data:
    """Environments, a buffer with random actions in it, and the starts of the episodes to evaluate.

    Args:
        config: resolved.
        mesh: the devices.
        environments: how many act at once.
        acts: actions of each of them between two steps of training.
        buffer_size: number of the latest transitions that are kept.
        warmup: number of transitions by random actions before the first step.
        exploration: during which the share of random actions falls.
    """
    del mesh
    reset, actions, warm = jax.random.split(stream_key(jax.random.key(config.seed), "environments"), 3)
    observation, states = jax.vmap(cartpole.reset)(jax.random.split(reset, environments))
    empty = jnp.zeros((buffer_size, *observation.shape[1:]))
    buffer = {"observation": empty, "next_observation": empty, "reward": empty[:, 0]}
    buffer |= {"action": empty[:, 0].astype(jnp.int32), "terminated": empty[:, 0].astype(bool)}
    nothing = jnp.int32(0)
    memory = {"observation": observation, "environments": states, "buffer": buffer, "written": nothing, "seen": nothing}
    values = jnp.zeros((environments, cartpole.num_actions))

    def fill(memory: Any) -> Any:
        keys = jax.random.split(warm, -(-warmup // environments))
        return jax.lax.scan(lambda m, key: (advance(m, key, values, jnp.float32(1)), None), memory, keys)[0]

    starts = jax.random.split(jax.random.key(0), NUM_EPISODES)  # whatever the seed
    example = observation[:1], values[:1]
    return Data(Replay(config.batch_size, acts, exploration), {"test": starts}, example, jax.jit(fill)(memory))


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


@functools.partial(jax.jit, static_argnames="apply_fn")
def play(apply_fn: Any, variables: Any, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Plays episodes greedily: each one's return, and the value of the first action at its start."""

    def episode(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        observation, start = cartpole.reset(key)

        def act(carry: Any, _: None) -> tuple[Any, jax.Array]:
            observation, environment, running = carry
            action = jnp.argmax(apply_fn(variables, observation, train=False))
            observation, environment, reward, terminated, truncated, _ = cartpole.step(key, environment, action)
            return (observation, environment, running & ~(terminated | truncated)), jnp.where(running, reward, 0)

        _, rewards = jax.lax.scan(act, (observation, start, jnp.bool_(True)), length=cartpole.MAX_STEPS)
        return rewards.sum(), apply_fn(variables, observation, train=False).max()

    return jax.vmap(episode)(keys)


def evaluate(experiment: Experiment, weights: dict[str, Any], split: str) -> Sets:
    """The mean return of greedy episodes, and how far the value at their start is above what followed, discounted."""
    gamma, found = experiment.config.loss.gamma, {}
    for name, variables in weights.items():
        returns, values = jax.device_get(play(experiment.state.apply_fn, variables, experiment.eval_data[split]))
        discounted = (1 - np.float64(gamma) ** returns) / (1 - gamma)  # of a reward of 1 in each step
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
