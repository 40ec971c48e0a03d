"""Two players with one objective: the closed form of the smallest game, whom each rate and each loss moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import create_experiment
from random_keys import drawn_twice

from examples.gan import bilinear
from examples.gan.configs import dcgan, default
from examples.gan.train import loss_fn


def test_the_bilinear_game_is_its_closed_form():
    found, expected = bilinear.play(2000, 0.02), bilinear.closed_form(2000, 0.02)
    assert found.keys() == expected.keys()
    for name, path in found.items():
        np.testing.assert_allclose(path, expected[name], rtol=0, atol=1e-4)
    radius = {name: abs(path[-1]) for name, path in expected.items()}
    assert radius["mean"] < 0.1 < radius["ema"] < 0.5 < 1 < radius["raw"]


def gan_config(**fields):
    config = default.get_config()
    config.dataset, config.data.size, config.data.num_samples = "digits", 8, 100
    config.batch_size, config.model.features = 32, 16
    config.duration = "20 steps"
    for name, value in fields.items():
        group, _, field = name.rpartition(".")
        (config[group] if group else config)[field] = value
    return config


@pytest.fixture(scope="module")
def experiment():
    return create_experiment(gan_config())


@pytest.mark.slow
def test_no_key_of_a_step_is_drawn_from_twice(experiment):
    assert drawn_twice(experiment.train_program, experiment.state, experiment.train_data) == []


@pytest.mark.slow
@pytest.mark.parametrize("frozen", ["generator", "discriminator"])
def test_a_rate_of_zero_freezes_exactly_that_player(frozen):
    experiment = create_experiment(gan_config(**{f"optimizer.groups.{frozen}.factor": 0.0}))
    before = jax.device_get(experiment.state.params)
    state, _ = experiment.train_program(experiment.state, experiment.train_data)
    for player, params in jax.device_get(state.params).items():
        same = jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), params, before[player]))
        assert all(same) if player == frozen else not any(same)


@pytest.mark.slow
def test_each_loss_moves_its_own_player_only_and_is_logged_under_its_name(experiment):
    """The gradient of the one objective is for each player that of its own loss, with the other as it is."""
    state, batch = experiment.state, experiment.train_data.batch(experiment.state)[0]
    real, num = batch["image"], len(batch["image"])

    def logits(discriminator, image):
        return state.apply_fn({"params": state.params | {"discriminator": discriminator}}, image, method="judge")

    def made(generator):
        variables = {"params": state.params | {"generator": generator}}
        return state.apply_fn(variables, state.step_key("latents"), num, method="generate")

    def of_generator(generator):
        return -jnp.log(jax.nn.sigmoid(logits(state.params["discriminator"], made(generator)))).mean()

    def of_discriminator(discriminator):
        slopes = jax.vmap(jax.grad(lambda image: logits(discriminator, image[None])[0]))(real)
        found = (
            jax.nn.sigmoid(logits(discriminator, real)),
            jax.nn.sigmoid(-logits(discriminator, made(state.params["generator"]))),
        )
        return -jnp.log(found[0]).mean() - jnp.log(found[1]).mean() + 0.7 / 2 * (slopes**2).sum(axis=(1, 2, 3)).mean()

    found, (metrics, _) = jax.grad(lambda params: loss_fn(params, state, batch, r1=0.7), has_aux=True)(state.params)
    losses, expected = {}, {}
    for player, loss in (("generator", of_generator), ("discriminator", of_discriminator)):
        losses[player], expected[player] = jax.value_and_grad(loss)(state.params[player])
    logged = {name: float(total) / count for name, (total, count) in metrics.items()}
    assert logged == pytest.approx(
        {"loss": float(losses["generator"]), "discriminator_loss": float(losses["discriminator"])}, rel=1e-4
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6), found, expected)  # of float32


@pytest.mark.slow
def test_the_config_for_a_gpu_compiles(made_data, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(made_data))
    experiment = create_experiment(dcgan.get_config())
    jax.jit(experiment.train_program).lower(experiment.state, experiment.train_data)
