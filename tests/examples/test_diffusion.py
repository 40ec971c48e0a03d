"""Flow matching: what is learned, how samples are made of it, and that training goes on where it was."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import create_experiment, state_at
from random_keys import drawn_twice

from examples import samples
from examples.diffusion.configs import default
from examples.diffusion.train import TASK, errors, follow, loss_fn, sample, score_fn
from train_state import CustomTrainState


def diffusion_config(**fields):
    config = default.get_config()
    config.dataset, config.data.size, config.data.num_samples = "digits", 8, 200
    config.batch_size, config.model.features, config.model.blocks = 32, 16, 1
    config.duration = "40 steps"
    config.update(fields)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [1, 5])
def test_samples_end_where_the_estimate_is_that_they_follow(num_steps):
    """One that does not change on the way is reached on a straight line, which any rule follows exactly."""
    noise = jax.random.normal(jax.random.key(0), (3, 2, 2, 1))
    made = follow(lambda variables, noisy, train: variables, jnp.full_like(noise, 0.3), noise, num_steps)
    np.testing.assert_allclose(made, 0.3, atol=1e-5)


@pytest.mark.slow
def test_the_midpoint_rule_is_of_second_order():
    """Of normal pixels with mean -1/2 and deviation 1/2 the best estimate is known, and where it leads."""

    def estimate(variables, noisy, train):
        x, time = noisy
        t = time[:, None, None, None]
        return -0.5 + 0.25 * t / (0.25 * t**2 + (1 - t) ** 2) * (x + 0.5 * t)

    noise = jax.random.normal(jax.random.key(0), (50, 2, 2, 1))
    errors = [float(jnp.abs(follow(estimate, {}, noise, n) - (noise / 2 - 0.5)).max()) for n in (10, 20, 40)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[1] < 0.01


@pytest.mark.slow
def test_the_loss_is_the_squared_error_of_the_estimate_at_the_point_of_the_path():
    image, time = jnp.ones((4, 3, 3, 2)), jnp.array([0.0, 0.25, 0.5, 0.9])
    noise = jax.random.normal(jax.random.key(0), image.shape)

    def noise_of(noisy):
        x, t = noisy
        part = t[:, None, None, None]
        np.testing.assert_allclose(x, (1 - part) * noise + part, rtol=1e-6)
        return image + 2 * (t[:, None, None, None] + 1)

    found = errors(noise_of, image, jax.random.key(0), time)
    np.testing.assert_allclose(found, (2 * (time + 1)) ** 2, rtol=1e-5)


def test_no_key_is_drawn_from_twice_in_training_or_evaluation():
    state = CustomTrainState.create(
        apply_fn=lambda variables, noisy, train: noisy[0], params={}, tx=optax.identity(), rng=jax.random.key(0)
    )
    image = jnp.ones((4, 3, 3, 2))
    assert drawn_twice(lambda state: loss_fn({}, state, {"image": image}), state) == []
    assert drawn_twice(lambda image: score_fn(state.apply_fn, {}, {"image": image}), image) == []


@pytest.mark.slow
def test_what_is_logged_and_scored_is_the_mean_error_over_images_at_random_times_and_in_each_quarter():
    image = jax.random.normal(jax.random.key(1), (5, 3, 3, 2))

    def apply_fn(variables, noisy, train):
        x, time = noisy
        return variables["params"] * x * (1 + time[:, None, None, None])

    def error_at(time, key):
        time, noise = (np.asarray(x, np.float64) for x in (time, jax.random.normal(key, image.shape)))
        part = time[:, None, None, None]
        return np.square(0.5 * ((1 - part) * noise + part * image) * (1 + part) - image).mean(axis=(1, 2, 3))

    state = state_at(jax.random.key(0), 3).replace(apply_fn=apply_fn)
    time = jax.nn.sigmoid(jax.random.normal(state.step_key("time"), (5,)))
    expected = error_at(time, state.step_key("noise")).mean()
    objective, (metrics, _) = loss_fn(0.5, state, {"image": image})
    assert float(objective) == pytest.approx(expected, rel=1e-5)
    assert {name: float(total) / count for name, (total, count) in metrics.items()} == pytest.approx(
        {"loss": expected}, rel=1e-5
    )
    time_key, *keys = jax.random.split(jax.random.key(0), 5)
    first = jax.random.uniform(time_key, (5,)) / 4
    scores = score_fn(apply_fn, {"params": 0.5}, {"image": image})
    four = [error_at(first + quarter / 4, key) for quarter, key in enumerate(keys)]
    assert scores.keys() == {"loss"}
    np.testing.assert_allclose(scores["loss"], np.mean(four, axis=0), rtol=1e-5)


@pytest.mark.slow
def test_all_weights_get_the_same_noise_and_another_seed_gets_other(tmp_path):
    first, other = (create_experiment(diffusion_config(seed=seed), tmp_path) for seed in (0, 1))  # one classifier
    weights = {"raw": first.state.weights()["raw"]}
    found = [TASK.evaluate(e, weights | {"again": weights["raw"]}, "test") for e in (first, other)]
    for sets in found:
        for metric in samples.METRICS:
            assert sets["raw"][metric][0] == sets["again"][metric][0]
    assert found[0]["raw"]["frechet"][0] != found[1]["raw"]["frechet"][0]
    assert sample(first, weights["raw"], jax.random.key(0), 7).shape == (7, 8, 8, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist28", "cifar10"])
def test_the_configs_for_a_gpu_compile(name, made_data, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(made_data))
    config = importlib.import_module(f"examples.diffusion.configs.{name}").get_config()
    config.dataset = "cifar10"  # which there is; its images are shrunk to those of MNIST
    config.data.size = {"mnist28": 16, "cifar10": 32}[name]
    experiment = create_experiment(config)
    jax.jit(experiment.train_program).lower(experiment.state, experiment.train_data)
