"""Linen models, chosen by `config.model.name`. A model maps `(images, train)` to logits."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class MLP(nn.Module):
    """A multi-layer perceptron on flattened images.

    Attributes:
        num_classes: number of logits.
        hidden_sizes: width of each hidden layer.
        dtype: of the computation; parameters are float32 always.
    """

    num_classes: int
    hidden_sizes: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps float images [batch, height, width, channels] to float32 logits [batch, num_classes]."""
        x = images.astype(self.dtype).reshape(len(images), -1)
        for size in self.hidden_sizes:
            x = nn.relu(nn.Dense(size, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


class CNN(nn.Module):
    """The convolutional network of the Flax MNIST example, with optional batch norm and dropout.

    Two 3x3 convolutions of 32 and 64 features, each followed by ReLU and 2x2 average pooling, and a hidden layer of
    256. 824,458 parameters on MNIST.

    Attributes:
        num_classes: number of logits.
        batch_norm: whether to normalise after each convolution.
        dropout: share of the features dropped before the hidden layer and before the last one.
        dtype: of the computation; parameters and batch statistics are float32 always.
    """

    num_classes: int
    batch_norm: bool
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps float images [batch, height, width, channels] to float32 logits [batch, num_classes]."""
        x = images.astype(self.dtype)
        for features in (32, 64):
            x = nn.Conv(features, kernel_size=(3, 3), dtype=self.dtype)(x)
            if self.batch_norm:
                x = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x)
            x = average_pool(nn.relu(x))
        x = x.reshape(len(x), -1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.relu(nn.Dense(256, dtype=self.dtype)(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


def average_pool(x: jax.Array) -> jax.Array:
    """2x2 average pooling with stride 2 of [batch, height, width, channels]; an odd last row or column is left out.

    Equal to `nn.avg_pool(x, (2, 2), (2, 2))`, whose gradient is slow on CPUs.
    """
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


# A new model is a module above and its name here.
MODELS: Mapping[str, type[nn.Module]] = {"mlp": MLP, "cnn": CNN}


def create_model(name: str, *, num_classes: int, dtype: str, **fields: Any) -> nn.Module:
    """The model that `config.model` describes.

    Args:
        name: a key of `MODELS`.
        num_classes: number of logits.
        dtype: "float32" or "bfloat16", of the computation.
        **fields: the other fields of `config.model`; the model takes those that it has.
    """
    module = MODELS[name]
    taken = {key: value for key, value in fields.items() if key in model_fields(name)}
    return module(num_classes=num_classes, dtype=jnp.dtype(dtype), **taken)


@functools.cache
def model_fields(name: str) -> frozenset[str]:
    """The fields of `config.model` that the model of this name has."""
    return frozenset(MODELS[name].__dataclass_fields__) - {"parent", "name", "num_classes"}
