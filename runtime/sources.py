"""Data sets as a run gets them: labelled images in memory, checked before anything else sees them."""

import dataclasses
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, Self

import numpy as np

from runtime.errors import UserError
from runtime.files import local_path
from runtime.readers import num_cores

SPLITS = ("train", "test")


class StoredImages(Protocol):
    """Images that are read when they are asked for: like an array uint8 [n, height, width, channels]."""

    dtype: np.dtype[Any]

    def __len__(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, height, width, channels)."""

    @property
    def identity(self) -> str:
        """A name that other images do not have, nor these once their files have changed; "" if it is not known."""

    @property
    def has_views(self) -> bool:
        """Whether there are views of an image other than the usual one."""

    def take(self, indices: np.ndarray) -> Self:
        """The images at `indices`, in that order, none of which is read."""

    def read(self, rows: np.ndarray, keys: np.ndarray | None = None, min_area: float = 1.0) -> np.ndarray:
        """The images at `rows`, uint8; see `image_files.ImageFiles.read`."""


@dataclasses.dataclass(frozen=True)
class Images:
    """Labelled images: `image` uint8 [n, height, width, channels], in memory or stored, and `label`, in memory.

    A label is a class, int32 [n], or what to predict, float32 [n, outputs], for a loss of one's own.
    """

    image: np.ndarray | StoredImages
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def take(self, indices: np.ndarray) -> "Images":
        """The images at `indices`, in that order."""
        image = self.image[indices] if isinstance(self.image, np.ndarray) else self.image.take(indices)
        return Images(image, self.label[indices])

    def read(self, rows: np.ndarray, keys: np.ndarray | None = None, min_area: float = 1.0) -> np.ndarray:
        """The images at `rows`, int [k], in memory: uint8 [k, height, width, channels].

        Args:
            rows: of which each may be there several times.
            keys: uint64 [k, 2], what the view of an image depends on where there are many views; None: the usual one.
            min_area: smallest share of an image that a view has.
        """
        return self.image[rows] if isinstance(self.image, np.ndarray) else self.image.read(rows, keys, min_area)

    def in_memory(self) -> "Images":
        """The same with all images read."""
        if isinstance(self.image, np.ndarray):
            return self
        image = np.empty(self.image.shape, np.uint8)
        parts = np.array_split(np.arange(len(self)), max(1, len(self) // 100))
        with ThreadPoolExecutor(num_cores()) as pool:
            for part, read in zip(parts, pool.map(self.read, parts), strict=True):
                image[part] = read
        return Images(image, self.label)


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set that is known but not loaded.

    Attributes:
        name: what `config.dataset` calls it.
        image_shape: (height, width, channels).
        num_classes: labels are below it; if labels are numbers to predict, how many there are for each image.
        num_train: number of training images.
        load: loads the images of a split, "train" or "test".
        repair: a sentence on what to do if they turn out to be damaged.
        class_names: of the labels, in their order; empty if they have none.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    num_train: int
    load: Callable[[str], Images]
    repair: str = ""
    class_names: tuple[str, ...] = ()

    @classmethod
    def from_arrays(cls, name: str, train: Images, test: Images, class_names: Sequence[str] = ()) -> "Source":
        """A data set of images that are in memory already.

        Args:
            name: what `config.dataset` calls it.
            train: to train on.
            test: to test on.
            class_names: of the labels, in their order, if they have names; then there are as many classes.

        Raises:
            UserError: they are not what `Images` says.
        """
        for split, images in (("train", train), ("test", test)):
            if found := unsuitable(images):
                raise UserError(f"dataset = {name!r}: split {split!r} has {found}")
        height, width, channels = train.image.shape[1:]
        found_classes = train.label.shape[1] if train.label.ndim == 2 else int(train.label.max()) + 1
        num_classes, load = len(class_names) or found_classes, {"train": train, "test": test}.__getitem__
        return cls(name, (height, width, channels), num_classes, len(train), load, class_names=tuple(class_names))

    def error(self, found: str, *, damaged: bool = False) -> UserError:
        """The error to raise if what was found is not right; only if files are damaged it says how to repair them."""
        return UserError(f"dataset = {self.name!r}: {found}. {self.repair if damaged else ''}".strip())

    def load_checked(self, split: str) -> Images:
        """Loads the images of a split, "train" or "test".

        Raises:
            UserError: they cannot be read, they are not what `Images` says, or not what the data set says.
        """
        images = self.load(split)
        if found := unsuitable(images):
            raise self.error(f"split {split!r} has {found}")
        image, label = images.image, images.label
        if split == "train" and len(images) != self.num_train:
            raise self.error(f"split 'train' has {len(images)} images; expected {self.num_train}", damaged=True)
        if image.shape[1:] != tuple(self.image_shape):
            raise self.error(
                f"split {split!r} has images {_shape(image)}; expected uint8{[len(label), *self.image_shape]}",
                damaged=True,
            )
        if label.ndim == 2 and label.shape[1] != self.num_classes:
            raise self.error(
                f"split {split!r} has labels {_shape(label)}; expected {self.num_classes} numbers for each image"
            )
        if label.ndim == 1 and label.max() >= self.num_classes:
            raise self.error(
                f"split {split!r} has labels from {label.min()} to {label.max()}; "
                f"expected 0 to {self.num_classes - 1}, for {self.num_classes} classes",
                damaged=True,
            )
        return images


def count_examples(config: Mapping[str, Any], num_train: int | None) -> int | None:
    """The number of examples to train on, of which a batch has no more; None if there is no such number.

    Args:
        config: all of its fields.
        num_train: training examples of the data set, those for validation included.

    Raises:
        UserError: validation or a batch would take more than there are.
    """
    if num_train is None:
        return None
    num_validation, of_set = config["num_validation"], f"of {config['dataset']}"
    num_examples: int = num_train - num_validation
    if num_examples < 1:
        raise UserError(f"num_validation = {num_validation}: must be below the {num_train} training images {of_set}")
    if config["batch_size"] > num_examples:
        raise UserError(
            f"batch_size = {config['batch_size']}: must be at most {num_examples}, the number of training images "
            f"{of_set}" + (" without num_validation" if num_validation else "")
        )
    return num_examples


def describe(name: str, splits: Mapping[str, Images], num_classes: int, class_names: Sequence[str] = ()) -> list[str]:
    """What the splits hold: a line for each, and a note if they lack classes. Those without images are left out.

    Args:
        name: of the data set.
        splits: by name; labels as they were found.
        num_classes: of the data set.
        class_names: of its classes; empty if they have none.
    """
    lines, notes = [], []
    for split, images in splits.items():
        if not len(images):
            continue
        size = "x".join(map(str, images.image.shape[1:]))
        line = f"{name}: {len(images)} {split} images {size}"
        if isinstance(images.image, np.ndarray):
            line += f", mean {images.image.mean() / 255:.2f} of white"
        if images.label.ndim == 1:
            counts = np.bincount(images.label.astype(np.int64), minlength=num_classes)
            each = " ".join(map(str, counts))
            if class_names:
                each = ", ".join(f"{of} {count}" for of, count in zip(class_names, counts, strict=True))
            line += f"; per class {each if num_classes <= 12 else f'{counts.min()} to {counts.max()}'}"
            if len(missing := np.flatnonzero(counts == 0)):
                names = [class_names[label] if class_names else str(label) for label in missing[:12]]
                shown = ", ".join(names) + (", ..." if len(missing) > 12 else "")
                notes.append(f"Note: no {split} image is of class {shown} ({len(missing)} of {num_classes} classes)")
        lines.append(line)
    return lines + notes


def _shape(array: np.ndarray | StoredImages) -> str:
    return f"{array.dtype}{list(array.shape)}"


def unsuitable(images: Images) -> str:
    """What keeps images from being trained on, with what would be right and how to get there; "" if nothing does."""
    image, label = images.image, images.label
    stored = all(hasattr(image, name) for name in ("shape", "dtype", "take", "read"))
    for name, array, right in (("images", image, stored), ("labels", label, False)):
        if not isinstance(array, np.ndarray) and not right:
            return f"{name} of type {type(array).__name__}; expected an array: numpy.array({name})"
    if image.shape[:1] != label.shape[:1] or not len(label):
        return f"{_count(image)} images and {_count(label)} labels; expected as many of both, at least 1"
    return (isinstance(image, np.ndarray) and _wrong_images(image)) or _wrong_labels(label)


def _count(array: np.ndarray | StoredImages) -> int:
    return len(array) if array.shape else 0


def _wrong_images(image: np.ndarray) -> str:
    expected = "expected uint8 [number, height, width, channels]"
    found = f"images {_shape(image)}; {expected}"
    if image.ndim == 3:
        return f"{found}. If they have one channel: images[..., numpy.newaxis]"
    if image.ndim != 4:
        return found
    _, channels, height, width = image.shape
    # As other libraries order them. A picture may well be this low, but hardly have that many channels as well.
    if channels in (1, 3, 4) and min(height, width) > 4 and (channels == 3 or height == width):
        return f"{found}. They seem to have their channels first: images.transpose(0, 2, 3, 1)"
    if not image.size:
        return f"{found}, each at least 1"
    if image.dtype == np.uint8:
        return ""
    if image.dtype == bool:
        return f"{found}, from 0 to 255: 255 * images.astype(numpy.uint8)"
    if image.dtype.kind not in "iuf":
        return found
    low, high = image.min(), image.max()
    found = f"images {_shape(image)} from {low} to {high}; {expected}, from 0 to 255"
    if image.dtype.kind == "f" and low >= 0 and high <= 1:
        return f"{found}: (255 * images).round().astype(numpy.uint8)"
    if image.dtype.kind != "f" and low >= 0 and high <= 255:
        return f"{found}: images.astype(numpy.uint8)"
    return f"{found}. A function of your own in input_pipeline.SOURCES can scale them"


def _wrong_labels(label: np.ndarray) -> str:
    found = f"labels {_shape(label)}; expected a class for each image, integers [{len(label)}]"
    if label.dtype.kind in "OSU":
        return f"{found}: numpy.unique(labels, return_inverse=True)[1]"
    if label.dtype.kind == "f":
        if label.ndim == 1:
            return (
                f"{found}: labels.astype(numpy.int32); or numbers to predict, [{len(label)}, outputs]: "
                "labels[:, numpy.newaxis]"
            )
        if label.ndim != 2 or not label.size:
            return f"labels {_shape(label)}; expected numbers to predict, [{len(label)}, outputs]"
        return "" if np.isfinite(label).all() else f"labels {_shape(label)} that are not all finite numbers"
    if label.ndim == 2 and label.shape[1] == 1:
        return f"{found}: labels[:, 0]"
    if label.ndim == 2 and label.shape[1] and (np.sort(label)[:, -2:] == [0, 1]).all():
        return f"{found}. They seem to be one-hot: labels.argmax(axis=1)"
    if label.ndim != 1:
        return f"{found}; numbers to predict must be floats: labels.astype(numpy.float32)"
    if label.dtype.kind not in "iu":
        return f"{found}: labels.astype(numpy.int32)"
    if label.min() < 0:
        return f"labels from {label.min()} to {label.max()}; expected classes from 0 on: negative ones hide the class"
    return ""


def read_arrays(dataset: str) -> Source:
    """The data set in a file of NumPy arrays, as `np.savez` writes it.

    Args:
        dataset: "arrays:" and the path of the file, which has `train_image`, `train_label`, `test_image` and
            `test_label` as `Images` says, and may have `class_names`.

    Raises:
        UserError: it cannot be read, or is not that.
    """
    path = dataset.removeprefix("arrays:")
    names = [f"{split}_{field}" for split in SPLITS for field in ("image", "label")]
    try:
        with local_path(path, "dataset").open("rb") as opened, np.load(opened) as file:
            if missing := [name for name in names if name not in file]:
                raise UserError(
                    f"dataset = {dataset!r} has no {', '.join(missing)}; it has {', '.join(file) or 'nothing'}"
                )
            arrays = {name: file[name] for name in names}
            class_names = [str(name) for name in file["class_names"]] if "class_names" in file else []
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:  # or arrays of another format
        raise UserError(
            f"dataset = {dataset!r} cannot be read ({error}). np.savez({path!r}, {'=..., '.join(names)}=...) writes it"
        ) from error
    train, test = (Images(arrays[f"{split}_image"], arrays[f"{split}_label"]) for split in SPLITS)
    return Source.from_arrays(dataset, train, test, class_names)
