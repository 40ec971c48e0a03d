"""The two networks of a GAN, as one model."""

import functools

import jax
from flax import linen as nn

leaky = functools.partial(nn.leaky_relu, negative_slope=0.2)


class Generator(nn.Module):
    """Latents to images in [-1, 1]: two hidden layers, or DCGAN's convolutions with layer normalisation in them."""

    shape: tuple[int, ...]
    features: int
    convolutional: bool

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """Maps [batch, latents] to [batch, height, width, channels]."""
        height, width, channels = self.shape
        if self.convolutional:
            x = nn.Dense(height // 4 * (width // 4) * 4 * self.features)(latents)
            x = x.reshape(-1, height // 4, width // 4, 4 * self.features)
            for size in (2 * self.features, self.features):
                x = nn.ConvTranspose(size, (4, 4), strides=(2, 2))(leaky(nn.LayerNorm()(x)))
            return nn.tanh(nn.Conv(channels, (3, 3))(leaky(nn.LayerNorm()(x))))
        for _ in range(2):
            latents = leaky(nn.LayerNorm()(nn.Dense(self.features)(latents)))
        return nn.tanh(nn.Dense(height * width * channels)(latents)).reshape(-1, *self.shape)


class Discriminator(nn.Module):
    """Images to one logit each, above 0 for what seems real, without any normalisation."""

    features: int
    convolutional: bool

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Maps [batch, height, width, channels] to [batch]."""
        if self.convolutional:
            for size in (self.features, 2 * self.features, 4 * self.features):
                image = leaky(nn.Conv(size, (4, 4), strides=(2, 2))(image))
        x = image.reshape(len(image), -1)
        for _ in range(0 if self.convolutional else 2):
            x = leaky(nn.Dense(self.features)(x))
        return nn.Dense(1)(x)[:, 0]


class Players(nn.Module):
    shape: tuple[int, ...]
    latents: int
    features: int
    convolutional: bool

    def setup(self) -> None:
        self.generator = Generator(self.shape, self.features, self.convolutional)
        self.discriminator = Discriminator(self.features, self.convolutional)

    def __call__(self, image: jax.Array, train: bool) -> jax.Array:
        """The logits [batch] of as many generated images, of which only the number is taken."""
        return self.discriminator(self.generate(jax.random.key(0), len(image)))

    def generate(self, key: jax.Array, num: int) -> jax.Array:
        """Images [num, height, width, channels] from normal latents."""
        return self.generator(jax.random.normal(key, (num, self.latents)))

    def judge(self, image: jax.Array) -> jax.Array:
        """The logits [batch] of images."""
        return self.discriminator(image)
