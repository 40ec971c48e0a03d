"""The three networks of BYOL as one model: an encoder, whose features are wanted, a projector and a predictor."""

import jax
import jax.numpy as jnp
from flax import linen as nn

import models


class Encoder(nn.Module):
    """Three 3x3 convolutions with stride 2 and batch norm."""

    features: int

    @nn.compact
    def __call__(self, image: jax.Array, train: bool) -> jax.Array:
        """Maps images [batch, height, width, channels] to [batch, ...]; of 14x14 pixels to 16 times `features`."""
        for factor in (1, 2, 4):
            image = nn.Conv(factor * self.features, (3, 3), strides=2, use_bias=False)(image)
            image = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(image))
        return image.reshape(len(image), -1)


class MLP(nn.Module):
    """A hidden layer with batch norm, and a linear one."""

    hidden: int
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(self.hidden, use_bias=False)(x))
        return nn.Dense(self.outputs)(nn.relu(x))


class Networks(nn.Module):
    """Encoder, projector and predictor.

    Attributes:
        resnet: depth of a residual network as the encoder, whose last layer is linear, of 512 outputs; 0: `Encoder`.
        features: of the encoder's first layer, if it is `Encoder`.
        hidden: units of projector and predictor.
        outputs: of both.
    """

    resnet: int
    features: int
    hidden: int
    outputs: int

    def setup(self) -> None:
        if self.resnet:
            self.encode: nn.Module = models.ResNet(512, self.resnet, 1, False, 0.0, jnp.float32)
        else:
            self.encode = Encoder(self.features)
        self.project = MLP(self.hidden, self.outputs)
        self.predict = MLP(self.hidden, self.outputs)

    def __call__(self, image: jax.Array, train: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Maps images [batch, height, width, channels] to features, projections and predictions, [batch, ...] each."""
        features = self.encode(image, train)
        projection = self.project(features, train)
        return features, projection, self.predict(projection, train)
