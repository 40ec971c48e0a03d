"""Trackers get what a run writes while it runs, and nothing that they do reaches the run."""

import json
import struct
import sys
import threading

import jax
import numpy as np
import pytest
from conftest import digits_config, read_metrics, run_main

import train
from runtime import trackers
from runtime.errors import UserError
from runtime.metric_writing import MetricWriter, Written


def write(workdir, steps=3) -> list[dict]:
    with MetricWriter(workdir, steps, Written(), "accuracy", ()) as writer:
        for step in range(1, steps + 1):
            writer.write(step, "raw", {"loss": 1 / step, "accuracy": float("nan")}, split="test")
    return read_metrics(workdir)


def test_each_tracker_gets_every_line_as_the_file_has_it_whatever_the_others_do(tmp_path, capsys):
    found, released = [], threading.Event()

    def collect(workdir, lines):
        assert workdir == tmp_path
        found.extend(lines)

    def spoil(workdir, lines):
        for line in lines:
            line.clear()

    def fail(workdir, lines):
        next(lines)
        raise ValueError("no network")

    def leave(workdir, lines):
        raise SystemExit(3)

    def block(workdir, lines):
        released.wait()

    with trackers.following(tmp_path, [spoil, fail, leave, block, collect]):
        (tmp_path / "other").mkdir()
        write(tmp_path / "other")  # which nobody follows
        written = write(tmp_path)  # all of it, while one is blocked
        released.set()
    assert found == written
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "Note: the tracker fail has failed (ValueError: no network); the run goes on without it",
        "Note: the tracker leave has failed (SystemExit: 3); the run goes on without it",
    ]
    with trackers.following(tmp_path, [collect]):
        pass
    assert found == written  # what has nothing to tell is not called
    write(tmp_path)
    assert found == written  # nor after the end


def test_the_end_of_a_run_does_not_wait_for_ever_and_says_so_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trackers, "PATIENCE", 0.01)
    released = threading.Event()

    def late(workdir, lines):
        released.wait()
        raise ValueError

    with trackers.following(tmp_path, [late]):
        write(tmp_path)
    [thread] = [thread for thread in threading.enumerate() if thread.name == "the tracker late"]
    released.set()
    thread.join()
    [note] = capsys.readouterr().out.splitlines()
    assert note.startswith("Note: the tracker late is not done 0 s after the run")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorboard", "--tracker=tensorboard: must be one of wandb, mlflow, or MODULE:FUNCTION of your own"),
        ("wandb", "--tracker=wandb needs a package that is not installed: pip install wandb"),
        ("no_such_module:send", "no_such_module cannot be imported: No module named 'no_such_module'"),
        ("json:send", "--tracker=json:send: json has no function 'send'; it takes (workdir, lines)"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_refused(name, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError) as caught:
        trackers.find(name)
    assert message in str(caught.value)


@pytest.mark.slow
def test_a_run_is_the_same_with_trackers_that_spoil_block_and_raise(tmp_path):
    def spoil(workdir, lines):
        for line in lines:
            line.clear()

    def block(workdir, lines):
        threading.Event().wait(0.2)

    def fail(workdir, lines):
        raise ValueError

    alone, metrics = train.train_and_evaluate(digits_config(), tmp_path / "alone")
    with trackers.following(tmp_path / "followed", [spoil, block, fail]):
        followed, same = train.train_and_evaluate(digits_config(), tmp_path / "followed")
    jax.tree.map(np.testing.assert_array_equal, alone.weights(), followed.weights())
    assert metrics == same
    files = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("alone", "followed")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_run_that_continues_sends_the_lines_after_its_checkpoint(tmp_path):
    found = []

    def collect(workdir, lines):
        found.extend(lines)

    train.train_and_evaluate(digits_config(), tmp_path)
    with trackers.following(tmp_path, [collect]):
        train.train_and_evaluate(digits_config(duration="40 steps"), tmp_path)
    assert found == [line for line in read_metrics(tmp_path) if line["step"] > 20]


OWN = """
def send(workdir, lines):
    with open(workdir / "sent.jsonl", "w") as file:
        file.writelines(str(line["step"]) + "\\n" for line in lines)
        file.write(f"{(workdir / 'curves.png').exists()}\\n")

def fail(workdir, lines):
    raise ValueError("no network")
"""


@pytest.mark.slow
def test_a_command_sends_to_a_function_of_ones_own_which_ends_after_the_report(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    result = run_main(
        f"--workdir={tmp_path}", "--config.duration=40 steps", "--tracker=mine:send", "--tracker=mine:fail",
        PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("has failed") == 1
    steps = [str(line["step"]) for line in read_metrics(tmp_path)]
    assert (tmp_path / "sent.jsonl").read_text().splitlines() == [*steps, "True"]


@pytest.mark.slow
def test_a_tracker_that_is_not_there_is_refused_before_anything_is_written(tmp_path):
    result = run_main(f"--workdir={tmp_path / 'run'}", "--tracker=tensorboard")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: --tracker=tensorboard: must be one of ")
    assert not (tmp_path / "run").exists()


def records(path) -> list[bytes]:
    """What a file of W&B holds: after 7 bytes, records in LevelDB's format of logs."""
    data, found, part, at = path.read_bytes(), [], b"", 7
    while at + 7 <= len(data):
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if kind == 0:  # what is left of a block is empty
            at += 32768 - at % 32768
            continue
        part += data[at + 7 : at + 7 + length]
        if kind in (1, 4):  # whole, or the last part
            found, part = [*found, part], b""
        at += 7 + length
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
    return found


def test_a_number_has_the_name_of_its_images_its_curve_and_its_metric():
    line = {"step": 3, "curve": "ema-raw", "split": "validation", "accuracy": 0.5, "loss": None, "size": 2}
    assert trackers.numbers(line) == {"validation/ema-raw/accuracy": 0.5, "validation/ema-raw/size": 2}
    assert trackers.numbers({"step": 3, "curve": "train", "loss": 1.5}) == {"train/loss": 1.5}


def points(lines) -> list[tuple[int, str, float]]:
    return sorted((line["step"], name, value) for line in lines for name, value in trackers.numbers(line).items())


@pytest.mark.slow
def test_wandb_gets_every_curve_and_the_picture(tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed; it is nothing that the project needs")
    from wandb.proto import wandb_internal_pb2

    result = run_main(
        f"--workdir={tmp_path}", "--config.duration=40 steps", "--tracker=wandb", WANDB_MODE="offline"
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "has failed" not in result.stdout
    [path] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    rows = []
    for data in records(path):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows += [
                (items["step"], name, value) for name, value in items.items() if name[:1] != "_" and name != "step"
            ]
    pictures = {name: value for _, name, value in rows if name.startswith("curves/")}
    assert (path.parent / "files" / pictures["curves/path"]).read_bytes() == (tmp_path / "curves.png").read_bytes()
    assert sorted(row for row in rows if row[1] not in pictures) == points(read_metrics(tmp_path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what MLflow is built on
def test_mlflow_gets_every_curve_and_the_picture_and_a_run_that_continues_is_one_there(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed; it is nothing that the project needs")
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "MLFLOW_EXPERIMENT_NAME": "here"}
    client = mlflow.MlflowClient(store["MLFLOW_TRACKING_URI"])
    experiment = client.create_experiment("here", str(tmp_path / "files"))  # which would be below the project
    for duration in ("40 steps", "60 steps"):
        flags = (f"--config.duration={duration}", "--tracker=mlflow", "--config_change=accept")
        result = run_main(f"--workdir={tmp_path / 'run'}", *flags, **store)
        assert result.returncode == 0, result.stderr
        assert "has failed" not in result.stdout
    [run] = client.search_runs([experiment])
    rows = {
        (point.step, name, point.value)
        for name in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, name)
    }
    assert sorted(rows) == points(read_metrics(tmp_path / "run"))
    assert run.data.params["optimizer.name"] == "sgd"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["curves.png"]
