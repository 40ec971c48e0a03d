"""tools.diagnose on real runs. Its methods are tested in test_landscape.py, test_curvature.py, test_spectrum.py and
test_matching.py, words and pictures in tests/reporting.
"""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, contents, digits_config, read_metrics
from diagnosed import ROUNDING, curve, run_diagnose
from made_runs import make_diagnosis

import train
from configs import default
from reporting import page
from runtime.stored import list_stored
from tools.diagnosis import landscape, matching, spectrum
from tools.diagnosis.subject import Subject

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of 60 steps with a checkpoint, a snapshot and an evaluation every 12."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        every = dict.fromkeys(("snapshot_every", "checkpoint_every", "eval_every"), "12 steps")
        # With this decay the bias correction is over by step 12.
        config = digits_config(seed=seed, duration="60 steps", keep_checkpoints=10, averages__ema__decay=0.7, **every)
        train.train_and_evaluate(config, folder / str(seed))
        page.write(folder / str(seed))  # as main.py does
        for kind in ("snapshots", "checkpoints"):
            assert [stored.record.step for stored in list_stored(folder / str(seed), [kind])] == [12, 24, 36, 48, 60]
    return folder / "0", folder / "1"


@pytest.fixture(scope="module")
def before(runs):
    """Everything in the workdir of the first run before it is looked at."""
    return contents(runs[0])


@pytest.fixture(scope="module")
def found(runs, before):
    """All images are scored: there are 901 and 896. From step 12 on, 48 steps are repeated."""
    return run_diagnose(*runs, "--images=2000", "--steps=48")


@pytest.fixture(scope="module")
def subject(runs):
    return Subject.read(runs[0], "", 2000)


def same_structure(found, expected, where="numbers"):
    """Whether two trees have the same names and types. Of lists the first elements count."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), where
        for name, value in expected.items():
            same_structure(found[name], value, f"{where}[{name}]")
    elif isinstance(expected, list):
        assert isinstance(found, list), where
        same_structure(found[0], expected[0], f"{where}[0]")
    else:
        assert isinstance(found, int | float) == isinstance(expected, int | float), where


def test_what_is_stored_is_what_the_tests_of_the_report_take_it_for(found):
    expected = make_diagnosis()
    expected["plane"]["corners"]["step 24"] = expected["plane"]["corners"].pop("step 10")
    same_structure({name: part for name, part in found.items() if name != "environment"}, expected)
    assert found["environment"]["packages"]["jax"] == jax.__version__


def test_at_the_ends_of_the_line_raw_and_average_score_what_the_run_says_of_them(runs, found):
    assert found["num_images"] == {"train": 901, "test": 896}
    shares, of_test = found["line"]["shares"], curve(found["line"], "test")
    for place, name in ((0, "raw"), (1, "ema")):
        logged = read_metrics(runs[0], name)[-1]
        assert of_test["loss"][shares.index(place)] == pytest.approx(logged["loss"], abs=ROUNDING)
        assert of_test["accuracy"][shares.index(place)] == logged["accuracy"]
    difference = read_metrics(runs[0], "ema-raw")[-1]
    for name, value in of_test["difference"].items():
        assert value == pytest.approx(difference[name], abs=ROUNDING if name.startswith("loss") else 1e-12), name
    assert found["line"]["distance"] == pytest.approx(difference["distance"], rel=1e-6)
    # Between checkpoints, from the one nearest to the middle; each end is the raw one of its step.
    of_test, shares = curve(found["checkpoints"], "test"), found["checkpoints"]["shares"]
    assert found["checkpoints"]["ends"] == ["step 24", "step 60"]
    losses = {line["step"]: line["loss"] for line in read_metrics(runs[0], "raw")}
    assert of_test["loss"][0] == pytest.approx(losses[24], abs=ROUNDING)
    assert of_test["loss"][-1] == pytest.approx(losses[60], abs=ROUNDING)
    other = read_metrics(runs[1], "ema")[-1]
    for name in ("as trained", "units matched"):  # of which no order changes what the network computes
        assert curve(found["runs"], "test", name)["loss"][-1] == pytest.approx(other["loss"], abs=ROUNDING)


def test_repeated_steps_are_the_runs_own(subject):
    """Single steps and chunks differ in the last bits, 4e-7 of a step, and 48 of them may add up."""
    trace = spectrum.retrain(subject, 48)
    assert trace.step == 12
    assert trace.weights.shape == (2, 48, 256)
    stored = {point.record.step: point for point in subject.run.stored}
    for step, iterate in zip(range(18, 61, 6), trace.iterates, strict=True):
        if step in stored:
            for name, weights in iterate.items():
                kept = subject.run.weights(stored[step], name)
                jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=48 * 4e-7), weights, kept)
    # What is traced are those of the same weights, after every step, and the average is that of its kernel.
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(w["raw"]["params"])]) for w in trace.iterates]
    traced = trace.weights[0][5::6]
    assert all(np.isin(values, whole).all() for values, whole in zip(traced, flat, strict=True))
    assert trace.kernel.shape == (61,)
    assert trace.kernel[0] == 0
    np.testing.assert_allclose(trace.kernel[2:] / trace.kernel[1:-1], 1 / 0.7, rtol=1e-12)


def test_between_a_run_and_itself_nothing_is_in_the_way_and_matching_changes_nothing(runs, subject):
    part = matching.between_runs(subject, runs[0], subject.run.weights(subject.run.stored[-1], "ema"))
    assert (part["distance"], part["matched_distance"], part["num_units"]) == (0, 0, 32)
    for split in ("train", "test"):
        one, matched = (curve(part, split, name) for name in ("as trained", "units matched"))
        assert one | {"name": ""} == matched | {"name": ""}
        assert len(set(one["loss"])) == 1
        np.testing.assert_allclose(one["barrier"], 0, atol=1e-15)
        assert one["difference"]["loss"] == one["difference"]["accuracy"] == 0


def test_to_a_copy_with_its_units_in_another_order_there_is_a_barrier_until_they_are_matched(subject):
    weights = subject.run.weights(subject.run.stored[-1], "ema")
    images = subject.images["train"].batch(jnp.int32(0))["image"]
    units = matching.find_units(subject.run.experiment.state.apply_fn, weights, images)
    permuted = matching.permute(weights, units, [np.roll(np.arange(32), 5)])
    curves = landscape.line(subject, weights, permuted, landscape.BETWEEN)
    for one in curves:
        assert one["barrier"][1] > 0.1  # its interval is far from 0
        assert 0 < one["barrier_at"] < 1
        assert abs(one["difference"]["loss"]) < ROUNDING
    matched = matching.permute(permuted, units, matching.match(units, weights, permuted))
    for one in landscape.line(subject, weights, matched, landscape.BETWEEN):
        np.testing.assert_allclose(one["barrier"], 0, atol=1e-15)
        assert len(set(one["loss"])) == 1


def test_matching_brings_another_seed_nearer(found):
    assert found["runs"]["num_units"] == 32
    assert found["runs"]["matched_distance"] < found["runs"]["distance"]
    for split in ("train", "test"):
        one, matched = (curve(found["runs"], split, name) for name in ("as trained", "units matched"))
        assert matched["barrier"][0] < one["barrier"][0]


def test_averaged_predictions_and_weights_of_one_network_are_its_own(runs, found):
    part = found["ensembles"]
    assert part["steps"] == [12, 24, 36, 48, 60]
    logged = [line for line in read_metrics(runs[0], "raw") if "split" in line]
    for number, line in enumerate(reversed(logged)):  # the newest first
        assert part["single"][number]["loss"] == pytest.approx(line["loss"], abs=ROUNDING)
        assert part["single"][number]["accuracy"] == line["accuracy"]
    for kind in ("weights", "predictions"):
        assert part[kind][0]["loss"] == pytest.approx(logged[-1]["loss"], abs=ROUNDING)
        assert part[kind][0]["accuracy"] == logged[-1]["accuracy"]
    difference = part["weights"][-1]["loss"] - part["predictions"][-1]["loss"]
    assert part["difference"]["loss"] == pytest.approx(difference, abs=ROUNDING)
    # Predictions have at most the mean of the losses, as the logarithm is concave: averaged ones do not lose by it.
    for number, scores in enumerate(part["predictions"], 1):
        assert scores["loss"] <= np.mean([one["loss"] for one in part["single"][:number]]) + ROUNDING


def test_the_plane_has_the_losses_of_its_points_and_its_corners_are_those_of_the_lines(subject, found):
    part, latest = found["plane"], subject.run.stored[-1]
    raw, average = (subject.run.weights(latest, name) for name in ("raw", "ema"))
    before = subject.run.weights(subject.run.stored[1], "raw")
    plane = landscape.Plane.through(*(weights["params"] for weights in (raw, average, before)))
    assert list(part["corners"]) == ["raw", "ema", "step 24"]
    lines = {"raw": ("line", 0), "ema": ("line", 1), "step 24": ("checkpoints", 0)}
    for name, corner in part["corners"].items():
        line, place = lines[name]
        point = {"params": plane.at(*corner), "batch_stats": {}}
        for split in ("train", "test"):
            expected = curve(found[line], split)["loss"][found[line]["shares"].index(place)]
            loss = subject.scores(point, split)["loss"].mean()
            assert loss == pytest.approx(expected, abs=ROUNDING)
    # Rows are heights. All of its points are scored on the same half of the images.
    half = subject.with_half()
    assert {split: int(data.mask.sum()) for split, data in half.images.items()} == {"train": 452, "test": 448}
    for row, column in ((2, 7), (9, 0)):
        point = {"params": plane.at(part["x"][column], part["y"][row]), "batch_stats": {}}
        for split in ("train", "test"):
            loss = half.scores(point, split)["loss"].mean()
            assert part["losses"][split][row][column] == pytest.approx(loss, abs=ROUNDING)
    # Paths end in the corners, and the one of training goes through the third. So do the repeated steps.
    for name in ("raw", "ema"):
        assert len(part["paths"][name]) == 5
        np.testing.assert_allclose(part["paths"][name][-1], [*part["corners"][name], 0], atol=1e-6)
        np.testing.assert_allclose(part["repeated"][name][-1][:2], part["corners"][name], atol=1e-3)
    np.testing.assert_allclose(part["paths"]["raw"][1], [*part["corners"]["step 24"], 0], atol=1e-6)
    assert part["x"][0] < 0 < part["x"][-1]
    assert part["y"][0] < 0 < part["y"][-1]


def test_curvature_is_measured_at_both_with_its_error_and_an_interval(found):
    part = found["sharpness"]
    assert part["num_images"] == 901 // 16 * 8
    for name in ("raw", "ema"):
        values = part[name]["eigenvalues"]
        assert values == sorted(values, reverse=True)
        assert all(residual <= 0.011 * values[0] for residual in part[name]["residuals"])
        assert all(low < mean < high for mean, low, high in (*part[name]["elsewhere"], part[name]["trace"]))
        assert part[name]["trace"][0] > values[0] > 0
    largest = part["ema"]["elsewhere"][0][0] - part["raw"]["elsewhere"][0][0]
    assert part["difference"]["largest"][0] == pytest.approx(largest, abs=1e-12)
    assert part["difference"]["trace"][0] == pytest.approx(part["ema"]["trace"][0] - part["raw"]["trace"][0], abs=1e-12)


def test_nothing_in_the_workdir_is_changed_but_the_diagnosis_and_the_report(runs, before, found):
    after = contents(runs[0])
    made = {runs[0] / "diagnosis"} | {runs[0] / "diagnosis" / "numbers.json"}
    made |= {runs[0] / "diagnosis" / f"{name}.png" for name in found if name in PICTURES}
    assert set(after) - set(before) == made
    rewritten = {runs[0] / name for name in ("report.html", "curves.png", "curves.svg")}
    assert {path for path in before if after[path] != before[path]} <= rewritten
    assert "The loss between two runs" in (runs[0] / "report.html").read_text()
    assert sorted(path.name for path in runs[1].iterdir()) == sorted(
        path.name for path in runs[0].iterdir() if path.name != "diagnosis"
    )


PICTURES = ("line", "checkpoints", "runs", "plane", "ensembles", "oscillations")


@pytest.fixture(scope="module")
def others(tmp_path_factory, runs):
    """A run without any average, one of another model and one whose average has another name."""
    folder = tmp_path_factory.mktemp("others")
    config = digits_config(duration="4 steps", eval_every="4 steps", checkpoint_every="4 steps", best_curve="raw")
    config.averages.ema.kind = "none"
    train.train_and_evaluate(config, folder / "none")
    config.averages.ema = default.average("soft_update", tau=0.5)
    config.model.hidden_sizes = (8,)
    train.train_and_evaluate(config, folder / "model")
    return {"run": runs[0], "none": folder / "none", "model": folder / "model", "missing": folder / "missing"}


@pytest.mark.parametrize(
    ("workdir", "arguments", "status", "message"),
    [
        ("missing", [], 1, "holds no metrics.jsonl"),
        ("none", [], 1, "has no average; a run with one is needed"),
        ("run", ["--average=slow"], 1, "--average=slow: "),
        ("run", ["{missing}"], 1, "holds no run"),
        ("run", ["{model}"], 1, "has model.hidden_sizes = (8,), "),
        ("run", ["{none}"], 1, "has stored no average named ema"),
        ("run", ["--images=31"], 2, "--images must be at least 32"),
        ("run", ["--steps=47"], 2, "--steps at least 48"),
        ("run", ["--images=many"], 2, "invalid int value"),
    ],
)
def test_wrong_use_ends_in_one_line_before_anything_is_written(others, workdir, arguments, status, message):
    folders = {path for path in others.values() if path.exists()}
    before = {path: contents(path) for path in folders}
    arguments = [argument.format(**others) for argument in arguments]
    result = subprocess.run(
        [sys.executable, "-m", "tools.diagnose", str(others[workdir]), *arguments],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == status, result.stdout + result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    if status == 1:
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1, result.stderr
    assert {path: contents(path) for path in folders} == before
    assert not others["missing"].exists()
