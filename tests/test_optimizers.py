import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optimizers


def test_warm_up_rises_linearly_from_its_first_step_to_the_peak():
    schedule = optimizers.create_schedule(0.4, "constant", warmup_steps=4, decay_steps=0)
    np.testing.assert_allclose([schedule(t) for t in range(6)], [0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rtol=1e-6)


def test_cosine_falls_from_the_peak_after_warm_up_to_zero_at_the_end():
    schedule = optimizers.create_schedule(0.4, "cosine", warmup_steps=2, decay_steps=8)
    expected = [0.2 * (1 + np.cos(np.pi * t / 8)) for t in range(9)]
    np.testing.assert_allclose([schedule(t) for t in range(2, 11)], expected, atol=1e-7)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_optimizer_is_sgd_with_momentum_after_clipping(momentum):
    tx = optimizers.create_optimizer(learning_rate=optax.constant_schedule(0.5), momentum=momentum, clip_norm=2.0)
    params = jnp.zeros(2)
    state = tx.init(params)
    trace, expected = np.zeros(2), np.zeros(2)
    for gradient in ([3.0, 4.0], [0.3, 0.4], [0.0, -10.0]):
        updates, state = tx.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
        clipped = np.asarray(gradient) * min(1, 2 / np.linalg.norm(gradient))
        trace = momentum * trace + clipped
        expected = expected - 0.5 * trace
        np.testing.assert_allclose(params, expected, rtol=1e-6)
