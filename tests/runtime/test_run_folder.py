import contextlib
import os
import pathlib
import resource
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, digits_config

import train
from reporting import page
from runtime import caching, files, run_folder
from runtime.errors import UserError
from tools import export, posthoc

# What is appended to, and what appears as a folder.
APPENDED = ("metrics.jsonl", "timing.jsonl", "lock")
FOLDERS = ("checkpoints", "snapshots", "tensorboard")

_watches: list[tuple[set, set]] = []


def _see(event, args):
    for opened, moved in _watches:
        if event == "open" and isinstance(args[0], str | os.PathLike) and args[2] & (os.O_WRONLY | os.O_RDWR):
            opened.add(pathlib.Path(args[0]))
        elif event == "os.rename":
            moved.add(pathlib.Path(args[1]))


sys.addaudithook(_see)  # which stays as long as the process


@contextlib.contextmanager
def watch():
    """The files that are opened to be written, and those that are renamed to, in this context."""
    _watches.append((set(), set()))
    try:
        yield _watches[-1]
    finally:
        _watches.pop()


def check_moved(folder, opened, moved):
    """Every file below the folder was written under another name; returns the names."""
    files = {
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in APPENDED and path.relative_to(folder).parts[0] not in FOLDERS
    }
    assert files <= moved
    assert not files & opened
    return {path.relative_to(folder).as_posix() for path in files}


@pytest.mark.slow
def test_every_file_that_is_not_appended_to_appears_in_one_move(tmp_path, monkeypatch):
    workdir, cache = tmp_path / "run", tmp_path / "cache"
    monkeypatch.setattr(caching, "_directory", None)
    with watch() as (opened, moved):
        train.train_and_evaluate(digits_config(snapshot_every="10 steps"), workdir)
        posthoc.write(workdir, posthoc.posthoc(workdir, ["lawa:last=2"]))
        page.write(workdir)
        export.export(workdir, "ema", workdir / "exported", "latest")
        caching.enable(cache)
        caching.CachedArrays("set", [workdir]).write({"label": np.arange(3)}, {})
    names = {
        "config.json",
        "environment.json",
        "averages.json",
        "report.html",
        "curves.png",
        "curves.svg",
        "predictions.npz",
    }
    exported = {f"exported/weights.{kind}" for kind in ("safetensors", "msgpack", "json")}
    assert check_moved(workdir, opened, moved) == names | exported | {"posthoc.jsonl"}
    assert len(check_moved(cache / "data", opened, moved)) == 1


@contextlib.contextmanager
def room(num_bytes):
    """Lets this process write no file longer than that, like a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("content", ["größer", b"\x00\xff"])
def test_a_file_is_replaced_as_a_whole_or_stays_as_it_was(tmp_path, content):
    path, partial = tmp_path / "file", tmp_path / "file.partial"
    (tmp_path / "others").write_text("others")
    path.write_text("old")
    partial.symlink_to("others")  # or whatever else is there, such as half of what a killed process was writing
    (tmp_path / "folder").mkdir()  # which no file can replace
    for name, num_bytes in (("file", 1), ("folder", 100)):
        with room(num_bytes), pytest.raises(OSError, match=r"too large|Is a directory"):
            files.replace_file(tmp_path / name, content)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "folder", "others"]
    assert path.read_text() == "old"
    partial.write_text("half of what a killed process was writ")
    files.replace_file(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "folder", "others"]
    assert (tmp_path / "others").read_text() == "others"


# Holds a workdir until it is killed.
HOLDER = """
import pathlib, signal, sys
from runtime import run_folder
with run_folder.hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""


def test_a_workdir_is_one_process_s_until_that_is_dead(tmp_path):
    workdir = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, str(workdir)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            with (
                pytest.raises(UserError, match=f"in use by another run .process {process.pid} on"),
                run_folder.hold(workdir),
            ):
                pass
        finally:
            process.kill()
    with run_folder.hold(workdir):
        assert str(os.getpid()) in (workdir / "lock").read_text()
