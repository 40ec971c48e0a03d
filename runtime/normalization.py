"""Mean and deviation of the training images, by which all are normalised."""

import math
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from runtime.caching import CachedArrays
from runtime.progress import under_way
from runtime.readers import num_cores
from runtime.sources import Images, StoredImages

NUM_NORMALIZED = 100_000  # images, whose mean tells that of more to three digits
# What makes pixels of files, and counts them.
CODE = ("PIL", "runtime.decoding", "runtime.image_files", "runtime.records", "runtime.normalization")


def _histograms(images: Images, rows: np.ndarray) -> np.ndarray:
    """How often each channel has each level in the images at `rows`: int64 [channels, 256]."""

    def count(part: np.ndarray) -> np.ndarray:
        image = images.read(part)
        return np.array([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(image, -1, 0)])

    # A few images at a time, for NumPy makes int64 of what it counts: 8 MB.
    together = max(1, 2**20 // math.prod(images.image.shape[1:]))
    parts = np.array_split(rows, math.ceil(len(rows) / together))
    with ThreadPoolExecutor(num_cores()) as pool:
        return sum(pool.map(count, parts), np.zeros((images.image.shape[-1], 256), np.int64))


def _kept(image: StoredImages, images: Images, rows: np.ndarray) -> np.ndarray:
    """The histograms of images on disk as an earlier run has kept them, or made and kept now."""
    cache = CachedArrays(f"normalization:{image.identity}", [], CODE)
    if image.identity and (kept := cache.read()):
        return kept[0]["counts"]
    with under_way("Reading images for their mean"):
        counts = _histograms(images, rows)
    if image.identity:
        cache.write({"counts": counts}, {})
    return counts


class Normalization(struct.PyTreeNode):
    """Mean and standard deviation of each channel of the training images: float32 [channels], in units of uint8."""

    mean: jax.Array | np.ndarray
    std: jax.Array | np.ndarray

    @classmethod
    def from_images(cls, images: Images) -> "Normalization":
        """The statistics of images, computed exactly from the histograms of at most `NUM_NORMALIZED` of them.

        Those of images on disk are kept for later runs.
        """
        levels, rows = np.arange(256), np.arange(len(images))
        if len(rows) > NUM_NORMALIZED:
            rows = np.sort(np.random.default_rng(0).permutation(len(images))[:NUM_NORMALIZED])
        counts = (
            _histograms(images, rows) if isinstance(images.image, np.ndarray) else _kept(images.image, images, rows)
        )
        mean = np.array([np.average(levels, weights=count) for count in counts])
        var = np.array([np.average((levels - m) ** 2, weights=count) for m, count in zip(mean, counts, strict=True)])
        # A channel without any variation is only centred.
        std = np.where(var > 0, np.sqrt(var), 1)
        return cls(mean.astype(np.float32), std.astype(np.float32))

    def __call__(self, image: jax.Array) -> jax.Array:
        """uint8 images to float32 with mean 0 and standard deviation 1 in each channel."""
        mean, std = (jnp.expand_dims(x, range(image.ndim - 1)) for x in (self.mean, self.std))
        return (image.astype(jnp.float32) - mean) / std
