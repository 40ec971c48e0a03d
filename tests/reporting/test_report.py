import csv
import html
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, digits_config
from PIL import Image

import train
from reporting import diagnosis, pictures, runs, tables
from reporting.page import write, write_to
from reporting.runs import Run
from runtime.errors import UserError

METRICS = {
    "raw": {"accuracy": 0.75, "loss": 0.5, "calibration_error": 0.1},
    "ema": {"accuracy": 0.8, "loss": None, "calibration_error": 0.05},
    "ema-raw": {"accuracy": 0.05, "accuracy_low": 0.01, "accuracy_high": 0.09, "agreement": 0.9},
}


def make_run(folder, *, seed=0, accuracies=((0.5, 0.6), (0.7, 0.8)), config=(), lines=(), steps=(10, 20)) -> Run:
    """A workdir with the accuracies of (raw, ema) at each step; the bounds of their difference are 0.01 off it."""
    folder.mkdir()
    found = [{"step": step, "curve": "train", "loss": 1.0, "learning_rate": 0.1} for step in steps]
    for step, (raw, ema) in zip(steps, accuracies, strict=True):
        shared = {"step": step, "split": "test"}
        found += [
            shared | {"curve": "raw", "accuracy": raw, "loss": 1 - raw},
            shared | {"curve": "ema", "accuracy": ema, "loss": 1 - ema},
            shared
            | {"curve": "ema-raw", "accuracy": ema - raw, "accuracy_low": ema - raw - 0.01}
            | {"accuracy_high": ema - raw + 0.01, "loss": raw - ema, "loss_low": -1.0, "loss_high": 1.0}
            | {"agreement": 0.9},
        ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*found, *lines]))
    (folder / "config.json").write_text(
        json.dumps({"seed": seed, "duration": 20, "optimizer": {"name": "sgd"}, **dict(config)})
    )
    (folder / "timing.jsonl").write_text('{"step": 20, "train_seconds": 4.0, "eval_seconds": 1.0}\n')
    (folder / "environment.json").write_text('{"python": "3.11", "packages": {"jax": "1"}, "commit": "abc"}')
    kernel = {"iterates_per_bin": 3, "kernel": [0.25, 0.75], "num_updates": 5}
    numbers = {"initial_weight": 0.0, "mean_age": 1.5, "half_life": 1.0, "effective_number": 3.0}
    (folder / "averages.json").write_text(json.dumps({"ema": {"kind": "ema", **kernel, **numbers}}))
    return Run.read(folder)


def make_diagnosis(workdir="runs/mine", other="runs/other", average="ema") -> dict:
    """What tools.diagnose stores in `diagnosis/numbers.json`, with a sharp valley instead of a network."""

    def line(shares, ends, names, **more):
        curves = [
            {
                "name": name,
                "split": split,
                "loss": [0.1 + number + share**2 for share in shares],
                "accuracy": [0.9 - share**2 / 10 for share in shares],
                "difference": {
                    "accuracy": -0.1, "accuracy_low": -0.12, "accuracy_high": -0.08,
                    "loss": 1.0, "loss_low": 0.8, "loss_high": 1.2, "agreement": 0.9,
                },
                "barrier": [0.25, 0.2, 0.3],
                "barrier_at": shares[len(shares) // 2],
            }
            for number, name in enumerate(names)
            for split in ("train", "test")
        ]  # fmt: skip
        return {"shares": shares, "ends": ends, "distance": 2.0, "curves": curves, **more}

    def scores(*losses):
        return [{"loss": loss, "accuracy": 1 - loss, "calibration_error": 0.01} for loss in losses]

    between = [0.0, 0.25, 0.5, 0.75, 1.0]
    places = [-1.0, 0.0, 1.0, 2.0]
    sharp = {"eigenvalues": [3.0, 2.0], "residuals": [1e-6, 1e-5], "elsewhere": 2 * [[2.5, 2.0, 3.0]]}
    path = {"raw": [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], average: [[1.5, 1.0, 2.0], [1.0, 0.0, 0.0]]}
    return {
        "step": 20,
        "average": average,
        "num_images": {"train": 40, "test": 40},
        "line": line([-1.0, *between, 2.0], ["raw", average], [""], norm=10.0),
        "checkpoints": line(between, ["step 10", "step 20"], [""]),
        "plane": {
            "x": places,
            "y": places,
            "losses": {split: [[0.1 + x**2 + 2 * y**2 for x in places] for y in places] for split in ("train", "test")},
            "corners": {"raw": [0.0, 0.0], average: [1.0, 0.0], "step 10": [1.0, 2.0]},
            "paths": path,
            "repeated": path,
        },
        "sharpness": {
            "num_images": 20,
            "raw": {**sharp, "trace": [9.0, 8.0, 10.0]},
            average: {**sharp, "trace": [5.0, 4.0, 6.0]},
            "difference": {"largest": [-1.0, -1.5, -0.5], "trace": [-4.0, -5.0, -3.0]},
        },
        "ensembles": {
            "steps": [10, 15, 20],
            "split": "test",
            "difference": {
                "accuracy": 0.01, "accuracy_low": 0.0, "accuracy_high": 0.02,
                "loss": -0.1, "loss_low": -0.2, "loss_high": 0.0, "agreement": 0.9,
            },
            "single": scores(0.3, 0.4, 0.5),
            "weights": scores(0.3, 0.2, 0.1),
            "predictions": scores(0.3, 0.25, 0.2),
        },
        "oscillations": {
            "step": 10,
            "num_steps": 48,
            "num_weights": 256,
            "frequencies": [0.125, 0.25, 0.5],
            "raw": [1e-4, 1e-5, 1e-6],
            "averaged": [1e-5, 1e-7, 1e-9],
            "kept": [0.3, 0.1, 0.03],
            "left": [0.1, 0.08, 0.12],
            "predicted": 0.09,
        },
        "distance": {"steps": [10, 20], "distances": [3.0, 2.0]},
        "runs": line(
            between, [workdir, other], ["as trained", "units matched"], matched_distance=1.0, num_units=32
        ),
        "command": f"python -m tools.diagnose {workdir} {other}",
    }  # fmt: skip


def store_diagnosis(folder, numbers) -> Run:
    (folder / "diagnosis").mkdir()
    (folder / "diagnosis" / "numbers.json").write_text(json.dumps(numbers))
    return Run.read(folder)


def test_the_table_shows_each_curve_and_its_paired_difference_in_points():
    header, raw, ema = tables.table(runs.summarize([METRICS])).splitlines()
    assert "minus raw (95 % interval)" in header
    assert raw.split() == ["raw", "75.00%", "0.5", "10.00%"]
    assert ema.split() == ["ema", "80.00%", "+5.00", "(+1.00", "..", "+9.00)", "points", "-", "5.00%", "90.00%"]


def test_without_accuracy_the_table_has_the_loss_and_its_difference():
    metrics = {
        "raw": {"loss": 0.5},
        "ema": {"loss": 0.25},
        "ema-raw": {"loss": -0.25, "loss_low": -0.5, "loss_high": 0.1},
    }
    header, _, ema = tables.table(runs.summarize([metrics])).splitlines()
    assert "accuracy" not in header
    assert ema.split() == ["ema", "-0.25", "(-0.5", "..", "+0.1)", "loss", "0.25"]


def test_the_last_evaluation_is_that_of_the_test_set():
    lines = [
        {"step": 1, "curve": "raw", "split": "validation"},
        {"step": 2, "curve": "train"},
        {"step": 2, "curve": "raw", "split": "validation"},
        {"step": 2, "curve": "raw", "split": "test"},
        {"step": 2, "curve": "ema", "split": "test"},
    ]
    assert runs.last_evaluation(lines) == lines[3:]


def test_with_a_validation_set_the_row_is_the_test_sets_and_the_best_is_the_validation_sets(tmp_path):
    validation = [
        {"step": step, "curve": "raw", "split": "validation", "accuracy": accuracy, "loss": 1.0}
        for step, accuracy in ((5, 0.9), (20, 0.2))
    ]
    run = make_run(tmp_path / "run", accuracies=((0.7, 0.8),), steps=(20,))
    lines = [*validation, *run.lines]
    group = runs.Group((Run(run.workdir, lines, run.timing, run.config, run.environment, run.averages),))
    raw = group.rows()[0]
    assert (group.curve_split, group.last_split, raw["accuracy"]) == ("validation", "test", 0.7)
    assert (raw["best"], raw["best_step"]) == (0.9, 5)


def test_runs_that_differ_only_in_the_seed_are_pooled_and_paired_over_the_seeds(tmp_path):
    raw, ema = np.array([0.70, 0.60, 0.65]), np.array([0.78, 0.70, 0.71])
    made = [
        make_run(tmp_path / str(seed), seed=seed, accuracies=((0.9, 0.5), (raw[seed], ema[seed]))) for seed in range(3)
    ]
    groups, remarks = runs.group(made)
    assert [len(group.runs) for group in groups] == [3]
    [few] = remarks
    assert "(3 seeds) are few" in few
    assert runs.group([made[0]])[1] == []
    of_raw, of_ema = groups[0].rows()
    # By hand: the mean of 8, 10 and 6 points is 8, their standard deviation 2, and Student's t for 2 degrees 4.3027.
    half_width = 4.302653 * 0.02 / np.sqrt(3)
    np.testing.assert_allclose(
        [of_ema["difference"], of_ema["low"], of_ema["high"]], [0.08, 0.08 - half_width, 0.08 + half_width], atol=1e-6
    )
    assert (of_ema["over"], of_ema["runs"]) == ("seeds", 3)
    assert of_raw["accuracy"] == pytest.approx(0.65, abs=1e-12)
    assert of_raw["accuracy_sd"] == pytest.approx(0.05, abs=1e-12)
    assert (of_raw["best"], of_raw["best_step"]) == (pytest.approx(0.9, abs=1e-12), 10)
    assert runs.verdict(of_ema).startswith("ema scores better than raw: +8.00 (+3.03 .. +12.97) points of accuracy")


@pytest.mark.parametrize(
    ("low", "high", "of", "claim"),
    [
        (0.01, 0.03, "accuracy", "scores better than raw"),
        (-0.01, 0.03, "accuracy", "cannot be told from raw"),
        (-0.03, -0.01, "accuracy", "scores worse than raw"),
        (-0.03, -0.01, "loss", "scores better than raw"),
        (0.01, 0.03, "loss", "scores worse than raw"),
    ],
)
def test_only_of_several_seeds_it_is_claimed_that_averaging_helps(low, high, of, claim):
    row = {"curve": "ema", "runs": 5, "difference": (low + high) / 2, "low": low, "high": high, "of": of}
    assert claim in runs.verdict(row | {"over": "seeds"})
    of_one_run = runs.verdict(row | {"over": "images", "runs": 1})
    assert not re.search("scores better|scores worse|cannot", of_one_run)


def test_a_run_of_another_config_is_not_pooled_and_the_page_says_what_differs(tmp_path):
    first = make_run(tmp_path / "a")
    second = make_run(tmp_path / "b", seed=1, config={"optimizer": {"name": "adamw", "b1": 0.9}})
    groups, _ = runs.group([first, second])
    assert [len(group.runs) for group in groups] == [1, 1]
    assert runs.differences(groups) == {"optimizer.b1": [None, 0.9], "optimizer.name": ["sgd", "adamw"]}


def test_what_should_not_be_pooled_without_a_thought_is_said(tmp_path):
    first, repeated = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    (tmp_path / "c").mkdir()
    unfinished = make_run(tmp_path / "c" / "d", seed=1, steps=(5, 10))
    (tmp_path / "c" / "d" / "environment.json").write_text('{"commit": "def"}')
    groups, remarks = runs.group([first, repeated, Run.read(unfinished.workdir)])
    assert [[run.workdir.name for run in group.runs] for group in groups] == [["a", "d"]]
    assert len(remarks) == 5
    assert f"{repeated.workdir} has the config and the seed of {first.workdir}" in remarks[0]
    assert "differ in more than the seed: in their commit" in remarks[2]
    assert f"{unfinished.workdir} is not finished: it is at step 10 of 20" in remarks[4]
    assert groups[0].last_step == 10  # the last one that both have


def test_every_format_has_the_same_numbers(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", config={"batch_size": 3})

    def printed(format_):
        command = [sys.executable, "-m", "tools.report", tmp_path / "a", tmp_path / "b", f"--format={format_}"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    rows = json.loads(printed("json"))["rows"]
    assert [(row["run"], row["curve"]) for row in rows] == [
        (str(tmp_path / run), curve) for run in "ab" for curve in ("raw", "ema")
    ]
    assert rows[1]["difference"] == pytest.approx(0.1, abs=1e-12)
    as_csv = list(csv.DictReader(io.StringIO(printed("csv"))))
    assert [float(row["accuracy"]) for row in as_csv] == [row["accuracy"] for row in rows]
    for text in printed("table"), printed("markdown"):
        assert text.count("+10.00 (+9.00 .. +11.00) points") == 2
    assert sorted(path.name for path in (tmp_path / "a").iterdir() if path.suffix in (".html", ".png")) == []


def test_a_difference_that_is_not_finite_is_a_dash_and_no_claim(tmp_path):
    run = make_run(tmp_path / "run")
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    (tmp_path / "run" / "metrics.jsonl").write_text(
        re.sub(r'("(accuracy|loss|learning_rate)(_low|_high)?"): [\d.-]+', r"\1: null", text)
    )
    (group,), _ = runs.group([Run.read(run.workdir)])
    row = group.rows()[1]
    assert (row["accuracy"], row["difference"]) == (None, None)
    assert "not all of its scores are finite" in runs.verdict(row)
    assert tables.cells(group.rows())[2][1:3] == ["-", "-"]
    write(run.workdir)


def test_it_needs_neither_jax_nor_tensorflow(tmp_path):
    make_run(tmp_path / "run")
    store_diagnosis(tmp_path / "run", make_diagnosis())
    code = (
        "import sys; from tools import report; sys.argv[1:] = [sys.argv[1]]; report.main(); "
        "print([name for name in ('jax', 'tensorflow', 'flax') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path / "run"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
    assert "The loss between two runs" in (tmp_path / "run" / "report.html").read_text()


def words(run) -> str:
    """What the page of a run says, without its pictures."""
    write(run.workdir)
    page = (run.workdir / "report.html").read_text()
    page = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page)))


def test_the_page_shows_every_part_of_a_diagnosis_with_its_numbers(tmp_path):
    make_run(tmp_path / "run")
    run = store_diagnosis(tmp_path / "run", make_diagnosis())
    text = words(run)
    parts = diagnosis.sections(run.diagnosis)
    assert [part.name for part in parts] == [
        "line", "checkpoints", "runs", "plane", "sharpness", "ensembles", "oscillations", "distance"
    ]  # fmt: skip
    for part in parts:
        assert part.title in text
        for paragraph in part.text:
            assert paragraph in text
        for cell in (cell for row in part.cells for cell in row):
            assert cell in text
    page = (tmp_path / "run" / "report.html").read_text()
    drawn = [part for part in parts if part.draw]
    assert {part.name for part in parts} - {part.name for part in drawn} == {"sharpness"}
    # Each for a desk and for a phone, beside the curves and the kernels.
    assert len(re.findall("<svg", page)) == 2 * (2 + len(drawn))
    line, runs_, sharpness = (
        next(part for part in parts if part.name == name) for name in ("line", "runs", "sharpness")
    )
    assert line.cells[1:] == [
        [split, "+1 (+0.8 .. +1.2)", "-10.00 (-12.00 .. -8.00)", "0", "+0.25 (+0.2 .. +0.3) at 0.5"]
        for split in ("train", "test")
    ]
    assert [row[0] for row in runs_.cells[1:]] == [
        f"{split}, {name}" for name in ("as trained", "units matched") for split in ("train", "test")
    ]
    assert "32 hidden units" in runs_.text[-2]
    assert "are 1 instead of 2 from" in runs_.text[-2]
    assert sharpness.cells[1] == ["eigenvalue 1", "3 ± 1e-06", "3 ± 1e-06", ""]
    assert sharpness.cells[2] == ["on other images", "2.5 (2 .. 3)", "2.5 (2 .. 3)", "-1 (-1.5 .. -0.5)"]
    assert sharpness.cells[-1] == ["trace", "9 (8 .. 10)", "5 (4 .. 6)", "-4 (-5 .. -3)"]
    assert "averaged weights minus averaged predictions: +1.00 (+0.00 .. +2.00) points of accuracy" in text
    assert "oscillations of up to 8 steps, ema keeps 10 (8 .. 12) %" in text
    assert "its kernel predicts 9 %" in text


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


def test_a_diagnosis_says_what_was_left_out_and_why_and_what_is_not_finite(tmp_path):
    """And a task without accuracy has a diagnosis too."""
    numbers = make_diagnosis()
    numbers["checkpoints"] = {"skipped": "the run has stored nothing but its latest weights"}
    for curve in (*numbers["line"]["curves"], *numbers["runs"]["curves"]):
        del curve["accuracy"]
    for scores in (numbers["ensembles"][name] for name in ("single", "weights", "predictions")):
        scores[:] = [{"loss": values["loss"]} for values in scores]
    curve = numbers["line"]["curves"][1]
    curve["loss"][0] = None
    curve["difference"]["loss"] = curve["difference"]["loss_high"] = None
    numbers["plane"]["losses"]["train"][0][0] = None
    del numbers["oscillations"]["kept"], numbers["oscillations"]["predicted"]
    make_run(tmp_path / "run")
    text = words(store_diagnosis(tmp_path / "run", numbers))
    assert "so that no transfer function predicts it" in text
    assert "The loss between two checkpoints Left out: the run has stored nothing but its latest weights." in text
    assert "not finite (+0.8 .. not finite)" in text
    assert "averaged weights minus averaged predictions: -0.1 (-0.2 .. +0) in loss" in text


def test_the_report_can_be_made_again_from_the_workdir_byte_for_byte(tmp_path):
    train.train_and_evaluate(digits_config(), tmp_path)
    names = ("report.html", "curves.png", "curves.svg")
    at_the_end = {name: (tmp_path / name).read_bytes() for name in names}
    for name in names:
        (tmp_path / name).unlink()
    result = subprocess.run([sys.executable, "-m", "tools.report", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{tmp_path}, step 20, test images")
    for name in names:
        assert (tmp_path / name).read_bytes() == at_the_end[name], name
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size > (600, 600)
        assert len(set(picture.convert("RGB").resize((200, 200)).get_flattened_data())) > 10  # not blank


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


@pytest.mark.parametrize("argument", ["", "no/such/run", "not_yet"])
def test_a_folder_without_an_evaluation_is_refused_with_a_hint(tmp_path, argument):
    if argument == "not_yet":
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "curve": "train", "loss": 1.0}\n')
        argument = str(tmp_path)
    command = [sys.executable, "-m", "tools.report", *([argument] if argument else [])]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode in (1, 2)
    assert "python" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "environment.json",
        "averages.json",
        "metrics.jsonl",
        "timing.jsonl",
        "diagnosis/numbers.json",
    ],
)
def test_a_damaged_file_is_named(tmp_path, name):
    make_run(tmp_path / "run")
    (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / name).write_text("[]\n")
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'run' / name}")):
        Run.read(tmp_path / "run")


def test_the_best_is_that_of_the_mean_over_the_seeds(tmp_path):
    accuracies = [((0.9, 0.5), (0.6, 0.6)), ((0.2, 0.5), (0.6, 0.6))]
    made = [make_run(tmp_path / str(seed), seed=seed, accuracies=accuracies[seed]) for seed in range(2)]
    (group,), _ = runs.group(made)
    raw = group.rows()[0]
    assert (raw["best"], raw["best_step"]) == (pytest.approx(0.6, abs=1e-12), 20)  # not 0.9 of one, nor 0.55 of both


def test_the_best_loss_is_the_smallest(tmp_path):
    run = make_run(tmp_path / "run")
    lines = [
        {"step": step, "curve": "raw", "split": "test", "loss": loss} for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0))
    ]
    group = runs.Group((Run(run.workdir, lines, [], {}, {}, {}),))
    assert [(row["best"], row["best_step"]) for row in group.rows()] == [(1.0, 2)]


def test_a_curve_that_only_one_run_has_is_left_out_of_what_is_pooled(tmp_path):
    extra = [
        {"step": step, "curve": "new", "split": "test", "accuracy": 0.9, "loss": 0.1, "calibration_error": 0.1}
        for step in (10, 20)
    ]
    made = [make_run(tmp_path / "a", lines=extra), make_run(tmp_path / "b", seed=1)]
    (group,), _ = runs.group(made)
    assert group.names == ["raw", "ema"]
    assert [row["curve"] for row in group.rows()] == ["raw", "ema"]
    pictures.curves(group)


def test_an_evaluation_that_is_still_being_written_is_not_the_last(tmp_path):
    run = make_run(tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    for kept, ending in ((lines[:-2], ""), (lines[:-1], ""), (lines[:-1], lines[-1][:9])):
        (tmp_path / "run" / "metrics.jsonl").write_text("".join(kept) + ending)
        (group,), _ = runs.group([Run.read(run.workdir)])
        assert group.last_step == (10 if kept == lines[:-2] else 20)
        assert [row["curve"] for row in group.rows()] == ["raw", "ema"]


def test_a_longer_run_with_a_validation_set_is_shown_at_its_newest_evaluation(tmp_path):
    """The test set was scored at what was the end before."""
    run = make_run(tmp_path / "run")
    validation = [line | {"split": "validation"} for line in run.lines if "split" in line]
    later = [line | {"step": 30} for line in validation if line["step"] == 20]
    tested = [line for line in run.lines if line.get("split") and line["step"] == 20]
    group = runs.Group((Run(run.workdir, [*validation, *tested, *later], [], {}, {}, run.averages),))
    assert (group.last_split, group.last_step) == ("validation", 30)


def test_seeds_that_were_never_evaluated_at_the_same_step_are_refused(tmp_path):
    made = [make_run(tmp_path / str(seed), seed=seed, steps=(10 + seed, 20 + seed)) for seed in range(2)]
    (group,), _ = runs.group(made)
    with pytest.raises(UserError, match="no evaluation at the same step"):
        group.rows()


def test_the_page_says_all_there_is_to_say_and_takes_nothing_for_html(tmp_path):
    make_run(tmp_path / "<b>a & b", config={"label": "<i>x</i>"})
    make_run(tmp_path / "other", seed=1, config={"label": "y"})
    found = [Run.read(tmp_path / name) for name in ("<b>a & b", "other", "other")]
    groups, remarks = runs.group(found)
    write_to(tmp_path / "out", groups, remarks)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<b>a" not in page
    assert "<i>x" not in page
    text = html.unescape(re.sub(r"<[^>]*>", " ", page))
    for group in groups:
        assert text.count(f"{group.name}: {runs.verdict(group.rows()[1])}") == 1
        assert group.name in text
    assert remarks[0] in text
    assert runs.ONE_RUN in text
    assert re.search(r"label\s+<i>x</i>\s+y", text)  # what differs
    for alt in re.findall(r'aria-label="([^"]*)"', page):
        assert "<b>" not in alt


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


def test_times_are_those_at_the_end_and_rates_those_of_training(tmp_path):
    made = [make_run(tmp_path / str(seed), seed=seed, config={"batch_size": 8}) for seed in range(2)]
    (tmp_path / "0" / "timing.jsonl").write_text(
        '{"step": 10, "train_seconds": 1.0, "eval_seconds": 9.0}\n'
        '{"step": 20, "train_seconds": 1.0, "eval_seconds": 3.0}\n'
    )
    (group,), _ = runs.group([Run.read(run.workdir) for run in made])
    assert group.times() == {
        "train_seconds": 2.5, "eval_seconds": 2.0, "steps_per_second": 8.0, "images_per_second": 64.0
    }  # fmt: skip


@pytest.mark.slow
def test_the_page_goes_where_it_is_told_to(tmp_path):
    (tmp_path / "runs").mkdir()
    for name in "ab":
        make_run(tmp_path / "runs" / name, seed=ord(name))

    def write(*arguments):
        result = subprocess.run(
            [sys.executable, "-m", "tools.report", *arguments],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("**/report.html"))

    assert write("runs/a", "runs/a/../a") == ["runs/a/report.html"]  # which is one
    # Beside the runs, and not in the current folder, which is often the source tree.
    assert write("runs/a", "runs/b") == ["runs/a/report.html", "runs/report/report.html"]
    assert write("runs/a", "runs/b", "--out=c") == ["c/report.html", "runs/a/report.html", "runs/report/report.html"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("averages.json", '{"ema": {}}'),
        ("timing.jsonl", '{"step": 1, "train_seconds": "x"}\n'),
        ("environment.json", '{"packages": [1]}'),
        ("config.json", '{"duration": "10 epochs"}'),
        ("metrics.jsonl", '{"step": "10", "curve": "raw", "split": null}\n'),
        ("metrics.jsonl", b"\xff\xfe\n"),
        ("diagnosis/numbers.json", '{"average": "ema", "line": {"shares": [0, 1]}}'),
        ("diagnosis/numbers.json", '{"average": "ema", "num_images'),
    ],
)
def test_files_that_no_run_writes_end_with_a_message(tmp_path, name, content):
    make_run(tmp_path / "run")
    (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    result = subprocess.run(
        [sys.executable, "-m", "tools.report", tmp_path / "run"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert str(tmp_path / "run") in result.stderr
