import contextlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, read_metrics

from runtime import interruption, run_folder
from runtime.errors import UserError
from tools import command_line, sweep

SMALL = ("--config.duration=20 steps", "--config.eval_every=10 steps", "--config.checkpoint_every=10 steps")
VALIDATION = "--config.num_validation=100"


def sweep_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tools.sweep", "--config=configs/digits.py", *arguments]


def run_sweep(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(sweep_command(*arguments), cwd=ROOT, capture_output=True, text=True)


def test_every_combination_has_a_folder_named_by_what_differs():
    fields = sweep.read_grid(["optimizer.learning_rate=0.03, 0.1", "averages.ema.half_life=1%,5%"])
    runs = sweep.plan(fields, seeds=2)
    assert [run["workdir"] for run in runs][:3] == [
        "learning_rate=0.03,half_life=1%/seed0",
        "learning_rate=0.03,half_life=1%/seed1",
        "learning_rate=0.03,half_life=5%/seed0",
    ]
    assert len(runs) == 8
    assert runs[-1] == {
        "workdir": "learning_rate=0.1,half_life=5%/seed1",
        "values": {"optimizer.learning_rate": "0.1", "averages.ema.half_life": "5%"},
        "seed": 1,
    }
    assert [run["workdir"] for run in sweep.plan({}, seeds=2)] == ["seed0", "seed1"]
    both = sweep.plan({"model.name": ["mlp"], "optimizer.name": ["sgd"]}, seeds=1)
    assert both[0]["workdir"] == "model.name=mlp,optimizer.name=sgd/seed0"


def test_values_are_split_at_commas_outside_of_brackets():
    fields = sweep.read_grid(["model.hidden_sizes=(32,),(64, 64),()", "duration=5 epochs,10 epochs", "init_from=,a/b"])
    assert fields == {
        "model.hidden_sizes": ["(32,)", "(64, 64)", "()"],
        "duration": ["5 epochs", "10 epochs"],
        "init_from": ["", "a/b"],
    }


def test_folders_of_odd_values_are_apart_and_stay_below_the_sweep(tmp_path):
    values = ["a b", "a+b", "a/b", "../b", "a%2Fb", "a%b", "'a'", '"a"', "a*", "ä", "(1,)", "a_b", "$a", "", "a\nb"]
    runs = sweep.plan({"init_from": values}, seeds=1)
    for run in runs:
        (tmp_path / run["workdir"]).mkdir(parents=True)
    assert len([*tmp_path.glob("*/seed0")]) == len(values)
    assert all(re.fullmatch(r"init_from=[\w.%+(),=-]*/seed0", run["workdir"], re.ASCII) for run in runs)


@pytest.mark.parametrize("grid", [["seed=1,2"], ["a.b=1,1"], ["a.b=1", "a.b=2"], ["a.b"]])
def test_a_grid_that_is_none_is_refused(grid):
    with pytest.raises(
        UserError, match=r"must be FIELD=VALUE,VALUE,\.\.\., each field and value once; seeds are --seeds=N"
    ):
        sweep.read_grid(grid)


@pytest.mark.filterwarnings("ignore:the load_module")  # by which ml_collections reads a config file
def test_a_config_is_read_as_main_reads_it():
    config = command_line.read_config(
        ["--config=configs/digits.py", "--config.model.hidden_sizes=(64, 64)", "--config.loss.l2_penalty=1e-4"]
    )
    assert (config.model.hidden_sizes, config.loss.l2_penalty) == ((64, 64), 1e-4)
    with pytest.raises(UserError, match=r"optimizer.learning_rate = 'fast': must be of type float"):
        command_line.read_config(["--config=configs/digits.py", "--config.optimizer.learning_rate=fast"])


@pytest.mark.slow
def test_a_run_is_no_folder_for_a_sweep(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    result = run_sweep(f"--workdir={tmp_path}", "--seeds=2")
    assert (result.returncode, result.stderr.splitlines()[-1]) == (
        1, f"error: {tmp_path} holds a run. Use another --workdir for a sweep."
    )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "batch_size=16,32"], "Set --config.num_validation=N, or pass --judge=test, which chooses on the"),
        (["--grid", "optimizer.rate=1,2", VALIDATION], "optimizer.rate is unknown"),
        (["--grid", "optimizer.learning_rate=0.1,1e-1", VALIDATION], "are the same run; give each value once"),
        (["--grid", "batch_size=16,32", VALIDATION, "--metric=top"], "--metric=top: must be one, of accuracy, loss"),
        (["--grid", "best_metric=loss,accuracy", VALIDATION], "--metric=accuracy or loss: must be one, of accuracy"),
        (["--grid", "batch_size=16,32", "--config.batch_size=8"], "--config.batch_size: --grid sets it; leave it out"),
        (["--config.seed=1"], "--config.seed: --seeds sets it; leave it out"),
        (["--seed=1"], "unknown argument '--seed=1'"),
        (["--config=nowhere.py"], "the file that --config names cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, arguments, message):
    result = run_sweep(f"--workdir={tmp_path / 'lr'}", *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "lr").exists()


@pytest.mark.slow
def test_what_fails_is_reported_with_its_field_and_passed_over_and_more_can_be_added_later(tmp_path):
    common = (
        f"--workdir={tmp_path}",
        *SMALL,
        VALIDATION,
        "--config.max_rejected_steps=5",
        "--config.log_every=1 steps",
    )
    rates = "optimizer.learning_rate=-1,0.1,1e30"
    result = run_sweep(*common, "--grid", rates)
    assert result.returncode == 1, result.stdout + result.stderr
    failed = json.loads((tmp_path / "failed.json").read_text())
    assert [*failed] == ["learning_rate=-1/seed0", "learning_rate=1e30/seed0"]
    assert failed["learning_rate=-1/seed0"].startswith("optimizer.learning_rate = -1.0: must be")
    assert "rejected" in failed["learning_rate=1e30/seed0"]
    assert all(f"Failed: {workdir}: {reason}" in result.stderr for workdir, reason in failed.items())
    assert "Left out: learning_rate=-1/seed0: optimizer.learning_rate = -1.0" in result.stdout
    assert read_metrics(tmp_path / "learning_rate=0.1/seed0", "raw")[-1]["split"] == "test"
    lines = [line for line in result.stdout.splitlines() if line.startswith("run ")]
    assert len(lines) == 2
    assert re.search(r"learning_rate=0.1/seed0  100%  ema \S+% \(\S+\)  raw \S+%", lines[0])
    assert "Compiling" not in result.stdout

    before = (tmp_path / "learning_rate=0.1/seed0/environment.json").stat().st_mtime_ns
    more = run_sweep(*common, "--seeds=2", "--grid", "optimizer.learning_rate=0.2,0.1,-1,1e30", "--jobs=2")
    assert more.returncode == 1
    assert (tmp_path / "learning_rate=0.1/seed0/environment.json").stat().st_mtime_ns == before
    for workdir in ("learning_rate=0.1/seed1", "learning_rate=0.2/seed0", "learning_rate=0.2/seed1"):
        assert read_metrics(tmp_path / workdir, "raw")[-1]["split"] == "test"
    for fewer in (["--grid", rates], ["--seeds=2", "--grid", "optimizer.learning_rate=0.1,0.2"]):
        refused = run_sweep(*common, *fewer)
        assert refused.returncode == 1
        assert f"{tmp_path} holds another sweep:\nfields: " in refused.stderr


@pytest.mark.slow
def test_what_had_failed_and_is_mended_is_no_longer_said_to_have_failed(tmp_path):
    grid = (f"--workdir={tmp_path}", *SMALL, VALIDATION, "--grid", "optimizer.learning_rate=0.1,0.2")
    blocked = tmp_path / "learning_rate=0.2" / "seed0"
    blocked.parent.mkdir()
    blocked.write_text("a file in the way")
    first = run_sweep(*grid)
    assert first.returncode == 1
    assert [*json.loads((tmp_path / "failed.json").read_text())] == ["learning_rate=0.2/seed0"]
    assert "learning_rate=0.2/seed0 failed, and is left out" in first.stdout
    blocked.unlink()
    again = run_sweep(*grid)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "failed.json").read_text()) == {}
    assert "left out" not in again.stdout


@pytest.mark.slow
def test_the_commands_of_a_list_make_the_runs_that_the_sweep_then_reports(tmp_path):
    folder = tmp_path / "a sweep"
    grid = (f"--workdir={folder}", *SMALL, "--judge=test", "--grid", "model.hidden_sizes=(8,),(8, 8)")
    listed = run_sweep(*grid, "--list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert not folder.exists()
    lines = listed.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        command = [sys.executable, *shlex.split(line)[1:]]
        assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    reported = run_sweep(*grid)
    assert reported.returncode == 0, reported.stderr
    described = json.loads((folder / "sweep.json").read_text())
    assert {run["workdir"] for run in described["runs"]} == {path.name + "/seed0" for path in folder.glob("hid*=*")}
    assert not re.search("^run ", reported.stdout, re.MULTILINE)
    alone = tmp_path / "alone"
    together = run_sweep(f"--workdir={alone}", *grid[1:])
    assert together.returncode == 0, together.stderr
    for run in described["runs"]:
        metrics = [(place / run["workdir"] / "metrics.jsonl").read_bytes() for place in (folder, alone)]
        assert metrics[0] == metrics[1]


@pytest.mark.slow
def test_a_sweep_is_trained_by_one_process_at_a_time(tmp_path):
    with run_folder.hold(tmp_path):
        result = run_sweep(f"--workdir={tmp_path}", *SMALL)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"--workdir={tmp_path} is in use by another run (process {os.getpid()} on " in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 1.0, 3.0])
def test_what_ctrl_c_stops_while_processes_start_tells_how_to_continue_once(tmp_path, seconds):
    arguments = [f"--workdir={tmp_path}", *SMALL, VALIDATION, "--jobs=2", "--grid", "optimizer.learning_rate=0.1,0.2"]
    with subprocess.Popen(
        sweep_command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        while not (tmp_path / "sweep.json").exists() and process.poll() is None:
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)  # of which processes need a few to start
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode in (0, interruption.STATUS), errors
    assert "Traceback" not in errors
    continued = re.findall("To continue: (.*)", errors)
    assert continued == [shlex.join(process.args)] or process.returncode == 0


def table(result: subprocess.CompletedProcess, folder) -> str:
    """What a sweep prints at its end, below what it says of training."""
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    start = max((number for number, line in enumerate(lines, 1) if line.startswith(("run ", "Compiled "))), default=0)
    return "\n".join(lines[start:]).replace(str(folder), "")


def torment(folder, arguments: list[str], seed: str, seconds: float) -> None:
    """Starts a sweep twice, and at random moments asks it to stop the first time and kills it the second."""
    rng = random.Random(seed)
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with subprocess.Popen(
            sweep_command(f"--workdir={folder}", *arguments),
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            try:
                process.communicate(timeout=rng.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                process.send_signal(signum)
            _, errors = process.communicate(timeout=120)
        assert process.returncode in (0, -signum, interruption.STATUS), errors
        assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_sweep_that_is_killed_at_random_moments_ends_with_the_same_table(tmp_path, jobs):
    arguments = [*SMALL, VALIDATION, f"--jobs={jobs}", "--grid", "optimizer.learning_rate=0.1,0.2", "--seeds=2"]
    started = time.monotonic()
    whole = table(run_sweep(f"--workdir={tmp_path / 'whole'}", *arguments), tmp_path / "whole")
    seconds = time.monotonic() - started
    for trial in range(int(os.environ.get("SWEEP_TRIALS", "1"))):
        folder = tmp_path / str(trial)
        torment(folder, arguments, f"{jobs},{trial + 2}", seconds)
        assert table(run_sweep(f"--workdir={folder}", *arguments), folder) == whole
        for workdir in ("learning_rate=0.1/seed0", "learning_rate=0.2/seed1"):
            metrics = [(place / workdir / "metrics.jsonl").read_bytes() for place in (tmp_path / "whole", folder)]
            assert metrics[0] == metrics[1]
