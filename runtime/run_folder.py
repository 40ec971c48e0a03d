"""The folder of a run: one process at a time, and a description of the run."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

import jax
import ml_collections
from clu import parameter_overview

from runtime import average_table, environment, run_config, sharding
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
