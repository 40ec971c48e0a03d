"""What the pages of sampled models say is what is stored."""

import json
import re

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from examples import results, samples
from examples.diffusion import lengths
from examples.gan import swing

LENGTHS = json.loads((lengths.FOLDER / "lengths.json").read_text())
SWING = json.loads((swing.FOLDER / "swing.json").read_text())
QUOTED = r"[+-]?\d+\.\d+ \([+-]?\d+\.\d+ \.\. [+-]?\d+\.\d+\)"


def test_the_stored_diffusion_has_every_curve_and_length_with_every_seed():
    assert [*LENGTHS["schedules"]] == [*lengths.SCHEDULES]
    for found in LENGTHS["schedules"].values():
        for curve in lengths.CURVES:
            assert all(np.shape(found[curve][metric]) == (5, 4) for metric in lengths.METRICS)
        assert all(np.shape(found[name]["frechet"]) == (5, 1) for name in lengths.LENGTHS.values())


def test_the_stored_gan_has_every_curve_with_every_seed():
    for curve in swing.CURVES:
        assert all(np.shape(SWING["curves"][curve][metric]) == (5, 20) for metric in samples.METRICS)


@pytest.mark.parametrize(("result", "folder"), [(LENGTHS, lengths.FOLDER), (SWING, swing.FOLDER)])
def test_what_is_stored_tells_by_what_and_from_what_it_was_made(result, folder):
    assert re.fullmatch("[0-9a-f]{64}", result["classifier"])
    assert re.fullmatch("[0-9a-f]{40}", result["environment"]["commit"])  # of a working tree without changes
    with Image.open(folder / "samples.png") as picture:
        assert len(set(picture.convert("L").get_flattened_data())) > 10  # not blank


def test_what_the_text_says_of_diffusion_is_what_is_stored():
    text = (lengths.FOLDER / "README.md").read_text()
    tables, findings = [lengths.table(LENGTHS, name) for name in lengths.SCHEDULES], lengths.findings(LENGTHS)
    assert all(table in text for table in tables)
    assert "\n".join(f"    {line}" for line in findings.splitlines()) in text
    assert f"real images have a distance of {LENGTHS['floor']['frechet']:.2f}" in re.sub(r"\s+", " ", text)
    assert {*re.findall(QUOTED, text)} <= {*re.findall(QUOTED, "".join([*tables, findings]))}


def test_what_the_text_says_of_diffusion_in_words_is_what_is_stored():
    constant, cosine = LENGTHS["schedules"].values()

    def mean(curves, name, metric):
        return results.last(curves[name], metric).mean()

    best = min(lengths.LENGTHS.values(), key=lambda name: mean(constant, name, "frechet"))
    assert (results.last(cosine["raw"], "frechet") < results.last(constant[best], "frechet")).all()  # in each seed
    by_loss, by_distance = (sorted(lengths.CURVES, key=lambda x: mean(constant, x, m)) for m in ("loss", "frechet"))
    assert by_loss == by_distance
    assert mean(constant, "ema05", "loss") == pytest.approx(mean(cosine, "raw", "loss"), abs=5e-5)
    assert mean(constant, "ema05", "frechet") == pytest.approx(mean(constant, "raw", "frechet") / 3, rel=0.05)
    for curves in (constant, cosine):
        for name in ("ema01", "ema05"):
            assert mean(curves, "ema20", "precision") > mean(curves, name, "precision")
            assert mean(curves, "ema20", "recall") < mean(curves, name, "recall")
            assert np.mean(curves[name]["frechet"], axis=0)[0] < np.mean(curves["raw"]["frechet"], axis=0)[0]  # early
        assert mean(curves, "uncorrected", "recall") == pytest.approx(0.08, abs=0.005)


def test_what_the_text_says_of_the_gan_is_what_is_stored():
    text, table = (swing.FOLDER / "README.md").read_text(), swing.table(SWING)
    assert table in text
    assert f"real images have a distance of {SWING['floor']['frechet']:.2f}" in re.sub(r"\s+", " ", text)
    assert {*re.findall(QUOTED, text)} <= {*re.findall(QUOTED, table)}


def test_the_rows_of_the_averages_page_are_what_is_stored():
    text = (ROOT / "docs" / "averages.md").read_text()
    assert results.row("GAN", SWING["curves"]) in text
    for name, curves in LENGTHS["schedules"].items():
        assert results.row(f"diffusion, {name}", curves) in text
