"""RandAugment: changes to images by operations of Pillow, made on the device."""

import functools
import math

import jax
import jax.numpy as jnp

# In the order in which `_operate` looks for them: those that move pixels, those that map levels, and blends.
OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "contrast", "posterize", "solarize", "autocontrast", "equalize"),
    *("color", "sharpness"),
)


def rand_augment(key: jax.Array, image: jax.Array, num_operations: int, magnitude: int, fill: jax.Array) -> jax.Array:
    """Changes each image by some of `OPERATIONS`, uniformly drawn, one after another (Cubuk et al. 2020).

    The magnitude is on the paper's scale from 0 to 10; elsewhere it runs up to 30, which multiplies it by 3. At 10:

        shear_x, shear_y            by 0.3 of the distance from the first row or column
        translate_x, translate_y    by 0.45 of the width or height
        rotate                      by 30 degrees around the centre
        brightness, contrast,       a factor of 1.9 or 0.1, to a black image, one of the mean grey, a grey one and
        color, sharpness            a smoothed one
        posterize                   from 8 bits to 4
        solarize                    every level is inverted; at m, those from 256 (1 - m / 10) on

    They grow linearly up to there, in a direction that is drawn. autocontrast and equalize know no magnitude. Levels
    are rounded as Pillow does. Pixels are moved without interpolation, as in the paper's program.

    Args:
        key: random key.
        image: uint8 [batch, height, width, channels], of 1 or 3 channels.
        num_operations: on each image.
        magnitude: from 0 to 10.
        fill: uint8 [channels], for what comes from outside of the image.
    """
    for drawn in jax.random.split(key, num_operations):
        operation_key, direction_key = jax.random.split(drawn)
        operation = jax.random.randint(operation_key, (len(image),), 0, len(OPERATIONS))
        strength = magnitude / 10 * jax.random.rademacher(direction_key, (len(image),), jnp.float32)
        image = jax.vmap(functools.partial(_operate, fill=fill))(image, operation, strength)
    return image


def _operate(image: jax.Array, operation: jax.Array, strength: jax.Array, fill: jax.Array) -> jax.Array:
    """One image [height, width, channels] after the operation of this index, at a strength from -1 to 1.

    In a batch all images take all paths; so there is one for each kind of operation, not one for each operation.
    """
    kinds = OPERATIONS.index("brightness"), OPERATIONS.index("color")
    image = _resample(image, _matrices(image, strength)[jnp.where(operation < kinds[0], operation, 0)], fill)

    tables = _tables(image, strength)  # for an operation of another kind, any of them, which is not used then
    mapped = jax.vmap(lambda table, levels: table[levels], (0, 2), 2)(tables[operation - kinds[0]], image)
    image = jnp.where((kinds[0] <= operation) & (operation < kinds[1]), mapped, image)

    grey = jnp.broadcast_to(_grey(image)[..., None], image.shape)
    origin = jnp.where(operation == OPERATIONS.index("color"), grey, _smooth(image))
    return _blend(origin, image, jnp.where(operation < kinds[1], 1, 1 + 0.9 * strength))


def _matrices(image: jax.Array, strength: jax.Array) -> jax.Array:
    """The affine maps of identity to rotate, [6, 2, 3]: from (x, y, 1) of a pixel to (x, y) of where it comes from."""
    height, width, _ = image.shape
    shear, angle = 0.3 * strength, -math.radians(30) * strength
    cos, sin, x, y = jnp.cos(angle), jnp.sin(angle), width / 2, height / 2
    maps = (
        ((1, 0, 0), (0, 1, 0)),
        ((1, shear, 0), (0, 1, 0)),
        ((1, 0, 0), (shear, 1, 0)),
        ((1, 0, 0.45 * width * strength), (0, 1, 0)),
        ((1, 0, 0), (0, 1, 0.45 * height * strength)),
        ((cos, sin, x - cos * x - sin * y), (-sin, cos, y + sin * x - cos * y)),
    )
    return jnp.array(maps, jnp.float32)


def _resample(image: jax.Array, matrix: jax.Array, fill: jax.Array) -> jax.Array:
    """Each pixel from where the matrix [2, 3] sends its centre, without interpolation; `fill` if that is outside."""
    height, width, _ = image.shape
    y, x = jnp.meshgrid(jnp.arange(0.5, height), jnp.arange(0.5, width), indexing="ij")
    column, row = (jnp.floor(a * x + b * y + c).astype(int) for a, b, c in matrix)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return jnp.where(inside[..., None], image.at[row, column].get(mode="clip"), fill[None, None])


def _tables(image: jax.Array, strength: jax.Array) -> jax.Array:
    """What brightness to equalize make of each level of each channel: uint8 [6, channels, 256]."""
    levels, factor, size = jnp.arange(256), 1 + 0.9 * strength, jnp.abs(strength)
    mean = jnp.floor(_grey(image).mean() + 0.5)
    lost_bits = jnp.round(4 * size).astype(int)
    shared = (
        _blend(jnp.zeros(256), levels, factor),
        _blend(jnp.full(256, mean), levels, factor),
        levels >> lost_bits << lost_bits,
        jnp.where(levels < 256 - jnp.round(256 * size).astype(int), levels, 255 - levels),
    )

    def of_channel(ordered: jax.Array) -> tuple[jax.Array, jax.Array]:
        low, high = ordered[0].astype(int), ordered[-1].astype(int)
        stretched = jnp.where(high > low, (levels - low) * 255 // jnp.maximum(high - low, 1), levels)
        # Sorting finds how many pixels are below each level without a histogram, which GPUs add up in any order.
        below = jnp.searchsorted(ordered, levels.astype(jnp.uint8))
        step = below[high] // 255
        equalized = jnp.where(step > 0, (step // 2 + below) // jnp.maximum(step, 1), levels)
        return stretched, equalized

    channels = image.shape[-1]
    own = jax.vmap(of_channel)(jnp.sort(image.reshape(-1, channels).T))
    tables = *(jnp.broadcast_to(table.astype(int), (channels, 256)) for table in shared), *own
    return jnp.clip(jnp.stack(tables), 0, 255).astype(jnp.uint8)


def _blend(origin: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """`image`, or what lies `factor` times as far from `origin`, rounded down to levels, uint8."""
    start, end = origin.astype(jnp.float32), image.astype(jnp.float32)
    return jnp.clip(start + factor * (end - start), 0, 255).astype(jnp.uint8)


def _grey(image: jax.Array) -> jax.Array:
    """The luma of ITU-R BT.601, int32 [height, width], in units of uint8."""
    if image.shape[-1] == 1:
        return image[..., 0].astype(int)
    red, green, blue = (image[..., channel].astype(int) for channel in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16


def _smooth(image: jax.Array) -> jax.Array:
    """The mean of 3x3 pixels, in which the middle one counts 5 times, int32; those at the edges stay as they are."""
    height, width, _ = image.shape
    level = image.astype(int)
    around = jnp.pad(level, ((1, 1), (1, 1), (0, 0)))
    total = 4 * level + sum(around[i : i + height, j : j + width] for i in range(3) for j in range(3))
    row, column = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    inner = (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
    return jnp.where(inner, (total + 6) // 13, level)
