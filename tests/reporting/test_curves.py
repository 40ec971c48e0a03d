"""What the panels of a picture show, as numbers."""

import numpy as np
import pytest
from made_runs import make_run

from reporting import curves, runs


def test_the_panels_show_what_their_titles_say(tmp_path):
    (group,), _ = runs.group([make_run(tmp_path / "run")])
    accuracy, loss, difference = curves.panels([group])
    assert [accuracy.title, loss.title, difference.title] == ["accuracy, %", "loss", "accuracy minus raw, points"]
    raw, ema = accuracy.lines
    np.testing.assert_allclose([raw.values, ema.values], [[50, 70], [60, 80]], atol=1e-9)
    assert [line.label for line in loss.lines] == ["raw", "ema", "train"]
    np.testing.assert_allclose(loss.lines[1].values, [0.4, 0.2], atol=1e-9)
    (line,) = difference.lines
    np.testing.assert_allclose([line.values, *line.band], [[10, 10], [9, 9], [11, 11]], atol=1e-9)


def test_seeds_are_shown_by_their_mean_and_their_spread(tmp_path):
    accuracies = [((0.5, 0.5 + seed / 10), (0.6, 0.7)) for seed in (0, 1)]
    made = [make_run(tmp_path / str(seed), seed=seed, accuracies=each) for seed, each in enumerate(accuracies)]
    (group,), _ = runs.group(made)
    ema = curves.panels([group])[0].lines[1]
    np.testing.assert_allclose(ema.values, [55, 70], atol=1e-9)
    spread = np.std([50, 60], ddof=1)
    np.testing.assert_allclose(ema.band, [[55 - spread, 70], [55 + spread, 70]], atol=1e-9)
    assert (ema.best, curves.panels([group])[1].lines[1].best) == (1, 1)  # of accuracy the highest, of loss the lowest


def test_a_learning_rate_that_moves_has_a_panel(tmp_path):
    moving = [{"step": 30, "curve": "train", "loss": 1.0, "learning_rate": 0.05}]
    (group,), _ = runs.group([make_run(tmp_path / "run", lines=moving)])
    rate = curves.panels([group])[-1]
    assert rate.title == "learning rate"
    np.testing.assert_allclose(rate.lines[0].values, [0.1, 0.1, 0.05], atol=1e-12)


def test_several_configs_share_the_axes_and_the_best_of_many_have_colours(tmp_path):
    made = [
        make_run(tmp_path / f"run{n}", config={"batch_size": n}, accuracies=((0.1, 0.2), (0.5, 0.6 + n / 100)))
        for n in range(8)
    ]
    groups, _ = runs.group(made)
    accuracy = curves.panels(groups)[0]
    assert len(accuracy.lines) == 16  # raw and averaged weights of each
    labels = {line.label for line in accuracy.lines}
    coloured = {f"batch_size={n}, {curve}" for n in range(2, 8) for curve in ("raw", "ema")}
    assert labels == coloured | {"others"}
    by_label = {line.label: line.look["color"] for line in accuracy.lines}
    assert by_label["batch_size=7, raw"] == by_label["batch_size=7, ema"]
    assert len({by_label[f"batch_size={n}, ema"] for n in range(2, 8)}) == 6


def test_weights_that_have_diverged_leave_the_panels_to_the_others(tmp_path):
    nothing = {"step": 30, "curve": "raw", "split": "test", "accuracy": None, "loss": None}
    (group,), _ = runs.group([make_run(tmp_path / "run", lines=[nothing])])
    raw = curves.panels([group])[0].lines[0]
    assert np.isnan(raw.values[-1])
    assert raw.values[raw.best] == pytest.approx(70)
