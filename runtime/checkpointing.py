"""Checkpoints and snapshots that a run saves, and the state that it starts from.

Each appears in one move once it is complete, so that a process that is killed leaves it whole or not at all.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

from runtime import average_table, hosts
from runtime.errors import UserError
from runtime.files import without_wildcards
from runtime.metric_writing import Written, read_metrics
from runtime.origin import Origin, locate
from runtime.progress import say
from runtime.stored import (
    DIGESTS,
    Best,
    DamagedError,
    Record,
    Stored,
    compute_digests,
    find_latest,
    saved_folders,
)
from runtime.trees import describe_leaves, first_leaf, read_part
from train_state import CustomTrainState

WEIGHTS = ("params", "batch_stats", "ema_params", "ema_batch_stats")  # the fields of the state that a snapshot holds


class Checkpoints:
    """The checkpoints below `WORKDIR/checkpoints` and the snapshots below `WORKDIR/snapshots` of a run in progress.

    A checkpoint is what a run continues from. A snapshot holds the weights only, raw and averaged, and is kept for
    good. Both are written in the background, one after the other.

    A context manager: leaving it, by an exception too, waits until what was saved is on disk.

    Attributes:
        latest: the newest checkpoint from which the run can continue; None if nothing has been trained yet.
        record: of `latest`, or that of a run that has not begun.
    """

    def __init__(self, workdir: str | pathlib.Path, keep: int, like: CustomTrainState) -> None:
        """Finds `latest`. Changes nothing yet.

        Args:
            workdir: of the run, which nobody else is using; it need not exist.
            keep: number of latest checkpoints to keep, beside the best one.
            like: the state that the run would create, of which only shapes and dtypes count.

        Raises:
            UserError: there are checkpoints and none that the run can continue from, or none although it has been
                trained, or the latest is of another model or optimizer.
        """
        self._workdir, self._keep = pathlib.Path(workdir), keep
        self.latest, self._damaged = hosts.decided(lambda: _find_start(self._workdir))
        self.record = self.latest.record if self.latest else Record()
        if self.latest:
            self.latest.check_fits(like)
        # Directories are created by the thread that trains: in the background, an error would keep the threads that
        # wait for them, and so the process, for minutes.
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(),
            async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
        )
        self._background = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._place = self._stack.enter_context(without_wildcards(self._workdir))
        logging.getLogger("absl").addFilter(_is_not_from_orbax)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self._wait()
        finally:
            self._background.shutdown()
            self._checkpointer.close()
            self._stack.close()
            logging.getLogger("absl").removeFilter(_is_not_from_orbax)

    def discard_newer(self) -> None:
        """Clears away what came after `latest`, and what the run that continues from there makes again.

        Damaged checkpoints are moved below `WORKDIR/damaged`; unfinished ones and later snapshots are removed.
        """
        if not hosts.first():
            return
        for error in self._damaged:
            aside = self._workdir.absolute() / "damaged" / f"{error.folder.name}-{time.time_ns()}"
            aside.parent.mkdir(exist_ok=True)
            error.folder.rename(aside)
            say(f"{error}. It is now {aside}.")
        for name in ("checkpoints", "snapshots"):
            for folder in self._workdir.absolute().glob(f"{name}/*/"):
                if re.match(r"[0-9]+\.partial", folder.name):
                    say(f"{folder} was not finished and is removed")
                    shutil.rmtree(folder)
        for folder in saved_folders(self._workdir / "snapshots"):
            if int(folder.name) > self.record.step:
                shutil.rmtree(folder)

    def restore_or_initialize(
        self, state: CustomTrainState, sums: Any, origin: Origin | None
    ) -> tuple[CustomTrainState, Any]:
        """The state and the metric sums to train from: those of `latest`, if there is one.

        Args:
            state: the one that the run has created, whose shardings and averages the result has.
            sums: metric sums over no steps.
            origin: what to begin with if there is no `latest`.

        Raises:
            UserError: what is stored is of another model, optimizer or loss function.
        """
        if self.latest:
            state, sums = self.latest.restore_state(state), self.latest.restore_sums(sums)
            changes = average_table.changes(self.record.averages, state.averages)
            say("\n".join([f"Continuing {self._workdir} at step {self.record.step}", *changes]))
        elif origin:
            state = origin.begin(state)
        return state, sums

    def save(self, state: CustomTrainState, sums: Any, best: Best | None, written: Written) -> None:
        """Saves state and metric sums. Returns once they are copied, so that they may be donated to the next step.

        Args:
            state: after the latest step.
            sums: of the metrics that were not written yet.
            best: the best evaluation so far, whose checkpoint is kept.
            written: what `MetricWriter.record` returned.

        Raises:
            UserError: this checkpoint, or what was saved before, cannot be written.
        """
        self._wait()
        directory, step = self._workdir.absolute() / "checkpoints", int(state.step)
        folder, older = directory / str(step), saved_folders(directory)
        kept = [*older, folder][-self._keep :]
        if best:
            kept.append(directory / str(best.step))
        obsolete = [old for old in older if old not in kept]
        self._save(folder, {"state": state, "sums": sums}, state, Record(step, best, written), obsolete)
        if step == 0:
            # On disk before anything else is written: what has metrics and no checkpoint has lost something.
            self._wait()

    def save_snapshot(self, state: CustomTrainState) -> None:
        """Saves the weights, raw and averaged, as they are after the latest step.

        Raises:
            UserError: this snapshot, or what was saved before, cannot be written.
        """
        self._wait()
        step, weights = int(state.step), {field: getattr(state, field) for field in WEIGHTS}
        self._save(self._workdir.absolute() / "snapshots" / str(step), {"state": weights}, state, Record(step))

    def _save(
        self,
        folder: pathlib.Path,
        trees: dict[str, Any],
        state: CustomTrainState,
        record: Record,
        obsolete: Sequence[pathlib.Path] = (),
    ) -> None:
        """Copies arrays and begins to write them in the background.

        Args:
            folder: to make.
            trees: what to save, by name.
            state: that these are of.
            record: goes with them.
            obsolete: folders to remove in the end.
        """
        self._check_space(trees)
        step, rejected, counts = jax.device_get((state.step, state.rejected["total"], state.ema_count))
        record = dataclasses.replace(
            record,
            averages=state.averages,
            updates=int(step) - int(rejected),
            counts={name: int(count) for name, count in counts.items()},
            leaves=describe_leaves(trees["state"]),
        )
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        partial = folder.with_name(f"{folder.name}.partial")
        with self._errors():
            self._checkpointer.save(
                self._place / partial.relative_to(self._workdir.absolute()),
                args=ocp.args.Composite(**items, record=ocp.args.JsonSave(record.to_json())),
            )
        self._saving = self._background.submit(self._finish, partial, folder, first_leaf(trees["state"]), obsolete)

    def _finish(self, partial: pathlib.Path, folder: pathlib.Path, leaf: Any, obsolete: Sequence[pathlib.Path]) -> None:
        """Waits until everything is written, reads a leaf of it, adds the digests, and gives the folder its name."""
        self._checkpointer.wait_until_finished()  # by all processes
        if not hosts.first():
            return
        read_part(partial / "state", leaf)  # whole files are not all it takes: orbax has to find its way through them
        with (partial / DIGESTS).open("w") as file:
            json.dump(compute_digests(partial, sync=True), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(folder)
        for old in obsolete:
            shutil.rmtree(old)

    def _wait(self) -> None:
        """Waits until what was saved is on the disk."""
        saving, self._saving = self._saving, None
        if saving:
            with self._errors():
                saving.result()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Says what it means for the run that a file cannot be written."""
        try:
            yield
        except (OSError, ValueError) as error:  # the latter is tensorstore's
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{self._workdir}: a checkpoint could not be saved: {reason}. Those saved before are as they were; "
                "with that mended, the same command continues from them."
            ) from error

    def _check_space(self, tree: Any) -> None:
        """Looks whether the disk has room: what orbax starts and cannot finish ends in pages of messages."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) + 2**20  # for everything beside arrays
        free = shutil.disk_usage(self._workdir).free
        if free < needed:
            raise UserError(
                f"{self._workdir}: a checkpoint needs {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB of the disk are "
                "left. Those saved before are as they were; with more, the same command continues from them."
            )


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    """Whether to log a record. Orbax logs errors with their tracebacks before it raises them, and we report those."""
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


def _find_start(workdir: pathlib.Path) -> tuple[Stored | None, list[DamagedError]]:
    """The checkpoint that a run continues from, None for a new run, and what is wrong with newer ones.

    Raises:
        UserError: there are checkpoints and none to continue from, or none although the run has been trained.
    """
    metrics = workdir / "metrics.jsonl"
    num_bytes = metrics.stat().st_size if metrics.exists() else 0
    latest, damaged = find_latest(workdir, num_bytes=num_bytes)
    if latest is None and damaged:
        raise UserError(
            "\n".join([f"{workdir} has no checkpoint to go on from", *map(str, damaged)])
            + "\nRestore one from a copy, or start again with another --workdir."
        )
    if latest is None and (num_bytes or saved_folders(workdir / "snapshots")):
        raise UserError(
            f"{workdir} has metrics or snapshots of a run and no checkpoint. Restore "
            f"{workdir / 'checkpoints'}, or start again with another --workdir."
        )
    return latest, damaged


def check_run(workdir: pathlib.Path) -> None:
    """Checks that a run can continue in this workdir, as far as its files say; reads no arrays.

    Raises:
        UserError: the newest checkpoint has another format, there is no config.json, no checkpoint to continue from, or
            the metrics are damaged.
    """
    if not hosts.first():
        return
    folders = saved_folders(workdir / "checkpoints")
    for folder in folders[-1:]:
        with contextlib.suppress(DamagedError):  # which is for another time
            Stored.read(folder, check_files=False)
    if folders and not (workdir / "config.json").exists():
        raise UserError(
            f"{workdir} has checkpoints and no config.json, which says of what. Restore it, or use another --workdir."
        )
    latest, _ = _find_start(workdir)
    if latest:
        read_metrics(workdir / "metrics.jsonl", latest.record.writer.lengths.get("metrics.jsonl", 0))


def find_origin(workdir: pathlib.Path, config: Mapping[str, Any], like: CustomTrainState) -> Origin | None:
    """What a new run starts from, or None for random parameters.

    Args:
        workdir: of the new run; one that has checkpoints continues from these.
        config: with `init_from`, `init_weights` and `init_skip`.
        like: the state that it is for, of which only shapes and dtypes count.

    Raises:
        UserError: there is no such thing, or it does not fit the model.
    """

    def decide() -> Origin | None:
        if not config["init_from"] or saved_folders(workdir / "checkpoints"):
            return None
        return locate(config["init_from"], config["init_weights"], config["init_skip"], like)

    return hosts.decided(decide)
