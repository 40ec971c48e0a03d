"""What the panels of a picture show, as numbers."""

import csv
import io
import json

import numpy as np
import pytest
from made_runs import make_run

from reporting import curves, runs, tables


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


# Of the weights, by seed and step, on the validation images; the last seed has not got to step 30.
ACCURACY = {
    "raw": [[0.40, 0.50, 0.60], [0.43, 0.56, 0.58], [0.49, 0.50]],
    "ema": [[0.50, 0.64, 0.61], [0.57, 0.63, 0.65], [0.64, 0.71]],
}
LOSS = {"raw": [[3.0, 2.0, 1.8], [3.3, 2.6, 2.0], [3.0, 2.0]], "ema": [[2.0, 1.9, 1.0], [2.1, 2.5, 0.9], [2.2, 2.5]]}
TRAIN_LOSS = [[2.5, 1.2, 0.7], [2.0, 1.1, 0.6], [3.0, 1.9]]
RATE = [[0.30, 0.20, 0.10], [0.36, 0.26, 0.10], [0.30, 0.29]]
NORM = [[1.0, 2.0, 3.0], [2.0, 2.5, 3.5], [6.0, 3.0]]
APART = [[0.1, 0.2, 0.3], [0.2, 0.2, 0.3], [0.3, 0.5]]


def make_seeds(folder, config=()):
    """Three seeds with validation images, two of which have scored the test images at their end."""
    made = []
    for seed in range(3):
        lines = []
        for i in range(len(RATE[seed])):
            shared = {"step": 10 * (i + 1)}
            trained = {"loss": TRAIN_LOSS[seed][i], "learning_rate": RATE[seed][i], "grad_norm": NORM[seed][i]}
            lines.append(shared | {"curve": "train"} | trained)
            shared |= {"split": "validation"}
            scores = {
                curve: {"accuracy": ACCURACY[curve][seed][i], "loss": LOSS[curve][seed][i]} for curve in ("raw", "ema")
            }
            apart = {metric: scores["ema"][metric] - scores["raw"][metric] for metric in scores["raw"]}
            ends = {f"{metric}_{end}": 0.0 for metric in apart for end in ("low", "high")}  # over the images
            scores["ema-raw"] = apart | ends | {"distance": APART[seed][i], "agreement": 0.5 + NORM[seed][i] / 20}
            lines += [shared | {"curve": curve} | found for curve, found in scores.items()]
        ended = {"steps": (30,), "accuracies": ((0.11, 0.12),)} if seed < 2 else {"steps": (), "accuracies": ()}
        config = {"duration": 30} | dict(config)
        made.append(make_run(folder / f"seed{seed}", seed=seed, lines=lines, config=config, **ended))
    return made


def of_seeds(values, *, percent=False):
    """Mean and standard deviation over the seeds at steps 10 and 20, by their formulas."""
    first = np.array([row[:2] for row in values]) * (100 if percent else 1)
    return first.sum(axis=0) / 3, np.sqrt(np.square(first - first.sum(axis=0) / 3).sum(axis=0) / 2)


def test_seeds_are_shown_by_their_mean_and_spread_as_far_as_all_have_got_on_the_images_of_their_curves(tmp_path):
    (group,), _ = runs.group(make_seeds(tmp_path))
    accuracy, loss, difference, rate = curves.panels([group])
    norm, distance = curves.more_panels([group])
    assert [panel.title for panel in (difference, rate)] == ["accuracy minus raw, points", "learning rate"]
    assert accuracy.note == loss.note == "validation images, mean ± sd over the seeds"
    assert difference.note == "band: 95 % over the seeds, paired"
    scores = ((accuracy, ACCURACY, (1, 1)), (loss, LOSS | {"train": TRAIN_LOSS}, (1, 0, None)))
    for panel, values, best in scores:
        lines = {line.label: line for line in panel.lines}
        for (curve, of_curve), index in zip(values.items(), best, strict=True):
            mean, sd = of_seeds(of_curve, percent=panel is accuracy)
            np.testing.assert_array_equal(lines[curve].steps, [10, 20])
            np.testing.assert_allclose(lines[curve].values, mean)
            np.testing.assert_allclose(lines[curve].band, [mean - sd, mean + sd])
            assert lines[curve].best == index
    apart = [np.subtract(ema, raw) for raw, ema in zip(ACCURACY["raw"], ACCURACY["ema"], strict=True)]
    mean, sd = of_seeds(apart, percent=True)
    (line,) = difference.lines
    np.testing.assert_allclose(line.values, mean)
    half = 4.302653 * sd / np.sqrt(3)  # Student's t of 2 degrees of freedom
    np.testing.assert_allclose(line.band, [mean - half, mean + half], rtol=1e-6)
    for panel, values in ((rate, RATE), (norm, NORM), (distance, APART)):
        (line,) = panel.lines
        np.testing.assert_array_equal(line.steps, [10, 20])
        np.testing.assert_allclose(line.values, of_seeds(values)[0])


def test_a_table_of_seeds_has_a_row_for_all_weights_of_all_configs_at_the_last_step_that_all_seeds_have(tmp_path):
    """In each of its forms. A config with an unfinished seed is shown on validation images, the other on the test's."""
    others = [make_run(tmp_path / str(seed), seed=seed, config={"duration": 20, "batch_size": 8}) for seed in range(2)]
    groups, remarks = runs.group([*make_seeds(tmp_path), *others])
    assert f"{tmp_path / 'seed2'} is not finished: it is at step 20 of 30." in remarks
    seeds, finished = (f"{group.name}" for group in groups)
    places = [(seeds, 20, "validation", 3), (finished, 20, "test", 2)]
    rows = tables.to_rows(groups)
    expected = [(*place, curve) for place in places for curve in ("raw", "ema")]
    assert [tuple(row[name] for name in ("run", "step", "split", "runs", "curve")) for row in rows] == expected
    for curve, row in zip(("raw", "ema"), rows, strict=False):
        for metric, values in (("accuracy", ACCURACY), ("loss", LOSS)):
            mean, sd = of_seeds(values[curve])
            assert (row[metric], row[f"{metric}_sd"]) == pytest.approx((mean[1], sd[1]))
        assert (row["best"], row["best_step"], row["best_split"]) == (
            pytest.approx(of_seeds(ACCURACY[curve])[0][1]), 20, "validation",
        )  # fmt: skip
    apart = [np.subtract(ema, raw) for raw, ema in zip(LOSS["raw"], LOSS["ema"], strict=True)]
    mean, sd = of_seeds(apart)
    half = 4.302653 * sd[1] / np.sqrt(3)
    found = [rows[1][f"loss_{end}"] for end in ("difference", "low", "high")]
    np.testing.assert_allclose(found, [mean[1], mean[1] - half, mean[1] + half], rtol=1e-6)
    assert rows[1]["agreement"] == pytest.approx(0.5 + 2.5 / 20)
    shown = [(row["run"], row["curve"], row["accuracy"]) for row in rows]
    for form in (csv.DictReader(io.StringIO(tables.to_csv(rows))), json.loads(tables.to_json(groups, [], []))["rows"]):
        assert [(row["run"], row["curve"], float(row["accuracy"])) for row in form] == shown
    for form in (tables.cells(rows, tables.scoring_of(groups)), tables.together(groups)):
        header, *lines = form
        assert header[:2] == ["run", "weights"]
        assert [tuple(line[:2]) for line in lines] == [(name, curve) for name, curve, _ in shown]
        assert [line[2] for line in lines] == ["52.00% ± 3.46%", "66.00% ± 4.36%", "70.00% ± 0.00%", "80.00% ± 0.00%"]
    assert tables.title(groups[0]).endswith("step 20, validation images, mean ± standard deviation of 3 seeds")
    assert tables.title(groups[1]).endswith("step 20, test images, mean ± standard deviation of 2 seeds")


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
