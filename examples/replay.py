"""Acting in environments, and a buffer of what happened: the training data of agents that learn by replay.

Environments are modules such as `examples/dqn/cartpole.py`. They and the buffer are the state's `memory`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from input_pipeline import Data
from runtime.errors import UserError
from streams import stream_key
from train_state import CustomTrainState

NUM_EPISODES = 32  # of an evaluation; the same starts for all weights, steps and seeds
# Takes two keys and the observations [environments, ...]; returns the actions [environments, ...].
Choose = Callable[[jax.Array, jax.Array], jax.Array]


class Replay(struct.PyTreeNode):
    """The training data: environments, in which a policy acts, and a buffer of what happened in them."""

    environment: Any = struct.field(pytree_node=False)
    policy: Callable[..., jax.Array] = struct.field(pytree_node=False)  # takes the state, and then as `Choose`
    batch_size: int = struct.field(pytree_node=False)
    acts: int = struct.field(pytree_node=False)

    def batch(self, state: CustomTrainState) -> tuple[dict[str, jax.Array], Any]:
        """Acts, and draws a batch of the transitions in the buffer."""

        def act(memory: Any, key: jax.Array) -> tuple[Any, None]:
            return advance(self.environment, memory, key, functools.partial(self.policy, state)), None

        memory, _ = jax.lax.scan(act, state.memory, jax.random.split(state.step_key("act"), self.acts))
        rows = jax.random.randint(state.step_key("replay"), (self.batch_size,), 0, memory["seen"])
        return jax.tree.map(lambda x: x[rows], memory["buffer"]), memory


def advance(environment: Any, memory: Any, key: jax.Array, choose: Choose) -> Any:
    """Takes an action in each environment, and remembers what happened."""
    num = len(memory["observation"])
    keys = jax.random.split(key, num + 2)
    action = choose(keys[:2], memory["observation"])
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
    environment: Any,
    policy: Callable[..., jax.Array],
    choose: Choose,
    *,
    environments: int,
    acts: int,
    buffer_size: int,
    warmup: int,
) -> Data:
    """Environments, a buffer with some transitions in it, and the starts of the episodes to evaluate.

    Args:
        config: resolved.
        environment: a module.
        policy: what acts in training.
        choose: what acts before.
        environments: how many act at once.
        acts: actions of each of them between two steps of training.
        buffer_size: number of the latest transitions that are kept.
        warmup: number of transitions before the first step.

    Raises:
        UserError: nothing would be done or remembered, or values would be those of no discounted future.
    """
    if min(environments, acts) < 1 or buffer_size < environments:
        raise UserError(
            f"data.environments = {environments}, data.acts = {acts}, data.buffer_size = {buffer_size}: the former two "
            "must be at least 1, and the buffer must hold what all environments do at once"
        )
    if not 0 < config.loss.gamma < 1:
        raise UserError(f"loss.gamma = {config.loss.gamma}: must be above 0 and below 1")
    starts, actions = jax.random.split(stream_key(jax.random.key(config.seed), "environments"))
    observation, states = jax.vmap(environment.reset)(jax.random.split(starts, environments))
    action = jax.eval_shape(choose, jax.random.split(actions), observation)
    empty = jnp.zeros((buffer_size, *observation.shape[1:]))
    buffer = {"observation": empty, "next_observation": empty, "reward": jnp.zeros(buffer_size)}
    buffer |= {"action": jnp.zeros((buffer_size, *action.shape[1:]), action.dtype)}
    buffer |= {"terminated": jnp.zeros(buffer_size, bool)}
    nothing = jnp.int32(0)
    memory = {"observation": observation, "environments": states, "buffer": buffer, "written": nothing, "seen": nothing}

    @jax.jit
    def fill(memory: Any, keys: jax.Array) -> Any:
        return jax.lax.scan(lambda m, key: (advance(environment, m, key, choose), None), memory, keys)[0]

    memory = fill(memory, jax.random.split(actions, math.ceil(warmup / environments)))
    episodes = jax.random.split(jax.random.key(0), NUM_EPISODES)  # whatever the seed
    train = Replay(environment, policy, config.batch_size, acts)
    return Data(train, {"test": episodes}, (buffer["observation"][:1], buffer["action"][:1]), memory)
