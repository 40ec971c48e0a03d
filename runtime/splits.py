"""The images of one experiment: what is set aside for validation, and labels that are wrong on purpose."""

import dataclasses

import numpy as np

from runtime.progress import say
from runtime.sources import Images, Source, describe


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
