import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.td3 import pendulum

KEY = jax.random.key(0)
step = jax.jit(pendulum.step)


@pytest.mark.parametrize("seed", range(5))
def test_random_torques_lead_where_they_do_in_gymnasium_until_the_time_is_up(seed):
    """Rounding to float32, 6e-8 of states of up to about 10, grows in 200 steps of a pendulum, which is chaotic."""
    environment = gymnasium.make("Pendulum-v1")
    environment.reset(seed=seed)
    physical = np.random.default_rng(seed).uniform([-np.pi, -1], [np.pi, 1])
    environment.unwrapped.state = physical
    state = pendulum.State(*physical.astype(np.float32), time=jnp.int32(0))
    torques = np.random.default_rng(seed)
    truncated = False
    while not truncated:
        action = torques.uniform(-2.5, 2.5, 1).astype(np.float32)
        expected, reward, terminated, truncated, _ = environment.step(action)
        _, state, found, *ends, info = step(KEY, state, action)
        np.testing.assert_allclose(info["final_observation"], expected, rtol=0, atol=1e-3)
        np.testing.assert_allclose(found, reward, rtol=0, atol=1e-3)
        assert ends == [terminated, truncated]
    environment.close()


@pytest.mark.parametrize(
    ("angle", "angular_velocity", "torque"),
    [(0, 0, 0), (np.pi, 0, 2), (1.0, -1.0, 0.5), (4.0, 7.9, 2), (-9.0, -8, -2), (-20.0, 3.0, 5.0)],
)
def test_a_step_is_its_formula_in_float64(angle, angular_velocity, torque):
    """A uniform rod of 1 kg and 1 m that turns about its end, with a moment of inertia of 1/3 kg m^2."""
    inertia, used = 1 / 3, min(max(torque, -2), 2)
    moment = 1 * 10 * 0.5 * np.sin(angle) + used
    faster = min(max(angular_velocity + 0.05 * moment / inertia, -8), 8)
    moved = angle + 0.05 * faster
    from_upright = np.arctan2(np.sin(angle), np.cos(angle))
    state = pendulum.State(jnp.float32(angle), jnp.float32(angular_velocity), jnp.int32(7))
    observation, following, reward, *ends, info = step(KEY, state, jnp.float32([torque]))
    np.testing.assert_allclose(observation, [np.cos(moved), np.sin(moved), faster], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(observation, info["final_observation"])
    assert float(reward) == pytest.approx(-(from_upright**2 + angular_velocity**2 / 10 + used**2 / 1000), abs=1e-5)
    assert ends == [False, False]
    assert int(following.time) == 8


def test_the_time_limit_starts_a_new_episode_and_keeps_what_was_reached():
    state = pendulum.State(jnp.float32(1), jnp.float32(0), jnp.int32(pendulum.MAX_STEPS - 1))
    observation, following, _, *ends, info = step(KEY, state, jnp.zeros(1))
    assert ends == [False, True]
    np.testing.assert_array_equal(observation, pendulum.reset(KEY)[0])
    np.testing.assert_array_equal(observation, pendulum.observe(following))
    assert int(following.time) == 0
    moved = 1 + 0.05**2 * 15 * np.sin(1)
    np.testing.assert_allclose(info["final_observation"][:2], [np.cos(moved), np.sin(moved)], atol=1e-6)


def test_many_environments_start_at_any_angle_and_step_together():
    keys = jax.random.split(KEY, 1000)
    observations, states = jax.vmap(pendulum.reset)(keys)
    assert np.ptp(states.angle) == pytest.approx(2 * np.pi, abs=0.1)
    assert np.ptp(states.angular_velocity) == pytest.approx(2, abs=0.03)
    assert np.abs(states.angle).max() <= np.pi
    assert np.abs(states.angular_velocity).max() <= 1
    np.testing.assert_allclose(np.hypot(observations[:, 0], observations[:, 1]), 1, rtol=1e-6)
    actions = jnp.linspace(-3, 3, 1000)[:, None]
    stepped = jax.jit(jax.vmap(pendulum.step))(keys, states, actions)
    one = jax.tree.map(lambda leaf: leaf[7], (keys, states, actions))
    for many, alone in zip(jax.tree.leaves(stepped), jax.tree.leaves(step(*one)), strict=True):
        assert many.dtype == alone.dtype
        np.testing.assert_allclose(many[7], alone, rtol=1e-6, atol=1e-6)
