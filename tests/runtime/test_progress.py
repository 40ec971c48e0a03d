import json
import os
import pty
import re
import subprocess
import sys
import termios
import time

import jax
import pytest
from conftest import ROOT, command, read_metrics, run_main
from made_runs import make_run

from reporting import runs
from reporting.runs import Run
from runtime import clocks, progress
from runtime.metric_writing import MetricWriter, Written


def on_a_terminal(command: list[str], columns: int) -> str:
    """What a process writes to a terminal of this width."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (40, columns))
    with subprocess.Popen(command, cwd=ROOT, stdout=its, stderr=its, close_fds=True) as process:
        os.close(its)
        written = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            written += part
    os.close(ours)
    assert process.returncode == 0, written.decode()
    return written.decode()


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 80, 150])
def test_on_a_terminal_there_is_one_live_line(tmp_path, columns):
    written = on_a_terminal(command(f"--workdir={tmp_path}"), columns)
    lines = [line.rpartition("\r")[2] for line in written.replace("\r\n", "\n").split("\n")]  # as they remain
    live = [line for line in lines if re.search(r"\d left", line)]
    assert len(live) <= 3  # where the first evaluation speaks, and at the end
    assert live[-1].startswith("100%")
    if columns >= 80:
        assert "| 1127/1127 [" in live[-1]
        assert " steps/s] " in live[-1]
    states = re.findall(r"\r[^\r\n]*", written)
    assert max(len(state) for state in states if re.search(r"\d left", state)) <= columns + 1
    assert re.search(r"ema \d\d\.\d\d%", live[-1])  # which is seen, whatever is cut off
    if columns == 150:
        assert re.search(r"ema \d\d\.\d\d% \([+-]\d+\.\d\d\)  raw \d\d\.\d\d%  train loss \d\.\d+", live[-1])
        assert len(states) > 20


LONG = """
import pathlib, sys, time
from runtime.metric_writing import MetricWriter, Written

averages = {"exponential_moving_average_5": 0.9, "exponential_moving_average_10": 0.91, "swa": 0.92}
scores = {"raw": {"accuracy": 0.5}}
for name, accuracy in averages.items():
    scores |= {name: {"accuracy": accuracy}, f"{name}-raw": {"accuracy": accuracy - 0.5}}
with MetricWriter(pathlib.Path(sys.argv[1]), 1127, Written(), "accuracy", ["accuracy"]) as writer:
    writer.progress.at(1)
    writer.add_time("train_seconds", time.monotonic() - 1.25)
    writer.write_scores(1127, {"test": scores})
    writer.write_progress(1127)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "seen"),
    [
        (40, r"100% 00:00 left  expon\.\.age_5 90\.00% "),
        (80, r"100%\|.*\| 1127/1127 \[00:00 left, \d+ steps/s\] expon\.\.age_5 90\.0"),
        (
            220,
            r"exponential_moving_average_5 90\.00% .*exponential_moving_average_10 91\.00% .*swa 92\.00% .*raw 50\.00%",
        ),
    ],
)
def test_long_names_are_cut_where_the_line_is_short_and_it_never_wraps(tmp_path, columns, seen):
    written = on_a_terminal([sys.executable, "-c", LONG, str(tmp_path)], columns)
    states = re.split(r"[\r\n]+", written)
    assert max(map(len, states)) < columns
    assert re.search(seen, states[-2])


@pytest.mark.slow
def test_in_a_log_a_line_is_written_for_each_evaluation_and_what_takes_long_says_so(tmp_path):
    result = run_main(f"--workdir={tmp_path}")
    assert result.returncode == 0, result.stderr
    assert "\r" not in result.stdout
    lines = [line for line in result.stdout.splitlines() if line.startswith("step ")]
    steps = [line["step"] for line in read_metrics(tmp_path, "raw")]
    # On a machine so slow that evaluations are half a minute apart there are some in between.
    assert [step for step in (int(re.match(r"step (\d+)/1127", line)[1]) for line in lines) if step in steps] == steps
    assert re.fullmatch(
        r"step 1127/1127 \(100%\)  \S+ steps/s  0\.0 s left  ema \S+% \(\S+\)  raw \S+%  train loss \d\.\d+", lines[-1]
    )
    [group], _ = runs.group([Run.read(tmp_path)])
    rate = float(re.search(r"(\S+) steps/s", lines[-1])[1])
    assert rate == pytest.approx(group.times()["steps_per_second"], rel=0.01)
    for what in ("Reading digits", "Compiling the initial state", "Compiling the training step", "Compiling the eval"):
        done = rf"^{what}.* \.\.\.\n(?:digits: .*\n)*{what}.*: done in \d+\.\d s$"
        assert len(re.findall(done, result.stdout, re.MULTILINE)) == 1


def test_a_long_silence_is_broken_and_a_short_one_is_not(capsys, monkeypatch):
    shown = progress.Progress(100)
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    shown.at(1)
    for step in range(2, 81):
        now += 1
        shown.show(step, "", rate=3.0, news=False)
    lines = capsys.readouterr().out.splitlines()
    assert [int(re.match(r"step (\d+)", line)[1]) for line in lines] == [32, 63]  # every 31st second
    assert "3 steps/s  1:08 left" in lines[0]  # of training, and on the clock


def test_one_of_many_runs_prints_nothing_and_tells_how_it_goes(capsys):
    told = []
    with progress.quietly(told.append):
        progress.say("a table")
        with progress.under_way("Compiling"):
            pass
        shown = progress.Progress(4)
        shown.at(1)
        shown.show(2, "raw 50%", rate=3.0, news=True)
        shown.at(3)
    assert capsys.readouterr().out == ""
    assert [text.strip() for text in told] == ["Compiling ...", "25%", "50%  raw 50%", "75%  raw 50%"]
    whole = progress.Progress(9, "run")
    whole.at(1)
    with progress.quietly():
        whole.show(2, "lr=0.1/seed0  100%", news=True)
    assert re.fullmatch(r"run 2/9 \(22%\)  \d+\.\d s left  lr=0.1/seed0  100%\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.06, "4.1 s"), (59.94, "59.9 s"), (59.96, "1:00"), (61.5, "1:02"), (3661, "1:01:01")]
)
def test_times_are_written_as_people_do(seconds, text):
    assert progress.format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("metric", "proportions", "shown"),
    [
        ("accuracy", ["accuracy", "top5"], "ema 90.00% (+40.00)  raw 50.00%"),
        ("top5", ["accuracy", "top5"], "ema top5 100.00% (+0.22)  raw top5 99.78%"),
        ("loss", ["accuracy", "top5"], "ema loss 0.25 (-0.5)  raw loss 0.75"),
    ],
)
def test_what_is_shown_has_the_name_of_its_metric_unless_it_is_the_accuracy(
    tmp_path, capsys, metric, proportions, shown
):
    scores = {
        "raw": {"accuracy": 0.5, "top5": 0.9978, "loss": 0.75},
        "ema": {"accuracy": 0.9, "top5": 1.0, "loss": 0.25},
        "ema-raw": {"accuracy": 0.4, "top5": 0.0022, "loss": -0.5},
    }
    with MetricWriter(tmp_path, 10, Written(), metric, proportions) as writer:
        writer.write_scores(5, {"test": scores})
        writer.write_progress(5)
    assert capsys.readouterr().out.rstrip().endswith(f"  {shown}")


def test_rejected_steps_are_told_again_when_they_are_ten_times_as_many(tmp_path, capsys):
    with MetricWriter(tmp_path, 1000, Written(), "accuracy", ()) as writer:
        for step, rejected in enumerate((0, 3, 3, 4, 29, 30, 31, 299, 526), 1):
            writer.write_means(100 * step, {"loss": (1.0, 1)}, rejected_steps=rejected)
    notes = [line for line in capsys.readouterr().out.splitlines() if "rejected" in line]
    assert [re.match(r"Note: (\d+) of \d+ steps so far", note)[1] for note in notes] == ["3", "30", "526"]
    assert all("--debug_nans" in note for note in notes)


def test_what_is_compiled_counts_as_neither_training_nor_evaluation(tmp_path):
    with MetricWriter(tmp_path, 10, Written(), "accuracy", ()) as writer:
        started = time.monotonic()
        with writer.clock("train_seconds"):
            jax.jit(lambda x: x + 1)(1.0)
        seconds, whole = writer.record().seconds, time.monotonic() - started
    assert seconds["compile_seconds"] > 0
    assert seconds["train_seconds"] > 0
    assert seconds["train_seconds"] + seconds["compile_seconds"] <= whole
    assert seconds["eval_seconds"] == 0


def test_each_column_of_the_times_is_what_its_name_says_also_when_a_run_is_continued(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(clocks, "compile_seconds", lambda since: 0.0)  # other tests of this process have compiled
    names = ("train_seconds", "eval_seconds", "checkpoint_seconds", "startup_seconds")
    parts = [
        (1000, (100, 20, 40, 80)),
        (4000, (600, 30, 50, 0)),
        (5000, (50, 0, 0, 7)),
    ]  # steps, and the seconds of each
    expected, so_far, before, last = [], dict.fromkeys(names, 0), Written(), 0
    for step, seconds in parts:  # each by a process of its own
        with MetricWriter(tmp_path, 5000, before, "accuracy", ()) as writer:
            for clock, number in zip(names, seconds, strict=True):
                writer.add_time(clock, time.monotonic() - number)
                so_far = so_far | {clock: so_far[clock] + number}
            writer.write_progress(step)
            before = writer.record()
            writer.say_times()
        rates = {"steps_per_second": (step - last) / seconds[0]}
        expected.append(pytest.approx({"step": step, **rates, **so_far, "compile_seconds": 0}, rel=0.005, abs=0.01))
        last = step
    assert [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()] == expected
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"Training took 12:30, evaluation 50\.\d s, checkpoints 1:3\d, compilation 0\.\d s, the start 1:2\d", said[-1]
    )
    (tmp_path / "metrics.jsonl").write_text('{"step": 5000, "curve": "raw", "split": "test", "accuracy": 0.5}\n')
    [group], _ = runs.group([Run.read(tmp_path)])
    assert group.times() == pytest.approx(
        {**so_far, "compile_seconds": 0, "steps_per_second": 5000 / 750, "images_per_second": 0}, rel=0.005, abs=0.01
    )


def in_bash(line: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("console", ["| head -3", "| head -9", "| true", ">&-", ">/dev/full"])
def test_a_run_is_as_good_on_a_console_that_goes_away_or_is_full_or_was_never_there(tmp_path, console):
    run = " ".join(command(f"--workdir={tmp_path}", "--config.duration='60 steps'"))
    result = in_bash(f"{run} {console}")
    assert (result.returncode, result.stderr) == (0, "")
    assert read_metrics(tmp_path, "raw")[-1]["step"] == 60


@pytest.mark.slow
def test_a_run_is_as_good_on_a_console_that_lacks_a_sign(tmp_path):
    result = run_main(f"--workdir={tmp_path / '日'}", "--config.duration=60 steps", PYTHONIOENCODING="latin-1")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"{tmp_path}/\\u65e5, step 60" in result.stdout


@pytest.mark.parametrize("console", ["| head -1", "| true", ">/dev/null"])
def test_a_table_is_printed_as_far_as_the_console_can_and_no_file_is_blamed_for_it(tmp_path, console):
    for seed in range(3):
        make_run(tmp_path / str(seed), seed=seed)  # several, so that there is a plus-minus sign
    report = f"{sys.executable} -m tools.report {tmp_path}/[012] --format=table {console}"
    result = in_bash(report, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    if console == ">/dev/null":
        assert "\\xb1" in in_bash(report.replace(console, ""), PYTHONIOENCODING="ascii").stdout


def test_a_table_that_cannot_be_written_where_it_should_go_is_an_error(tmp_path):
    make_run(tmp_path / "run")
    result = in_bash(f"{sys.executable} -m tools.report {tmp_path}/run --format=csv >/dev/full")
    assert (result.returncode, result.stderr) == (1, "error: [Errno 28] No space left on device\n")
