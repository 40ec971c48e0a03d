import re

import numpy as np
import pytest

from runtime.errors import UserError
from runtime.sources import Images, Source, describe, read_arrays

N = 6
IMAGE, LABEL = np.full((N, 8, 8, 1), 7, np.uint8), np.arange(N, dtype=np.int32) % 3


ARRAYS = ("train_image", "train_label", "test_image", "test_label")  # of a file
# What is wrong with images or labels: what was found, what would be right, and how to get there.
UNSUITABLE = {
    "images without channels": (IMAGE[..., 0], LABEL, "images uint8[6, 8, 8]", "images[..., numpy.newaxis]"),
    "flat images": (IMAGE.reshape(N, -1), LABEL, "images uint8[6, 64]", "uint8 [number, height, width, channels]"),
    "channels first": (
        np.zeros((N, 3, 32, 32), np.uint8), LABEL, "images uint8[6, 3, 32, 32]", "images.transpose(0, 2, 3, 1)"
    ),
    "one channel first": (
        np.zeros((N, 1, 28, 28), np.uint8), LABEL, "images uint8[6, 1, 28, 28]", "images.transpose(0, 2, 3, 1)"
    ),
    "no pixels": (np.zeros((N, 8, 0, 3), np.uint8), LABEL, "images uint8[6, 8, 0, 3]", "each at least 1"),
    "shares of 1": (IMAGE / 255, LABEL, "images float64[6, 8, 8, 1] from 0.027", "(255 * images).round().astype("),
    "wide integers": (IMAGE.astype(np.int64), LABEL, "images int64[6, 8, 8, 1] from 7", "images.astype(numpy.uint8)"),
    "16 bits": (IMAGE.astype(np.uint16) * 1000, LABEL, "images uint16[6, 8, 8, 1] from 7000 to 7000", "can scale them"),
    "signed floats": (IMAGE.astype(np.float32) - 8, LABEL, "images float32[6, 8, 8, 1] from -1.0 to", "can scale them"),
    "bits": (IMAGE > 3, LABEL, "images bool[6, 8, 8, 1]", "255 * images.astype(numpy.uint8)"),
    "text": (np.full((N, 8, 8, 1), "a"), LABEL, "images <U1[6, 8, 8, 1]", "uint8 [number, height, width, channels]"),
    "a list of images": ([*IMAGE], LABEL, "images of type list", "numpy.array(images)"),
    "fewer labels": (IMAGE, LABEL[1:], "6 images and 5 labels", "as many of both"),
    "nothing": (IMAGE[:0], LABEL[:0], "0 images and 0 labels", "at least 1"),
    "no array of labels": (IMAGE, np.int32(3), "labels of type int32", "numpy.array(labels)"),
    "one label for all": (IMAGE, np.array(3), "6 images and 0 labels", "as many of both"),
    "a column of labels": (IMAGE, LABEL[:, np.newaxis], "labels int32[6, 1]", "labels[:, 0]"),
    "one-hot labels": (IMAGE, np.eye(3, dtype=np.int64)[LABEL], "labels int64[6, 3]", "labels.argmax(axis=1)"),
    "several integers": (IMAGE, np.full((N, 2), 5), "labels int64[6, 2]", "labels.astype(numpy.float32)"),
    "yes or no": (IMAGE, LABEL > 1, "labels bool[6]", "labels.astype(numpy.int32)"),
    "names": (IMAGE, np.array([*"abcabc"]), "labels <U1[6]", "numpy.unique(labels, return_inverse=True)[1]"),
    "objects": (IMAGE, np.array([*"abcabc"], object), "labels object[6]", "numpy.unique(labels, return_"),
    "a list of labels": (IMAGE, LABEL.tolist(), "labels of type list", "numpy.array(labels)"),
    "real classes": (IMAGE, LABEL.astype(np.float32), "labels float32[6]", "labels.astype(numpy.int32); or numbers"),
    "grids of numbers": (IMAGE, np.zeros((N, 2, 2)), "labels float64[6, 2, 2]", "numbers to predict, [6, outputs]"),
    "not a number": (IMAGE, np.full((N, 2), np.nan), "labels float64[6, 2]", "not all finite numbers"),
    "hidden classes": (IMAGE, LABEL - 1, "labels from -1 to 1", "classes from 0 on"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSUITABLE)
@pytest.mark.parametrize("split", ["train", "test"])
def test_what_no_model_can_be_given_is_refused_with_what_was_found_and_how_to_mend_it(split, name):
    image, label, found, right = UNSUITABLE[name]
    given = {"train": Images(IMAGE, LABEL), "test": Images(IMAGE, LABEL)} | {split: Images(image, label)}
    message = re.escape(f"dataset = 'made': split '{split}' has {found}") + ".*" + re.escape(right)
    with pytest.raises(UserError, match=message) as of_arrays:
        Source.from_arrays("made", **given)
    source = Source("made", IMAGE.shape[1:], 3, N, given.__getitem__, repair="rm -r everything")
    with pytest.raises(UserError, match=message) as loaded:
        source.load_checked(split)
    for error in (of_arrays, loaded):
        assert "rm -r" not in str(error.value)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 50, 12), (3, 50, 3), (4, 4, 64), (40, 3, 5), (1, 3, 3), (8, 8, 2)])
def test_images_may_be_low_narrow_or_of_many_channels(shape):
    images = Images(np.zeros((N, *shape), np.uint8), LABEL)
    assert Source.from_arrays("made", images, images).load_checked("test") is images


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_classes_may_be_integers_of_any_kind(dtype):
    images = Images(IMAGE, LABEL.astype(dtype))
    assert Source.from_arrays("made", images, images).num_classes == 3
    assert describe("made", {"test": images}, 3) == ["made: 6 test images 8x8x1, mean 0.03 of white; per class 2 2 2"]


def test_a_file_of_arrays_is_a_data_set(tmp_path):
    file = str(tmp_path / "mine.npz")
    arrays = {"train_image": IMAGE, "train_label": LABEL, "test_image": IMAGE[:3], "test_label": LABEL[:3]}
    np.savez_compressed(file, **arrays)
    source = read_arrays(f"arrays:{file}")
    assert (source.name, source.num_classes, source.num_train, source.class_names) == (f"arrays:{file}", 3, N, ())
    for split, number in (("train", N), ("test", 3)):
        images = source.load_checked(split)
        np.testing.assert_array_equal(images.image, IMAGE[:number])
        np.testing.assert_array_equal(images.label, LABEL[:number])

    np.savez(file, **arrays, class_names=["a", "b", "c"])
    assert read_arrays(f"arrays:{file}").class_names == ("a", "b", "c")
    np.savez(file, **arrays | {"test_image": IMAGE[:3] / 255})
    with pytest.raises(UserError, match=r"split 'test' has images float64"):
        read_arrays(f"arrays:{file}")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, r"cannot be read \(.*No such file"),
        (b"torn", "cannot be read"),
        (IMAGE, "cannot be read"),
        (b"PK\x03\x04torn", "cannot be read"),
        ({"train_image": IMAGE, "x": LABEL}, "has no train_label, test_image, test_label; it has train_image, x"),
        (dict.fromkeys(ARRAYS, np.array([{}])), "cannot be read .*pickle"),
    ],
)
def test_a_file_that_is_no_data_set_is_refused_with_how_to_write_one(tmp_path, content, found):
    file = tmp_path / "mine.npz"
    if isinstance(content, dict):
        np.savez(file, **content)
    elif isinstance(content, np.ndarray):
        with file.open("wb") as opened:
            np.save(opened, content)
    elif content:
        file.write_bytes(content)
    with pytest.raises(UserError, match=found):
        read_arrays(f"arrays:{file}")


def test_classes_are_called_by_their_names():
    images = Images(IMAGE[:4], np.array([0, 0, 1, 1], np.int32))
    source = Source.from_arrays("photos", images, images.take(np.arange(2)), ["cat", "dog", "emu"])
    assert (source.num_classes, source.class_names) == (3, ("cat", "dog", "emu"))
    splits = {"train": source.load_checked("train"), "test": source.load_checked("test")}
    train, test, *notes = describe("photos", splits, source.num_classes, source.class_names)
    assert train.endswith("; per class cat 2, dog 2, emu 0")
    assert test.endswith("; per class cat 2, dog 0, emu 0")
    assert notes == [
        "Note: no train image is of class emu (1 of 3 classes)",
        "Note: no test image is of class dog, emu (2 of 3 classes)",
    ]
