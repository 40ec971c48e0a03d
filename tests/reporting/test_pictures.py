import re

import numpy as np
import pytest
from made_runs import make_diagnosis, make_run

from reporting import curves, diagnosis, pictures, runs
from reporting.runs import Run


def test_the_pictures_of_a_diagnosis_show_its_numbers(tmp_path):
    numbers = make_diagnosis()
    parts = {part.name: part for part in diagnosis.sections(numbers)}
    for panel, metric, unit in zip(parts["runs"].panels, ("loss", "accuracy"), (1, 100), strict=True):
        for curve, line in zip(numbers["runs"]["curves"], panel.lines, strict=True):
            np.testing.assert_allclose(line.values, np.array(curve[metric]) * unit, atol=1e-12)
        assert len({(line.look["color"], line.look["linestyle"]) for line in panel.lines}) == 4
    measured, predicted = parts["oscillations"].panels[1].lines
    np.testing.assert_allclose(measured.values, [0.1, 0.01, 0.001], atol=1e-12)
    np.testing.assert_allclose(predicted.values, [0.09, 0.01, 0.0009], atol=1e-12)  # amplitudes squared
    np.testing.assert_allclose(measured.steps, [8, 4, 2], atol=1e-12)
    for width in (pictures.WIDTH, pictures.PANEL_WIDTH):
        train, _ = parts["plane"].draw(width).axes
        assert train.get_title("left") == "loss on train images"
        # The valley is twice as steep upwards: a line of equal loss is wider than it is high.
        innermost = next(path for path in train.collections[0].get_paths() if len(path))
        extent = innermost.get_extents()
        assert extent.width > 1.2 * extent.height
    diagnosis.write_pictures(tmp_path, numbers)
    assert {path.stem for path in tmp_path.glob("*.png")} == {
        name for name, part in parts.items() if part.panels or part.draw
    }
    # A part that the next look leaves out leaves no old picture behind.
    diagnosis.write_pictures(tmp_path, numbers | {"plane": {"skipped": "no reason"}})
    assert not (tmp_path / "plane.png").exists()


def test_a_loss_is_called_no_more_than_a_loss_whatever_the_task_makes_of_it(tmp_path):
    (group,), _ = runs.group([make_run(tmp_path / "run")])
    parts = {part.name: part for part in diagnosis.sections(make_diagnosis())}
    for panels in (curves.panels([group]), *(parts[name].panels for name in ("line", "ensembles", "runs"))):
        assert [panel.title for panel in panels if not panel.title.startswith("acc")] == ["loss"]


def test_a_kernel_is_drawn_with_its_whole_weight():
    """The last bin may hold fewer iterates than the others."""
    average = {"iterates_per_bin": 3, "kernel": [0.25, 0.75], "num_updates": 5, "mean_age": 1.5}
    (stairs,) = curves.kernels({"ema": average}, ["raw", "ema"]).lines
    assert stairs.look["drawstyle"] == "steps-post"
    assert np.sum(stairs.values[:-1] * np.diff(stairs.steps)) == pytest.approx(100, abs=1e-9)  # in %
    assert stairs.steps.tolist() == [0, 3, 5]


def test_labels_in_the_page_keep_their_digits(tmp_path):
    run = make_run(tmp_path / "run")
    rates = {10: 0.00125, 20: 0.00124}
    lines = [line | ({"learning_rate": rates[line["step"]]} if line["curve"] == "train" else {}) for line in run.lines]
    (group,), _ = runs.group([Run(run.workdir, lines, [], run.config, {}, run.averages)])
    figure = pictures.curves(curves.panels([group]))
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
    figure = pictures.curves(curves.panels([group]))
    shown = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert len(shown) == 5
    assert len({line.get_marker() for line in shown}) == 5
    assert len({line.get_color() for line in shown}) == 5
    names = [text.get_text().strip() for text in figure.legends[0].get_texts()]
    assert names == ["raw", "_a", "a_name_that_is_longer_than_an…", "b", "ema", "train"]


def test_a_picture_shows_the_numbers_of_its_panels_and_a_star_at_the_best(tmp_path):
    accuracies = ((0.5, 0.6), (0.7, 0.8), (0.6, 0.7))
    (group,), _ = runs.group([make_run(tmp_path / "run", accuracies=accuracies, steps=(10, 20, 30))])
    shown = curves.panels([group])
    svg, numbers = pictures.panel(shown[0])
    assert [line["label"] for line in numbers["lines"]] == ["raw", "ema"]
    assert numbers["lines"][1] == {"label": "ema", "steps": [10, 20, 30], "values": [60, 80, 70]}
    assert {int(number) for number in re.findall(r'class="line-(\d+)"', svg)} == {0, 1}
    figure = pictures.curves(shown)
    stars = [line.get_xydata().tolist() for line in figure.axes[0].lines if line.get_marker() == "*"]
    assert stars == [[[20, pytest.approx(70)]], [[20, pytest.approx(80)]]]
    # The axes lie where the numbers for the script say.
    left, top, width, height = numbers["box"]
    view = [float(x) for x in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()]
    assert 0 < left < left + width < view[0]
    assert 0 < top < top + height < view[1]
