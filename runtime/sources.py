"""Data sets as a run gets them: labelled images in memory, checked before anything else sees them."""

import dataclasses
from collections.abc import Callable

import numpy as np

from runtime.errors import UserError

SPLITS = ("train", "test")


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
        """The images at `indices`, in that order."""
        return Images(self.image[indices], self.label[indices])


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
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    num_train: int
    load: Callable[[str], Images]
    repair: str = ""

    @classmethod
    def from_arrays(cls, name: str, train: Images, test: Images) -> "Source":
        """A data set of images that are in memory already."""
        num_classes = train.label.shape[1] if train.label.ndim == 2 else int(train.label.max()) + 1
        return cls(name, train.image.shape[1:], num_classes, len(train), {"train": train, "test": test}.__getitem__)

    def error(self, found: str) -> UserError:
        """The error to raise if what was found is not right."""
        return UserError(f"dataset = {self.name!r}: {found}. {self.repair}".strip())

    def load_checked(self, split: str) -> Images:
        """Loads the images of a split, "train" or "test".

        Raises:
            UserError: they cannot be read, or they are not what the data set says.
        """
        images = self.load(split)
        image, label = images.image, images.label
        if len(images) == 0 or (split == "train" and len(images) != self.num_train):
            expected = self.num_train if split == "train" else "at least 1"
            raise self.error(f"split {split!r} has {len(images)} images; expected {expected}")
        if image.dtype != np.uint8 or image.ndim != 4 or image.shape != (len(label), *self.image_shape):
            raise self.error(
                f"split {split!r} has images {image.dtype}{list(image.shape)}; "
                f"expected uint8{[len(label), *self.image_shape]}, height, width and channels of each image"
            )
        if np.issubdtype(label.dtype, np.floating):
            if label.shape != (len(image), self.num_classes) or not np.isfinite(label).all():
                raise self.error(
                    f"split {split!r} has labels {label.dtype}{list(label.shape)}; "
                    f"expected finite ones, {[len(image), self.num_classes]}"
                )
            return images
        if label.min() < 0 or label.max() >= self.num_classes:
            raise self.error(
                f"split {split!r} has labels from {label.min()} to {label.max()}; "
                f"expected 0 to {self.num_classes - 1}, for {self.num_classes} classes"
            )
        return images
