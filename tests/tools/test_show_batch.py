import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, digits_config
from PIL import Image

import input_pipeline


@pytest.mark.slow
def test_a_batch_is_drawn_with_and_without_what_augmentation_makes_of_it(tmp_path):
    def pixels(name, *flags):
        command = [sys.executable, "-m", "tools.show_batch", "--config=configs/digits.py", f"--out={tmp_path / name}"]
        result = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        image = np.asarray(Image.open(tmp_path / name).convert("L"), int)
        # Rows of images as they are and rows of what becomes of them, with titles between.
        return np.array_split(image[len(image) // 20 :], 4)

    plain, flipped = pixels("plain.png"), pixels("flipped.png", "--config.augment.flip=True")
    for row in (0, 2):
        np.testing.assert_array_equal(plain[row], flipped[row])
        assert (plain[row + 1] != flipped[row + 1]).any()


@pytest.mark.slow
@pytest.mark.parametrize("channels", [2, 5])
def test_of_images_with_some_other_number_of_channels_the_first_is_drawn(channels, tmp_path, monkeypatch):
    from tools import show_batch  # defines flags

    def picture(num_channels):
        image = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 5)).astype(np.uint8)[..., :num_channels]
        images = input_pipeline.Images(image, np.arange(40) % 3)
        source = input_pipeline.Source.from_arrays("many", images, images)
        monkeypatch.setattr(input_pipeline, "SOURCES", {"many": lambda: source})
        path = tmp_path / "new" / f"{num_channels}.png"
        show_batch.draw(digits_config(dataset="many"), path)
        pixels = np.asarray(Image.open(path).convert("L"), int)
        return np.split(pixels, [len(pixels) // 20])  # the title, and the images

    (title, images), (other_title, expected) = picture(channels), picture(1)
    np.testing.assert_array_equal(images, expected)
    assert (title != other_title).any()  # it says so
