"""Workdirs that are damaged, of another run or in use are refused, and nothing in them runs code."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, contents, run_main
from refusals import COMPILES, check

from runtime import run_folder

EVERY = ("--config.checkpoint_every=10 steps", "--config.eval_every=10 steps")
SHORT = ("--config.duration=30 steps", "--config.best_curve=raw", *EVERY)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with checkpoints at steps 10, 20 and 30."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    result = run_main(f"--workdir={workdir}", *SHORT, JAX_LOG_COMPILES="1")
    assert result.returncode == 0, result.stderr
    assert COMPILES in result.stderr
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"10", "20", "30"}
    return workdir


def edit_json(path: pathlib.Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def flip_all(workdir: pathlib.Path) -> None:
    for path in (workdir / "checkpoints").glob("*/state/manifest.ocdbt"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")


WORKDIRS = {
    "another field": (lambda run: None, ["--config.seed=3"], "seed: 0 before, 3 now"),
    "a shorter run": (lambda run: None, ["--config.duration=20 steps"], "duration: 30 before, 20 now"),
    "another origin": (lambda run: None, ["--config.init_from=x", "--config_change=accept"], "cannot be changed"),
    "another model": (
        lambda run: None,
        ["--config.model.hidden_sizes=(8,)", "--config_change=accept"],
        "or use another --workdir; if it is the run's own, their code has changed since.",
    ),
    "config.json is torn": (
        lambda run: (run / "config.json").write_text((run / "config.json").read_text()[:99]),
        [],
        "config.json is damaged",
    ),
    "config.json is something else": (
        lambda run: (run / "config.json").write_text("[1]"),
        [],
        "config.json is damaged",
    ),
    "config.json is gone": (lambda run: (run / "config.json").unlink(), [], "has checkpoints and no config.json"),
    "checkpoints are gone": (
        lambda run: shutil.rmtree(run / "checkpoints"),
        [],
        "has metrics or snapshots of a run and no checkpoint",
    ),
    "checkpoints are damaged": (flip_all, [], "has no checkpoint to go on from"),
    "checkpoints are damaged, and scored": (flip_all, ["--mode=eval"], "has no checkpoint to go on from"),
    "metrics are gone": (lambda run: (run / "metrics.jsonl").unlink(), [], "bytes of metrics.jsonl, which has 0"),
    "metrics are damaged": (
        lambda run: (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes().replace(b"{", b"[", 1)),
        [],
        "metrics.jsonl, line 1, is damaged",
    ),
    "a link leads elsewhere": (
        lambda run: (run / "environment.json").unlink() or (run / "environment.json").symlink_to("../elsewhere"),
        [],
        "environment.json must be a file of its own, no link",
    ),
    "a file stands for a folder": (
        lambda run: shutil.rmtree(run / "tensorboard") or (run / "tensorboard").touch(),
        [],
        "tensorboard must be a folder of its own",
    ),
    "the duration is a word": (
        lambda run: edit_json(run / "config.json", duration="abc"),
        [],
        "config.json is damaged",
    ),
    "a period has no end": (lambda run: edit_json(run / "config.json", eval_every="1/0"), [], "config.json is damaged"),
    "the newest is damaged, the model another": (
        lambda run: (run / "checkpoints/30/sha256.json").unlink(),
        ["--config.model.hidden_sizes=(8,)", "--config_change=accept"],
        "does not fit the config's model, optimizer or data: it has",
    ),
    "the format is another": (
        lambda run: [
            edit_json(path / "record/metadata", format=3) or (path / "sha256.json").unlink()
            for path in (run / "checkpoints").iterdir()
        ],
        [],
        "has format 3; this version reads 6",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKDIRS)
def test_a_workdir_that_cannot_be_continued_is_refused(finished, tmp_path, name):
    prepare, flags, message = WORKDIRS[name]
    workdir = shutil.copytree(finished, tmp_path / "run")
    prepare(workdir)
    before = contents(tmp_path)
    result = run_main(f"--workdir={workdir}", *SHORT, *flags, JAX_LOG_COMPILES="1")
    assert message in result.stderr
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    # Whether the model fits is known once the state is created; all else before anything is compiled.
    assert COMPILES not in result.stderr or "model" in name
    said = [line for line in result.stderr.splitlines() if not re.match(r"[IW]\d{4} ", line)]
    assert said[0].startswith("error: ")
    assert len(said) <= 6, result.stderr
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_a_workdir_in_use_is_refused(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    with run_folder.hold(workdir):
        before = contents(tmp_path)
        check(run_main(f"--workdir={workdir}", *SHORT), f"is in use by another run (process {os.getpid()} on")
    assert contents(tmp_path) == before


def code_for_data(run):
    edit_json(run / "config.json", dataset="huggingface:mnist")


TOOLS = {
    "export: data from elsewhere": (
        ["tools.export", "RUN", "--average=ema", "--out=x"],
        "dataset = 'huggingface:mnist': must be a name",
        code_for_data,
    ),
    "export: model from elsewhere": (
        ["tools.export", "RUN", "--average=ema", "--out=x"],
        "model.name = 'nets.Mine': must be one of 'mlp', ",
        lambda run: edit_json(run / "config.json", model={"name": "nets.Mine", "hidden_sizes": [8]}),
    ),
    "report: damaged metrics": (
        ["tools.report", "RUN"],
        "metrics.jsonl, line 1, is damaged",
        lambda run: (run / "metrics.jsonl").write_text("[1]\n"),
    ),
    "posthoc: damaged scores": (
        ["tools.posthoc", "RUN", "--average=lawa:last=2"],
        "posthoc.jsonl, line 1, is damaged",
        lambda run: (run / "posthoc.jsonl").write_text("{bad\n"),
    ),
    "export: no place": (
        ["tools.export", "RUN", "--average=ema", "--out=/proc/x"],
        "/proc/x",
    ),
    "show_batch: no format": (["tools.show_batch", f"--config={ROOT}/configs/digits.py", "--out=x.xyz"], "xyz"),
    "show_batch: no flag": (
        ["tools.show_batch", f"--config={ROOT}/configs/digits.py", "out.png"],
        "unknown argument 'out.png'",
    ),
    "report: no run": (["tools.report", "no_such_run"], "holds no metrics.jsonl; python main.py"),
    "report: no run to compare with": (
        ["tools.report", "RUN", "--against", "no_such_run"],
        "no_such_run holds no metrics.jsonl; python main.py",
    ),
    "export: no run": (["tools.export", "no_such_run", "--average=ema", "--out=x"], "holds no run"),
    "export: no average": (["tools.export", "RUN", "--average=emma", "--out=x"], "--average=emma: the checkpoint"),
    "posthoc: no run": (["tools.posthoc", "no_such_run", "--average=lawa"], "holds no run"),
    "posthoc: no kind": (["tools.posthoc", "RUN", "--average=emma"], "'emma' must be one of"),
    "posthoc: no field": (["tools.posthoc", "RUN", "--average=ema:x=3"], "'x' is not one of ema's"),
    "posthoc: no basis": (["tools.posthoc", "RUN", "--average=lawa", "--basis=x"], "--basis=x:"),
    "show_batch: no field": (
        ["tools.show_batch", f"--config={ROOT}/configs/digits.py", "--config.x=3"],
        "x is unknown",
    ),
    "show_batch: no folder": (
        ["tools.show_batch", f"--config={ROOT}/configs/digits.py", f"--out={ROOT}/README.md/x.png"],
        f"File exists: '{ROOT}/README.md'",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_refuses_what_it_cannot_use(finished, tmp_path, name):
    arguments, message, *prepare = TOOLS[name]
    workdir = shutil.copytree(finished, tmp_path / "run")
    for change in prepare:
        change(workdir)
    command = [sys.executable, "-m", *(argument.replace("RUN", str(workdir)) for argument in arguments)]
    before = contents(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    check(subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True), message)
    assert contents(tmp_path) == before


# Notes whatever is unpickled, by anything.
AUDIT = """
import atexit, sys
found = []
sys.addaudithook(lambda event, args: found.append(args) if event == "pickle.find_class" else None)
atexit.register(lambda: print("unpickled:", found))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("main.py", "--config=configs/digits.py", "--workdir=RUN", *SHORT, "--cache_dir=RUN/cache"),
        ("main.py", "--config=configs/digits.py", "--workdir=RUN", *SHORT, "--cache_dir=RUN/cache", "--mode=eval"),
        ("-m", "tools.export", "RUN", "--average=ema", "--out=RUN/exported"),
        ("-m", "tools.posthoc", "RUN", "--average=ema:half_life=5%", "--max_error=9"),
    ],
)
def test_nothing_that_is_read_of_a_run_is_unpickled(finished, tmp_path, command):
    """Which could run code: checkpoints, snapshots, caches and configs may be somebody else's."""
    (tmp_path / "sitecustomize.py").write_text(AUDIT)
    workdir = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "30")  # so that there is something left to train
    arguments = [sys.executable, *(argument.replace("RUN", str(workdir)) for argument in command)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    for _ in range(2):  # the second time with what the first has cached
        result = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert "unpickled: []" in result.stdout
