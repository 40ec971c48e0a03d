import dataclasses
import importlib.util
import re

import numpy as np
import pytest

import input_pipeline
from runtime import caching, tfds_sets
from runtime.errors import UserError
from runtime.sources import SPLITS


@pytest.mark.parametrize(
    "name", ["", "..", "../mnist", "/mnist", "mnist/..", "mnist/../x", "mnist:3", "mnist:latest", "hf:mnist", "a b"]
)
def test_what_is_no_name_of_a_data_set_is_refused_before_anything_is_looked_for(name, monkeypatch):
    monkeypatch.delattr(tfds_sets, "CachedArrays")
    with pytest.raises(UserError, match="must be a name") as error:
        input_pipeline.find_source(name)
    assert (
        str(error.value)
        == f"dataset = {name!r}: must be a name, as in 'mnist' or 'mnist:3.0.1', 'folder:PATH' or 'arrays:FILE.npz'"
    )


@pytest.mark.parametrize("name", ["data [1]", "data*", "data?"])
def test_a_folder_whose_name_tfds_takes_for_a_pattern_is_refused_before_anything_is_downloaded(
    name, tmp_path, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / name))
    with pytest.raises(UserError) as error:
        input_pipeline.find_source("mnist")
    assert f"ln -s '{tmp_path / name}' data && export TFDS_DATA_DIR=data" in str(error.value)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("damaged", ["train", "test"])
def test_a_decoded_set_is_read_again_without_tfds_as_long_as_all_of_it_is_whole(
    damaged, made_data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(made_data))
    monkeypatch.setattr(caching, "_directory", None)
    caching.enable(tmp_path / "cache")
    decoded = []
    read_tfds = tfds_sets._tfds_source

    def watched(*arguments):
        source = read_tfds(*arguments)
        return dataclasses.replace(source, load=lambda split: decoded.append(split) or source.load(split))

    monkeypatch.setattr(tfds_sets, "_tfds_source", watched)

    def load():
        source = input_pipeline.find_source("hundred")
        return dataclasses.replace(source, load=None), *(source.load_checked(split) for split in ("train", "test"))

    first = load()
    assert decoded == ["train", "test"]
    again = load()
    assert decoded == ["train", "test"]
    assert again[0] == first[0]
    for images, expected in zip(again[1:], first[1:], strict=True):
        np.testing.assert_array_equal(images.image, expected.image)
        np.testing.assert_array_equal(images.label, expected.label)

    [file] = (tmp_path / "cache" / "data").glob(f"hundred_{damaged}-*")
    file.write_bytes(file.read_bytes()[:-1])
    load()
    assert decoded == ["train", "test"] * 2
    assert f"{file} is damaged" in capsys.readouterr().out


def store(folder, image, label, splits=("train", "test"), shape=(4, 4, 1), names=None):
    """Prepares version 1.0.0 of the set "made" with the same ten images in each split, as `tfds build` leaves one."""
    tfds_sets.import_tensorflow()
    import tensorflow as tf
    import tensorflow_datasets as tfds

    encoding = "jpeg" if image.dtype == np.uint8 and None in shape else None
    features = {
        "image": tfds.features.Image(shape=shape, dtype=image.dtype.type, encoding_format=encoding),
        "label": tfds.features.ClassLabel(num_classes=None if names else 3, names=names),
    }
    tfds.disable_progress_bar()
    tfds.dataset_builders.store_as_tfds_dataset(
        "made",
        "1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={
            split: tf.data.Dataset.from_tensor_slices({"image": image, "label": label}) for split in splits
        },
        data_dir=folder,
        disable_shuffling=True,
    )


IMAGE, LABEL = np.arange(160, dtype=np.uint8).reshape(10, 4, 4, 1), np.arange(10) % 3
UNSUITABLE = {
    "16 bits": ({"image": IMAGE.astype(np.uint16)}, "made", SPLITS, "images uint16[10, 4, 4, 1] from 0 to 159"),
    "real numbers": ({"image": IMAGE.astype(np.float32)}, "made", SPLITS, "images float32[10, 4, 4, 1] from 0.0 to"),
    "hidden classes": ({"label": np.full(10, -1)}, "made", SPLITS, "labels from -1 to -1"),
    "one split": (
        {"splits": ("train",)}, "made", SPLITS,
        "made/1.0.0 has train with 10 images. config.splits names others, as in "
        "--config.splits=\"('train[:80%]', 'train[80%:]')\"",
    ),
    "sizes that are not declared": ({"shape": (None, None, 1)}, "made", SPLITS, "different sizes, (None, None, 1)"),
    "another version": ({}, "made:2.0.0", SPLITS, "made has 1.0.0 and no version 2.0.0. Without :2.0.0 the newest"),
    "no such split": ({}, "made", ("train", "val[:3]"), "split 'val[:3]': Unknown split 'val'"),
    "no split at all": ({}, "made", ("train[:50%", "test"), "split 'train[:50%': Error parsing"),
    "an empty slice": ({}, "made", ("train", "test[7:3]"), "split 'test[7:3]': no images"),
    "overlapping slices": ({}, "made", ("train[:80%]", "train[70%:]"), "1 images are in both"),
    "twice the same": ({}, "made", ("train+test", "test"), "10 images are in both"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSUITABLE)
def test_a_sound_set_that_does_not_suit_is_refused_without_advice_to_remove_it(name, tmp_path, monkeypatch):
    fields, dataset, splits, found = UNSUITABLE[name]
    store(tmp_path, **{"image": IMAGE, "label": LABEL, **fields})
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=re.escape(found)) as error:
        [input_pipeline.find_source(dataset, splits).load_checked(split) for split in SPLITS]
    assert "rm -r" not in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_version_that_is_damaged_is_said_to_be_and_only_it_is_to_be_removed(tmp_path, monkeypatch):
    store(tmp_path, IMAGE, LABEL)
    (tmp_path / "made" / "1.0.0" / "features.json").unlink()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=f"damaged.* rm -r {tmp_path}/made/1.0.0 && tfds build made:1.0.0"):
        input_pipeline.find_source("made:1.0.0")


def test_splits_say_which_images_train_and_test_and_are_kept_apart(tmp_path, monkeypatch):
    store(tmp_path / "data", IMAGE, LABEL, splits=("train",))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(caching, "_directory", None)
    caching.enable(tmp_path / "cache")
    read_tfds = tfds_sets._tfds_source
    for reader in (read_tfds, None):  # the second time from what is kept
        monkeypatch.setattr(tfds_sets, "_tfds_source", reader)
        for cut in (80, 50):
            splits = (f"train[:{cut}%]", f"train[{cut}%:]")
            source = input_pipeline.find_source("made", splits)
            assert source.num_train == cut // 10
            for split, expected in (("train", IMAGE[: cut // 10]), ("test", IMAGE[cut // 10 :])):
                np.testing.assert_array_equal(source.load_checked(split).image, expected)
    monkeypatch.setattr(tfds_sets, "_tfds_source", read_tfds)
    with pytest.raises(UserError, match="3 images are in both"):  # though each is kept, in another pair
        input_pipeline.find_source("made", ("train[:80%]", "train[50%:]"))


@pytest.mark.parametrize(("names", "known"), [(["cat", "dog", "emu"], ("cat", "dog", "emu")), (None, ())])
def test_the_names_of_classes_are_kept_with_the_images(tmp_path, monkeypatch, names, known):
    store(tmp_path / "data", IMAGE, LABEL, names=names)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(caching, "_directory", None)
    caching.enable(tmp_path / "cache")
    source = input_pipeline.find_source("made")
    for split in SPLITS:
        source.load_checked(split)
    monkeypatch.setattr(tfds_sets, "_tfds_source", None)
    assert source.class_names == input_pipeline.find_source("made").class_names == known


def test_a_set_of_ones_own_has_no_other_splits():
    with pytest.raises(UserError, match=r"splits = .*: 'digits' is neither a folder nor a TFDS set; leave"):
        input_pipeline.find_source("digits", ("train", "train"))


@pytest.mark.parametrize("module", ["tensorflow", "tensorflow_datasets", "runtime.sources", "runtime.caching"])
def test_what_other_code_has_decoded_is_decoded_again(module, made_data, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(made_data))
    monkeypatch.setattr(caching, "_directory", None)
    caching.enable(tmp_path / "cache")
    source = input_pipeline.find_source("hundred")
    for split in SPLITS:
        source.load_checked(split)
    with monkeypatch.context() as context:
        context.setattr(tfds_sets, "_tfds_source", None)
        assert input_pipeline.find_source("hundred").num_train == 160
    find_spec = importlib.util.find_spec
    other = importlib.util.spec_from_file_location(module, __file__)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: other if name == module else find_spec(name))
    monkeypatch.setattr(tfds_sets, "_tfds_source", None)
    with pytest.raises(TypeError):  # it would be decoded
        input_pipeline.find_source("hundred")
