"""What the pages of sampled models say is what is stored."""

import json
import re

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from examples import results, samples
from examples.gan import swing

SWING = json.loads((swing.FOLDER / "swing.json").read_text())
QUOTED = r"[+-]?\d+\.\d+ \([+-]?\d+\.\d+ \.\. [+-]?\d+\.\d+\)"


def test_the_stored_gan_has_every_curve_with_every_seed():
    for curve in swing.CURVES:
        assert all(np.shape(SWING["curves"][curve][metric]) == (5, 20) for metric in samples.METRICS)


@pytest.mark.parametrize(("result", "folder"), [(SWING, swing.FOLDER)])
def test_what_is_stored_tells_by_what_and_from_what_it_was_made(result, folder):
    assert re.fullmatch("[0-9a-f]{64}", result["classifier"])
    assert re.fullmatch("[0-9a-f]{40}", result["environment"]["commit"])  # of a working tree without changes
    with Image.open(folder / "samples.png") as picture:
        assert len(set(picture.convert("L").get_flattened_data())) > 10  # not blank


def test_what_the_text_says_of_the_gan_is_what_is_stored():
    text, table = (swing.FOLDER / "README.md").read_text(), swing.table(SWING)
    assert table in text
    assert f"real images have a distance of {SWING['floor']['frechet']:.2f}" in re.sub(r"\s+", " ", text)
    assert {*re.findall(QUOTED, text)} <= {*re.findall(QUOTED, table)}


def test_the_rows_of_the_averages_page_are_what_is_stored():
    text = (ROOT / "docs" / "averages.md").read_text()
    assert results.row("GAN", SWING["curves"]) in text
