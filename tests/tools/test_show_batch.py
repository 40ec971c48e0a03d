import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image


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
