import dataclasses
import io
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from conftest import ROOT, digits_config, read_metrics
from made_sets import IMAGE, LABEL, store

import input_pipeline
import train
from runtime import caching, decoding, records, tfds_sets
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


def as_array_record(folder):
    """The set "made" in the other format, record for record."""
    from array_record.python.array_record_module import ArrayRecordWriter

    for path in [*(folder / "made" / "1.0.0").glob("*.tfrecord-*")]:
        writer = ArrayRecordWriter(str(path).replace("tfrecord", "array_record"), "group_size:1")
        found = records.TFRecords.find([(str(path), 0, 10)])
        for record in found.__getitems__(range(len(found))):
            writer.write(record)
        writer.close()
        path.unlink()
    info = folder / "made" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"tfrecord"', '"array_record"'))


@pytest.fixture(params=["TFRecord", "ArrayRecord"])
def on_disk(request, tmp_path, monkeypatch):
    """Where a set is stored by the returned function, in one of the formats, to be read by random access."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds_sets, "LARGE", 0)
    monkeypatch.setattr(caching, "_directory", None)

    def make(*arguments, **options):
        store(tmp_path, *arguments, **options)
        if request.param == "ArrayRecord":
            as_array_record(tmp_path)

    return make


def test_a_large_set_gives_any_of_its_images_from_its_files(on_disk):
    on_disk(IMAGE, LABEL, splits=("train",))
    for splits, number in ((("train[:40%]", "train[40%:]"), 4), (("train[30%:]", "train[:30%]"), 7)):
        source = input_pipeline.find_source("made", splits)
        assert (source.num_train, source.num_classes, source.image_shape) == (number, 3, (4, 4, 1))
        start = {"train": slice(number), "test": slice(number, 10)}
        if number == 7:
            start = {"train": slice(3, 10), "test": slice(3)}
        for split, part in start.items():
            images = pickle.loads(pickle.dumps(source.load_checked(split)))  # as a worker process gets it
            rows = np.random.default_rng(0).permutation(len(images))
            np.testing.assert_array_equal(images.read(rows), IMAGE[part][rows])
            np.testing.assert_array_equal(images.take(rows).in_memory().image, IMAGE[part][rows])
            np.testing.assert_array_equal(images.label, LABEL[part])


def test_images_of_different_sizes_are_brought_to_one_and_train(on_disk, tmp_path):
    rng = np.random.default_rng(0)
    on_disk(rng.integers(0, 256, (10, 30, 20, 3), dtype=np.uint8), LABEL, shape=(None, None, 3))
    with pytest.raises(
        UserError, match=r"images of different sizes, .*; --config.image_size=224 makes all of them 224"
    ):
        input_pipeline.find_source("made")
    images = input_pipeline.find_source("made", image_size=16).load_checked("train")
    [record] = images.image.records.__getitems__([3])
    place = record.index(b"\xff\xd8\xff")  # where a JPEG begins
    key = np.array([1, 2], np.uint64)
    expected = decoding.view(io.BytesIO(record[place:]), (16, 16, 3), key, 0.5)
    np.testing.assert_array_equal(images.read(np.array([3]), key[np.newaxis], 0.5)[0], expected)
    with PIL.Image.open(io.BytesIO(record[place:])) as image:
        assert image.size == (20, 30)
    config = digits_config(dataset="made", image_size=16, batch_size=4)
    train.train_and_evaluate(config, tmp_path / "run")
    assert read_metrics(tmp_path / "run", "ema")[-1]["step"] == 20


@pytest.mark.slow
def test_reading_from_files_imports_no_tensorflow(on_disk):
    on_disk(IMAGE, LABEL)
    script = (
        "import sys; from runtime import tfds_sets; import input_pipeline, numpy; tfds_sets.LARGE = 0; "
        "input_pipeline.find_source('made').load_checked('test').read(numpy.arange(3)); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=120)


def test_the_labels_are_read_once(on_disk, tmp_path, monkeypatch):
    on_disk(IMAGE, LABEL)
    caching.enable(tmp_path / "cache")
    first = input_pipeline.find_source("made").load_checked("train")
    monkeypatch.setattr(tfds_sets, "read_labels", None)
    again = input_pipeline.find_source("made").load_checked("train")
    np.testing.assert_array_equal(first.label, again.label)
    assert first.image.identity == again.image.identity != ""
    [path] = (tmp_path / "made" / "1.0.0").glob("*train*record*")
    os.utime(path, (1, 1))
    with pytest.raises(TypeError):  # they are to be read again
        input_pipeline.find_source("made").load_checked("train")


def test_a_set_whose_images_have_one_size_keeps_it(on_disk, tmp_path):
    on_disk(IMAGE, LABEL)
    with pytest.raises(
        UserError, match=r"image_size = 8: the images of 'made' have one size, \(4, 4, 1\); leave it at 0"
    ):
        input_pipeline.find_source("made", image_size=8)


def test_files_that_are_cut_off_are_named_with_how_to_repair_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds_sets, "LARGE", 0)
    store(tmp_path, IMAGE, LABEL)
    [path] = (tmp_path / "made" / "1.0.0").glob("*train*record*")
    for size in (path.stat().st_size - 7, path.stat().st_size // 2, 5):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(UserError, match=rf"{path} ends within a record. Remove it and prepare it again: rm -r"):
            input_pipeline.find_source("made").load_checked("train")


def test_large_sets_of_other_pixels_than_bytes_are_refused(on_disk):
    on_disk(IMAGE.astype(np.uint16), LABEL)
    with pytest.raises(UserError, match="has images of uint16; expected uint8, from 0 to 255"):
        input_pipeline.find_source("made")
