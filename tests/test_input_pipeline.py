import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import state_at
from scipy import stats

import input_pipeline
from augmentation import Augmentation
from runtime import permutation, sharding
from runtime.errors import UserError
from runtime.splits import load_splits
from streams import stream_key

KEY = jax.random.key(0)


def source(num_train=100, num_test=20, num_classes=5):
    """Images whose pixels tell which one they are."""

    def load(split):
        n = {"train": num_train, "test": num_test}[split]
        image = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 2, 2, 1))
        return input_pipeline.Images(image, (np.arange(n) % num_classes).astype(np.int32))

    return input_pipeline.Source("pixels", (2, 2, 1), num_classes, num_train, load)


def test_a_file_of_arrays_is_found_by_its_name(tmp_path):
    arrays = {"image": np.zeros((4, 8, 8, 1), np.uint8), "label": np.arange(4) % 2}
    file = f"arrays:{tmp_path / 'mine.npz'}"
    np.savez(
        tmp_path / "mine.npz",
        **{f"{split}_{name}": array for split in ("train", "test") for name, array in arrays.items()},
    )
    assert input_pipeline.find_source(file).num_train == 4
    with pytest.raises(UserError, match="is neither a folder nor a TFDS set"):
        input_pipeline.find_source(file, ("train[:50%]", "test"))
    with pytest.raises(
        UserError, match=r"skip_damaged = True: 'arrays:.*' is no folder of image files; leave it at False"
    ):
        input_pipeline.find_source(file, skip_damaged=True)


def test_labels_may_be_numbers_to_predict():
    image = np.zeros((6, 2, 2, 1), np.uint8)
    label = np.arange(12, dtype=np.float32).reshape(6, 2)
    images = input_pipeline.Images(image, label)
    made = input_pipeline.Source.from_arrays("numbers", images, images)
    splits = load_splits(made, num_validation=1, label_noise=0.0, seed=0)
    assert splits.num_classes == 2
    normalization = input_pipeline.Normalization.from_images(images)
    data = input_pipeline.TrainData(splits.train.image, splits.train.label, normalization, 2, 5, Augmentation())
    batch = data.batch(state_at(KEY, 0))[0]
    np.testing.assert_array_equal(np.sort(batch["target"], axis=0), np.sort(splits.train.label, axis=0))
    np.testing.assert_array_equal(batch["label"], batch["target"])

    for wrong, found in (
        (label[:, :1], r"labels float32\[6, 1\]; expected 2 numbers for each image"),
        (np.where(label == 3, np.nan, label), r"labels float32\[6, 2\] that are not all finite"),
    ):
        broken = dataclasses.replace(made, load=lambda _, wrong=wrong: input_pipeline.Images(image, wrong))
        with pytest.raises(UserError, match=found):
            load_splits(broken, num_validation=0, label_noise=0.0, seed=0)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"label_noise": 0.4}, "one: has one class only; label_noise = 0.4 replaces classes by others"),
        ({"label_noise": 0.4}, "numbers: labels are numbers; label_noise = 0.4 replaces classes by others"),
        (
            {"augment": {"mixup": 1.0}},
            "numbers: augment.mixup = 1.0: mixes classes, and the labels of this data set are",
        ),
        ({"augment": {"mixup": 1.0}, "batch_size": 1}, "one: augment.mixup = 1.0: mixes the images of a batch"),
        ({"augment": {"cutmix": 0.5}}, "numbers: augment.cutmix = 0.5: mixes classes, and the labels of this data set"),
        ({"augment": {"cutmix": 0.5}, "batch_size": 1}, "one: augment.cutmix = 0.5: mixes the images of a batch"),
        (
            {"augment": {"rand_augment": 2}},
            "two: augment.rand_augment = 2: changes grey images and colour images, of 1",
        ),
        (
            {"augment": {"crop_padding": 4}},
            "one: augment.crop_padding = 4: must be below the smaller side of the 4 x 6",
        ),
        ({"augment": {"cutout": 6}}, "one: augment.cutout = 6: must be below the larger side of the 4 x 6 pixels"),
    ],
)
def test_a_setting_that_does_not_suit_the_data_set_is_refused(settings, found):
    labels = {"one": np.zeros(8, np.int32), "two": np.arange(8) % 2, "numbers": np.zeros((8, 2), np.float32)}
    name, _, message = found.partition(": ")
    channels = 2 if name == "two" else 1
    images = input_pipeline.Images(np.zeros((8, 4, 6, channels), np.uint8), labels[name])
    made = input_pipeline.Source.from_arrays(name, images, images)
    suitable = {"crop_padding": 3, "cutout": 5}

    def load(label_noise=0.0, augment=suitable, batch_size=2):
        input_pipeline.load(
            made, sharding.create_mesh(), seed=0, num_validation=1, label_noise=label_noise, batch_size=batch_size,
            eval_batch_size=2, augment=augment,
        )  # fmt: skip

    load()
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load(**settings)
    assert len(str(error.value).splitlines()) == 1


def test_training_images_are_normalised_to_mean_zero_and_deviation_one():
    image = np.random.default_rng(0).integers(0, 256, size=(50, 4, 4, 3)).astype(np.uint8)
    image[..., 2] = 9  # a constant channel
    images = input_pipeline.Images(image, np.zeros(50, np.int32))
    normalized = input_pipeline.Normalization.from_images(images)(jnp.asarray(image))
    normalized = np.asarray(normalized, np.float64)
    np.testing.assert_allclose(np.mean(normalized, axis=(0, 1, 2)), 0, atol=1e-6)  # float32 rounding
    np.testing.assert_allclose(np.std(normalized, axis=(0, 1, 2)), [1, 1, 0], atol=1e-6)


def test_a_batch_holds_the_images_and_labels_of_its_indices():
    splits = load_splits(source(), num_validation=0, label_noise=0.0, seed=0)
    identity = input_pipeline.Normalization(np.zeros(1, np.float32), np.ones(1, np.float32))
    data = input_pipeline.TrainData(splits.train.image, splits.train.label, identity, 5, 8, Augmentation())
    batch = jax.jit(lambda data, step: data.batch(state_at(KEY, step))[0])(data, jnp.int32(3))
    key = stream_key(KEY, "permutation")
    expected = np.asarray(permutation.example_indices(key, jnp.int32(3), batch_size=8, num_examples=100))
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], expected)
    np.testing.assert_array_equal(batch["label"], expected % 5)
    np.testing.assert_array_equal(batch["target"], np.eye(5)[expected % 5])


def test_augmentation_is_new_at_every_step_and_the_same_when_a_step_is_repeated():
    image = np.broadcast_to(np.arange(1, 17, dtype=np.uint8).reshape(1, 4, 4, 1), (8, 4, 4, 1))  # all the same
    identity = input_pipeline.Normalization(np.zeros(1, np.float32), np.ones(1, np.float32))
    data = input_pipeline.TrainData(
        image, np.zeros(8, np.int32), identity, 2, 8, Augmentation(flip=True, crop_padding=2)
    )
    batches = [
        np.asarray(data.batch(state_at(key, step))[0]["image"])
        for key, step in ((KEY, 3), (KEY, 3), (KEY, 4), (jax.random.key(1), 3))
    ]
    np.testing.assert_array_equal(batches[0], batches[1])
    assert (batches[0] != batches[2]).any()
    assert (batches[0] != batches[3]).any()


@pytest.mark.parametrize("num_images", [1, 7, 8, 9, 20])
@pytest.mark.parametrize(("batch_size", "num_devices"), [(8, 1), (8, 4), (100, 3)])
def test_evaluation_batches_are_equal_in_size_and_show_every_image_once(num_images, batch_size, num_devices):
    images = source(num_test=num_images).load("test")
    identity = input_pipeline.Normalization(np.zeros(1, np.float32), np.ones(1, np.float32))
    data = jax.device_put(input_pipeline.EvalData.from_images(images, identity, batch_size, num_devices))
    seen = []
    for index in range(data.num_batches):
        batch = data.batch(jnp.int32(index))
        assert len(batch["mask"]) % num_devices == 0
        seen += np.asarray(batch["image"][:, 0, 0, 0])[np.asarray(batch["mask"])].tolist()
    assert seen == list(range(num_images))


def test_label_noise_replaces_an_exact_share_by_other_classes_in_training_only():
    clean = load_splits(source(), num_validation=10, label_noise=0.0, seed=3)
    noisy = load_splits(source(), num_validation=10, label_noise=0.4, seed=3)
    assert np.sum(noisy.train.label != clean.train.label) == 36
    assert set(noisy.train.label) == set(range(5))
    np.testing.assert_array_equal(noisy.train.image, clean.train.image)
    for split in ("validation", "test"):
        np.testing.assert_array_equal(getattr(noisy, split).label, getattr(clean, split).label)
        np.testing.assert_array_equal(getattr(noisy, split).label, getattr(clean, split).image[:, 0, 0, 0] % 5)


def test_noisy_labels_are_uniform_over_the_other_classes():
    noisy = load_splits(source(250, num_classes=5), num_validation=0, label_noise=0.99, seed=0)
    offset = (noisy.train.label - np.arange(250) % 5) % 5
    _, counts = np.unique(offset[offset > 0], return_counts=True)
    assert stats.chisquare(counts).pvalue > 0.01


def test_the_seed_fixes_noise_and_validation_images():
    first, again, other = (load_splits(source(), num_validation=10, label_noise=0.4, seed=s) for s in (0, 0, 1))
    for a, b, c in zip(*map(dataclasses.astuple, (first.train, again.train, other.train)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


def test_validation_images_are_taken_off_the_training_set():
    splits = load_splits(source(), num_validation=30, label_noise=0.0, seed=0)
    ids = [set(images.image[:, 0, 0, 0].tolist()) for images in (splits.train, splits.validation)]
    assert len(ids[0]) == 70
    assert len(ids[1]) == 30
    assert ids[0] | ids[1] == set(range(100))


def test_what_was_found_is_said_of_each_split_with_classes_that_have_no_images(capsys):
    load_splits(source(), num_validation=10, label_noise=0.4, seed=0)
    out = capsys.readouterr().out
    assert re.search(r"^pixels: 90 train images 2x2x1, mean 0.1\d of white; per class( 1[6-9]| 20){5}$", out, re.M)
    assert re.search(r"^pixels: 10 validation images 2x2x1, mean 0.\d\d of white; per class( \d){5}$", out, re.M)
    assert "pixels: 20 test images 2x2x1, mean 0.04 of white; per class 4 4 4 4 4\n" in out
    assert "Note" not in out

    load_splits(source(num_classes=30), num_validation=0, label_noise=0.0, seed=0)
    out = capsys.readouterr().out
    assert "train images 2x2x1, mean 0.19 of white; per class 3 to 4\n" in out
    assert "validation" not in out
    assert "Note: no test image is of class 20, 21, 22, 23, 24, 25, 26, 27, 28, 29 (10 of 30 classes)\n" in out
    assert "no train image" not in out


def test_digits_are_split_into_stratified_halves():
    digits = input_pipeline.find_source("digits")
    train, test = digits.load("train"), digits.load("test")
    assert (len(train), len(test), digits.num_train) == (901, 896, 901)
    assert train.image.shape[1:] == digits.image_shape == (8, 8, 1)
    assert train.image.dtype == np.uint8
    assert (train.image.min(), train.image.max()) == (0, 255)
    difference = np.bincount(train.label) - np.bincount(test.label)
    assert set(difference.tolist()) <= {0, 1}
    images = np.concatenate([train.image, test.image]).reshape(1797, -1)
    assert len(np.unique(images, axis=0)) == 1797


@pytest.mark.slow
@pytest.mark.usefixtures("mnist")
def test_a_tfds_set_brings_its_own_shape_classes_and_sizes():
    mnist = input_pipeline.find_source("mnist")
    assert (mnist.image_shape, mnist.num_classes, mnist.num_train) == ((28, 28, 1), 10, 60000)
    test = mnist.load("test")
    assert test.image.shape == (10000, 28, 28, 1)
    # The published number of test images of each digit.
    assert np.bincount(test.label).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    np.testing.assert_array_equal(test.label, mnist.load("test").label)


def test_a_data_set_that_cannot_be_had_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")  # no network
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError) as error:
        input_pipeline.find_source("fashion_mnist")
    for part in ("fashion_mnist", str(tmp_path), "TFDS_DATA_DIR", "tfds build fashion_mnist"):
        assert part in str(error.value)


def test_an_unknown_data_set_is_refused_with_the_nearest_names():
    with pytest.raises(UserError, match=r"did you mean .*mnist"):
        input_pipeline.find_source("mnits")


def _change(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def _cut(file):
    file.write_bytes(file.read_bytes()[:1000])


def _flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda folder: (folder / TRAIN).unlink(), "split 'train', cannot be read: .*No such file"),
        (lambda folder: _cut(folder / TRAIN), "split 'train', cannot be read: "),
        (lambda folder: _flip_a_bit(folder / TEST), "split 'test', cannot be read: corrupted record"),
        (lambda folder: (folder / "dataset_info.json").unlink(), "is damaged: Could not read dataset info"),
        (lambda folder: (folder / "features.json").write_text("{"), "is damaged: Expecting property name"),
        (lambda folder: (folder / "dataset_info.json").write_text('{"name":'), "is damaged: Failed to load JSON"),
        (lambda folder: folder.rename(folder.parent / "incomplete.ABC123_1.0.0"), "is damaged or half prepared"),
        (
            lambda folder: _change(
                folder / "dataset_info.json", lambda info: info["splits"][0].update(shardLengths=["200"])
            ),
            "split 'train', cannot be read: .*200 elements but contained only 160",
        ),
        (
            lambda folder: (folder / "features.json").write_text(
                (folder / "features.json").read_text().replace('"100"', '"50"')
            ),
            "split 'train' has labels from 0 to 99; expected 0 to 49, for 50 classes",
        ),
    ],
)
def test_a_damaged_data_set_is_named_with_what_was_found_and_how_to_repair_it(
    made_data, tmp_path, monkeypatch, damage, found
):
    shutil.copytree(made_data / "hundred", tmp_path / "hundred")
    damage(tmp_path / "hundred" / "1.0.0")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=found) as error:
        load(input_pipeline.find_source("hundred"))
    assert "dataset = 'hundred'" in str(error.value)
    assert re.search(rf"rm -r {tmp_path / 'hundred'}(/1.0.0)? && tfds build hundred", str(error.value))


def test_damage_to_a_set_that_tfds_knows_is_reported_the_same_way(made_data, tmp_path, monkeypatch):
    shutil.copytree(made_data / "cifar10", tmp_path / "cifar10")
    (tmp_path / "cifar10" / "3.0.2" / "dataset_info.json").write_text('{"name":')
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"'cifar10'.* is damaged: .*tfds build cifar10"):
        input_pipeline.find_source("cifar10")


TRAIN, TEST = (f"hundred-{split}.tfrecord-00000-of-00001" for split in ("train", "test"))


def load(source):
    return load_splits(source, num_validation=0, label_noise=0.0, seed=0)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"num_train": 99}, r"split 'train' has 100 images; expected 99"),
        ({"image_shape": (2, 2, 3)}, r"images uint8\[100, 2, 2, 1\]; expected uint8\[100, 2, 2, 3\]"),
        ({"num_classes": 4}, r"labels from 0 to 4; expected 0 to 3, for 4 classes"),
        (
            {"load": lambda split: source().load(split).take(np.arange(100 if split == "train" else 0))},
            r"split 'test' has 0 images and 0 labels; expected as many of both, at least 1",
        ),
    ],
)
def test_a_source_that_does_not_give_what_it_says_is_refused(fields, found):
    with pytest.raises(UserError, match=f"dataset = 'pixels': .*{found}"):
        load(dataclasses.replace(source(), **fields))


@pytest.mark.parametrize("name", ["", ".", "..", "hundred/", "downloads", "some/folder"])
def test_no_message_asks_to_remove_a_folder_that_is_no_data_set(name, made_data, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(made_data))
    with pytest.raises(UserError) as error:
        input_pipeline.find_source(name)
    assert "rm -r" not in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_version_that_does_not_exist_is_the_reason_given():
    with pytest.raises(UserError, match=r"'mnist:9.9.9' cannot be loaded: .*9.9.9, only: 3.0.1"):
        input_pipeline.find_source("mnist:9.9.9")
