"""The best evaluation: which one it is, in the run and in its report, and that its checkpoint is what was scored."""

import collections
import json
import math
import shutil

import jax
import numpy as np
import pytest
import safetensors.flax
from conftest import climbing_from, create_experiment, digits_config, read_metrics, run_main
from flax import traverse_util
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.errors import OutOfRangeError
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

import evaluation
import train
from reporting import curves, runs, tables
from runtime.metric_writing import MetricWriter, Written
from runtime.stored import Best, find_checkpoint
from tools import export, finished

NAN, INF = math.nan, math.inf
NOT_DUE = None


@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.parametrize(
    ("better", "values", "expected"),
    [
        ("higher", [0.1, 0.3, 0.3, 0.2], 2),
        ("lower", [0.3, 0.1, 0.1, 0.2], 2),
        ("higher", [0.0, 0.0, 0.0], 1),
        ("lower", [0.0, 0.0, 0.0], 1),
        ("higher", [-0.3, -0.1, -0.2], 2),
        ("lower", [-0.1, -0.3, -0.2], 2),
        ("higher", [NAN, 0.1, 0.2, NAN], 3),
        ("lower", [NAN, 0.2, NAN, 0.1], 4),
        ("higher", [NAN, 0.2, 0.1], 2),
        ("higher", [INF, 0.1, INF, 0.2, -INF], 4),
        ("lower", [-INF, 0.2, -INF, 0.1, INF], 4),
        ("higher", [0.3, -INF, 0.4, INF], 3),
        ("higher", [NOT_DUE, 0.1, NOT_DUE, 0.2, 0.1, NOT_DUE], 4),
        ("lower", [0.2, NOT_DUE, NAN], 1),
        ("lower", [NAN, INF], None),
    ],
)
def test_the_best_is_the_first_of_the_best_that_are_finite_in_the_run_and_in_its_report(
    tmp_path, better, values, expected, split
):
    """Beside raw weights, and a metric and a split, by which another one is the best."""
    best, directions = None, {"size": better, "other": better}
    with MetricWriter(tmp_path, len(values), Written(), "size", ()) as writer:
        for step, value in enumerate(values, 1):
            counted = {"other": step * (step - 2.5)} | ({} if value is NOT_DUE else {"size": value})
            scores = {"raw": counted | {"size": abs(step - 1.5)}, "ema": counted, "ema-raw": counted}
            last = step == len(values) and split == "validation"
            writer.write_scores(step, {split: scores} | ({"test": scores | {"ema": {"size": 0.15}}} if last else {}))
            best = evaluation.better(best, step, scores, "ema", "size", directions)
    assert best == (expected and Best(expected, "ema", "size", values[expected - 1]))
    config = {"best_metric": "size", "best_curve": "ema", "metrics": directions, "proportions": []}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (group,), _ = runs.group([runs.Run.read(tmp_path)])
    found = group.best("ema", "size")
    assert found == ({"best": best.value, "best_step": best.step, "best_split": split} if best else {})
    drawn = {line.label: line for line in next(x.lines for x in curves.panels([group]) if x.title == "size")}
    if best:
        assert drawn["ema"].steps[drawn["ema"].best] == best.step
        header, *rows = tables.cells(group.rows(), group.scoring)
        shown = dict(zip(header, next(row for row in rows if row[0] == "ema"), strict=True))["best (step)"]
        assert shown == f"{best.value:.4g} ({best.step}{', validation' if split == 'validation' else ''})"
    else:
        assert "ema" not in drawn


@pytest.mark.parametrize("before", [Best(1, "ema", "loss", 0.1), Best(1, "raw", "size", 0.1), None])
def test_with_another_metric_or_other_weights_the_best_begins_anew(before):
    def after(value):
        return evaluation.better(before, 2, {"ema": {"size": value, "loss": 0.2}}, "ema", "size", {"size": "lower"})

    assert after(0.5) == Best(2, "ema", "size", 0.5)
    assert after(NAN) is None


@pytest.fixture(scope="module", params=[pytest.param("test", marks=pytest.mark.slow), "validation"])
def run(request, tmp_path_factory):
    """The split of the curves, the config and the workdir of a run that was started three times, once after its best.

    The best evaluation is that of a step at which no checkpoint is due, and another one than that of the raw weights.
    """
    split, workdir = request.param, tmp_path_factory.mktemp("run")
    config = digits_config(
        num_validation=100 if split == "validation" else 0, eval_every="3 steps", checkpoint_every="7 steps",
        keep_checkpoints=2, best_metric="loss",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.TASKS, "classification", train.Task(loss_fn=climbing_from(9)))
        config.duration = "9 steps"
        train.train_and_evaluate(config, workdir)
        so_far = lines_of(workdir, "ema", split)
        assert find_checkpoint(workdir, "best").record.best == Best(9, "ema", "loss", so_far[-1]["loss"])
        shutil.rmtree(workdir / "checkpoints" / "9")
        for duration in ("20 steps", "23 steps"):
            config.duration = duration
            _, scores = train.train_and_evaluate(config, workdir)
    assert scores == metrics_of(workdir, 23, "test")
    lowest = {curve: min(lines_of(workdir, curve, split), key=lambda line: line["loss"]) for curve in ("raw", "ema")}
    assert 0 < lowest["raw"]["step"] < lowest["ema"]["step"] < 18
    assert lowest["ema"]["step"] % 7
    return split, config, workdir


def lines_of(workdir, curve, split):
    return [line for line in read_metrics(workdir, curve) if line["split"] == split]


def metrics_of(workdir, step, split):
    """What `metrics.jsonl` says of an evaluation, as `evaluation.evaluate` returns it."""
    found = [line for line in read_metrics(workdir) if (line["step"], line.get("split")) == (step, split)]
    return {line.pop("curve"): {k: v for k, v in line.items() if k not in ("step", "split")} for line in found}


@pytest.mark.slow
def test_the_best_checkpoint_on_the_disk_scores_what_the_metrics_say_of_its_step(run, tmp_path, capsys):
    split, config, workdir = run
    best = min(lines_of(workdir, "ema", split), key=lambda line: line["loss"])
    step = best["step"]
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {str(step), "21", "23"}
    assert find_checkpoint(workdir, "latest").record.best == Best(step, "ema", "loss", best["loss"])

    stored, experiment = find_checkpoint(workdir, "best"), create_experiment(config, workdir)
    weights = {name: stored.read_weights(name, experiment.state) for name in ("raw", "ema")}
    assert train.evaluate_weights(experiment, weights, split) == metrics_of(workdir, step, split)

    expected = train.evaluate_weights(experiment, weights, "test")  # only the last step's are in the metrics
    assert finished.evaluate_checkpoint(config, workdir, which="best") == expected
    assert f"{workdir}, best checkpoint, step {step}, on the test set" in capsys.readouterr().out
    metrics = export.export(workdir, "ema", tmp_path, "best")
    assert metrics == expected
    about = json.loads((tmp_path / "weights.json").read_text())
    assert (about["step"], about["scores"], about["average"]["name"]) == (step, expected, "ema")
    written = safetensors.flax.load_file(tmp_path / "weights.safetensors")
    params = traverse_util.flatten_dict({"params": weights["ema"]["params"]}, sep="/")
    jax.tree.map(np.testing.assert_array_equal, written, params)

    (group,), _ = runs.group([runs.Run.read(workdir)])
    [row] = [row for row in group.rows() if row["curve"] == "ema"]
    assert (row["best"], row["best_step"], row["best_split"]) == (best["loss"], step, split)


@pytest.mark.slow
def test_the_command_scores_the_checkpoint_that_it_is_asked_for(run):
    split, _, workdir = run
    step = min(lines_of(workdir, "ema", split), key=lambda line: line["loss"])["step"]
    flags = (f"--workdir={workdir}", "--mode=eval", "--checkpoint=best")
    result = run_main(*flags, config=str(workdir / "config.json"))
    assert result.returncode == 0, result.stderr
    assert f"{workdir}, best checkpoint, step {step}, on the test set" in result.stdout


@pytest.mark.slow
def test_each_evaluation_is_logged_once_and_the_test_set_under_a_name_of_its_own_where_there_is_a_validation_set(run):
    """Also by TensorBoard, which shows the curves of both splits in one place."""
    split, _, workdir = run
    scored = [(line["step"], line["split"]) for line in read_metrics(workdir, "raw")]
    splits = {step: (split,) for step in (3, 6, 9, 12, 15, 18, 20, 21, 23)}
    splits |= {step: dict.fromkeys((split, "test")) for step in (20, 23)}  # at the ends, of which 9 is none any more
    assert scored == [(step, name) for step, names in splits.items() for name in names]
    for curve in ("train", "raw", "ema", "ema-raw"):
        expected = collections.defaultdict(list)
        for line in read_metrics(workdir, curve):
            prefix = "test/" if line.get("split", split) != split else ""
            for name, value in line.items():
                if name not in ("step", "curve", "split"):
                    expected[prefix + name].append((line["step"], pytest.approx(value)))
        found = collections.defaultdict(list)
        for event in events(workdir / "tensorboard" / curve):
            for value in event.summary.value:
                found[value.tag].append((event.step, value.simple_value))
        assert found == expected


def events(folder):
    """What a folder of TensorBoard holds, by its own reader, without its import of TensorFlow, which takes seconds."""
    [path] = folder.iterdir()
    reader = PyRecordReader_New(str(path))
    while True:
        try:
            reader.GetNext()
        except OutOfRangeError:
            return
        yield Event.FromString(reader.record())


def test_the_latest_checkpoint_scores_what_the_metrics_say_of_the_end_on_the_test_set(run, tmp_path, capsys):
    _, config, workdir = run
    expected = metrics_of(workdir, 23, "test")
    assert finished.evaluate_checkpoint(config, workdir) == expected
    assert f"{workdir}, latest checkpoint, step 23, on the test set" in capsys.readouterr().out
    assert export.export(workdir, "ema", tmp_path, "latest") == expected
    with np.load(workdir / "predictions.npz") as kept:
        assert (kept["ema/predicted"] == kept["label"]).mean() == expected["ema"]["accuracy"]
        assert len(kept["label"]) == 896
