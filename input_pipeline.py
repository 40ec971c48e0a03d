"""Images: loaded once, kept on the device as uint8, served as pure functions of (key, step).

A fork with data of its own adds a function to `SOURCES`; nothing else needs to know. It makes a `Source` from `Images`,
uint8 [n, height, width, channels] with a label for each: a class, int32 [n], or numbers to predict, float32 [n, k].
"""

import functools
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
from runtime.image_files import find_folder_source
from runtime.normalization import Normalization
from runtime.permutation import example_indices, find_step
from runtime.progress import under_way
from runtime.readers import num_cores
from runtime.rows import EvalRows, TrainRows
from runtime.sharding import put, replicated, split_batch
from runtime.sources import SPLITS, Images, Source, read_arrays
from runtime.splits import load_splits
from runtime.stream import Stream, is_streamed
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


def find_source(
    dataset: str, splits: tuple[str, str] = SPLITS, image_size: int = 0, skip_damaged: bool = False
) -> Source:
    """The data set of this name: one of `SOURCES`, "folder:PATH", "arrays:FILE.npz", or a TFDS classification set.

    Args:
        dataset: the name. What a file has in it, `sources.read_arrays` says; what a folder, `find_folder_source`. A
            TFDS set that is not prepared yet is downloaded and prepared.
        splits: which of a TFDS set's images, or which folders, train and test.
        image_size: side that images of different sizes are brought to; 0: they have one size.
        skip_damaged: whether to leave out files that cannot be read.

    Raises:
        UserError: there is no such set, it can be neither found nor downloaded, it is no classification set of images,
            or it has no such splits; or it has images of different sizes and there is no `image_size`.
    """
    is_file = dataset.startswith("arrays:")
    if dataset.startswith("folder:"):
        return find_folder_source(dataset, splits, image_size, skip_damaged)
    if skip_damaged:
        raise UserError(f"skip_damaged = True: {dataset!r} is no folder of image files; leave it at False")
    if dataset not in SOURCES and not is_file:
        return find_tfds_source(dataset, SOURCES, splits, image_size)
    if splits != SPLITS:
        raise UserError(
            f"splits = {splits}: {dataset!r} is neither a folder nor a TFDS set; leave it at its default, {SPLITS}"
        )
    if image_size:
        raise UserError(f"image_size = {image_size}: the images of {dataset!r} have one size; leave it at 0")
    return read_arrays(dataset) if is_file else SOURCES[dataset]()


def source_of(config: Mapping[str, Any]) -> Source:
    """The data set that a config names; see `find_source`."""
    given = {"splits": SPLITS, "image_size": 0, "skip_damaged": False}  # which older runs may lack
    return find_source(config["dataset"], **{name: config.get(name, value) for name, value in given.items()})


class TrainData(struct.PyTreeNode):
    """The training set, to be put on the device: uint8 [n, height, width, channels] and int32 [n].

    If it is `streamed`, only the rows of one step, in their order.
    """

    image: Array
    label: Array
    normalization: Normalization
    num_classes: int = struct.field(pytree_node=False)
    batch_size: int = struct.field(pytree_node=False)
    augmentation: Augmentation = struct.field(pytree_node=False)
    class_names: tuple[str, ...] = struct.field(pytree_node=False, default=())
    streamed: bool = struct.field(pytree_node=False, default=False)

    @property
    def images(self) -> Images:
        """All images, on the host."""
        return Images(np.asarray(self.image), np.asarray(self.label))

    def batch(self, state: CustomTrainState) -> tuple[dict[str, jax.Array], Any]:
        """The batch of `state.step`, a pure function of the seed and of it; see `Data.train`.

        Example `i = step * batch_size + j` is position `i % n` of the permutation of epoch `i // n`. So batches
        straddle epochs, no image is left out, and nothing has to be carried from step to step.

        Returns:
            `image`, float32 [batch, height, width, channels], normalised and augmented; `label`, int32 [batch]; and
            `target`, float32 [batch, classes], the class probabilities to learn. Labels that are numbers are both. The
            state's memory goes with it, as it is.
        """
        image, label = jnp.asarray(self.image), jnp.asarray(self.label)
        if not self.streamed:
            order = stream_key(state.rng, "permutation")
            rows = example_indices(order, state.step, batch_size=self.batch_size, num_examples=len(label))
            image, label = image[rows], label[rows]
        pixels = self.augmentation.pixels(state.step_key("augmentation"), image, self.normalization.mean)
        image = self.normalization(pixels)
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
        """Pads with zeros to the batches of `_even_batches`."""
        num_batches, batch_size = _even_batches(len(images), batch_size, num_devices)
        padding = num_batches * batch_size - len(images)

        def pad(x: Any) -> np.ndarray:
            return np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))

        mask = np.ones(len(images), bool)
        return cls(pad(images.image), pad(images.label), pad(mask), normalization, batch_size, class_names)

    @property
    def num_batches(self) -> int:
        """The number of batches."""
        return len(self.label) // self.batch_size

    @property
    def images(self) -> Images:
        """All images, on the host."""
        number = int(np.asarray(self.mask).sum())
        return Images(np.asarray(self.image)[:number], np.asarray(self.label)[:number])

    def batch(self, index: jax.Array) -> dict[str, jax.Array]:
        """Batch `index` of `num_batches`: `image`, `label` and `mask`."""

        def cut(x: Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, index * self.batch_size, self.batch_size)

        return {"image": self.normalization(cut(self.image)), "label": cut(self.label), "mask": cut(self.mask)}


def _even_batches(num_images: int, batch_size: int, num_devices: int) -> tuple[int, int]:
    """Number and size of equal batches, as large as `batch_size` allows and a multiple of `num_devices`."""
    num_batches = math.ceil(num_images / batch_size)
    return num_batches, math.ceil(num_images / (num_batches * num_devices)) * num_devices


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
    return source_of(config).num_train


def create_data(
    config: ml_collections.FrozenConfigDict, mesh: jax.sharding.Mesh, *, mode: str = "auto", workers: int = 0
) -> Data:
    """The images that `config.dataset` names, each with a label.

    Args:
        config: resolved.
        mesh: the devices.
        mode: where they lie: a copy on every "device"; or they are a "stream", read as they are needed; "auto": the
            former if they take at most a quarter of its memory and each has one view only.
        workers: processes that read a stream; 0: threads.

    Raises:
        UserError: see `load`.
    """
    source = source_of(config)
    example = jnp.zeros((1, *source.image_shape)), jnp.zeros((1, source.num_classes))
    return Data(*load(source, mesh, **taken_by(load, config), mode=mode, workers=workers), example)


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
    duration: int = 0,
    steps_per_dispatch: int = 0,
    mode: str = "device",
    workers: int = 0,
) -> tuple[TrainData | Stream, Mapping[str, EvalData | Stream]]:
    """Reads a data set and puts a copy of it on every device, or makes streams of it.

    Args:
        source: the data set.
        mesh: the devices.
        seed: see `load_splits`, as for the next two.
        num_validation: number of training images to set aside.
        label_noise: share of wrong training labels.
        batch_size: of training.
        eval_batch_size: of evaluation, at most.
        augment: the fields of `Augmentation`.
        duration: number of training steps.
        steps_per_dispatch: as in the config; a stream gives one step at a time.
        mode: see `create_data`.
        workers: see `create_data`.

    Returns:
        The training images, and the evaluation images by split: "test", preceded by "validation" if there are any.

    Raises:
        UserError: the data set is damaged, or does not suit the settings.
    """
    with under_way(f"Reading {source.name}"):
        splits = load_splits(source, num_validation=num_validation, label_noise=label_noise, seed=seed)
    images, augmentation, everywhere = splits.train, Augmentation(**augment), replicated(mesh)
    resized = not isinstance(images.image, np.ndarray) and images.image.has_views
    classes = images.label.ndim == 1
    if problems := augmentation.problems(source.image_shape, batch_size, classes=classes, resized=resized):
        raise UserError("\n".join(problems))
    evaluated = {"validation": splits.validation, "test": splits.test}
    evaluated = {name: images for name, images in evaluated.items() if len(images)}
    min_area = augmentation.resized_crop if resized else 1.0
    streamed = is_streamed(mode, [images, *evaluated.values()], crops=min_area < 1)
    if workers < 0:
        raise UserError(f"data.workers = {workers}: must be a number of processes, or 0 for threads")
    if streamed and steps_per_dispatch > 1:
        raise UserError(
            f"steps_per_dispatch = {steps_per_dispatch}: images that are streamed come one step at a time; leave it at "
            "0, or train with --config.data.mode=device"
        )
    normalization = put(Normalization.from_images(images), everywhere)
    create = functools.partial(
        TrainData,
        normalization=normalization,
        num_classes=splits.num_classes,
        batch_size=batch_size,
        augmentation=augmentation,
        class_names=source.class_names,
        streamed=streamed,
    )
    if not streamed:
        resident = {}
        for name, x in evaluated.items():
            data = EvalData.from_images(x.in_memory(), normalization, eval_batch_size, mesh.size, source.class_names)
            resident[name] = put(data, everywhere)
        return put(create(**vars(images.in_memory())), everywhere), resident

    # Decoding small images, threads wait for each other most of the time.
    threads = num_cores() if resized or math.prod(source.image_shape) > 2**16 else 1
    rows = TrainRows(images, batch_size, seed, min_area)
    steps = find_step(stream_key(jax.random.key(seed), "permutation"), batch_size, len(images))
    train_data = Stream(images, rows, create, batch_size, duration, split_batch(mesh), steps, threads, workers)
    streams = {}
    for name, x in evaluated.items():
        number, size = _even_batches(len(x), eval_batch_size, mesh.size)
        make = functools.partial(EvalData, normalization=normalization, batch_size=size, class_names=source.class_names)
        streams[name] = Stream(x, EvalRows(x, size), make, size, number, split_batch(mesh), int, threads, workers)
    return train_data, streams
