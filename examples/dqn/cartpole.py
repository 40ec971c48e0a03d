"""CartPole-v1 as pure functions: push a cart left or right so that the pole on it does not fall.

The problem of Barto, Sutton and Anderson 1983, with the constants, the Euler steps and the limits of gymnasium. The
functions are called as the methods of a gymnax 1.x environment are, of which one can take this module's place:

    observation, state = cartpole.reset(key)
    observation, state, reward, terminated, truncated, info = cartpole.step(key, state, action)

As there, a step that ends an episode returns the start of the next one, and a replay memory must not take that for what
the action led to: the true next observation is `info["final_observation"]` in every step. The pole's fall and the time
limit are told apart, because only the fall means that no reward can follow. `jax.vmap` steps several environments.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

num_actions = 2  # spelt as the property of a gymnax environment
MAX_STEPS = 500  # of an episode
GRAVITY = 9.8  # m/s^2
CART_MASS, POLE_MASS = 1.0, 0.1  # kg
TOTAL_MASS = CART_MASS + POLE_MASS
HALF_LENGTH = 0.5  # m, from the joint to the pole's centre
FORCE = 10.0  # N
SECONDS_PER_STEP = 0.02
MAX_POSITION = 2.4  # m to either side
MAX_ANGLE = 12 * jnp.pi / 180  # rad to either side


class State(NamedTuple):
    """Where an episode is, scalars each: m, m/s, rad from upright, rad/s, and the number of steps it has had."""

    position: jax.Array
    velocity: jax.Array
    angle: jax.Array
    angular_velocity: jax.Array
    time: jax.Array


def reset(key: jax.Array) -> tuple[jax.Array, State]:
    """Starts an episode, with everything uniform in [-0.05, 0.05]. Returns the observation, float32 [4], and state."""
    start = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
    return start, State(start[0], start[1], start[2], start[3], jnp.int32(0))


def step(
    key: jax.Array, state: State, action: jax.Array
) -> tuple[jax.Array, State, jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
    """Moves on by 0.02 s, and to a new episode where this one has ended.

    Args:
        key: for the start of a new episode.
        state: of an episode that has not ended.
        action: 0 pushes to the left, 1 to the right.

    Returns:
        The observation, float32 [4]: position, velocity, angle and angular velocity of the returned state.
        The state: after the action, or the start of a new episode.
        The reward, which is 1 for every step, the last one included.
        Whether cart or pole went out of bounds.
        Whether the time is up; both may be the case.
        A dictionary with `final_observation`, float32 [4]: what the action led to, whether or not that was the end.
    """
    position, velocity, angle, angular_velocity, time = state
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    pole = POLE_MASS * HALF_LENGTH
    pushed = (jnp.where(action == 1, FORCE, -FORCE) + pole * angular_velocity**2 * sin) / TOTAL_MASS
    turning = (GRAVITY * sin - cos * pushed) / (HALF_LENGTH * (4 / 3 - POLE_MASS * cos**2 / TOTAL_MASS))  # rad/s^2
    acceleration = pushed - pole * turning * cos / TOTAL_MASS  # m/s^2
    moved = State(
        position + SECONDS_PER_STEP * velocity,
        velocity + SECONDS_PER_STEP * acceleration,
        angle + SECONDS_PER_STEP * angular_velocity,
        angular_velocity + SECONDS_PER_STEP * turning,
        time + 1,
    )
    reached = jnp.stack(moved[:4])
    terminated = (jnp.abs(moved.position) > MAX_POSITION) | (jnp.abs(moved.angle) > MAX_ANGLE)
    truncated = moved.time >= MAX_STEPS
    ended = terminated | truncated
    observation, following = jax.tree.map(lambda new, old: jnp.where(ended, new, old), reset(key), (reached, moved))
    return observation, following, jnp.float32(1), terminated, truncated, {"final_observation": reached}
