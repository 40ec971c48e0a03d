"""Image files as pixels: decoded, turned, and what is taken of them."""

import functools
import io
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import PIL.Image  # elsewhere in functions, for only data sets of files need it

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

_ORIENTATION = 0x0112  # the tag of Exif
_ON_THE_SIDE = (5, 6, 7, 8)  # its values that exchange height and width
_LEFT_LAST, _TOP_LAST = (2, 3, 6, 7), (3, 4, 7, 8)  # whose left, or upper, edge is right or below in the file
_ASPECT = 4 / 3  # of a random crop: the widest, and the inverse of the narrowest
_TRIES = 10


def whole(width: int, height: int) -> Box:
    """All of an image."""
    return 0, 0, width, height


def central_crop(width: int, height: int, *, size: int) -> Box:
    """What evaluation sees of an image: if its shorter side had 256/224 of `size` pixels, `size` x `size` of them.

    Args:
        width: of the image.
        height: of the image.
        size: of what is made of it, in pixels.
    """
    side = min(width, height) * size / round(size * 256 / 224)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_crop(width: int, height: int, *, rng: np.random.Generator, min_area: float, aspect: float = 1.0) -> Box:
    """A crop of random area, aspect ratio and place (Szegedy et al. 2015, Going deeper with convolutions).

    The area is uniform in [min_area, 1] of that of the image, the logarithm of the aspect ratio between those of 3/4
    and 4/3, and the place wherever the crop fits. Of ten such crops the first that is no wider and no higher than the
    image is taken. If none is, then the largest one in the centre that has such a ratio.

    Args:
        width: of the image.
        height: of the image.
        rng: of the random numbers.
        min_area: least area.
        aspect: width / height of what the crop is resized to; the ratios are multiples of it.
    """
    for area, ratio, x, y in rng.random((_TRIES, 4)):
        pixels = (min_area + (1 - min_area) * area) * width * height
        wide = math.sqrt(pixels * aspect * _ASPECT ** (2 * ratio - 1))
        high = pixels / wide
        if wide <= width and high <= height:
            left, top = x * (width - wide), y * (height - high)
            return left, top, left + wide, top + high
    wide = min(width, height * aspect * _ASPECT)
    high = min(height, width / aspect * _ASPECT)
    left, top = (width - wide) / 2, (height - high) / 2
    return left, top, left + wide, top + high


def view(
    file: str | io.BytesIO, shape: tuple[int, ...], key: np.ndarray | None = None, min_area: float = 1.0
) -> np.ndarray:
    """What training or evaluation sees of an image of any size.

    Args:
        file: its path, or what is in it.
        shape: (height, width, 3) that it is brought to.
        key: of the random numbers, uint64 [2], on which the crop depends and on nothing else but the size of the image;
            None: the crop of evaluation.
        min_area: see `random_crop`; 1: the crop of evaluation.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ValueError: see `decode`.
    """
    import PIL.Image

    height, width, _ = shape
    crop: Callable[[int, int], Box] = functools.partial(central_crop, size=height)
    if key is not None and min_area < 1:
        rng = np.random.Generator(np.random.Philox(key=key))
        crop = functools.partial(random_crop, rng=rng, min_area=min_area, aspect=width / height)
    image, box, _ = decode(file, crop, (width, height))
    # In Pillow this is a mean over all the pixels that become one, too.
    resized = image.resize((width, height), PIL.Image.Resampling.BILINEAR, box)
    return np.asarray(resized if resized.mode == "RGB" else resized.convert("RGB"))


def decode(
    file: str | io.BytesIO, crop: Callable[[int, int], Box], size: tuple[int, int]
) -> tuple["PIL.Image.Image", Box, tuple[int, int]]:
    """Decodes a file: the first image in it, turned as its camera says, and on white what is transparent.

    Args:
        file: its path, or what is in it.
        crop: from (width, height) of the image, what of it will be resized.
        size: (width, height) that it will be resized to. Where that is half of it or less, a JPEG is decoded at 1/2,
            1/4 or 1/8 of its size, which takes less time; the crop still has at least that many pixels.

    Returns:
        An image of mode "RGB" or "L"; the crop, in its pixels; and (width, height) of the image in the file.

    Raises:
        ValueError: it cannot be read, or is no image with 8 bits; in words that a user understands.
    """
    import PIL.Image
    import PIL.ImageOps

    try:
        with PIL.Image.open(file) as opened:
            is_jpeg = opened.format in ("JPEG", "MPO")
            if not is_jpeg:  # PNG may have its orientation at the end, and TIFF is turned while it is loaded
                opened.load()
            orientation = opened.getexif().get(_ORIENTATION, 1)
            width, height = opened.size[::-1] if orientation in _ON_THE_SIDE else opened.size
            box = crop(width, height)
            times = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
            factor = next((factor for factor in (8, 4, 2) if is_jpeg and factor <= times), 1)
            if factor > 1:
                opened.draft(None, (opened.width // factor, opened.height // factor))
            opened.load()
            image = opened if orientation == 1 else PIL.ImageOps.exif_transpose(opened)
            # The last pixels of reduced rows and columns reach beyond the image, which turned may begin with them.
            x = -width % factor if orientation in _LEFT_LAST else 0
            y = -height % factor if orientation in _TOP_LAST else 0
            left, top, right, bottom = (side / factor for side in (box[0] + x, box[1] + y, box[2] + x, box[3] + y))
            return _in_colour(image), (left, top, right, bottom), (width, height)
    except MemoryError:
        raise
    except Exception as error:  # whatever Pillow's many readers raise of a file that is damaged or too large
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        elif isinstance(error, PIL.UnidentifiedImageError):
            is_empty = not isinstance(file, io.BytesIO) and not os.path.getsize(file)
            reason = "it is empty" if is_empty else "it is no image"
        else:
            reason = str(error).rstrip(".") or type(error).__name__
        raise ValueError(reason) from error


def measure(file: str) -> tuple[int, int]:
    """Decodes a file, and returns (height, width) of the image in it.

    Raises:
        ValueError: see `decode`.
    """
    _, _, (width, height) = decode(file, whole, (1, 1))
    return height, width


def _in_colour(image: "PIL.Image.Image") -> "PIL.Image.Image":
    """The same as "RGB", or as "L" if it was that; raises a ValueError if it has more than 8 bits."""
    import PIL.Image

    if image.mode[0] in "IF":  # Pillow would cut their values off at 255
        low, high = image.getextrema()
        raise ValueError(
            f"its pixels have more than 8 bits (mode {image.mode}), from {low} to {high}; scale the range that matters "
            "to 0 .. 255 and save it with 8 bits"
        )
    if image.has_transparency_data:
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode in ("RGB", "L") else image.convert("RGB")
