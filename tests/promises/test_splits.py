"""Every number that is said of images is of those of its split, counted and computed by hand.

The test images are brighter than those to train, fewer, and mostly of one class: what comes from other images, or is
normalised by them, is another number.
"""

import importlib
import json
import pathlib

import numpy as np
import pytest
from conftest import ROOT, digits_config, read_metrics

import input_pipeline
import settings
import train
from runtime import sharding
from runtime.sources import Images, Source
from tools import export, finished, posthoc
from tools.diagnosis.subject import Subject

SEED, NUM_VALIDATION = 3, 15


def images(num, level, classes, seed):
    rng = np.random.default_rng(seed)
    label = rng.choice(3, num, p=classes).astype(np.int32)
    image = rng.integers(0, 100, (num, 4, 5, 2)) + np.array([level, level // 2]) + 20 * label[:, None, None, None]
    return Images(image.astype(np.uint8), label)


TRAIN, TEST = images(60, 5, (0.6, 0.3, 0.1), 0), images(23, 100, (0.1, 0.1, 0.8), 1)


def by_hand():
    """The images of each split, and their labels."""
    order = np.random.default_rng([SEED, 0]).permutation(60)
    validation, rest = np.sort(order[:NUM_VALIDATION]), np.sort(order[NUM_VALIDATION:])
    return {"train": TRAIN.take(rest), "validation": TRAIN.take(validation), "test": TEST}


def score(weights, data):
    """Loss and accuracy of a network with a hidden layer in float64, and what it takes each image for."""
    train_images = by_hand()["train"].image.astype(np.float64)
    x = (data.image - train_images.mean(axis=(0, 1, 2))) / train_images.std(axis=(0, 1, 2))
    for number in (0, 1):
        layer = {name: np.asarray(value, np.float64) for name, value in weights["params"][f"Dense_{number}"].items()}
        x = np.maximum(x, 0) if number else x.reshape(len(x), -1)
        x = x @ layer["kernel"] + layer["bias"]
    log_prob = x - np.log(np.exp(x - x.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)) - x.max(axis=1)[:, None]
    predicted = x.argmax(axis=1)
    loss = -log_prob[np.arange(len(x)), data.label].mean()
    return {
        "loss": pytest.approx(loss, rel=1e-5),
        "accuracy": pytest.approx((predicted == data.label).mean()),
    }, predicted


@pytest.fixture
def lopsided(monkeypatch):
    monkeypatch.setitem(input_pipeline.SOURCES, "lopsided", lambda: Source.from_arrays("lopsided", TRAIN, TEST))


def picked(found):
    return {name: found[name] for name in ("loss", "accuracy")}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["device", "stream"])
def test_every_number_is_of_the_images_that_its_split_says(mode, lopsided, tmp_path):
    config = digits_config(dataset="lopsided", num_validation=NUM_VALIDATION, label_noise=0.2, seed=SEED)
    config.data.mode, config.eval_batch_size, config.batch_size, config.model.hidden_sizes = mode, 10, 9, (6,)
    state, _ = train.train_and_evaluate(config, tmp_path)
    splits, weights = by_hand(), state.weights()
    expected = {
        (name, split): score(weights[name], splits[split])
        for name in ("raw", "ema")
        for split in ("validation", "test")
    }
    # What could be taken for each other is far apart.
    losses = sorted(float(metrics["loss"].expected) for metrics, _ in expected.values())
    assert min(np.diff(losses)) > 1e-3

    for (name, split), (metrics, _) in expected.items():
        [line] = [x for x in read_metrics(tmp_path, name) if x["step"] == 20 and x["split"] == split]
        assert picked(line) == metrics
    for line in posthoc.posthoc(tmp_path, ["lawa:last=1"], last=True):
        if not line["curve"].endswith("-raw"):
            assert picked(line) == expected["raw", line["split"]][0]

    with np.load(tmp_path / "predictions.npz") as stored:
        np.testing.assert_array_equal(stored["label"], TEST.label)
        np.testing.assert_array_equal(stored["image"], TEST.image[stored["index"]])
        for name in ("raw", "ema"):
            np.testing.assert_array_equal(stored[f"{name}/predicted"], expected[name, "test"][1])

    assert picked(finished.evaluate_checkpoint(config, tmp_path)["ema"]) == expected["ema", "test"][0]
    export.export(tmp_path, "ema", tmp_path / "exported", "latest")
    about = json.loads((tmp_path / "exported" / "weights.json").read_text())
    assert picked(about["scores"]["ema"]) == expected["ema", "test"][0]
    np.testing.assert_allclose(about["mean"], splits["train"].image.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(
        export.predict(tmp_path / "exported", TEST.image)[0].argmax(axis=1), expected["ema", "test"][1]
    )

    subject = Subject.read(tmp_path, "ema", 100)
    assert [*subject.images] == ["train", "validation"]
    for split, data in subject.images.items():
        found, whole = data.images.image, splits[split].image
        assert sorted(map(bytes, found)) == sorted(map(bytes, whole))
        if split != "train":  # of which labels are wrong on purpose
            scores = subject.scores(subject.run.weights(subject.run.stored[-1], "ema"), split)
            assert {name: scores[name].mean() for name in ("loss", "accuracy")} == expected["ema", split][0]


FORKS = sorted(path for path in ROOT.glob("examples/*/configs/default.py") if 'dataset = "mnist"' in path.read_text())


@pytest.mark.parametrize("name", [path.parent.parent.name for path in FORKS])
def test_forks_are_evaluated_on_all_images_and_labels_of_the_split(name, monkeypatch):
    config = importlib.import_module(f"examples.{name}.configs.default").get_config()
    rng, label = np.random.default_rng(0), np.arange(600, dtype=np.int32) % 10
    bright = Images(rng.integers(100, 256, (23, 28, 28, 1), np.uint8), label[:23])
    dark = Images(rng.integers(0, 100, (600, 28, 28, 1), np.uint8), label)
    monkeypatch.setitem(input_pipeline.SOURCES, "mnist", lambda: Source.from_arrays("mnist", dark, bright))
    config.seed, config.num_validation, config.batch_size, config.eval_batch_size = SEED, 40, 20, 10
    task = train.find_task(config.task)
    resolved = settings.prepare(config, task, pathlib.Path("no_such_run"), "refuse")
    data = settings.create_data(task, resolved, sharding.create_mesh())
    validation = dark.take(np.sort(np.random.default_rng([SEED, 0]).permutation(600)[:40]))
    assert [*data.eval] == ["validation", "test"]
    for split, expected in (("validation", validation), ("test", bright)):
        found = data.eval[split].images
        np.testing.assert_array_equal(found.label, expected.label)
        size = found.image.shape[1]  # of images that some forks shrink
        blocks = expected.image.reshape(-1, size, 28 // size, size, 28 // size, 1)
        np.testing.assert_allclose(found.image, blocks.mean(axis=(2, 4)), rtol=0, atol=0.5)
