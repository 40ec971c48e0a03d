"""Images: loaded once, kept on the device as uint8, served as pure functions of (key, step).

A fork with data of its own adds a function to `SOURCES`; nothing else needs to know.
"""

import dataclasses
import difflib
import functools
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from augmentation import Augmentation
from runtime import environment
from runtime.caching import CachedArrays
from runtime.errors import UserError
from runtime.progress import under_way
from streams import step_key, stream_key

Array = jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class Images:
    """Labelled images on the host: `image` uint8 [n, height, width, channels] and `label`.

    A label is a class, int32 [n], or what to predict, float32 [n, outputs], for a loss of one's own.
    """

    image: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def take(self, indices: np.ndarray) -> "Images":
        """Those at `indices`, in that order."""
        return Images(self.image[indices], self.label[indices])


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set that is known but not loaded.

    Attributes:
        name: what `config.dataset` calls it.
        image_shape: (height, width, channels).
        num_classes: labels are below it; of numbers to predict, how many there are for each image.
        num_train: number of training images.
        load: loads the images of a split, "train" or "test".
        repair: a sentence on what to do if they turn out to be damaged.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    num_train: int
    load: Callable[[str], Images]
    repair: str = ""

    @classmethod
    def of(cls, name: str, train: Images, test: Images) -> "Source":
        """A data set of images that are in memory already."""
        num_classes = train.label.shape[1] if train.label.ndim == 2 else int(train.label.max()) + 1
        return cls(name, train.image.shape[1:], num_classes, len(train), {"train": train, "test": test}.__getitem__)

    def error(self, found: str) -> UserError:
        """The error to raise if what was found is not right."""
        return UserError(f"dataset = {self.name!r}: {found}. {self.repair}".strip())


@dataclasses.dataclass(frozen=True)
class Splits:
    """The images of one experiment, on the host; `validation` is empty if none were asked for."""

    train: Images
    validation: Images
    test: Images
    num_classes: int


def find_source(dataset: str) -> Source:
    """The data set of this name: one of `SOURCES`, or else a TFDS image-classification set.

    A TFDS set that is not prepared yet is downloaded and prepared.

    Raises:
        UserError: there is no such set, it can be neither found nor downloaded, or it is no classification set of
            images of one size.
    """
    if dataset in SOURCES:
        return SOURCES[dataset]()
    return _source_from_cache(dataset) or _cached(_tfds_source(dataset))


def _tfds_folder() -> str:
    return os.path.expanduser(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))


def _cache(dataset: str) -> CachedArrays:
    """What is stored of a TFDS set, as long as its files and this one are what they were."""
    return CachedArrays(dataset, (pathlib.Path(_tfds_folder(), re.split("[:/]", dataset)[0]), pathlib.Path(__file__)))


def _source_from_cache(dataset: str) -> Source | None:
    """The data set as an earlier run stored it, without TensorFlow; none if there is none."""
    found = _cache(dataset).read()
    if found is None:
        return None
    arrays, values = found
    splits = {split: Images(arrays[f"{split}/image"], arrays[f"{split}/label"]) for split in ("train", "test")}
    return Source(**values | {"image_shape": tuple(values["image_shape"])}, load=splits.__getitem__)


def _cached(source: Source) -> Source:
    """The same data set, which is stored for later runs once it is loaded."""

    @functools.cache
    def splits() -> dict[str, Images]:
        cache = _cache(source.name)
        loaded = {split: _load_checked(source, split) for split in ("train", "test")}
        arrays = {
            f"{split}/{field}": getattr(images, field) for split, images in loaded.items() for field in vars(images)
        }
        cache.write(arrays, {field: value for field, value in vars(source).items() if field != "load"})
        return loaded

    return dataclasses.replace(source, load=lambda split: splits()[split])


def _digits_source() -> Source:
    """scikit-learn's bundled handwritten digits: 1,797 images of 8x8 (Alpaydin & Kaynak 1998), no download.

    Every second image of each class is a test image: 901 to train, 896 to test, the same ones always.
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    # 17 grey levels, 0 .. 16, spread over the range of uint8 like those of any other set.
    image = np.round(digits.images[..., np.newaxis] * (255 / 16)).astype(np.uint8)
    images = Images(image, digits.target.astype(np.int32))
    rank_in_class = np.array([np.sum(images.label[:i] == label) for i, label in enumerate(images.label)])
    return Source.of("digits", *(images.take(rank_in_class % 2 == remainder) for remainder in (0, 1)))


def _tfds_source(dataset: str) -> Source:
    with under_way("Importing TensorFlow, which reads data sets"):
        environment.import_tensorflow()
        import tensorflow as tf
        import tensorflow_datasets as tfds
        from google.protobuf import json_format
        from tensorflow_datasets.core import dataset_info

    data_dir = _tfds_folder()
    folder = pathlib.Path(data_dir, dataset)
    # What TFDS leaves of a data set, whole or not; anything else there is not ours to have removed.
    prepared = re.fullmatch(r"\w+", dataset) and any(
        re.fullmatch(r"\d+\.\d+\.\d+|incomplete\..*", path.name) for path in folder.glob("*")
    )
    repair = f"Remove it and prepare it again: rm -r {folder} && tfds build {dataset}"
    try:
        builder = tfds.builder(dataset, data_dir=data_dir)
    except ImportError as error:
        raise UserError(f"dataset = {dataset!r} needs a package that is not installed: {error}") from error
    except (json_format.ParseError, json.JSONDecodeError, dataset_info.DatasetInfoFileError) as error:
        raise UserError(f"dataset = {dataset!r}: {folder} is damaged: {str(error).rstrip('.')}. {repair}") from error
    except tfds.core.DatasetNotFoundError as error:
        if prepared:
            raise UserError(f"dataset = {dataset!r}: {folder} is damaged or half prepared. {repair}") from error
        close = difflib.get_close_matches(dataset, [*SOURCES, *tfds.list_builders(with_community_datasets=False)], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see https://www.tensorflow.org/datasets/catalog"
        raise UserError(f"dataset = {dataset!r}: neither {', '.join(SOURCES)} nor a TFDS data set; {hint}") from error
    except (ValueError, AssertionError) as error:  # such as a version that does not exist
        raise UserError(f"dataset = {dataset!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    _prepare(tfds, dataset, builder)

    info = builder.info
    repair = f"Remove it and prepare it again: rm -r {builder.data_path} && tfds build {dataset}"  # this version only
    for split in ("train", "test"):
        if split not in info.splits or not info.splits[split].num_examples:
            found = ", ".join(f"{name} with {info.splits[name].num_examples} images" for name in info.splits)
            raise UserError(
                f"dataset = {dataset!r}: {builder.data_path} has no images in a split {split!r}; it has "
                f"{found or 'no splits'}. Use a data set with both, or if this one should have them: {repair}"
            )
    image_key, label_key = info.supervised_keys or ("image", "label")
    features = dict(info.features.items())
    if not isinstance(features.get(image_key), tfds.features.Image) or not isinstance(
        features.get(label_key), tfds.features.ClassLabel
    ):
        raise UserError(f"dataset = {dataset!r} is no image classification set: its features are {features}")
    shape = features[image_key].shape
    if None in shape:
        raise UserError(f"dataset = {dataset!r} has images of different sizes, {shape}; all must have the same size")

    # Without it, tuning takes longer than decoding; more does not help.
    read_config = tfds.ReadConfig(num_parallel_calls_for_decode=32)

    def load(split: str) -> Images:
        # A shuffled reading order would make the position of an image, and with it every batch, depend on the run.
        try:
            images = builder.as_dataset(split=split, batch_size=-1, shuffle_files=False, read_config=read_config)
            arrays = tfds.as_numpy(images)
        except tf.errors.OpError as error:
            reason = re.sub(r"\{\{.*?\}\}|\[Op:.*?\].*", "", error.message).strip().partition("\n")[0].rstrip(".")
            raise source.error(f"{builder.data_path}, split {split!r}, cannot be read: {reason}") from error
        return Images(arrays[image_key], arrays[label_key].astype(np.int32))

    num_train = info.splits["train"].num_examples
    source = Source(dataset, shape, features[label_key].num_classes, num_train, load, repair)
    return source


def _prepare(tfds: Any, dataset: str, builder: Any) -> None:
    """Downloads and prepares the data set where that is still to do."""
    if builder.is_prepared():
        return
    advice = (
        f"dataset = {dataset!r} is not prepared in {builder.data_path} and cannot be downloaded ({{}}). Set "
        f"TFDS_DATA_DIR to a folder that holds it, or prepare it where there is a network: tfds build {dataset}"
    )
    import requests

    try:
        # TFDS repeats a failing download for more than three minutes; one look at the server shows whether it can work.
        for url in list(builder.url_infos)[:1]:
            requests.head(url, timeout=10)
    except requests.RequestException as error:
        raise UserError(advice.format("no network")) from error
    try:
        with under_way(f"Preparing {dataset} in {builder.data_path}"):
            builder.download_and_prepare()
    except Exception as error:  # TFDS lets through whatever its many download and parsing libraries raise.
        raise UserError(advice.format(error)) from error


# A new data set is a function that returns a `Source`, and its name here.
SOURCES: Mapping[str, Callable[[], Source]] = {
    "digits": _digits_source,
}


def load_splits(source: Source, *, num_validation: int, label_noise: float, seed: int) -> Splits:
    """Loads a data set, splits validation images off the training set and disturbs training labels.

    Args:
        source: the data set.
        num_validation: number of training images to set aside, drawn at random from the seed.
        label_noise: share of the remaining training labels replaced by a uniformly drawn other class. Validation and
            test labels stay as they are. Only classes can be replaced.
        seed: fixes which images and labels those are.

    Raises:
        UserError: the data set is damaged, or its images or labels are not what it says.
    """
    train, test = (_load_checked(source, split) for split in ("train", "test"))
    order = np.random.default_rng([seed, 0]).permutation(len(train))
    # Sorted, so that without validation images the training set keeps its order.
    validation, train = (train.take(np.sort(part)) for part in (order[:num_validation], order[num_validation:]))
    label = train.label.copy()
    if label_noise:
        if label.ndim > 1:
            raise source.error("label_noise replaces classes, and the labels of this data set are numbers")
        rng = np.random.default_rng([seed, 1])
        noisy = rng.choice(len(train), size=round(label_noise * len(train)), replace=False)
        label[noisy] = (label[noisy] + rng.integers(1, source.num_classes, size=len(noisy))) % source.num_classes
    return Splits(Images(train.image, label), validation, test, source.num_classes)


def _load_checked(source: Source, split: str) -> Images:
    images = source.load(split)
    image, label = images.image, images.label
    if len(images) == 0 or (split == "train" and len(images) != source.num_train):
        expected = source.num_train if split == "train" else "at least 1"
        raise source.error(f"split {split!r} has {len(images)} images; expected {expected}")
    if image.dtype != np.uint8 or image.ndim != 4 or image.shape != (len(label), *source.image_shape):
        raise source.error(
            f"split {split!r} has images {image.dtype}{list(image.shape)}; "
            f"expected uint8{[len(label), *source.image_shape]}, height, width and channels of each image"
        )
    if np.issubdtype(label.dtype, np.floating):
        if label.shape != (len(image), source.num_classes) or not np.isfinite(label).all():
            raise source.error(
                f"split {split!r} has labels {label.dtype}{list(label.shape)}; "
                f"expected finite ones, {[len(image), source.num_classes]}"
            )
        return images
    if label.min() < 0 or label.max() >= source.num_classes:
        raise source.error(
            f"split {split!r} has labels from {label.min()} to {label.max()}; "
            f"expected 0 to {source.num_classes - 1}, for {source.num_classes} classes"
        )
    return images


class Normalization(struct.PyTreeNode):
    """Mean and standard deviation of each channel of the training images: float32 [channels], in units of uint8."""

    mean: Array
    std: Array

    @classmethod
    def of(cls, image: np.ndarray) -> "Normalization":
        """The statistics of uint8 images [n, height, width, channels], computed exactly from their histograms."""
        levels = np.arange(256)
        # A few images at a time, for NumPy makes int64 of what it counts.
        counts = np.zeros((image.shape[-1], 256), np.int64)
        for part in np.array_split(image, max(1, image.size // 2**16)):
            counts += [np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(part, -1, 0)]
        mean = np.array([np.average(levels, weights=count) for count in counts])
        var = np.array([np.average((levels - m) ** 2, weights=count) for m, count in zip(mean, counts, strict=True)])
        # A channel without any variation is only centred.
        std = np.where(var > 0, np.sqrt(var), 1)
        return cls(mean.astype(np.float32), std.astype(np.float32))

    def __call__(self, image: jax.Array) -> jax.Array:
        """uint8 images to float32 with mean 0 and standard deviation 1 in each channel."""
        return (image.astype(jnp.float32) - self.mean) / self.std


class TrainData(struct.PyTreeNode):
    """The training set, to be put on the device: uint8 [n, height, width, channels] and int32 [n]."""

    image: Array
    label: Array
    normalization: Normalization
    num_classes: int = struct.field(pytree_node=False)
    batch_size: int = struct.field(pytree_node=False)
    augmentation: Augmentation = struct.field(pytree_node=False)

    def batch(self, rng: jax.Array, step: jax.Array) -> dict[str, jax.Array]:
        """The batch of this step, a pure function of (seed, step).

        Example `i = step * batch_size + j` is position `i % n` of the permutation of epoch `i // n`. So batches
        straddle epochs, no image is left out, and nothing has to be carried from step to step.

        Args:
            rng: typed root key, made from the seed.
            step: int32 scalar.

        Returns:
            `image`, float32 [batch, height, width, channels], normalised and augmented; `label`, int32 [batch]; and
            `target`, float32 [batch, classes], the class probabilities to learn. Labels that are numbers are both.
        """
        indices = example_indices(
            stream_key(rng, "permutation"), step, batch_size=self.batch_size, num_examples=len(self.label)
        )
        image, label = self.normalization(self.image[indices]), self.label[indices]
        target = jax.nn.one_hot(label, self.num_classes) if label.ndim == 1 else label
        batch = {"image": image, "label": label, "target": target}
        return self.augmentation(step_key(rng, "augmentation", step), batch)


class EvalData(struct.PyTreeNode):
    """An evaluation set padded to whole batches, to be put on the device; `mask` [n] is false for padding."""

    image: Array
    label: Array
    mask: Array
    normalization: Normalization
    batch_size: int = struct.field(pytree_node=False)

    @classmethod
    def of(cls, images: Images, normalization: Normalization, batch_size: int, num_devices: int) -> "EvalData":
        """Pads with zeros to batches of equal size, as large as `batch_size` allows and a multiple of `num_devices`."""
        num_batches = math.ceil(len(images) / batch_size)
        batch_size = math.ceil(len(images) / (num_batches * num_devices)) * num_devices
        padding = num_batches * batch_size - len(images)

        def pad(x: np.ndarray) -> np.ndarray:
            return np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))

        mask = np.ones(len(images), bool)
        return cls(pad(images.image), pad(images.label), pad(mask), normalization, batch_size)

    @property
    def num_batches(self) -> int:
        """How many batches there are."""
        return len(self.label) // self.batch_size

    def batch(self, index: jax.Array) -> dict[str, jax.Array]:
        """Batch `index` of `num_batches`: `image`, `label` and `mask`."""

        def cut(x: Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, index * self.batch_size, self.batch_size)

        return {"image": self.normalization(cut(self.image)), "label": cut(self.label), "mask": cut(self.mask)}


def example_indices(key: jax.Array, step: jax.Array, *, batch_size: int, num_examples: int) -> jax.Array:
    """The images of a step's batch: int32 [batch_size], a pure function of (key, step). See `TrainData.batch`."""
    # step * batch_size overflows int32 in long runs. After `cycle` steps batches and epochs are aligned again, and
    # within a cycle the product stays below batch_size * num_examples.
    common = math.gcd(batch_size, num_examples)
    cycle, epochs_per_cycle = num_examples // common, batch_size // common
    step = step.astype(jnp.uint32)
    i = step % cycle * batch_size + jnp.arange(batch_size, dtype=jnp.uint32)
    epoch = step // cycle * epochs_per_cycle + i // num_examples
    return permute(i % num_examples, key, epoch, num_examples).astype(jnp.int32)


def permute(position: jax.Array, key: jax.Array, epoch: jax.Array, num_examples: int) -> jax.Array:
    """What stands at each position of each epoch's random permutation of `range(num_examples)`.

    A Feistel network permutes the next larger power of two; what falls outside is sent through again until it is
    inside (Black & Rogaway 2002, cycle walking). Unlike `jax.random.permutation` it needs no array of the data set's
    size, nor a sort at the start of each epoch.

    Args:
        position: uint32 [n], below `num_examples`.
        key: typed key of all permutations.
        epoch: uint32 [n], which permutation to use for each position.
        num_examples: length of the permutations.

    Returns:
        uint32 [n].
    """
    rounds = 8  # even, so that halves of unequal width have changed places back at the end
    # Narrower networks are measurably not uniform.
    num_bits = max(8, (num_examples - 1).bit_length())
    widths = (num_bits - num_bits // 2, num_bits // 2)
    round_keys = jax.vmap(lambda e: jax.random.bits(jax.random.fold_in(key, e), (rounds,), jnp.uint32))(epoch)

    def encrypt(x: jax.Array) -> jax.Array:
        left_bits, right_bits = widths
        for r in range(rounds):
            left, right = x >> right_bits, x & ((1 << right_bits) - 1)
            left = left ^ (_mix(right ^ round_keys[:, r]) & ((1 << left_bits) - 1))
            x = (right << left_bits) | left
            left_bits, right_bits = right_bits, left_bits
        return x

    def outside(x: jax.Array) -> jax.Array:
        return jnp.any(x >= num_examples)

    def send_again(x: jax.Array) -> jax.Array:
        return jnp.where(x >= num_examples, encrypt(x), x)

    return jax.lax.while_loop(outside, send_again, encrypt(position))


def _mix(x: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3 (Appleby): every bit of the uint32 input moves every bit of the output."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
