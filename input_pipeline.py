"""Images: loaded once, kept on the device as uint8, served as pure functions of (key, step).

A fork with data of its own adds a function to `SOURCES`; nothing else needs to know. It makes a `Source` from `Images`,
uint8 [n, height, width, channels] with a label for each: a class, int32 [n], or numbers to predict, float32 [n, k].
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import struct

from augmentation import Augmentation
from runtime.errors import UserError
from runtime.fields import taken_by
from runtime.permutation import example_indices
from runtime.progress import say, under_way
from runtime.sharding import put, replicated
from runtime.sources import SPLITS, Images, Source, describe, read_arrays
from runtime.tfds_sets import find_tfds_source
from streams import stream_key
from train_state import CustomTrainState

Array = jax.Array | np.ndarray


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
    train, test = (images.take(rank_in_class % 2 == remainder) for remainder in (0, 1))
    return Source.from_arrays("digits", train, test)


# A new data set is a function that returns a `Source`, and its name here.
SOURCES: Mapping[str, Callable[[], Source]] = {
    "digits": _digits_source,
}


def find_source(dataset: str, splits: tuple[str, str] = SPLITS) -> Source:
    """The data set of this name: one of `SOURCES`, a file such as "data/cifar10.npz", or a TFDS classification set.

    What the file has in it, `sources.read_arrays` says. A TFDS set that is not prepared yet is downloaded and prepared;
    which of its images train and test, `splits` says.

    Raises:
        UserError: there is no such set, it can be neither found nor downloaded, it is no classification set of images
            of one size, or it has no such splits.
    """
    is_file = dataset.endswith(".npz")
    if dataset not in SOURCES and not is_file:
        return find_tfds_source(dataset, SOURCES, splits)
    if splits != SPLITS:
        raise UserError(f"splits = {splits}: {dataset!r} is no TFDS set; leave it at its default, {SPLITS}")
    return read_arrays(dataset) if is_file else SOURCES[dataset]()


@dataclasses.dataclass(frozen=True)
class Splits:
    """The images of one experiment, on the host; `validation` is empty if none were asked for."""

    train: Images
    validation: Images
    test: Images
    num_classes: int


def load_splits(source: Source, *, num_validation: int, label_noise: float, seed: int) -> Splits:
    """Loads a data set, splits validation images off the training set, says what it has, disturbs training labels.

    Args:
        source: the data set.
        num_validation: number of training images to set aside, drawn at random from the seed.
        label_noise: share of the remaining training labels replaced by a uniformly drawn other class. Validation and
            test labels stay as they are. Only classes can be replaced.
        seed: fixes which images and labels those are.

    Raises:
        UserError: the data set is damaged, or its images or labels are not what it says or cannot be disturbed.
    """
    train, test = (source.load_checked(split) for split in ("train", "test"))
    order = np.random.default_rng([seed, 0]).permutation(len(train))
    # Sorted, so that without validation images the training set keeps its order.
    validation, train = (train.take(np.sort(part)) for part in (order[:num_validation], order[num_validation:]))
    found = {"train": train, "validation": validation, "test": test}
    for line in describe(source.name, found, source.num_classes, source.class_names):
        say(line)
    label = train.label.copy()
    if label_noise:
        if label.ndim > 1 or source.num_classes == 1:
            what = "labels are numbers" if label.ndim > 1 else "has one class only"
            raise source.error(f"{what}; label_noise = {label_noise} replaces classes by others: set it to 0")
        rng = np.random.default_rng([seed, 1])
        noisy = rng.choice(len(train), size=round(label_noise * len(train)), replace=False)
        label[noisy] = (label[noisy] + rng.integers(1, source.num_classes, size=len(noisy))) % source.num_classes
    return Splits(Images(train.image, label), validation, test, source.num_classes)


class Normalization(struct.PyTreeNode):
    """Mean and standard deviation of each channel of the training images: float32 [channels], in units of uint8."""

    mean: Array
    std: Array

    @classmethod
    def from_images(cls, image: np.ndarray) -> "Normalization":
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
        mean, std = (jnp.expand_dims(x, range(image.ndim - 1)) for x in (self.mean, self.std))
        return (image.astype(jnp.float32) - mean) / std


class TrainData(struct.PyTreeNode):
    """The training set, to be put on the device: uint8 [n, height, width, channels] and int32 [n]."""

    image: Array
    label: Array
    normalization: Normalization
    num_classes: int = struct.field(pytree_node=False)
    batch_size: int = struct.field(pytree_node=False)
    augmentation: Augmentation = struct.field(pytree_node=False)
    class_names: tuple[str, ...] = struct.field(pytree_node=False, default=())

    def batch(self, state: CustomTrainState) -> tuple[dict[str, jax.Array], Any]:
        """The batch of `state.step`, a pure function of the seed and of it; see `Data.train`.

        Example `i = step * batch_size + j` is position `i % n` of the permutation of epoch `i // n`. So batches
        straddle epochs, no image is left out, and nothing has to be carried from step to step.

        Returns:
            `image`, float32 [batch, height, width, channels], normalised and augmented; `label`, int32 [batch]; and
            `target`, float32 [batch, classes], the class probabilities to learn. Labels that are numbers are both. The
            state's memory goes with it, as it is.
        """
        order = stream_key(state.rng, "permutation")
        indices = example_indices(order, state.step, batch_size=self.batch_size, num_examples=len(self.label))
        pixels = self.augmentation.pixels(state.step_key("augmentation"), self.image[indices], self.normalization.mean)
        image, label = self.normalization(pixels), self.label[indices]
        target = jax.nn.one_hot(label, self.num_classes) if label.ndim == 1 else label
        batch = {"image": image, "label": label, "target": target}
        return self.augmentation(state.step_key("augmentation"), batch), state.memory


class EvalData(struct.PyTreeNode):
    """An evaluation set padded to whole batches, to be put on the device; `mask` [n] is false for padding."""

    image: Array
    label: Array
    mask: Array
    normalization: Normalization
    batch_size: int = struct.field(pytree_node=False)
    class_names: tuple[str, ...] = struct.field(pytree_node=False, default=())

    @classmethod
    def from_images(
        cls,
        images: Images,
        normalization: Normalization,
        batch_size: int,
        num_devices: int,
        class_names: tuple[str, ...] = (),
    ) -> "EvalData":
        """Pads with zeros to batches of equal size, as large as `batch_size` allows and a multiple of `num_devices`."""
        num_batches = math.ceil(len(images) / batch_size)
        batch_size = math.ceil(len(images) / (num_batches * num_devices)) * num_devices
        padding = num_batches * batch_size - len(images)

        def pad(x: np.ndarray) -> np.ndarray:
            return np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))

        mask = np.ones(len(images), bool)
        return cls(pad(images.image), pad(images.label), pad(mask), normalization, batch_size, class_names)

    @property
    def num_batches(self) -> int:
        """The number of batches."""
        return len(self.label) // self.batch_size

    def batch(self, index: jax.Array) -> dict[str, jax.Array]:
        """Batch `index` of `num_batches`: `image`, `label` and `mask`."""

        def cut(x: Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, index * self.batch_size, self.batch_size)

        return {"image": self.normalization(cut(self.image)), "label": cut(self.label), "mask": cut(self.mask)}


class Data(NamedTuple):
    """What a task trains on and is evaluated on, on the devices.

    Attributes:
        train: a pytree with a method `batch(state) -> (batch, memory)`, which is called with the state before each
            step: arrays [batch, ...] for the loss, and the state's memory after it.
        eval: by split, "test", preceded by "validation" if there is one, what `score_fn` and `evaluate` of the task
            are to score. For `score_fn` it is like `EvalData`.
        example: the model's input, with which it is initialised, and its target, of a single example: zeros [1, ...].
        memory: of the first state: a pytree that `batch` carries from step to step, and that is saved with the state.
    """

    train: Any
    eval: Mapping[str, Any]
    example: tuple[Any, Any]
    memory: Any = ()


def count_train(config: Mapping[str, Any]) -> int:
    """The number of training images of the set that `config.dataset` names; raises a UserError as `find_source`."""
    return find_source(config["dataset"], config.get("splits", SPLITS)).num_train  # older runs have no splits


def create_data(config: ml_collections.FrozenConfigDict, mesh: jax.sharding.Mesh) -> Data:
    """The images that `config.dataset` names, each with a label.

    Raises:
        UserError: see `load`.
    """
    source = find_source(config.dataset, config.get("splits", SPLITS))
    example = jnp.zeros((1, *source.image_shape)), jnp.zeros((1, source.num_classes))
    return Data(*load(source, mesh, **taken_by(load, config)), example)


def load(
    source: Source,
    mesh: jax.sharding.Mesh,
    *,
    seed: int,
    num_validation: int,
    label_noise: float,
    batch_size: int,
    eval_batch_size: int,
    augment: Mapping[str, Any],
) -> tuple[TrainData, dict[str, EvalData]]:
    """Reads a data set and puts a copy of it on every device.

    Args:
        source: the data set.
        mesh: the devices.
        seed: see `load_splits`, as for the next two.
        num_validation: number of training images to set aside.
        label_noise: share of wrong training labels.
        batch_size: of training.
        eval_batch_size: of evaluation, at most.
        augment: the fields of `Augmentation`.

    Returns:
        The training images, and the evaluation images by split: "test", preceded by "validation" if there are any.

    Raises:
        UserError: the data set is damaged, or does not suit the settings.
    """
    with under_way(f"Reading {source.name}"):
        splits = load_splits(source, num_validation=num_validation, label_noise=label_noise, seed=seed)
    images, augmentation = splits.train, Augmentation(**augment)
    if problems := augmentation.problems(source.image_shape, batch_size, classes=images.label.ndim == 1):
        raise UserError("\n".join(problems))
    normalization = Normalization.from_images(images.image)
    train_data = TrainData(
        images.image, images.label, normalization, splits.num_classes, batch_size, augmentation, source.class_names
    )
    eval_data = {
        name: EvalData.from_images(images, normalization, eval_batch_size, mesh.size, source.class_names)
        for name, images in (("validation", splits.validation), ("test", splits.test))
        if len(images)
    }
    everywhere = replicated(mesh)
    return put(train_data, everywhere), {name: put(data, everywhere) for name, data in eval_data.items()}
