"""Linen models, chosen by `config.model.name`.

A model is called as `model(images, train)`. With `train`, dropout acts and batch norm uses the statistics of the batch.
It maps float images [batch, height, width, channels] to float32 logits [batch, num_classes]. Its attributes are
`num_classes`, `dtype` and any fields of `config.model`. The only collection that it may change is `batch_stats`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from runtime.errors import UserError
from runtime.pooling import average_pool, max_pool, overlapping_max_pool


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
        x = images.astype(self.dtype).reshape(images.shape[0], -1)
        for size in self.hidden_sizes:
            x = nn.relu(nn.Dense(size, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


class CNN(nn.Module):
    """The convolutional network of the Flax MNIST example, with optional batch norm and dropout.

    Two 3x3 convolutions of 32 and 64 features, each followed by ReLU and 2x2 average pooling, and a hidden layer of
    256. 824,458 parameters on MNIST. Images must have at least 4x4 pixels.

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
        if min(images.shape[1:3]) < 4:
            raise UserError(f"cnn needs images of 4 x 4 pixels or more; these have {images.shape[1:3]}")
        x = images.astype(self.dtype)
        for features in (32, 64):
            x = nn.Conv(features, kernel_size=(3, 3), dtype=self.dtype)(x)
            if self.batch_norm:
                x = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x)
            x = average_pool(nn.relu(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.relu(nn.Dense(256, dtype=self.dtype)(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


class SmallCNN(nn.Module):
    """A convolutional network that trains in seconds on CPUs, after Simard et al. 2003.

    Two convolutions that shrink the image by their stride, without padding or pooling: 6x6 of 8 features and 4x4 of 48,
    each with stride 2, and a hidden layer of 256. 316,514 parameters and 1 million floating-point operations for an
    image of MNIST. Images must have at least 12x12 pixels.

    Attributes:
        num_classes: number of logits.
        dtype: of the computation; parameters are float32 always.
    """

    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        if min(images.shape[1:3]) < 12:
            raise UserError(f"small_cnn needs images of 12 x 12 pixels or more; these have {images.shape[1:3]}")
        x = images.astype(self.dtype)
        for features, size in ((8, 6), (48, 4)):
            x = nn.relu(nn.Conv(features, (size, size), strides=2, padding="VALID", dtype=self.dtype)(x))
        x = nn.relu(nn.Dense(256, dtype=self.dtype)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


class FastCNN(nn.Module):
    """A convolutional network that learns CIFAR-10 in few operations, after Jordan 2024 (arXiv:2404.00498).

    Its first layer is fixed: the Haar wavelets of 2x2 pixels in opponent colours, whose statistics batch norm makes
    equal, which whitens images nearly; each with both signs. Then three stages of two 3x3 convolutions, each with batch
    norm without scale and GELU, the first of a stage with max pooling. Kernels start as identities where they can.
    1.97 million parameters at width 1. Colour images of at least 9x9 pixels.

    Attributes:
        num_classes: number of logits.
        width: factor on the 64, 256 and 256 channels of the stages.
        mirror: in evaluation, whether logits are the mean of those of an image and of its mirror image.
        dtype: of the computation; parameters and batch statistics are float32 always.
    """

    num_classes: int
    width: int
    mirror: bool
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        if min(images.shape[1:3]) < 9 or images.shape[3] != 3:
            raise UserError(f"fast_cnn needs images of 9 x 9 pixels or more in 3 colours, not {images.shape[1:]}")
        views = 2 if self.mirror and not train else 1
        x = jnp.concatenate([images, images[:, :, ::-1]]) if views == 2 else images
        # Momentum: there are few steps.
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, use_scale=False, momentum=0.6, dtype=self.dtype
        )
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=_partly_identity)

        x = norm(use_bias=False)(_wavelets(x.astype(self.dtype)))
        bias = self.param("whitened_bias", nn.initializers.zeros, (2 * x.shape[-1],))
        x = nn.gelu(jnp.concatenate([x, -x], axis=-1) + bias.astype(self.dtype))
        for features in (64, 256, 256):
            x = nn.gelu(norm()(max_pool(conv(features * self.width, (3, 3))(x))))
            x = nn.gelu(norm()(conv(features * self.width, (3, 3))(x)))
        logits = nn.Dense(self.num_classes, use_bias=False, dtype=self.dtype)(x.max(axis=(1, 2)))
        return logits.reshape(views, images.shape[0], -1).mean(axis=0).astype(jnp.float32)


class StochasticDepth(nn.Dropout):
    """Drops a residual branch for a share of the images of training, scaling the others up (Huang et al. 2016).

    Models let the share grow linearly, from 0 for the input to that of the config for the last block. It has a class of
    its own because layers are numbered by class and draw by their names: so what `nn.Dropout` draws stays as it is.
    """


class ResNet(nn.Module):
    """A residual network (He et al. 2016).

    Depths 20 and 56 are the paper's networks for CIFAR (section 4.2): three stages that start at 16 channels, and
    shortcuts without parameters. The others are its networks for ImageNet: four stages that start at 64 channels, and
    projections where the shape changes. Blocks of 50 and 101 are bottlenecks of three convolutions. Their stride is in
    the 3x3 one, as is usual today; in the paper it is in the first. 25.6 million parameters at depth 50 on ImageNet.

    Attributes:
        num_classes: number of logits.
        depth: 18, 20, 34, 50, 56 or 101.
        width: factor on the number of channels; 1 is the paper's.
        zero_init_residual: start the last scale of each block at 0, the block as an identity (Goyal et al. 2017).
        dropout: share of the features dropped before the last layer.
        dtype: of the computation; parameters and batch statistics are float32 always.
        stem: "cifar", a 3x3 convolution; or "imagenet", the paper's 7x7 one and 3x3 max pooling, each with stride 2.
        stochastic_depth: share of the images for which the last block is skipped in training (Huang et al. 2016).
    """

    num_classes: int
    depth: int
    width: int
    zero_init_residual: bool
    dropout: float
    dtype: Any
    stem: str = "cifar"  # These defaults are for the configs of runs before there were such fields.
    stochastic_depth: float = 0.0

    # Blocks in each stage.
    STAGES: ClassVar[Mapping[int, tuple[int, ...]]] = {
        18: (2, 2, 2, 2),
        20: (3, 3, 3),
        34: (3, 4, 6, 3),
        50: (3, 4, 6, 3),
        56: (9, 9, 9),
        101: (3, 4, 23, 3),
    }

    def __post_init__(self) -> None:
        if self.depth not in self.STAGES:
            raise UserError(f"model.depth = {self.depth}: must be one of {', '.join(map(str, self.STAGES))}")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        conv = _conv(self.dtype)
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        last_scale = nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones
        skip = functools.partial(StochasticDepth, broadcast_dims=(1, 2, 3), deterministic=not train)
        stages = self.STAGES[self.depth]
        projection, bottleneck = len(stages) == 4, self.depth in (50, 101)
        channels = (64 if projection else 16) * self.width

        x = images.astype(self.dtype)
        x = conv(channels, (7, 7), 2, padding=3)(x) if self.stem == "imagenet" else conv(channels, (3, 3))(x)
        x = nn.relu(norm()(x))
        x = overlapping_max_pool(x) if self.stem == "imagenet" else x
        for stage, num_blocks in enumerate(stages):
            for block in range(num_blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                features = channels * 2**stage
                if bottleneck:
                    y = nn.relu(norm()(conv(features, (1, 1), padding=0)(x)))
                    y = nn.relu(norm()(conv(features, (3, 3), strides)(y)))
                    y = norm(scale_init=last_scale)(conv(4 * features, (1, 1), padding=0)(y))
                else:
                    y = nn.relu(norm()(conv(features, (3, 3), strides)(x)))
                    y = norm(scale_init=last_scale)(conv(features, (3, 3))(y))
                if x.shape != y.shape and projection:
                    x = norm()(conv(y.shape[-1], (1, 1), strides, padding=0)(x))
                elif x.shape != y.shape:
                    x = jnp.pad(x[:, ::2, ::2], [(0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])])
                rate = self.stochastic_depth * (sum(stages[:stage]) + block + 1) / sum(stages)
                x = nn.relu(x + skip(rate)(y))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.mean(axis=(1, 2)))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


class WideResNet(nn.Module):
    """A wide residual network (Zagoruyko & Komodakis 2016). WRN-28-10, depth 28 and width 10, has 36.5M parameters.

    Attributes:
        num_classes: number of logits.
        depth: 6 n + 4, for n blocks in each of the three stages.
        width: factor on the 16, 32 and 64 channels of the stages; the paper's `k`.
        dropout: share of the features dropped between the two convolutions of a block.
        dtype: of the computation; parameters and batch statistics are float32 always.
    """

    num_classes: int
    depth: int
    width: int
    dropout: float
    dtype: Any

    def __post_init__(self) -> None:
        if self.depth < 10 or self.depth % 6 != 4:
            raise UserError(f"model.depth = {self.depth}: must be 6 n + 4, such as 16, 28 or 40")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        conv = _conv(self.dtype)
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        x = conv(16, (3, 3))(images.astype(self.dtype))
        for stage in range(3):
            for block in range((self.depth - 4) // 6):
                strides = 2 if stage > 0 and block == 0 else 1
                features = 16 * self.width * 2**stage
                y = nn.relu(norm()(x))
                if x.shape[-1] != features or strides > 1:
                    x = conv(features, (1, 1), strides, padding=0)(y)
                y = nn.relu(norm()(conv(features, (3, 3), strides)(y)))
                y = nn.Dropout(self.dropout, deterministic=not train)(y)
                x = x + conv(features, (3, 3))(y)
        x = nn.relu(norm()(x)).mean(axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021) with a class token.

    At depth 12 the widths 1, 2 and 4 are the sizes Ti, S and B of Touvron et al. 2021, of 5.7, 22 and 87 million
    parameters at a patch of 16 on ImageNet.

    Attributes:
        num_classes: number of logits.
        depth: number of transformer blocks.
        width: factor on 192 features and 3 attention heads.
        patch: side of the square patches that become tokens, in pixels.
        dropout: share of the features dropped after the embedding, the attention and the multi-layer perceptron.
        dtype: of the computation; parameters are float32 always.
        stochastic_depth: share of the images for which the last block is skipped in training (Huang et al. 2016).
    """

    num_classes: int
    depth: int
    width: int
    patch: int
    dropout: float
    dtype: Any
    stochastic_depth: float = 0.0  # for the configs of runs before there was such a field

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        batch, height, width, _ = images.shape
        if height % self.patch or width % self.patch:
            raise UserError(f"model.patch = {self.patch}: must divide the {height} x {width} pixels of the images")
        features = 192 * self.width
        dropout = functools.partial(nn.Dropout, self.dropout, deterministic=not train)
        skip = functools.partial(StochasticDepth, broadcast_dims=(1, 2), deterministic=not train)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        dense = functools.partial(nn.Dense, dtype=self.dtype)

        patch = (self.patch, self.patch)
        x = nn.Conv(features, patch, patch, padding=0, dtype=self.dtype)(images.astype(self.dtype))
        x = x.reshape(batch, -1, features)
        token = self.param("class_token", nn.initializers.zeros, (1, 1, features))
        x = jnp.concatenate([jnp.broadcast_to(token, (batch, 1, features)).astype(self.dtype), x], axis=1)
        position = self.param("position_embedding", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = dropout()(x + position.astype(self.dtype))
        for block in range(self.depth):
            rate = self.stochastic_depth * (block + 1) / self.depth
            y = norm()(x)
            y = nn.MultiHeadDotProductAttention(num_heads=3 * self.width, dtype=self.dtype)(y)
            x = x + skip(rate)(dropout()(y))
            y = dense(features)(nn.gelu(dense(4 * features)(norm()(x)), approximate=False))
            x = x + skip(rate)(dropout()(y))
        return dense(self.num_classes)(norm()(x)[:, 0]).astype(jnp.float32)


def _conv(dtype: Any) -> Callable[..., nn.Conv]:
    """The convolutions of residual networks, before batch norm.

    Padded by 1 on each side, so that a strided one is centred on the pixels that `x[:, ::2, ::2]` keeps; "SAME" is not.
    """
    return functools.partial(nn.Conv, padding=1, use_bias=False, kernel_init=nn.initializers.he_normal(), dtype=dtype)


def _wavelets(images: jax.Array) -> jax.Array:
    """The four Haar wavelets of all 2x2 pixels, each in three opponent colours: [batch, height - 1, width - 1, 12]."""
    haar = np.array([[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]]) / 2
    colours = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    kernel = np.einsum("whv,cr->hvrwc", haar, colours).reshape(2, 2, 3, 12)
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        images, jnp.asarray(kernel, images.dtype), (1, 1), "VALID", dimension_numbers=numbers
    )


def _partly_identity(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Kernels [height, width, inputs, outputs] whose first outputs are the inputs as they are; the others He's."""
    kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)
    same = min(shape[2:])
    identity = jnp.zeros((*shape[:3], same)).at[shape[0] // 2, shape[1] // 2, :same].set(jnp.eye(same))
    return kernel.at[..., :same].set(identity)


# A new model is a module above and its name here.
MODELS: Mapping[str, type[nn.Module]] = {
    "mlp": MLP,
    "cnn": CNN,
    "small_cnn": SmallCNN,
    "fast_cnn": FastCNN,
    "resnet": ResNet,
    "wide_resnet": WideResNet,
    "vit": ViT,
}


def create_model(name: str, *, num_classes: int, dtype: str, **fields: Any) -> nn.Module:
    """The model that `config.model` describes.

    Args:
        name: a key of `MODELS`.
        num_classes: number of logits.
        dtype: "float32" or "bfloat16", of the computation.
        **fields: the other fields of `config.model`; the model takes the ones that it has.

    Raises:
        UserError: there is no such model, or the model does not allow the value of a field.
    """
    if name not in MODELS:
        raise UserError(f"model.name = {name!r}: must be one of {', '.join(map(repr, MODELS))}")
    taken = {key: value for key, value in fields.items() if key in model_fields(name)}
    if missing := {"num_classes", "dtype"} - MODELS[name].__dataclass_fields__.keys():
        raise UserError(f"models.MODELS[{name!r}] must have the attribute {min(missing)}")
    return MODELS[name](num_classes=num_classes, dtype=jnp.dtype(dtype), **taken)


def create_classifier(
    example: tuple[jax.Array, jax.Array], name: str, *, dtype: str = "float32", **fields: Any
) -> nn.Module:
    """The model that `config.model` describes, with an output for each column of the targets [1, classes].

    Args:
        example: the model's input and its target, of a single image; see `input_pipeline.Data`.
        name: see `create_model`, as for the rest of `config.model`.
        dtype: see there.
        **fields: see there.
    """
    return create_model(name, num_classes=example[1].shape[-1], dtype=dtype, **fields)


def model_fields(name: str) -> frozenset[str]:
    """The fields of `config.model` that the model of this name has."""
    return frozenset(MODELS[name].__dataclass_fields__) - {"parent", "name", "num_classes"}
