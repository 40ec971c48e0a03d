import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.dqn import cartpole

KEY = jax.random.key(0)
step = jax.jit(cartpole.step)


@pytest.fixture
def start():
    """Starts an episode of gymnasium's environment, which counts its steps from here, and the same one here."""
    environment = gymnasium.make("CartPole-v1")

    def both(seed: int):
        environment.reset(seed=seed)
        physical = np.random.default_rng(seed).uniform(-0.05, 0.05, 4)
        environment.unwrapped.state = physical
        return environment, cartpole.State(*physical.astype(np.float32), time=jnp.int32(0))

    yield both
    environment.close()


def balance(observation) -> int:
    """Pushes to where the pole falls, and a little more so that the cart comes back."""
    position, velocity, angle, angular_velocity = observation
    return int(angle + 0.5 * angular_velocity + 0.03 * position + 0.06 * velocity > 0)


@pytest.mark.parametrize("seed", range(5))
def test_random_pushes_lead_where_they_do_in_gymnasium_until_the_same_end(start, seed):
    """From rounding to float32, 6e-8 of states of up to about 3, which a falling pole multiplies by e in 13 steps."""
    environment, state = start(seed)
    terminated = False
    pushes = np.random.default_rng(seed)
    while not terminated:
        action = pushes.integers(2)
        expected, reward, terminated, truncated, _ = environment.step(action)
        _, state, *ends, info = step(KEY, state, action)
        np.testing.assert_allclose(info["final_observation"], expected, rtol=0, atol=1e-5)
        assert ends == [reward, terminated, truncated]


def test_a_balanced_pole_ends_by_the_time_limit_as_in_gymnasium(start):
    """Each step from gymnasium's state: over 500 steps, a pole pushed without looking multiplies rounding by 1e17."""
    environment, state = start(0)
    observation, ends = np.zeros(4), [1.0, False, False]
    for number in range(cartpole.MAX_STEPS):
        assert ends == [1.0, False, False]
        assert state.time == number
        action = balance(environment.unwrapped.state)
        state = cartpole.State(*np.float32(environment.unwrapped.state), time=state.time)
        observation, *expected, _ = environment.step(action)
        _, state, *ends, info = step(KEY, state, action)
        np.testing.assert_allclose(info["final_observation"], observation, rtol=0, atol=1e-6)
        assert ends == expected
    assert ends == [1.0, False, True]


@pytest.mark.parametrize(
    ("position", "time", "terminated", "truncated"),
    [
        (0, 0, False, False),
        (2.5, 0, True, False),
        (-2.5, 0, True, False),
        (0, 499, False, True),
        (2.5, 499, True, True),
    ],
)
def test_the_end_starts_a_new_episode_and_keeps_what_was_reached(position, time, terminated, truncated):
    state = cartpole.State(*jnp.float32([position, 0, 0.01, 0]), time=jnp.int32(time))
    observation, following, reward, *ends, info = step(KEY, state, 1)
    assert (reward, *ends) == (1, terminated, truncated)
    np.testing.assert_allclose(info["final_observation"][::2], [position, 0.01])  # Euler's first step of both
    ended = terminated or truncated
    np.testing.assert_array_equal(observation, cartpole.reset(KEY)[0] if ended else info["final_observation"])
    np.testing.assert_array_equal(observation, jnp.stack(following[:4]))
    assert following.time == (0 if ended else time + 1)


def test_many_environments_start_differently_within_their_bounds_and_step_together():
    keys = jax.random.split(KEY, 1000)
    observations, states = jax.vmap(cartpole.reset)(keys)
    assert np.ptp(observations, axis=0) == pytest.approx(0.1, abs=0.001)
    assert np.abs(observations).max() <= 0.05
    stepped = jax.jit(jax.vmap(cartpole.step))(keys, states, jnp.arange(1000) % 2)
    one = jax.tree.map(lambda leaf: leaf[7], (keys, states))
    for many, alone in zip(jax.tree.leaves(stepped), jax.tree.leaves(step(*one, 1)), strict=True):
        assert many.dtype == alone.dtype
        np.testing.assert_allclose(many[7], alone, rtol=1e-6)
