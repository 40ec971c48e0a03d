"""A Flax NNX model in this loop: a network with batch norm and dropout, on images.

    python main.py --config=configs/mnist_nnx.py --workdir=runs/mnist_nnx

`CNN` is a module as any NNX program has it. What brings it into this loop stands below it.
"""

import functools
from typing import Any

import jax
from flax import linen as nn
from flax import nnx

from runtime.pooling import average_pool
from train import Task


class CNN(nnx.Module):
    """Two 3x3 convolutions, each with batch norm, ReLU and 2x2 average pooling, and a hidden layer with dropout."""

    def __init__(
        self, size: tuple[int, int, int], num_classes: int, features: int, dropout: float, *, rngs: nnx.Rngs
    ) -> None:
        height, width, channels = size
        conv = functools.partial(nnx.Conv, kernel_size=(3, 3), use_bias=False, rngs=rngs)
        self.conv1 = conv(channels, features)
        self.norm1 = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)
        self.conv2 = conv(features, 2 * features)
        self.norm2 = nnx.BatchNorm(2 * features, momentum=0.9, rngs=rngs)
        self.hidden = nnx.Linear((height // 4) * (width // 4) * 2 * features, 256, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.logits = nnx.Linear(256, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = average_pool(nnx.relu(self.norm1(self.conv1(images))))
        x = average_pool(nnx.relu(self.norm2(self.conv2(x))))
        x = nnx.relu(self.hidden(x.reshape(len(x), -1)))
        return self.logits(self.dropout(x))


class InLoop(CNN):
    """The module as the loop calls it: with `train`, and with keys for the initial parameters or a step's dropout."""

    def __init__(self, *args: Any, rngs: nnx.Rngs) -> None:
        # The bridge makes the module anew at each call, with the keys of that call. Of the two streams the one without
        # a key is not used then. Without any other stream, a module that asks for one fails; the bridge would give it
        # the same numbers at every step.
        streams = dict(rngs.items())
        keys = {name: streams.get(name, 0) for name in ("params", "dropout")}
        super().__init__(*args, rngs=nnx.Rngs(keys))

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:  # type: ignore[override]  # the loop passes it
        self.train() if train else self.eval()
        return super().__call__(images)


def create_model(example: tuple[jax.Array, jax.Array], *, features: int = 16, dropout: float) -> nn.Module:
    (_, *size), num_classes = example[0].shape, example[1].shape[-1]
    return nnx.bridge.to_linen(InLoop, tuple(size), num_classes, features, dropout)


TASK = Task(create_model=create_model)
