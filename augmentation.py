"""Random changes to a training batch, as pure functions of a key, made on the device.

Images are normalised, float32 [batch, height, width, channels]. Blanks are filled with 0, the mean colour. RandAugment
comes before all others, on pixels that are uint8 still.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from streams import stream_key


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Which changes to make; those that are 0 or false are left out. The fields of `config.augment`.

    Plain values, compared by value, so that it can be a static argument of a jitted function. To add a change, write a
    function below, and add a field and a line in `__call__`.

    Attributes:
        resized_crop: smallest share of an image file that a random crop has (Szegedy et al. 2015); 1: no such crops.
            The one change that is made where files are read; see `image_files.ImageFiles.read`.
        flip: whether to mirror images left to right, each with probability 1/2.
        crop_padding: pixels to pad on each side before cropping to the original size at a random place.
        cutout: side of a square that is blanked, in pixels.
        erasing: probability that a rectangle of an image is blanked.
        mixup: parameter of the beta distribution that mixing weights are drawn from.
        cutmix: the same of the share that an image keeps of itself. With `mixup` as well, each step draws one of the
            two, with equal probability.
        rand_augment: number of operations of RandAugment on each image.
        magnitude: of these, from 0 to 10.
    """

    resized_crop: float = 0.08
    flip: bool = False
    crop_padding: int = 0
    cutout: int = 0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    rand_augment: int = 0
    magnitude: int = 9

    def problems(
        self, image_shape: tuple[int, ...], batch_size: int, *, classes: bool, resized: bool = True
    ) -> list[str]:
        """The fields that do not suit a data set, each in words.

        Args:
            image_shape: (height, width, channels).
            batch_size: images in a batch.
            classes: whether labels are classes, not numbers.
            resized: whether images come from files of any size.
        """
        height, width, channels = image_shape
        pixels = f"of the {height} x {width} pixels of the images"
        found = []
        if self.crop_padding >= min(height, width):
            found.append(f"crop_padding = {self.crop_padding}: must be below the smaller side {pixels}")
        if self.cutout >= max(height, width):
            found.append(f"cutout = {self.cutout}: must be below the larger side {pixels}")
        if not resized and self.resized_crop != Augmentation.resized_crop:
            found.append(
                f"resized_crop = {self.resized_crop}: is for image files that are brought to an image_size; leave it "
                f"at its default, {Augmentation.resized_crop}"
            )
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            if alpha and not classes:
                found.append(f"{name} = {alpha}: mixes classes, and the labels of this data set are numbers")
            if alpha and batch_size == 1:
                found.append(f"{name} = {alpha}: mixes the images of a batch, and batch_size is 1")
        if self.rand_augment and channels not in (1, 3):
            what = f"rand_augment = {self.rand_augment}: changes grey images and colour images"
            found.append(f"{what}, of 1 or 3 channels, and these have {channels}")
        return [f"augment.{problem}" for problem in found]

    def pixels(self, key: jax.Array, image: jax.Array, mean: ArrayLike) -> jax.Array:
        """Images with the changes that are made before they are normalised: those of RandAugment.

        Args:
            key: typed key of this step, the same as that of `__call__`.
            image: uint8 [batch, height, width, channels].
            mean: the mean colour, float32 [channels], which fills blanks.
        """
        if not self.rand_augment:
            return image
        fill = jnp.round(mean).astype(jnp.uint8)
        return rand_augment(stream_key(key, "rand_augment"), image, self.rand_augment, self.magnitude, fill)

    def __call__(self, key: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The changed batch. Each change has its own random stream: turning one on does not affect the others.

        Args:
            key: typed key of this step.
            batch: `image` [batch, height, width, channels] and `target`, class probabilities [batch, classes]; other
                entries stay as they are.
        """
        image, target = batch["image"], batch["target"]
        if self.flip:
            image = flip(stream_key(key, "flip"), image)
        if self.crop_padding:
            image = crop(stream_key(key, "crop"), image, self.crop_padding)
        if self.cutout:
            image = cutout(stream_key(key, "cutout"), image, self.cutout)
        if self.erasing:
            image = erasing(stream_key(key, "erasing"), image, self.erasing)
        unmixed = image, target
        if self.mixup:
            image, target = mixup(stream_key(key, "mixup"), *unmixed, self.mixup)
        if self.cutmix:
            mixed = cutmix(stream_key(key, "cutmix"), *unmixed, self.cutmix)
            chosen = jax.random.bernoulli(stream_key(key, "cutmix_or_mixup")) if self.mixup else True
            image, target = (jnp.where(chosen, new, old) for new, old in zip(mixed, (image, target), strict=True))
        return {**batch, "image": image, "target": target}


def flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirrors each image, left to right, with probability one half."""
    flipped = jax.random.bernoulli(key, shape=(len(image), 1, 1, 1))
    return jnp.where(flipped, image[:, :, ::-1], image)


def crop(key: jax.Array, image: jax.Array, padding: int) -> jax.Array:
    """Pads all sides, then crops to the original size at a uniformly drawn place (He et al. 2016)."""
    padded = jnp.pad(image, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    corner = jax.random.randint(key, (len(image), 2), 0, 2 * padding + 1)

    def cut(image_: jax.Array, corner_: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image_, (corner_[0], corner_[1], 0), image.shape[1:])

    return jax.vmap(cut)(padded, corner)


def cutout(key: jax.Array, image: jax.Array, size: int) -> jax.Array:
    """Blanks a square of side `size`, centred on a uniformly drawn pixel (DeVries & Taylor 2017)."""
    _, height, width, _ = image.shape

    def inside(key: jax.Array, length: int) -> jax.Array:
        first = jax.random.randint(key, (len(image), 1), 0, length) - size // 2
        position = jnp.arange(length)[None]
        return (first <= position) & (position < first + size)

    rows, columns = (inside(k, n) for k, n in zip(jax.random.split(key), (height, width), strict=True))
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], 0, image)


def erasing(key: jax.Array, image: jax.Array, probability: float) -> jax.Array:
    """Blanks a rectangle of each image with this probability (Zhong et al. 2020).

    Its area is uniform from 0.02 to 1/3 of the image. The ratio of its height to its width is from 0.3 to 3.3, with a
    uniform logarithm, so that high and wide ones are equally frequent; in the paper the ratio itself is uniform. The
    paper draws again where a rectangle does not fit; here its sides are cut to those of the image.
    """
    num, height, width, _ = image.shape
    erased_key, area_key, ratio_key, *keys = jax.random.split(key, 5)
    area = height * width * jax.random.uniform(area_key, (num, 1), minval=0.02, maxval=1 / 3)
    ratio = jnp.exp(jax.random.uniform(ratio_key, (num, 1), minval=math.log(0.3), maxval=math.log(3.3)))

    def inside(key: jax.Array, side: jax.Array, length: int) -> jax.Array:
        size = jnp.clip(jnp.round(side).astype(int), 1, length)
        first = jax.random.randint(key, (num, 1), 0, length - size + 1)
        position = jnp.arange(length)[None]
        return (first <= position) & (position < first + size)

    rows, columns = inside(keys[0], jnp.sqrt(area * ratio), height), inside(keys[1], jnp.sqrt(area / ratio), width)
    rows &= jax.random.bernoulli(erased_key, probability, (num, 1))
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], 0, image)


def mixup(key: jax.Array, image: jax.Array, target: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Averages each image and target with those of the next example of the batch (Zhang et al. 2018).

    The weight is drawn from Beta(alpha, alpha) for each example; the larger share is the example's own, so that its
    label remains the main one. For partners drawn at random, as in a shuffled batch, this has the same distribution.
    """
    weight = jax.random.beta(key, alpha, alpha, (len(image),))
    weight = jnp.maximum(weight, 1 - weight)

    def mix(x: jax.Array) -> jax.Array:
        own = weight.reshape(-1, *[1] * (x.ndim - 1))
        return own * x + (1 - own) * jnp.roll(x, 1, axis=0)

    return mix(image), mix(target)


def cutmix(key: jax.Array, image: jax.Array, target: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Pastes a rectangle of the next example of the batch into each image, at the same place (Yun et al. 2019).

    The share that an image is to keep is drawn from Beta(alpha, alpha) for each example. The rectangle has the shape of
    the image; its centre is a uniformly drawn pixel, and what lies outside of the image is cut off. Targets are
    averaged with the share of the pixels that an image then keeps.
    """
    num, height, width, _ = image.shape
    share_key, *keys = jax.random.split(key, 3)
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha, (num, 1)))

    def inside(key: jax.Array, length: int) -> jax.Array:
        half = (side * length).astype(int) // 2
        centre = jax.random.randint(key, (num, 1), 0, length)
        position = jnp.arange(length)[None]
        return (centre - half <= position) & (position < centre + half)

    rows, columns = inside(keys[0], height), inside(keys[1], width)
    pasted = rows[:, :, None] & columns[:, None, :]
    own = 1 - pasted.mean(axis=(1, 2))[:, None]
    image = jnp.where(pasted[..., None], jnp.roll(image, 1, axis=0), image)
    return image, own * target + (1 - own) * jnp.roll(target, 1, axis=0)


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
