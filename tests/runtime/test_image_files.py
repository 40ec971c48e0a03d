import math
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from runtime import caching, damaged
from runtime.errors import UserError
from runtime.image_files import ImageFiles, find_folder_source

SPLITS = ("train", "test")
RNG = np.random.default_rng(0)
KEYS = RNG.integers(0, 2**64, (7, 2), dtype=np.uint64)


@pytest.fixture(autouse=True)
def nothing_is_kept(monkeypatch):
    monkeypatch.setattr(caching, "_directory", None)
    monkeypatch.setattr(damaged, "_known", {})


@pytest.fixture
def files(tmp_path):
    """Seven images of noise, of different sizes, and one size that each of them is asked for in."""
    sizes = [(40, 30), (31, 55), (90, 90), (5, 4), (1, 30), (30, 1), (1, 1)]
    for i, (width, height) in enumerate(sizes):
        Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8)).save(tmp_path / f"{i}.png")
    return ImageFiles(str(tmp_path), np.array([b"%d.png" % i for i in range(7)]), 16, 16, resized=True)


def resampled(array, box, size):
    """A crop of an image resized to size x size in float64: triangular weights, as wide as what becomes one pixel."""

    def matrix(length, start, end):
        scale = max((end - start) / size, 1)
        centre = start + (np.arange(size)[:, np.newaxis] + 0.5) * (end - start) / size
        weights = np.maximum(1 - np.abs(np.arange(length) + 0.5 - centre) / scale, 0)
        return weights / weights.sum(axis=1, keepdims=True)

    left, top, right, bottom = box
    rows, columns = matrix(array.shape[0], top, bottom), matrix(array.shape[1], left, right)
    return np.einsum("ih,hwc,jw->ijc", rows, array, columns)


def crop_of(width, height, key, min_area):
    """A random crop, written down once more."""
    for area, ratio, x, y in np.random.Generator(np.random.Philox(key=key)).random((10, 4)):
        area = (min_area + (1 - min_area) * area) * width * height
        ratio = math.exp((2 * ratio - 1) * math.log(4 / 3))
        wide, high = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if wide <= width and high <= height:
            return x * (width - wide), y * (height - high), x * (width - wide) + wide, y * (height - high) + high
    if width > height:
        return (width - min(width, 4 / 3 * height)) / 2, 0, (width + min(width, 4 / 3 * height)) / 2, height
    return 0, (height - min(height, 4 / 3 * width)) / 2, width, (height + min(height, 4 / 3 * width)) / 2


@pytest.mark.parametrize("min_area", [0.08, 0.7, 1.0])
def test_images_are_cropped_and_resized_as_float64_says(files, min_area):
    found = files.read(np.arange(7), KEYS, min_area)
    for i in range(7):
        array = np.asarray(Image.open(f"{files.folder}/{i}.png"))
        height, width, _ = array.shape
        side = min(width, height) * 16 / 18  # 16 * 256 / 224 is 18.3
        box = (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2
        if min_area < 1:
            box = crop_of(width, height, KEYS[i], min_area)
        # Pillow rounds to 8 bits after each direction, each time by up to 1/2, and its weights to 22 bits.
        np.testing.assert_allclose(found[i].astype(float), resampled(array, box, 16), atol=1.01)


def test_an_image_depends_on_its_file_and_its_key_alone(files):
    together = files.read(np.arange(7), KEYS, 0.3)
    order = np.array([5, 0, 0, 2])
    np.testing.assert_array_equal(files.read(order, KEYS[order], 0.3), together[order])
    np.testing.assert_array_equal(files.take(order).read(np.arange(4), KEYS[order], 0.3), together[order])
    for i in range(7):
        np.testing.assert_array_equal(files.read([i], KEYS[[i]], 0.3)[0], together[i])
    other = files.read(np.arange(3), KEYS[::-1], 0.3)
    assert all((other[i] != together[i]).any() for i in range(3))
    np.testing.assert_array_equal(files.read(order), files.read(order, KEYS[order]))


def test_they_look_like_an_array_and_travel_to_other_processes(files):
    assert (files.shape, files.dtype, files.ndim, len(files)) == ((7, 16, 16, 3), np.uint8, 4, 7)
    many = files.take(np.zeros(100_000, int))
    sent = pickle.dumps(many)
    assert len(sent) < 100_000 * len("0.png") + 1000
    there = pickle.loads(sent)
    assert there.shape == (100_000, 16, 16, 3)
    np.testing.assert_array_equal(there.read([99_999]), files.read([0]))
    assert files.read(np.zeros(0, int)).shape == (0, 16, 16, 3)


def test_images_that_are_not_resized_are_whole(tmp_path):
    array = RNG.integers(0, 256, (10, 30, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    files = ImageFiles(str(tmp_path), np.array([b"a.png"]), 10, 30, resized=False)
    np.testing.assert_array_equal(files.read([0])[0], array)
    np.testing.assert_array_equal(files.read([0], KEYS[:1])[0], array)
    np.testing.assert_array_equal(files.read([0], KEYS[:1], 0.5)[0], array)


def test_a_file_that_is_damaged_while_training_is_named(files):
    with open(f"{files.folder}/2.png", "wb") as file:
        file.write(b"no image")
    with pytest.raises(
        UserError, match=r"/2\.png cannot be read: it is no image\. .*restore it, and give the same command"
    ):
        files.read([0, 2])


def save(folder, *names, size=(9, 5)):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "red" if "cat" in name else "blue").save(file)


@pytest.fixture
def photos(tmp_path):
    """Two classes under names of several kinds: four images to train and two to test."""
    folder = tmp_path / "photos"
    save(folder, "train/cat/1.PNG", "train/cat/2.jpeg", "train/dog/1.JPG", "train/dog/2.webp")
    save(folder, "test/cat/1.tiff", "test/dog/1.bmp")
    return folder


def find(folder, splits=SPLITS, image_size=4, skip_damaged=False):
    return find_folder_source(f"folder:{folder}", splits, image_size, skip_damaged)


def test_a_folder_of_images_is_a_data_set_whatever_its_files_are_called(photos, capsys):
    for name in (".DS_Store", "train/.DS_Store", "train/cat/.hidden.png"):
        (photos / name).touch()
    for name in (".git", "train/.ipynb_checkpoints", "train/cat/.thumbnails"):
        (photos / name).mkdir()
        (photos / name / "1.png").touch()
    source = find(photos)
    assert (source.name, source.image_shape, source.num_classes) == (f"folder:{photos}", (4, 4, 3), 2)
    assert (source.num_train, source.class_names) == (4, ("cat", "dog"))
    for split, label in (("train", [0, 0, 1, 1]), ("test", [0, 1])):
        images = source.load(split)
        np.testing.assert_array_equal(images.label, label)
        assert images.label.dtype == np.int32
        colours = images.image.read(np.arange(len(label))).mean(axis=(1, 2))
        np.testing.assert_array_equal(colours.argmax(axis=1), np.where(np.array(label) == 0, 0, 2))
    assert capsys.readouterr().out == ""


def test_the_folders_of_the_splits_may_have_other_names(photos):
    (photos / "test").rename(photos / "val")
    assert len(find(photos, ("train", "val")).load("test").label) == 2
    with pytest.raises(UserError, match=r"has no folder test; it has train, val\. .*--config.splits=\"\('train', 'val"):
        find(photos)


def test_images_further_below_belong_to_the_class_and_links_are_followed(photos, tmp_path):
    save(photos, "train/cat/a/b/3.png")
    save(tmp_path, "elsewhere/9.png")
    (photos / "train" / "emu").symlink_to(tmp_path / "elsewhere")
    (photos / "train" / "dog" / "3.png").symlink_to(tmp_path / "elsewhere" / "9.png")
    (tmp_path / "link").symlink_to(photos)
    source = find(tmp_path / "link")
    assert source.class_names == ("cat", "dog", "emu")
    np.testing.assert_array_equal(source.load("train").label, [0, 0, 0, 1, 1, 1, 2])


def test_images_without_a_size_stay_as_they_are(photos):
    source = find(photos, image_size=0)
    assert source.image_shape == (5, 9, 3)
    assert source.load("test").image.read([1]).shape == (1, 5, 9, 3)
    save(photos, "test/cat/2.png", "test/dog/2.png", size=(5, 9))
    with pytest.raises(UserError) as error:
        find(photos, image_size=0)
    assert str(error.value) == (
        f"dataset = 'folder:{photos}': images of different sizes, height x width: 6 of 5x9 such as "
        f"{photos}/train/cat/1.PNG, 2 of 9x5 such as {photos}/test/cat/2.png. --config.image_size=5 makes all of them "
        "5x5"
    )


def test_what_a_folder_has_beside_images_is_said_when_it_is_loaded(photos, capsys):
    for name in ("cat/notes.txt", "cat/3.heic", "dog/3.HEIC", "README"):
        (photos / "train" / name).touch()
    (photos / "train" / "emu").mkdir()
    save(photos, "train/x.jpg", "train/y.jpg")
    source = find(photos)
    assert capsys.readouterr().out == ""
    source.load("test")
    assert capsys.readouterr().out == ""
    source.load("train")
    train = photos / "train"
    assert capsys.readouterr().out.splitlines() == [
        f"Note: in {train}, files are left out as no images (2 .heic, 1 without an ending, 1 .txt), such as "
        f"{train / 'README'}",
        f"Note: in {train}, images in no folder of a class are left out (2), such as {train / 'x.jpg'}",
        f"Note: in {train}, folders without images count as no classes: emu",
    ]
    assert source.class_names == ("cat", "dog")


def test_damaged_images_are_left_out_if_that_is_asked_for_and_said(photos, capsys):
    for number in range(3, 7):
        (photos / "train" / "cat" / f"{number}.png").write_bytes(b"no image" * (number > 3))
    source = find(photos, skip_damaged=True)
    assert source.num_train == 4
    images = source.load("train")
    np.testing.assert_array_equal(images.label, [0, 0, 1, 1])
    assert images.image.read(np.arange(4)).shape == (4, 4, 4, 3)
    assert len(source.load("test").label) == 2
    assert capsys.readouterr().out == (
        "Note: 4 of 8 train images cannot be used and are left out: train/cat/3.png (it is empty), train/cat/4.png "
        "(it is no image), train/cat/5.png (it is no image), ...\n"
    )
    for path in (photos / "test").glob("*/*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="6 of 10 images cannot be used"):
        find(photos, skip_damaged=True)


def test_files_that_are_repaired_or_damaged_between_two_runs_are_found_out(photos):
    find(photos)
    file = photos / "train" / "cat" / "1.PNG"
    content = file.read_bytes()
    file.write_bytes(b"")
    with pytest.raises(UserError, match=r"1\.PNG: it is empty"):
        find(photos)
    file.write_bytes(content)
    find(photos)


def test_a_file_that_is_no_file_is_not_waited_for(photos):
    os.mkfifo(photos / "train" / "cat" / "3.png")
    (photos / "train" / "cat" / "4.png").symlink_to(photos / "train" / "cat" / "3.png")
    assert find(photos).num_train == 4


def test_worker_processes_need_neither_jax_nor_tensorflow_and_no_pillow_without_images():
    unwanted = "{'jax', 'flax', 'tensorflow', 'PIL'}"
    script = f"import runtime.image_files, sys; sys.exit(bool({unwanted}.intersection(sys.modules)))"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)


def test_a_file_that_changes_its_size_while_training_is_not_spread_over_the_image(photos):
    images = find(photos, image_size=0).load("train").image
    name = photos / os.fsdecode(images.files[0])
    Image.new("RGB", (1, 1)).save(name)
    with pytest.raises(UserError, match=rf"{name} cannot be read: it has become \(1, 1, 3\), from \(5, 9, 3\)"):
        images.read(np.arange(1))
