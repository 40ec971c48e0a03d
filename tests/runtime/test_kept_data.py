"""What runs keep of data sets for later ones is what these would make of the files and with the code that there are."""

import importlib.util

import numpy as np
import PIL.Image
import pytest
from made_sets import IMAGE, LABEL, store

import input_pipeline
from runtime import caching, damaged, tfds_sets
from runtime.normalization import Normalization
from runtime.sources import SPLITS


def everything(*arguments):
    """What a run in a process of its own gets of a data set, its mean among it."""
    damaged._known.clear()
    source = input_pipeline.find_source(*arguments)
    train, test = (source.load_checked(split) for split in SPLITS)
    halves = {f"half {i}": train.take(np.arange(len(train) // 2) + i * (len(train) // 2)) for i in range(2)}
    found = {f"{split}_label": images.label for split, images in (("train", train), ("test", test))}
    found |= {f"{split}_image": images.in_memory().image for split, images in (("train", train), ("test", test))}
    means = {name: Normalization.from_images(images).mean for name, images in {"mean": train, **halves}.items()}
    return found | means | {"about": np.array([source.name, str(source.image_shape), *source.class_names])}


def check_kept(cache, *arguments):
    """What is kept of a data set is what there is now, and stays as long as nothing changes; returns it."""
    caching._directory = None
    fresh = everything(*arguments)
    caching.enable(cache)
    everything(*arguments)
    before = {*(cache / "data").iterdir()}
    kept = everything(*arguments)
    assert {*(cache / "data").iterdir()} == before
    assert kept.keys() == fresh.keys()
    for name, value in fresh.items():
        np.testing.assert_array_equal(kept[name], value, name)
    return kept


def check_made_again(monkeypatch, cache, modules, *arguments):
    """What is kept of a data set is made again if the code of any of these modules is another, and not otherwise."""
    check_kept(cache, *arguments)
    find_spec = importlib.util.find_spec
    other = importlib.util.spec_from_file_location("other", __file__)
    for module in ("json", *modules):
        before = {*(cache / "data").iterdir()}
        with monkeypatch.context() as context:
            context.setattr(importlib.util, "find_spec", lambda name, m=module: other if name == m else find_spec(name))
            everything(*arguments)
        assert ({*(cache / "data").iterdir()} == before) == (module == "json"), module


@pytest.mark.slow
@pytest.mark.parametrize("size", [tfds_sets.LARGE, 0], ids=["decoded", "in its files"])
def test_what_is_kept_of_a_set_is_that_of_its_files_its_splits_and_the_code_that_read_it(size, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_sets, "LARGE", size)
    monkeypatch.setattr(caching, "_directory", None)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    store(tmp_path / "data", IMAGE, LABEL, splits=("train",))
    splits = ("train[:40%]", "train[40%:]")
    first = check_kept(tmp_path / "cache", "made", splits)
    for others in (splits[::-1], ("train[:70%]", "train[70%:]")):
        check_kept(tmp_path / "cache", "made", others)
    (tmp_path / "data" / "made").rename(tmp_path / "data" / "once")
    store(tmp_path / "data", IMAGE[::-1], (LABEL + 1) % 3, splits=("train",))
    again = check_kept(tmp_path / "cache", "made", splits)
    assert all((again[name] != first[name]).any() for name in ("train_image", "train_label", "mean"))
    modules = {"tensorflow", "tensorflow_datasets", "runtime.tfds_sets", "runtime.sources", "runtime.caching"}
    modules |= set() if size else {"runtime.records", "runtime.normalization"}
    check_made_again(monkeypatch, tmp_path / "cache", modules, "made", splits)


def test_what_is_kept_of_a_folder_is_that_of_its_files_their_size_and_the_code_that_read_it(tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "_directory", None)

    def save(name, level, width=8):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.linspace(level, 50, width**2 * 3).reshape(width, width, 3).astype(np.uint8)).save(
            tmp_path / "photos" / name, "bmp"
        )

    for number in range(4):
        save(f"train/{'cat' if number < 2 else 'dog'}/{number}.bmp", 50 * number)
        save(f"test/{'cat' if number < 2 else 'dog'}/{number}.bmp", 49 * number)

    def check(size=0, splits=SPLITS):
        return check_kept(tmp_path / "cache", f"folder:{tmp_path / 'photos'}", splits, size)

    check()
    check(size=8)  # which takes another part of the image, in the same size
    check(splits=SPLITS[::-1])
    for change in (
        lambda: save("train/cat/0.bmp", 200),  # of the same length
        lambda: save("train/cat/9.bmp", 100),
        lambda: (tmp_path / "photos/train/cat/1.bmp").unlink(),
        lambda: (tmp_path / "photos/train/dog").rename(tmp_path / "photos/train/ant"),
        lambda: (tmp_path / "photos/test/dog").rename(tmp_path / "photos/test/ant"),
    ):
        change()
        if (tmp_path / "photos/train/dog").exists() == (tmp_path / "photos/test/dog").exists():
            check()
    modules = {"PIL", "runtime.decoding", "runtime.image_files", "runtime.damaged", "runtime.normalization"}
    check_made_again(
        monkeypatch, tmp_path / "cache", modules | {"runtime.caching"}, f"folder:{tmp_path / 'photos'}", SPLITS
    )
