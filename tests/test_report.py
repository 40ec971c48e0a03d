import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, digits_config
from PIL import Image

import train
from tools import report

METRICS = {
    "raw": {"accuracy": 0.75, "loss": 0.5, "calibration_error": 0.1},
    "ema": {"accuracy": 0.8, "loss": None, "calibration_error": 0.05},
    "ema-raw": {"accuracy": 0.05, "accuracy_low": 0.01, "accuracy_high": 0.09},
}


def test_the_table_shows_each_curve_and_its_paired_difference_in_points():
    header, raw, ema = report.table(METRICS).splitlines()
    assert "95 %" in header
    assert raw.split() == ["raw", "75.00%", "0.5000", "10.00%"]
    assert ema.split() == ["ema", "80.00%", "-", "5.00%", "+5.00", "(+1.00", "..", "+9.00)"]


def test_the_last_evaluation_is_that_of_the_test_set():
    lines = [
        {"step": 1, "curve": "raw", "split": "validation"},
        {"step": 2, "curve": "train"},
        {"step": 2, "curve": "raw", "split": "validation"},
        {"step": 2, "curve": "raw", "split": "test"},
        {"step": 2, "curve": "ema", "split": "test"},
    ]
    assert report.last_evaluation(lines) == lines[3:]


def test_the_picture_and_table_can_be_made_again_from_the_workdir(tmp_path):
    train.train_and_evaluate(digits_config(), tmp_path)
    (tmp_path / "curves.png").unlink()
    result = subprocess.run([sys.executable, "-m", "tools.report", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{tmp_path}, step 20, test images")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size > (600, 600)
        assert len(set(picture.convert("RGB").resize((200, 200)).get_flattened_data())) > 10  # not blank


@pytest.mark.parametrize("argument", ["", "no/such/run", "not_yet"])
def test_a_folder_without_an_evaluation_is_refused_with_a_hint(tmp_path, argument):
    if argument == "not_yet":
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "curve": "train", "loss": 1.0}\n')
        argument = str(tmp_path)
    command = [sys.executable, "-m", "tools.report", *([argument] if argument else [])]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "python" in result.stderr
    assert "Traceback" not in result.stderr


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
