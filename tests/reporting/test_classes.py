"""`predictions.npz`, and the section of a page that is made of it."""

from types import SimpleNamespace

import numpy as np
import pytest
from made_runs import make_run

from input_pipeline import EvalData
from reporting import runs
from reporting.classes import Classes, Predictions
from runtime import predictions
from runtime.errors import UserError

LABEL = np.array([0, 0, 1, 1, 2, 2, 0, 0])
MASK = np.array([True] * 6 + [False] * 2)  # the last two are padding
RAW = np.array([0, 1, 1, 0, 2, 1])
EMA = np.array([0, 0, 1, 0, 2, 2])


@pytest.fixture
def workdir(tmp_path):
    make_run(tmp_path / "run")
    image = np.arange(8 * 4, dtype=np.uint8).reshape(8, 2, 2, 1)
    data = EvalData(image, LABEL, MASK, None, batch_size=8, class_names=("a", "<b>", "c"))
    scores = {
        name: {"predicted": predicted, "confidence": np.full(6, confidence)}
        for name, predicted, confidence in (("raw", RAW, 0.95), ("ema", EMA, 0.85))
    }
    predictions.write(tmp_path / "run", scores, data)
    return tmp_path / "run"


def test_what_each_example_was_taken_for_comes_back_without_padding(workdir):
    found = Predictions.read(workdir)
    np.testing.assert_array_equal(found.label, LABEL[:6])
    np.testing.assert_array_equal(found.predicted["raw"], RAW)
    np.testing.assert_array_equal(found.predicted["ema"], EMA)
    assert found.class_names == ["a", "<b>", "c"]
    np.testing.assert_array_equal(found.index, [1, 5])  # where one is right and the other wrong
    np.testing.assert_array_equal(found.image[:, 0, 0, 0], [4, 20])
    np.testing.assert_array_equal(found.confusions("raw"), [[1, 1, 0], [1, 1, 0], [0, 1, 1]])


def test_the_section_counts_what_the_file_has(workdir):
    (group,), _ = runs.group([runs.Run.read(workdir)])
    found = Classes.of(group)
    assert found.accuracies[1:] == [
        ["a", "2", "50.00%", "100.00%", "+50.00"],
        ["<b>", "2", "50.00%", "50.00%", "+0.00"],
        ["c", "2", "50.00%", "100.00%", "+50.00"],
    ]
    assert found.confusions[1:] == [
        ["<b> taken for a", "1", "1"],
        ["a taken for <b>", "1", "0"],
        ["c taken for <b>", "1", "0"],
    ]
    ((title, images),) = found.examples
    assert title.startswith("ema is right and raw wrong about 2")
    assert [caption for _, caption in images] == ["a, raw: <b>", "c, raw: <b>"]
    _, raw, ema = found.reliability.lines
    np.testing.assert_allclose([raw.steps, raw.values], [[95], [50]], rtol=1e-6)
    np.testing.assert_allclose([ema.steps, ema.values], [[85], [100 * 5 / 6]], rtol=1e-6)


def test_over_seeds_the_section_adds_up_the_runs(workdir, tmp_path):
    other = make_run(tmp_path / "other", seed=1)
    (tmp_path / "other" / "predictions.npz").write_bytes((workdir / "predictions.npz").read_bytes())
    (group,), _ = runs.group([runs.Run.read(workdir), other])
    assert [row[1] for row in Classes.of(group).accuracies[1:]] == ["2", "2", "2"]


IMAGE = np.zeros((8, 2, 2, 1), np.uint8)


@pytest.mark.parametrize(
    "data",
    [
        SimpleNamespace(label=LABEL, mask=MASK),
        SimpleNamespace(images=LABEL),
        EvalData(IMAGE.astype(float), LABEL, MASK, None, batch_size=8),
        EvalData(IMAGE, LABEL - 1, MASK, None, batch_size=8),
        EvalData(IMAGE, LABEL / 2, MASK, None, batch_size=8),
        SimpleNamespace(),
    ],
)
def test_a_task_that_evaluates_something_else_has_no_section(tmp_path, data):
    make_run(tmp_path / "run")
    scores = {"raw": {"predicted": RAW, "confidence": np.ones(6)}}
    predictions.write(tmp_path / "run", scores, data)
    suitable = EvalData(IMAGE, LABEL, MASK, None, batch_size=8)
    predictions.write(tmp_path / "run", {"raw": {"loss": np.zeros(3)}}, suitable)
    assert not (tmp_path / "run" / "predictions.npz").exists()
    (group,), _ = runs.group([runs.Run.read(tmp_path / "run")])
    assert Classes.of(group) is None


def test_a_damaged_file_is_named(workdir):
    path = workdir / "predictions.npz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"predictions.npz is damaged .* Restore the file, or remove it"):
        Predictions.read(workdir)
