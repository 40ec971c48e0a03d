"""Acting in environments, and a buffer of what happened: the training data of Q-learning."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from examples.dqn.environments import Environment, find
from input_pipeline import Data
from streams import stream_key
from train_state import CustomTrainState

NUM_EPISODES = 32  # of an evaluation; the same starts for all weights, steps and seeds


class Replay(struct.PyTreeNode):
    """The training data: environments, and a buffer of what happened in them."""

    batch_size: int = struct.field(pytree_node=False)
    acts: int = struct.field(pytree_node=False)
    exploration: int = struct.field(pytree_node=False)
    environment: Environment = struct.field(pytree_node=False)

    def batch(self, state: CustomTrainState) -> tuple[dict[str, jax.Array], Any]:
        """Acts, with a share of random actions that falls from 1 to 0.05, and draws a batch of transitions."""
        epsilon = jnp.maximum(0.05, 1 - 0.95 * state.step / self.exploration)

        def act(memory: Any, key: jax.Array) -> tuple[Any, None]:
            values = state.apply_fn({"params": state.params}, memory["observation"], train=False)
            return advance(memory, key, values, epsilon, self.environment), None

        memory, _ = jax.lax.scan(act, state.memory, jax.random.split(state.step_key("act"), self.acts))
        rows = jax.random.randint(state.step_key("replay"), (self.batch_size,), 0, memory["seen"])
        return jax.tree.map(lambda x: x[rows], memory["buffer"]), memory


def advance(memory: Any, key: jax.Array, values: jax.Array, epsilon: jax.Array, environment: Environment) -> Any:
    """Takes one action in each environment, the best or with probability `epsilon` a random one, and remembers it."""
    num, num_actions = values.shape
    keys = jax.random.split(key, num + 2)
    random = jax.random.randint(keys[0], (num,), 0, num_actions)
    action = jnp.where(jax.random.uniform(keys[1], (num,)) < epsilon, random, jnp.argmax(values, axis=-1))
    stepped = jax.vmap(environment.step)(keys[2:], memory["environments"], action)
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
    environment: str = "CartPole-v1",
    environments: int = 10,
    acts: int = 1,
    buffer_size: int = 10_000,
    warmup: int = 1_000,
    exploration: int | str = "50%",
) -> Data:
    """Environments, a buffer with random actions in it, and the starts of the episodes to evaluate.

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
    starts, actions = jax.random.split(stream_key(jax.random.key(config.seed), "environments"))
    observation, states = jax.vmap(found.reset)(jax.random.split(starts, environments))
    empty = jnp.zeros((buffer_size, *observation.shape[1:]))
    buffer = {"observation": empty, "next_observation": empty, "reward": jnp.zeros(buffer_size)}
    buffer |= {"action": jnp.zeros(buffer_size, jnp.int32), "terminated": jnp.zeros(buffer_size, bool)}
    nothing = jnp.int32(0)
    memory = {"observation": observation, "environments": states, "buffer": buffer, "written": nothing, "seen": nothing}
    values = jnp.zeros((environments, found.num_actions))

    @jax.jit
    def fill(memory: Any, keys: jax.Array) -> Any:
        return jax.lax.scan(lambda m, key: (advance(m, key, values, jnp.float32(1), found), None), memory, keys)[0]

    memory = fill(memory, jax.random.split(actions, math.ceil(warmup / environments)))
    episodes = jax.random.split(jax.random.key(0), NUM_EPISODES)  # whatever the seed
    example = observation[:1], values[:1]
    return Data(Replay(config.batch_size, acts, int(exploration), found), {"test": episodes}, example, memory)
