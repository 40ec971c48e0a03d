"""No two random numbers of a step come from one key, whatever is switched on."""

import jax
import jax.numpy as jnp
import pytest
from conftest import create_experiment, digits_config
from random_keys import drawn_twice

KEY = jax.random.key(0)


def normal(key):
    return jax.random.normal(key, (3,))


def part(key, place):
    return jax.random.split(key, 3)[place]


def in_a_loop(key):
    return jax.lax.scan(lambda total, _: (total + jax.random.normal(key), None), 0.0, None, length=2)


@pytest.mark.parametrize(
    ("program", "number"),
    [
        (lambda key: normal(key) + normal(jax.random.fold_in(key, 1)), 0),
        (lambda key: normal(key) + jax.jit(jax.random.uniform)(key), 2),
        (lambda key: normal(key) + normal(part(key, 0)), 2),
        (lambda key: normal(part(key, 0)) + normal(part(key, 1)), 0),
        (lambda key: normal(part(key, 1)) + normal(part(key, 1)), 2),
        (lambda key: normal(jax.random.fold_in(key, 3)) + jax.random.beta(jax.random.fold_in(key, 3), 1, 1), 2),
        (lambda key: jax.vmap(jax.random.normal)(jax.random.split(key, 3)) + normal(part(key, 2)), 2),
        (in_a_loop, 2),
        (lambda key: jax.lax.map(jax.random.normal, jax.random.split(key, 3)), 0),
        (lambda key: jax.lax.cond(jnp.sin(1.0) > 0, jax.random.normal, jax.random.uniform, key), 0),
    ],
)  # fmt: skip
def test_a_key_that_is_drawn_from_twice_is_found(program, number):
    assert len(drawn_twice(program, KEY)) == number


def test_no_key_of_a_step_is_drawn_from_twice():
    """With every change of the images, dropout, skipped layers, noise on the gradient and accumulation."""
    config = digits_config(accumulate=2, optimizer__gradient_noise=0.1)
    config.augment.update(flip=True, crop_padding=1, cutout=2, erasing=0.5, rand_augment=2, mixup=1.0, cutmix=1.0)
    config.model.update(name="vit", depth=1, patch=4, dropout=0.1, stochastic_depth=0.5, hidden_sizes=(256, 256))
    experiment = create_experiment(config)
    assert drawn_twice(experiment.train_program, experiment.state, experiment.train_data) == []
