"""Flow matching: what is learned, how samples are made of it, and that training goes on where it was."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import create_experiment

from examples import samples
from examples.diffusion.configs import default
from examples.diffusion.train import TASK, errors, follow, sample


def diffusion_config(**fields):
    config = default.get_config()
    config.dataset, config.data.size, config.data.num_samples = "digits", 8, 200
    config.batch_size, config.model.features, config.model.blocks = 32, 16, 1
    config.duration = "40 steps"
    config.update(fields)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [1, 5])
def test_the_midpoint_rule_is_exact_where_the_velocity_is_linear_in_time(num_steps):
    """From x at t = 0, velocity a + b t leads to x + a + b / 2."""
    noise = jax.random.normal(jax.random.key(0), (3, 2, 2, 1))

    def velocity(variables, noisy, train):
        image, time = noisy
        return variables["a"] + variables["b"] * time[:, None, None, None] + 0 * image

    made = follow(velocity, {"a": 0.5, "b": -2.0}, noise, num_steps)
    np.testing.assert_allclose(made, noise + 0.5 - 1.0, atol=1e-6)


def test_the_error_is_0_for_the_true_velocity_and_is_weighed_equally_in_all_pixels():
    image = jnp.ones((4, 3, 3, 2))
    time = jnp.array([0.0, 0.25, 0.5, 0.9])

    def true(noisy):  # of images that are 1 everywhere: (1 - x) / (1 - t)
        x, t = noisy
        return (1 - x) / (1 - t[:, None, None, None])

    np.testing.assert_allclose(errors(true, image, jax.random.key(0), time), 0, atol=1e-8)
    off = errors(lambda noisy: true(noisy) + 2, image, jax.random.key(0), time)
    np.testing.assert_allclose(off, 4, rtol=1e-4)


@pytest.mark.slow
def test_all_weights_get_the_same_noise_and_another_seed_gets_other(tmp_path):
    first, other = (create_experiment(diffusion_config(seed=seed)) for seed in (0, 1))
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
