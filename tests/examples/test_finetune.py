"""The small data sets of examples/finetune, the layers that stand still or move slowly, and what averages keep."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import models
from examples.finetune import start, transfer
from input_pipeline import find_source
from runtime.sources import Images

RESNET = {"name": "resnet", "depth": 20, "width": 1, "stem": "cifar", "zero_init_residual": False}


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    monkeypatch.setattr(start, "FOLDER", tmp_path)
    start.arrays.cache_clear()
    yield lambda seed: np.load(start.arrays("digits", seed))
    start.arrays.cache_clear()


def places(images, among):
    """Where each image is among others, all of which differ."""
    known = {image.tobytes(): place for place, image in enumerate(among)}
    assert len(known) == len(among)
    return [known[image.tobytes()] for image in images]


def test_a_seed_draws_as_many_images_of_each_class_and_leaves_the_test_set_whole(arrays):
    source = find_source("digits")
    train, test = (start.like_mnist(source.load(split)) for split in ("train", "test"))
    chosen = []
    for seed in (0, 1):
        found = arrays(seed)
        assert np.bincount(found["train_label"]).tolist() == [10] * 10
        chosen.append(places(found["train_image"], train.image))
        np.testing.assert_array_equal(train.label[chosen[-1]], found["train_label"])
        np.testing.assert_array_equal(found["test_image"], test.image)
        np.testing.assert_array_equal(found["test_label"], test.label)
    assert {*chosen[0]} != {*chosen[1]}


def test_rates_are_chosen_on_training_images_that_are_not_among_the_few(arrays):
    train = start.like_mnist(find_source("digits").load("train"))
    found = arrays(start.FIRST_TUNING_SEED)
    few, others = (places(found[f"{split}_image"], train.image) for split in ("train", "test"))
    assert sorted(few + others) == [*range(len(train))]
    np.testing.assert_array_equal(train.label[others], found["test_label"])


def test_classes_are_numbered_anew_and_their_images_stay_theirs():
    images = Images(np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1), np.array([7, 0, 5, 9, 4, 5], np.int32))
    found = start.of_classes(images, start.NEW)
    assert found.image.ravel().tolist() == [0, 2, 3, 5]
    assert found.label.tolist() == [2, 0, 4, 0]


def test_digits_are_as_large_as_those_of_mnist_and_in_the_middle():
    white = Images(np.full((1, 8, 8, 1), 255, np.uint8), np.zeros(1, np.int32))
    [image] = start.like_mnist(white).image
    assert image.shape == (28, 28, 1)
    rows, columns, _ = np.nonzero(image)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 23, 4, 23)


@pytest.mark.parametrize(("task", "fields", "side", "head"), [
    ("digits", {"name": "small_cnn"}, (28, 28, 1), "Dense_1"),
    ("cifar10", RESNET, (32, 32, 3), "Dense_0"),
])  # fmt: skip
def test_each_layer_below_the_last_one_is_in_one_group_and_lower_ones_are_in_earlier_ones(task, fields, side, head):
    model = models.create_model(num_classes=10, dtype="float32", dropout=0.0, **fields)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *side)), train=False))
    paths = [*traverse_util.flatten_dict(shapes["params"], sep="/")]
    layers = transfer.LAYERS[task]
    found = {path: [i for i, match in enumerate(layers) if re.match(match, path)] for path in paths}
    assert {path.partition("/")[0] for path, numbers in found.items() if not numbers} == {head}
    assert all(len(numbers) == 1 for path, numbers in found.items() if not path.startswith(head))
    assert {numbers[0] for numbers in found.values() if numbers} == {*range(len(layers))}
    convolutions = [path for path in paths if path.startswith("Conv_") and path.endswith("kernel")]
    convolutions.sort(key=lambda path: int(re.search(r"\d+", path)[0]))
    numbers = [found[path][0] for path in convolutions]
    assert numbers == sorted(numbers)


def test_the_averages_keep_the_shares_of_the_start_that_they_say():
    for name, share, half_life in transfer.KEPT:
        assert name == f"keep{share * 100:.0f}"
        assert 0.5 ** (100 / float(half_life.removesuffix("%"))) == pytest.approx(share, rel=1e-4)  # as it is printed
