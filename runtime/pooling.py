"""Pooling of [batch, height, width, channels] whose gradient is fast on CPUs and reproducible on GPUs.

That of `nn.max_pool` and `nn.avg_pool` is slow on CPUs; on GPUs, that of `nn.max_pool` is not reproducible.
"""

import jax
import jax.numpy as jnp


def average_pool(x: jax.Array) -> jax.Array:
    """2x2 average pooling with stride 2, as `nn.avg_pool(x, (2, 2), (2, 2))`: an odd last row or column is left out."""
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    return (x[:, ::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, ::2] + x[:, 1::2, 1::2]) / 4


def max_pool(x: jax.Array) -> jax.Array:
    """2x2 max pooling with stride 2, as `nn.max_pool(x, (2, 2), (2, 2))`: an odd last row or column is left out."""
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


def overlapping_max_pool(x: jax.Array) -> jax.Array:
    """3x3 max pooling with stride 2, as `nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))`.

    Where pixels are equal, their gradient is shared among them instead of given to the first.
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    rows = jnp.maximum(jnp.maximum(x[:, :-2:2], x[:, 1:-1:2]), x[:, 2::2])
    return jnp.maximum(jnp.maximum(rows[:, :, :-2:2], rows[:, :, 1:-1:2]), rows[:, :, 2::2])
