import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from runtime import pooling


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (2, 7, 9, 1), (1, 2, 5, 2), (3, 5, 2, 1)])
def test_pooling_by_two_equals_flaxs(shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    np.testing.assert_allclose(pooling.average_pool(x), nn.avg_pool(x, (2, 2), (2, 2)), atol=1e-6)
    equal_with_gradients(pooling.max_pool, lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (2, 7, 9, 3), (1, 8, 5, 1), (1, 1, 2, 1)])
def test_overlapping_pooling_equals_flaxs(shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    equal_with_gradients(pooling.overlapping_max_pool, lambda x: nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)]), x)


def equal_with_gradients(ours, flaxs, x):
    np.testing.assert_array_equal(ours(x), flaxs(x))
    # The weights are small integers, whose sums are exact in any order.
    weights = jnp.asarray(np.random.default_rng(1).integers(-9, 9, ours(x).shape), jnp.float32)
    gradients = (jax.grad(lambda x, pool=pool: jnp.sum(pool(x) * weights))(x) for pool in (ours, flaxs))
    np.testing.assert_array_equal(*gradients)


def test_equal_pixels_share_the_gradient_of_overlapping_pooling():
    gradient = jax.grad(lambda x: pooling.overlapping_max_pool(x).sum())(jnp.zeros((1, 6, 6, 1)))
    assert gradient.sum() == 9  # of the 9 windows
    assert ((gradient > 0) & (gradient < 1)).sum() > 9
