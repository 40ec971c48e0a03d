"""Convolutions that are fast on CPUs: `FastApply(model)` in place of `model.apply`.

XLA's convolution is fast on CPUs, its gradient with respect to the kernel is not: it rearranges both arrays first, and
inside of loops it has no fast routine at all. Here the convolution, its input gradient (a convolution, too) and its
kernel gradient each take the fastest of a few formulations, most of them matrix products:

    a stride; 1x1; 2x2; fewer than 16 features    columns: shifted copies of the images side by side, one product
    3x3 of many channels                          Winograd's products along the height, columns along the width
    other                                         XLA's convolution
    kernel gradient                               images shifted along the width times gradient shifted along the height
    kernel gradient: a stride; fewer pixels
    under the kernel than features                columns times gradient

`python -m benchmarks.convolution` times them all for the shapes of the models; its result is where this table is from.
On other backends, and for what is not covered here, XLA's convolution is called.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import linen as nn
from jax import lax

Size = tuple[int, ...]  # height and width
Padding = tuple[tuple[int, int], ...]  # pixels before and after, of each
# (images, kernel, strides, padding) -> features
Formulation = Callable[[jax.Array, jax.Array, Size, Padding], jax.Array]
# (images, gradient with respect to the features, shape of the kernel, strides, padding) -> gradient of the kernel
Gradient = Callable[[jax.Array, jax.Array, tuple[int, ...], Size, Padding], jax.Array]

# Shifted copies are made of a few images at a time, so that about so many bytes of them stay in the cache.
CHUNK_BYTES = 4e6
# Below, Winograd's products save less than the 0.2 seconds that they take to compile.
WINOGRAD_MIN_FLOPS = 1e8


@dataclasses.dataclass(frozen=True)
class FastApply:
    """`model.apply`, in which every `nn.Conv` calls `conv_general_dilated` of this file instead of XLA's.

    An `nn.Conv` that was given a `conv_general_dilated` keeps it. Parameters and their names stay the same.

    Unlike bound methods, those of equal models are equal: a jitted function with this as a static argument is traced
    once for all of them.
    """

    model: nn.Module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Takes and returns what `model.apply` does."""
        with nn.intercept_methods(_replace_convolution):
            return self.model.apply(*args, **kwargs)


def _replace_convolution(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    conv = context.module
    if isinstance(conv, nn.Conv) and conv.conv_general_dilated is None and conv.conv_general_dilated_cls is None:
        # Past Flax's guard of its fields: within `apply` a module is a copy that nobody else sees.
        object.__setattr__(conv, "conv_general_dilated", conv_general_dilated)
    return call(*args, **kwargs)


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, faster on CPUs, where it computes in float32 or wider; equal up to rounding.

    There it has gradients of any order, but no forward mode: a Hessian-vector product is the gradient of the gradient
    times a vector.

    Args:
        lhs: images [batch, height, width, channels].
        rhs: the kernel [height, width, channels, features].
        window_strides: along height and width.
        padding: "SAME", "VALID" or the pixels before and after, for height and width.
        **options: as there. With dilation, groups or another layout XLA's convolution is called, which the log says.

    Returns:
        [batch, height, width, features], of the type of `lhs`.
    """
    xla = functools.partial(lax.conv_general_dilated, lhs, rhs, window_strides, padding, **options)
    if jax.default_backend() != "cpu":
        return xla()
    size, strides = rhs.shape[:2], tuple(window_strides)
    pads = lax.padtype_to_pads(lhs.shape[1:-1], size, strides, padding) if isinstance(padding, str) else padding
    pads = tuple((low, high) for low, high in pads)
    if reason := _not_covered(lhs, rhs, pads, **options):
        _warn(reason)
        return xla()
    if strides != (1, 1) and not any(k % stride for k, stride in zip(size, strides, strict=True)):
        lhs, rhs = _space_to_depth(lhs, rhs, strides, pads)
        strides, pads = (1, 1), ((0, 0), (0, 0))
    return _convolution(lhs, rhs, strides, pads)


def _not_covered(lhs: jax.Array, rhs: jax.Array, pads: Padding, **options: Any) -> str | None:
    """What about a convolution is not covered, if anything."""
    if lhs.ndim != 4:
        return f"{lhs.ndim - 2} spatial dimensions"
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, options.pop("dimension_numbers", None))
    if numbers != lax.conv_dimension_numbers(lhs.shape, rhs.shape, ("NHWC", "HWIO", "NHWC")):
        return f"layout {numbers}"
    if lhs.dtype != rhs.dtype or not jnp.issubdtype(lhs.dtype, jnp.floating):
        return f"types {lhs.dtype} and {rhs.dtype}"
    if any(not 0 <= pad < k for k, pair in zip(rhs.shape, pads, strict=False) for pad in pair):
        return f"padding {pads} of a kernel of {rhs.shape[:2]}"
    if any(n + sum(pair) < k for n, k, pair in zip(lhs.shape[1:], rhs.shape, pads, strict=False)):
        return f"a kernel of {rhs.shape[:2]} on images of {lhs.shape[1:3]}"
    # On CPUs all arithmetic is as precise as the type, whatever `precision` says.
    unusual = {
        key: value for key, value in options.items() if key != "precision" and np.any(np.not_equal(value or 1, 1))
    }
    return ", ".join(f"{key} {value}" for key, value in unusual.items()) or None


@functools.cache
def _warn(reason: str) -> None:
    logging.warning("A convolution with %s is left to XLA, which is slow on CPUs.", reason)


def _space_to_depth(x: jax.Array, kernel: jax.Array, strides: Size, pads: Padding) -> tuple[jax.Array, jax.Array]:
    """The images and kernel of the same convolution without strides: its channels are blocks of as many pixels."""
    (sh, sw), (kh, kw, channels, features) = strides, kernel.shape
    blocks = (kh // sh, kw // sw)
    height, width = (n + k - 1 for n, k in zip(_output_size(x, kernel.shape, strides, pads), blocks, strict=True))
    x = _pad(x, pads)[:, : height * sh, : width * sw]
    x = x.reshape(len(x), height, sh, width, sw, channels).transpose(0, 1, 3, 2, 4, 5)
    kernel = kernel.reshape(blocks[0], sh, blocks[1], sw, channels, features).transpose(0, 2, 1, 3, 4, 5)
    depth = sh * sw * channels
    return x.reshape(len(x), height, width, depth), kernel.reshape(*blocks, depth, features)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(x: jax.Array, kernel: jax.Array, strides: Size, pads: Padding) -> jax.Array:
    return choose(x, kernel, strides)(_widen(x), _widen(kernel), strides, pads).astype(x.dtype)


def _forward(x: jax.Array, kernel: jax.Array, strides: Size, pads: Padding) -> tuple[jax.Array, Any]:
    return _convolution(x, kernel, strides, pads), (x, kernel)


def _backward(strides: Size, pads: Padding, saved: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    if strides == (1, 1):
        around = tuple((k - 1 - low, k - 1 - high) for k, (low, high) in zip(kernel.shape, pads, strict=False))
        x_grad = _convolution(grad, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), strides, around)
    else:
        (x_grad,) = jax.vjp(lambda x: columns(x, _widen(kernel), strides, pads), _widen(x))[1](_widen(grad))
    kernel_gradient = choose_gradient(kernel.shape, strides)
    kernel_grad = kernel_gradient(_widen(x), _widen(grad), kernel.shape, strides, pads)
    return x_grad.astype(x.dtype), kernel_grad.astype(kernel.dtype)


_convolution.defvjp(_forward, _backward)


def choose(x: jax.Array, kernel: jax.Array, strides: Size) -> Formulation:
    """The formulation that is fastest for these images and this kernel."""
    kh, kw, channels, features = kernel.shape
    if strides != (1, 1) or kh * kw <= 4 or features < 16:
        return columns
    many = min(channels, features) >= 16 and max(channels, features) >= 32
    if (kh, kw) == (3, 3) and many and 2 * x.size * 9 * features >= WINOGRAD_MIN_FLOPS:
        return winograd
    return xla


def choose_gradient(shape: tuple[int, ...], strides: Size) -> Gradient:
    """The formulation of the gradient with respect to a kernel of this shape that is fastest."""
    few_pixels = math.prod(shape[:3]) < shape[3]
    return columns_gradient if strides != (1, 1) or few_pixels else shifts_gradient


def xla(x: jax.Array, kernel: jax.Array, strides: Size, pads: Padding) -> jax.Array:
    """XLA's convolution, in the only layout that is fast inside of loops, too."""
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def columns(x: jax.Array, kernel: jax.Array, strides: Size, pads: Padding) -> jax.Array:
    """One product of the pixels under the kernel with the kernel."""
    (height, width), features = _output_size(x, kernel.shape, strides, pads), kernel.shape[-1]
    kernel_matrix = kernel.reshape(-1, features)

    def convolve(x: jax.Array) -> jax.Array:
        pixels = _pixels(x, kernel.shape, strides, pads)
        return jnp.dot(_flatten(pixels), kernel_matrix).reshape(len(x), height, width, features)

    (chunks,) = _chunk(height * width * (len(kernel_matrix) + features), x)
    return lax.map(convolve, chunks).reshape(len(x), height, width, features)


def winograd(x: jax.Array, kernel: jax.Array, strides: Size, pads: Padding) -> jax.Array:
    """F(2, 3) along the height: for 2 rows 4 products with sums of rows, not 6 (Winograd 1980, Lavin & Gray 2016).

    Takes kernels of 3x3 without strides. Its factors of 1 and 1/2 hardly touch the rounding; those of larger tiles do.
    """
    (height, width), (*_, channels, features) = _output_size(x, kernel.shape, strides, pads), kernel.shape
    tiles = -(-height // 2)
    pads = ((pads[0][0], 2 * tiles + 2 - pads[0][0] - x.shape[1]), pads[1])
    first, second, third = kernel.reshape(3, 3 * channels, features)
    kernels = (first, (first + second + third) / 2, (first - second + third) / 2, third)

    def convolve(x: jax.Array) -> jax.Array:
        rows = _pixels(x, (1, 3), strides, pads).reshape(len(x), tiles + 1, 2, width * 3 * channels)
        a, b, c, d = rows[:, :-1, 0], rows[:, :-1, 1], rows[:, 1:, 0], rows[:, 1:, 1]
        factors = zip((a - c, b + c, c - b, b - d), kernels, strict=True)
        p, q, r, s = (jnp.dot(sums.reshape(-1, 3 * channels), k).reshape(len(x), tiles, -1) for sums, k in factors)
        return jnp.stack([p + q + r, q - r - s], axis=2).reshape(len(x), 2 * tiles, width, features)[:, :height]

    (chunks,) = _chunk(2 * height * width * (3 * channels + features), x)
    return lax.map(convolve, chunks).reshape(len(x), height, width, features)


def columns_gradient(x: jax.Array, grad: jax.Array, shape: tuple[int, ...], strides: Size, pads: Padding) -> jax.Array:
    """The gradient with respect to a kernel of this shape: the pixels under the kernel times the gradient."""

    def gradient(x: jax.Array, grad: jax.Array) -> jax.Array:
        return jnp.dot(_flatten(_pixels(x, shape, strides, pads)).T, _flatten(grad)).reshape(shape)

    height, width, features = grad.shape[1:]
    return _sum(gradient, shape, _chunk(height * width * (math.prod(shape[:3]) + features), x, grad))


def shifts_gradient(x: jax.Array, grad: jax.Array, shape: tuple[int, ...], strides: Size, pads: Padding) -> jax.Array:
    """The same without strides, from kw copies of the images, shifted along the width, times kh of the gradient."""
    kh, kw, channels, features = shape
    height, width = x.shape[1] + sum(pads[0]), grad.shape[2]

    def gradient(x: jax.Array, grad: jax.Array) -> jax.Array:
        pixels = _pixels(x, (1, kw), strides, pads)
        # Row i of the kernel joins row h of the images with row h - i of the gradient.
        grad = _pad(grad, ((kh - 1, kh - 1), (0, 0)))
        grads = jnp.concatenate([grad[:, kh - 1 - i : kh - 1 - i + height] for i in range(kh)], axis=-1)
        return jnp.dot(_flatten(pixels).T, _flatten(grads)).reshape(kw, channels, kh, features).transpose(2, 0, 1, 3)

    return _sum(gradient, shape, _chunk(height * width * (kw * channels + kh * features), x, grad))


def _pixels(x: jax.Array, size: Sequence[int], strides: Size, pads: Padding) -> jax.Array:
    """The pixels under a kernel of this size for each output: [batch, height, width, kh * kw * channels]."""
    x = _pad(x, pads)
    rows, cols = x.shape[1] - size[0] + 1, x.shape[2] - size[1] + 1
    shifts = [(i, j) for i in range(size[0]) for j in range(size[1])]
    return jnp.concatenate([x[:, i : i + rows : strides[0], j : j + cols : strides[1]] for i, j in shifts], axis=-1)


def _chunk(floats: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Batches as [chunks, images, ...], such that intermediate arrays of so many floats an image fit into the cache."""
    batch = len(arrays[0])
    # In a loop over images that several devices share, every device would fetch the others'.
    fitting = max(1, batch * floats * 4 / CHUNK_BYTES) if jax.device_count() == 1 else 1
    chunks = min((n for n in range(1, batch + 1) if batch % n == 0), key=lambda n: abs(math.log(n / fitting)))
    return tuple(x.reshape(chunks, batch // chunks, *x.shape[1:]) for x in arrays)


def _sum(gradient: Callable[..., jax.Array], shape: tuple[int, ...], chunks: tuple[jax.Array, ...]) -> jax.Array:
    """The sum of the gradients of chunks, one after the other."""
    zeros = jnp.zeros(shape, chunks[0].dtype)
    return lax.scan(lambda total, chunk: (total + gradient(*chunk), None), zeros, chunks)[0]


def _output_size(x: jax.Array, shape: Sequence[int], strides: Size, pads: Padding) -> Size:
    height, width = ((x.shape[i + 1] + sum(pads[i]) - shape[i]) // strides[i] + 1 for i in range(2))
    return height, width


def _pad(x: jax.Array, pads: Padding) -> jax.Array:
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))


def _flatten(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


def _widen(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
