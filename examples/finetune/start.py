"""What fine-tuning starts from, and the small data sets that it goes to.

    python -m examples.finetune.start

Trains a network on MNIST and one on five classes of CIFAR-10, in `runs/finetune_start`, two processes at a time.
"""

import functools
import io
import pathlib

import ml_collections
import numpy as np
from PIL import Image

from configs import cifar10_small, mnist_fast
from examples import results
from input_pipeline import find_source
from runtime.files import replace_file
from runtime.sources import Images

FOLDER = pathlib.Path("runs/finetune_start")
OLD, NEW = range(5), range(5, 10)  # classes of CIFAR-10
NUM_LABELED = {"digits": 10, "cifar10": 100}  # images of each class that there are to learn from
NUM_HELD_OUT = 5000  # at most so many of the others, on which rates are chosen
FIRST_TUNING_SEED = 100  # runs with this seed or a larger one see no test image


def config_of(name: str, seed: int = 0) -> ml_collections.ConfigDict:
    """The config of a start: "mnist", or "cifar10", the classes `OLD` of it."""
    config = mnist_fast.get_config() if name == "mnist" else cifar10_small.get_config()
    config.seed = seed
    if name == "cifar10":
        config.dataset, config.duration = f"arrays:{arrays_of_old_classes()}", "8 epochs"
        config.eval_every = config.checkpoint_every = "50%"
        config.optimizer.schedule = "cosine"
    return config


def weights(name: str) -> pathlib.Path:
    """The workdir of a start."""
    [workdir] = results.workdirs(name, FOLDER, 1)
    return workdir


def of_classes(images: Images, classes: range) -> Images:
    """Those of these classes, which become 0, 1, ..."""
    found = images.take(np.flatnonzero(np.isin(images.label, classes)))
    return Images(found.image, found.label - classes.start)


def like_mnist(images: Images) -> Images:
    """Digits of 8x8 enlarged to 20x20, in the middle of 28x28 as those of MNIST are."""
    large = np.array(
        [
            np.asarray(Image.fromarray(image[..., 0]).resize((20, 20), Image.Resampling.BICUBIC))
            for image in images.read(np.arange(len(images)))
        ]
    )
    return Images(np.pad(large, ((0, 0), (4, 4), (4, 4)))[..., np.newaxis], images.label)


@functools.cache
def arrays_of_old_classes() -> pathlib.Path:
    """A file with the classes `OLD` of CIFAR-10."""
    return store("cifar10_old", *(of_classes(images_of("cifar10", split), OLD) for split in ("train", "test")))


@functools.cache  # for the variants that share it
def arrays(name: str, seed: int) -> pathlib.Path:
    """A file with a few images of each class, drawn by the seed, and the test images.

    Args:
        name: "digits", or "cifar10" for its classes `NEW`.
        seed: from `FIRST_TUNING_SEED` on, other training images stand in the place of the test images.
    """
    train, test = (
        like_mnist(images) if name == "digits" else of_classes(images, NEW)
        for images in (images_of(name, "train"), images_of(name, "test"))
    )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(train))
    labels = train.label[order]
    ranks = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])  # among those of its class
    chosen, others = order[ranks < NUM_LABELED[name]], order[ranks >= NUM_LABELED[name]]
    if seed >= FIRST_TUNING_SEED:
        test = train.take(others[:NUM_HELD_OUT])
    return store(f"{name}_{seed}", train.take(chosen), test)


@functools.cache
def images_of(name: str, split: str) -> Images:
    """The images that "digits" or "cifar10" has."""
    return find_source(name).load_checked(split)


def store(name: str, train: Images, test: Images) -> pathlib.Path:
    """A file for `config.dataset = "arrays:FILE"`."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.npz"
    both = {"train": train.in_memory(), "test": test.in_memory()}
    parts = {f"{split}_{key}": getattr(images, key) for split, images in both.items() for key in ("image", "label")}
    np.savez(content := io.BytesIO(), **parts)
    replace_file(path, content.getvalue())
    return path


if __name__ == "__main__":
    results.train_all(["mnist", "cifar10"], FOLDER, 1, config_of)
