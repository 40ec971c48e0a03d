"""The folder of a run: one process at a time, and files that are whole or not there."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from runtime.errors import UserError

# Everything that a run writes below its workdir.
FOLDERS = ("checkpoints", "snapshots", "damaged", "tensorboard", "profile")
FILES = (
    "lock",
    "config.json",
    "environment.json",
    "averages.json",
    "metrics.jsonl",
    "timing.jsonl",
    "report.html",
    "curves.png",
    "curves.svg",
)


def check(workdir: pathlib.Path) -> None:
    """Checks that what a run writes stays below its workdir, and meets nothing else there.

    Raises:
        UserError: a link, or a folder in the place of a file, or the other way round.
    """
    for name in (*FOLDERS, *FILES, "config.json.partial"):
        path = workdir / name
        if path.is_symlink() or (path.exists() and path.is_dir() != (name in FOLDERS)):
            kind = "folder" if name in FOLDERS else "file"
            raise UserError(f"{path} must be a {kind} of its own, no link or anything else. Use another --workdir.")


@contextlib.contextmanager
def hold(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps a workdir, which is created if it does not exist, to this process.

    The lock is the operating system's on a file named `lock`, so that the end of the process, however it comes about,
    releases it; the file itself stays.

    Raises:
        UserError: another process has it, or it cannot be written to.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / "lock").open("a+")
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be used: {error}. Name a folder that can be written to."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "not known"
            raise UserError(
                f"--workdir={workdir} is in use by another run ({holder}). Wait for its end, or use another --workdir."
            ) from error
        except OSError as error:
            raise UserError(f"--workdir={workdir} cannot be locked: {error}. Use a local --workdir.") from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        lock.flush()
        yield


def replace_file(path: pathlib.Path, text: str) -> None:
    """Writes a file in one move, so that a process killed at this moment leaves the old one or the new one."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)
