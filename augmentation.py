"""Random changes to a training batch, as pure functions of a key, made on the device.

Images are normalised, float32 [batch, height, width, channels]. Blanks are filled with 0, the mean colour. RandAugment
comes before all others, on pixels that are uint8 still. The last functions are for losses that make views of an image.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from runtime.rand_augment import rand_augment
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


def resized_crop(key: jax.Array, image: jax.Array, min_area: float) -> jax.Array:
    """A crop of each image, of random area, aspect ratio and place, brought to its size (Szegedy et al. 2015).

    The area is uniform in [min_area, 1] of that of the image. The logarithm of the aspect ratio, in multiples of the
    image's, is uniform between those of 3/4 and 4/3; sides are cut to those of the image. The place is uniform wherever
    the crop fits. Between pixels, levels are interpolated linearly.
    """
    num, height, width, _ = image.shape
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    area = jax.random.uniform(area_key, (num,), minval=min_area)
    ratio = jnp.exp(jax.random.uniform(ratio_key, (num,), minval=math.log(3 / 4), maxval=math.log(4 / 3)))
    side = jnp.minimum(1, jnp.sqrt(jnp.stack([area / ratio, area * ratio], axis=1)))  # share of height and of width
    first = jax.random.uniform(place_key, (num, 2)) * (1 - side)

    def resample(image_: jax.Array, side_: jax.Array, first_: jax.Array) -> jax.Array:
        shift = -first_ / side_ * jnp.array([height, width])
        return jax.image.scale_and_translate(image_, image_.shape, (0, 1), 1 / side_, shift, "linear", antialias=False)

    return jax.vmap(resample)(image, side, first)


def colour_jitter(key: jax.Array, image: jax.Array, brightness: float, contrast: float, saturation: float) -> jax.Array:
    """Changes brightness, then contrast, then saturation of each image, after Chen et al. 2020 (SimCLR).

    All three are linear, without limits to levels, so that images may be normalised, all channels to one scale. To the
    levels of an image a number is added, uniform in [-brightness, brightness]. What they are away from their mean grey
    is multiplied by a factor, uniform in [1 - contrast, 1 + contrast]; then what colours are away from grey, likewise.
    An image of one channel has no saturation.
    """
    keys, limits = jax.random.split(key, 3), (brightness, contrast, saturation)
    shift, spread, colour = (
        jax.random.uniform(key_, (len(image), 1, 1, 1), minval=-limit, maxval=limit)
        for key_, limit in zip(keys, limits, strict=True)
    )
    image += shift
    mean = _luma(image).mean(axis=(1, 2), keepdims=True)
    image += spread * (image - mean)
    return image + colour * (image - _luma(image))


def grey(key: jax.Array, image: jax.Array, probability: float) -> jax.Array:
    """Takes the colour from each image with this probability."""
    chosen = jax.random.bernoulli(key, probability, (len(image), 1, 1, 1))
    return jnp.where(chosen, _luma(image), image)


def _luma(image: jax.Array) -> jax.Array:
    """The grey of colours, that of ITU-R BT.601 [batch, height, width, 1]; of one channel, the image itself."""
    if image.shape[-1] == 1:
        return image
    return jnp.sum(image * jnp.array([0.299, 0.587, 0.114]), axis=-1, keepdims=True)
