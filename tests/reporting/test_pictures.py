import numpy as np
import pytest
from made_runs import make_diagnosis, make_run

from reporting import diagnosis, pictures, runs
from reporting.runs import Run


def test_the_pictures_of_a_diagnosis_show_its_numbers(tmp_path):
    numbers = make_diagnosis()
    parts = {part.name: part for part in diagnosis.sections(numbers)}
    for width in pictures.WIDTHS.values():
        loss, accuracy = parts["runs"].draw(width).axes
        for panel, metric, unit in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
            curves = [curve for curve in panel.lines if curve.get_marker() != "None"]
            for curve, shown in zip(numbers["runs"]["curves"], curves, strict=True):
                np.testing.assert_allclose(shown.get_ydata(), np.array(curve[metric]) * unit, atol=1e-12)
        assert len({(curve.get_color(), curve.get_linestyle()) for curve in loss.lines[:4]}) == 4
        train, _ = parts["plane"].draw(width).axes
        assert train.get_title("left") == "loss on train images"
        # The valley is twice as steep upwards: a line of equal loss is wider than it is high.
        innermost = next(path for path in train.collections[0].get_paths() if len(path))
        extent = innermost.get_extents()
        assert extent.width > 1.2 * extent.height
        kept = parts["oscillations"].draw(width).axes[1].lines
        np.testing.assert_allclose(kept[0].get_ydata(), [0.1, 0.01, 0.001], atol=1e-12)
        np.testing.assert_allclose(kept[1].get_ydata(), [0.09, 0.01, 0.0009], atol=1e-12)  # amplitudes squared
        np.testing.assert_allclose(kept[0].get_xdata(), [8, 4, 2], atol=1e-12)  # steps
    diagnosis.write_pictures(tmp_path, numbers)
    assert {path.stem for path in tmp_path.glob("*.png")} == {name for name, part in parts.items() if part.draw}
    # A part that the next look leaves out leaves no old picture behind.
    diagnosis.write_pictures(tmp_path, numbers | {"plane": {"skipped": "no reason"}})
    assert not (tmp_path / "plane.png").exists()


def test_a_loss_is_called_no_more_than_a_loss_whatever_the_task_makes_of_it(tmp_path):
    (group,), _ = runs.group([make_run(tmp_path / "run")])
    parts = {part.name: part for part in diagnosis.sections(make_diagnosis())}
    figures = [pictures.curves(group), *(parts[name].draw(8.0) for name in ("line", "ensembles", "runs"))]
    for figure in figures:
        titles = [axis.get_title("left") for axis in figure.axes]
        assert [title.partition(" (")[0] for title in titles if not title.startswith(("acc", "learn"))] == ["loss"]


def test_pictures_of_several_configs_have_the_same_axes(tmp_path):
    groups, _ = runs.group(
        [
            make_run(tmp_path / "a"),
            make_run(tmp_path / "b", config={"batch_size": 3}, accuracies=((0.1, 0.2), (0.2, 0.3))),
        ]
    )
    figures = [pictures.curves(group) for group in groups]
    pictures.align(figures)
    limits = [[axis.get_ylim() for axis in figure.axes] for figure in figures]
    assert limits[0] == limits[1]
    assert limits[0][0][0] < 10
    assert limits[0][0][1] > 80


def test_a_kernel_is_drawn_with_its_whole_weight():
    """The last bin may hold fewer iterates than the others."""
    average = {"iterates_per_bin": 3, "kernel": [0.25, 0.75], "num_updates": 5, "mean_age": 1.5}
    stairs = pictures.kernels({"ema": average}, ["raw", "ema"]).axes[0].patches[0].get_data()
    assert np.sum(stairs.values * np.diff(stairs.edges)) == pytest.approx(100, abs=1e-9)  # in %
    assert stairs.edges.tolist() == [0, 3, 5]


def test_labels_in_the_page_keep_their_digits(tmp_path):
    run = make_run(tmp_path / "run")
    lines = [line | ({"learning_rate": 0.00125} if line["curve"] == "train" else {}) for line in run.lines]
    (group,), _ = runs.group([Run(run.workdir, lines, [], run.config, {}, run.averages)])
    figure = pictures.curves(group)
    svg = pictures.to_svg(figure)
    labels = [label.get_text() for label in figure.axes[-1].get_yticklabels()]
    assert "0.0005" in labels
    for label in labels[:-1]:  # the last may lie outside
        assert f">{label}</text>" in svg


def test_every_curve_has_a_marker_of_its_own_and_its_name_in_the_legend(tmp_path):
    extra = [
        {"step": step, "curve": name, "split": "test", "accuracy": 0.9, "loss": 0.1}
        for step in (10, 20)
        for name in ("_a", "b", "a_name_that_is_longer_than_any_phone_is_wide")
    ]
    (group,), _ = runs.group([make_run(tmp_path / "run", lines=extra)])
    figure = pictures.curves(group)
    curves = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert len(curves) == 5
    assert len({line.get_marker() for line in curves}) == 5
    assert len({line.get_color() for line in curves}) == 5
    names = [text.get_text().strip() for text in figure.legends[0].get_texts()]
    assert names == ["raw", "_a", "a_name_that_is_longer_than_an…", "b", "ema"]


def test_the_panels_show_what_their_titles_say(tmp_path):
    (group,), _ = runs.group([make_run(tmp_path / "run")])
    accuracy, loss, difference, rate = pictures.curves(group).axes
    np.testing.assert_allclose(accuracy.lines[1].get_ydata(), [60, 80], atol=1e-9)
    np.testing.assert_allclose(loss.lines[1].get_ydata(), [0.4, 0.2], atol=1e-9)
    np.testing.assert_allclose(difference.lines[0].get_ydata(), [10, 10], atol=1e-9)
    [band] = difference.collections
    assert band.get_paths()[0].get_extents().height == pytest.approx(2, abs=1e-9)  # points, from -1 to +1
    np.testing.assert_allclose(rate.lines[0].get_ydata(), [0.1, 0.1], atol=1e-12)
