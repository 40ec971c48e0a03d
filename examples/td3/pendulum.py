"""Pendulum-v1 as pure functions: swing a pendulum up and keep it there, with a motor too weak to do so at once.

The constants, the steps and the time limit are those of gymnasium. The functions are called as the methods of a gymnax
1.x environment are:

    observation, state = pendulum.reset(key)
    observation, state, reward, terminated, truncated, info = pendulum.step(key, state, action)

As there, a step that ends an episode returns the start of the next one; what the action led to is
`info["final_observation"]` in every step. Only the time limit ends an episode: `terminated` is never true, and rewards
could always go on. `jax.vmap` steps several environments.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

MAX_STEPS = 200  # of an episode
GRAVITY = 10.0  # m/s^2
MASS, LENGTH = 1.0, 1.0  # kg, m, of a rod that turns about one of its ends
SECONDS_PER_STEP = 0.05
MAX_TORQUE = 2.0  # N m, to either side
MAX_SPEED = 8.0  # rad/s, to either side


class State(NamedTuple):
    """Where an episode is, scalars each: rad from upright, rad/s, and the number of steps it has had."""

    angle: jax.Array
    angular_velocity: jax.Array
    time: jax.Array


def observe(state: State) -> jax.Array:
    """The observation of a state, float32 [3]: cosine and sine of the angle, and the angular velocity."""
    return jnp.stack([jnp.cos(state.angle), jnp.sin(state.angle), state.angular_velocity])


def reset(key: jax.Array) -> tuple[jax.Array, State]:
    """Starts an episode at any angle, with up to 1 rad/s. Returns the observation, float32 [3], and state."""
    angle, angular_velocity = jax.random.uniform(key, (2,), minval=-1, maxval=1)
    state = State(jnp.pi * angle, angular_velocity, jnp.int32(0))
    return observe(state), state


def step(
    key: jax.Array, state: State, action: jax.Array
) -> tuple[jax.Array, State, jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
    """Moves on by 0.05 s, and to a new episode where the time is up.

    Args:
        key: for the start of a new episode.
        state: of an episode that has not ended.
        action: torque in N m [1]; what exceeds `MAX_TORQUE` is cut off.

    Returns:
        The observation of the returned state, float32 [3].
        The state: after the action, or the start of a new episode.
        The reward, from -16.3 to 0: the higher, the closer to standing still upright without torque.
        Whether the episode really ended, which it never does.
        Whether the time is up.
        A dictionary with `final_observation`, float32 [3]: what the action led to, whether or not the time was up.
    """
    torque = jnp.clip(action[0], -MAX_TORQUE, MAX_TORQUE)
    from_upright = (state.angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
    cost = from_upright**2 + 0.1 * state.angular_velocity**2 + 0.001 * torque**2
    turning = 3 * GRAVITY / (2 * LENGTH) * jnp.sin(state.angle) + 3 / (MASS * LENGTH**2) * torque  # rad/s^2
    velocity = jnp.clip(state.angular_velocity + turning * SECONDS_PER_STEP, -MAX_SPEED, MAX_SPEED)
    moved = State(state.angle + velocity * SECONDS_PER_STEP, velocity, state.time + 1)
    reached = observe(moved)
    truncated = moved.time >= MAX_STEPS
    observation, following = jax.tree.map(lambda new, old: jnp.where(truncated, new, old), reset(key), (reached, moved))
    return observation, following, -cost, jnp.bool_(False), truncated, {"final_observation": reached}
