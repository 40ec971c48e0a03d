"""Folders of image files as they are found: each trains, or is refused in one message with the file and the remedy."""

import os

import numpy as np
import pytest
from conftest import digits_config, read_metrics
from PIL import Image

import train
from runtime import caching, damaged
from runtime.errors import UserError
from runtime.image_files import find_folder_source

CLASSES = ("cat", "dog")
FILES = 12  # of each class to train, and half as many to test


@pytest.fixture(autouse=True)
def nothing_is_kept(monkeypatch):
    monkeypatch.setattr(caching, "_directory", None)
    monkeypatch.setattr(damaged, "_known", {})


def image(value, mode="RGB"):
    array = np.random.default_rng(value).integers(0, 200, (10, 12, 3), np.uint8) // (1 + value % 2)
    return Image.fromarray(array).convert(mode)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for split, number in (("train", FILES), ("test", FILES // 2)):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for i in range(number):
                image(2 * i + label).save(folder / split / name / f"{i:02}.jpg")
    return folder


def find(folder, **changes):
    settings = {"splits": ("train", "test"), "image_size": 8, "skip_damaged": False} | changes
    return find_folder_source(f"folder:{folder}", **settings)


def refusal(folder, **changes):
    with pytest.raises(UserError) as error:
        find(folder, **changes)
    message = str(error.value)
    assert message.startswith(("dataset = ", "splits = "))
    assert len(message.splitlines()) <= 23
    return message


def trained(tmp_path, folder, **changes):
    """Trains for 20 steps on what was found, and returns the metrics."""
    config = digits_config(dataset=f"folder:{folder}", **{"image_size": 8, "batch_size": 4, **changes})
    train.train_and_evaluate(config, tmp_path / "run")
    return read_metrics(tmp_path / "run")


def test_folders_that_lack_something_are_refused_with_how_they_should_be(photos, tmp_path):
    def found(folder, message, **changes):
        assert message in refusal(folder, **changes)

    found(tmp_path / "nowhere", f"{tmp_path / 'nowhere'} does not exist; expected one with images in ")
    found("", "dataset = 'folder:': must name a folder, as in 'folder:photos'")
    found(photos / "train" / "cat" / "00.jpg", "00.jpg is no folder; expected one with images in ")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    right = f"Images belong in {tmp_path / 'empty' / 'train' / 'CLASS'} and {tmp_path / 'empty' / 'test' / 'CLASS'}"
    found(tmp_path / "empty", f"{tmp_path / 'empty'} has no folder test; it has train. {right}")
    (tmp_path / "empty" / "test").mkdir()
    found(tmp_path / "empty", f"{tmp_path / 'empty' / 'train'} has no images; expected ")
    image(1).save(tmp_path / "empty" / "train" / "1.jpg")
    found(tmp_path / "empty", f"{tmp_path / 'empty' / 'train'} has no images but 1 in no folder of a class; expected ")
    # Images in ROOT/CLASS.
    found(photos / "train", "has no folder train and no folder test; it has cat, dog. Images belong in ")
    found(photos, "both are the same folder", splits=("train", "train"))
    (photos / "valid").symlink_to(photos / "train")
    found(photos, "both are the same folder", splits=("train", "valid"))


def test_a_class_that_is_only_tested_is_refused_and_one_that_is_only_trained_is_not(photos):
    (photos / "test" / "dog").rename(photos / "test" / "emu")
    message = refusal(photos)
    assert (
        f"{photos / 'test'} has classes that {photos / 'train'} does not have: emu; those to train are cat, dog"
        in message
    )
    (photos / "test" / "emu").rename(photos / "elsewhere")
    source = find(photos)
    assert source.class_names == CLASSES
    assert set(source.load("test").label) == {0}


def test_one_class_only_is_said(photos, capsys):
    (photos / "train" / "dog").rename(photos / "elsewhere")
    (photos / "test" / "dog").rename(photos / "others")
    assert find(photos).load("train").label.tolist() == [0] * FILES
    assert capsys.readouterr().out == f"Note: {photos / 'train'} has one class only, cat\n"


def text_named_jpg(folder):
    (folder / "bad.jpg").write_text("no image")


def zero_bytes(folder):
    (folder / "bad.jpg").touch()


def half_a_file(folder):
    (folder / "bad.jpg").write_bytes((folder / "00.jpg").read_bytes()[:-30])


def sixteen_bits(folder):
    Image.fromarray(np.full((9, 9), 4095, np.uint16)).save(folder / "bad.png")


def link_to_nowhere(folder):
    (folder / "bad.jpg").symlink_to("nowhere.jpg")


DAMAGED = {
    text_named_jpg: "bad.jpg: it is no image",
    zero_bytes: "bad.jpg: it is empty",
    half_a_file: "bad.jpg: image file is truncated",
    sixteen_bits: "bad.png: its pixels have more than 8 bits (mode I;16), from 4095 to 4095; scale the range that",
    link_to_nowhere: "bad.jpg: No such file or directory",
}


@pytest.mark.parametrize("spoil", DAMAGED)
def test_a_damaged_file_is_named_with_what_is_wrong_and_both_remedies(photos, capsys, spoil):
    spoil(photos / "test" / "dog")
    header, line, remedy = refusal(photos).splitlines()
    assert header == f"dataset = 'folder:{photos}': 1 of {3 * FILES + 1} images cannot be used:"
    assert line.startswith(f"{photos / 'test' / 'dog'}/{DAMAGED[spoil]}")
    assert remedy == "Repair or remove them; or train without them: --config.skip_damaged=True"
    source = find(photos, skip_damaged=True)
    assert source.num_train == 2 * FILES
    assert len(source.load("test").label) == FILES
    name = DAMAGED[spoil].partition(":")[0]
    said = f"Note: 1 of {FILES + 1} test images cannot be used and are left out: test/dog/{name} ("
    assert capsys.readouterr().out.startswith(said)


def test_of_many_damaged_files_twenty_are_named(photos):
    for number in range(25):
        (photos / "train" / "cat" / f"bad{number:02}.png").write_bytes(b"no image")
    header, *lines, more, _ = refusal(photos).splitlines()
    assert header.endswith(f": 25 of {3 * FILES + 25} images cannot be used:")
    assert lines == [f"{photos / 'train' / 'cat'}/bad{number:02}.png: it is no image" for number in range(20)]
    assert more == "... and 5 more"


def test_links_in_a_circle_are_not_followed_twice(photos):
    (photos / "train" / "cat" / "again").symlink_to(photos / "train" / "cat")
    (photos / "train" / "dog" / "all").symlink_to(photos)
    (photos / "train" / "dog" / "other").symlink_to(photos / "elsewhere")
    (photos / "elsewhere").mkdir()
    (photos / "elsewhere" / "back").symlink_to(photos / "train" / "dog")
    (photos / "train" / "emu").symlink_to("emu")
    source = find(photos)
    assert source.load("train").label.tolist() == [0] * FILES + [1] * FILES


def test_thousands_of_classes_are_found(tmp_path):
    """100,000 of them take seconds, as long as time is proportional to their number."""
    photos = tmp_path / "photos"
    for split in ("train", "test"):
        (photos / split).mkdir(parents=True)
    (photos / ".one").mkdir()
    image(1).save(photos / ".one" / "1.png")
    for number in range(3000):
        (photos / "train" / f"{number:05}").symlink_to(photos / ".one")
    (photos / "test" / "02999").symlink_to(photos / ".one")
    source = find(photos)
    assert (source.num_classes, source.num_train) == (3000, 3000)
    np.testing.assert_array_equal(source.load("train").label, np.arange(3000))
    assert source.load("test").label.tolist() == [2999]


def test_names_in_unicode_colours_for_printers_and_moving_images_are_trained(photos, tmp_path, monkeypatch):
    for split in ("train", "test"):
        (photos / split / "cat").rename(photos / split / "ネコ and Kätzchen 🐈")
        folder = photos / split / "dog"
        image(51, "CMYK").save(folder / "für den Druck.jpg")
        image(53, "P").save(folder / "moves.gif", save_all=True, append_images=[image(4, "P")])
        image(55).save(folder / "moves.webp", save_all=True, append_images=[image(4)])
    metrics = trained(tmp_path, photos)
    assert metrics[-1]["step"] == 20
    assert find(photos).class_names == ("dog", "ネコ and Kätzchen 🐈")


def test_a_class_whose_name_is_no_text_is_refused(photos):
    os.rename(photos / "train" / "dog", os.fsencode(photos / "train") + b"/\xff")
    with pytest.raises(UserError, match="the name of a class must be UTF-8"):
        find(photos)
