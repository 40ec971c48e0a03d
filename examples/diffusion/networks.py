"""Networks that estimate images from noisy ones and the time: how much of each there is."""

import jax
import jax.numpy as jnp
from flax import linen as nn


def waves(time: jax.Array, size: int) -> jax.Array:
    """Times [batch] in [0, 1] as sines and cosines [batch, size], of up to 16 periods."""
    angles = 2 * jnp.pi * time[:, None] * jnp.geomspace(0.25, 16, size // 2)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class MLP(nn.Module):
    """Residual blocks with layer normalisation, each of which is told the time."""

    features: int
    blocks: int

    @nn.compact
    def __call__(self, noisy: tuple[jax.Array, jax.Array], train: bool) -> jax.Array:
        """Maps images [batch, height, width, channels] and times, [batch] or [1] of all, to images in [-1, 1]."""
        image, time = noisy
        when = nn.silu(nn.Dense(64)(waves(time, 64)))
        x = nn.Dense(self.features)(image.reshape(len(image), -1))
        for _ in range(self.blocks):
            y = nn.Dense(self.features)(nn.LayerNorm()(x)) + nn.Dense(self.features)(when)
            x = x + nn.Dense(self.features)(nn.silu(y))
        return nn.tanh(nn.Dense(image[0].size)(nn.LayerNorm()(x))).reshape(image.shape)


class UNet(nn.Module):
    """Residual convolutions at falling and rising resolutions (Ho et al. 2020), without attention.

    At the i-th of `blocks` resolutions there are `features * 2 ** i` features.
    """

    features: int
    blocks: int

    @nn.compact
    def __call__(self, noisy: tuple[jax.Array, jax.Array], train: bool) -> jax.Array:
        """Maps images [batch, height, width, channels] and times, [batch] or [1] of all, to images in [-1, 1]."""
        image, time = noisy
        when = nn.silu(nn.Dense(4 * self.features)(waves(time, 64)))

        def block(x: jax.Array, size: int) -> jax.Array:
            y = nn.Conv(size, (3, 3))(nn.silu(nn.GroupNorm(8)(x))) + nn.Dense(size)(when)[:, None, None]
            return nn.Dense(size)(x) + nn.Conv(size, (3, 3))(nn.silu(nn.GroupNorm(8)(y)))

        x, kept = nn.Conv(self.features, (3, 3))(image), []
        for level in range(self.blocks):
            x = block(x, self.features * 2**level)
            kept.append(x)
            x = nn.avg_pool(x, (2, 2), (2, 2))
        x = block(x, self.features * 2**self.blocks)
        for level in reversed(range(self.blocks)):
            same = kept.pop()
            x = jax.image.resize(x, (*same.shape[:3], x.shape[-1]), "nearest")
            x = block(jnp.concatenate([x, same], axis=-1), self.features * 2**level)
        return nn.tanh(nn.Conv(image.shape[-1], (3, 3))(nn.silu(nn.GroupNorm(8)(x))))
