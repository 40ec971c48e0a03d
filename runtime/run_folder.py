"""The folder of a run: one process at a time, and a description of the run."""

import contextlib
import datetime
import fcntl
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections
from clu import parameter_overview

from runtime import average_table, environment, hosts, run_config, sharding
from runtime.durations import PERIODS, in_words
from runtime.errors import UserError
from runtime.files import local_path
from runtime.progress import say
from train_state import CustomTrainState

# Everything that a run writes below its workdir.
FOLDERS = ("checkpoints", "snapshots", "damaged", "tensorboard", "profile")
FILES = (
    "lock",
    "config.json",
    "environment.json",
    "averages.json",
    "metrics.jsonl",
    "timing.jsonl",
    "predictions.npz",
    "report.html",
    "curves.png",
    "curves.svg",
)


def locate(workdir: str | pathlib.Path) -> pathlib.Path:
    """The folder that a user means by a workdir; see `files.local_path`."""
    return local_path(workdir, "--workdir")


def check(workdir: pathlib.Path) -> None:
    """Checks that what a run writes stays below its workdir, and meets nothing else there.

    Raises:
        UserError: a link, or a folder in the place of a file, or the other way round.
    """
    for name in (*FOLDERS, *FILES, *(f"{name}.partial" for name in FILES)):
        path = workdir / name
        if path.is_symlink() or (path.exists() and path.is_dir() != (name in FOLDERS)):
            kind = "folder" if name in FOLDERS else "file"
            raise UserError(f"{path} must be a {kind} of its own, no link or anything else. Use another --workdir.")


@contextlib.contextmanager
def enter(
    workdir: pathlib.Path, config: Mapping[str, Any], data: Mapping[str, Any], config_change: str = "refuse"
) -> Iterator[pathlib.Path]:
    """Keeps a workdir, which is created if it does not exist, to this run, of which all processes must do the same.

    Args:
        workdir: of the run.
        config: resolved.
        data: by split, "training" and those of evaluation.
        config_change: "accept" lets the data differ from those that the run began with.

    Yields:
        Where to write everything but checkpoints: the workdir, or in all processes but the first a temporary folder.

    Raises:
        UserError: another run has it, it cannot be written to, it is of other data, or one process has other things
            than the first.
    """
    environment.check_processes(config, data)
    if hosts.first():
        with hold(workdir) as holder:
            hosts.gather(holder)
            environment.check_data(workdir, data["training"], accept=config_change == "accept")
            yield workdir
    else:
        holder, until = hosts.gather("")[0], time.monotonic() + 10
        while _holder(workdir) != holder:  # a network's disk may show files late
            if time.monotonic() > until:
                raise UserError(
                    f"--workdir={workdir} is not the folder that process 0 has locked: all processes of a run need the "
                    "same one, on a disk that they share"
                )
            time.sleep(0.2)
        with tempfile.TemporaryDirectory() as folder:
            yield pathlib.Path(folder)


def _holder(workdir: pathlib.Path) -> str:
    """What the lock of a workdir says; nothing if there is none."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return (workdir / "lock").read_text().strip()
    return ""


@contextlib.contextmanager
def hold(workdir: pathlib.Path) -> Iterator[str]:
    """Keeps a workdir, which is created if it does not exist, to this process; yields what the lock says of it.

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
            holder = _holder(workdir) or "not known"
            raise UserError(
                f"--workdir={workdir} is in use by another run ({holder}). Wait for its end, or use another --workdir."
            ) from error
        except OSError as error:
            raise UserError(f"--workdir={workdir} cannot be locked: {error}. Use a local --workdir.") from error
        lock.truncate(0)
        holder = f"process {os.getpid()} on {os.uname().nodename} since {datetime.datetime.now().isoformat(' ')}"
        lock.write(f"{holder}\n")
        lock.flush()
        yield holder


def describe(workdir: pathlib.Path, config: ml_collections.FrozenConfigDict, state: CustomTrainState) -> None:
    """Writes and prints what a run is before it trains: its config, its environment, and what its averages will be.

    Args:
        workdir: of the run.
        config: resolved.
        state: before the next step.
    """
    run_config.write(config, workdir)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    environment.write(workdir, deterministic=config.get("deterministic", False), parameters=parameters)
    table = average_table.write(workdir, state, config.duration, random_start=not config.init_from)
    devices = jax.device_count()
    part = config.batch_size // (devices * config.accumulate)
    say(parameter_overview.get_parameter_overview(state.params, include_stats=False))
    say(f"Batches of {config.batch_size} = {devices} devices x {config.accumulate} parts x {part} examples")
    if devices > 1:
        say(sharding.describe(state))
    say("\n".join([f"Training for {lengths(config)}", *table]))


def lengths(config: ml_collections.FrozenConfigDict) -> str:
    """The resolved lengths and periods, which a reader of the config cannot see, in one line."""
    parts = [f"{config.duration} steps"]
    parts += [f"{name.removesuffix('_every')} {in_words(config[name])}" for name in PERIODS if config[name]]
    phases = [f"{config.optimizer[name]} {name}" for name in ("warmup", "stable", "decay") if config.optimizer[name]]
    if phases:
        parts.append(f"learning rate {' + '.join(phases)} steps")
    parts.append("dispatched in chunks" if config.chunked else "dispatched one by one")
    return ", ".join(parts)
