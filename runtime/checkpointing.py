"""Checkpoints and snapshots of a run. The only file that knows orbax.

Each is a folder that appears in one move once it is complete, with the digest of every file in it. So a process that is
killed leaves it whole or not at all, and what befell it since is noticed before anything is restored.
"""

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PreservationPolicy
from orbax.checkpoint.path import atomicity

from runtime.errors import UserError
from train_state import Average, CustomTrainState

FORMAT = 4  # of what is saved; another one is refused
DIGESTS = "sha256.json"  # in every checkpoint and snapshot: the digest of each other file
WEIGHTS = ("params", "batch_stats", "ema_params", "ema_batch_stats")  # the fields of the state that a snapshot holds


@dataclasses.dataclass(frozen=True)
class Record:
    """What a checkpoint holds beside arrays, and what continuing a run exactly needs.

    Attributes:
        step: steps done.
        best: the best evaluation so far as {"step", "curve", "metric", "value"}; none before the first.
        writer: what `MetricWriter.record` returned; "lengths" has the bytes of `metrics.jsonl` by then, without which
            the run cannot go on from here.
        averages: those that the state has.
        updates: steps done that were not rejected.
        counts: updates of each average since it was created, by name.
        leaves: dtype and shape of every leaf of the state, by its path.
        format: `FORMAT` when it was made.
    """

    step: int = 0
    best: dict[str, Any] | None = None
    writer: dict[str, Any] = dataclasses.field(default_factory=dict)
    averages: tuple[Average, ...] = ()
    updates: int = 0
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    leaves: dict[str, str] = dataclasses.field(default_factory=dict)
    format: int = FORMAT

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        averages = tuple(map(Average.from_dict, values["averages"]))
        return cls(**values | {"averages": averages})

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self) | {"averages": [average.to_dict() for average in self.averages]}


# Orbax logs errors with their tracebacks before it raises them, and what is raised is reported in its place.
logging.getLogger("absl").addFilter(lambda record: record.levelno < logging.ERROR or "orbax" not in record.pathname)


class DamagedError(UserError):
    """A checkpoint or snapshot is not what was saved."""

    def __init__(self, folder: pathlib.Path, found: str) -> None:
        super().__init__(f"{folder} is damaged: {found}")
        self.folder = folder


class _Digested(atomicity.AtomicRenameTemporaryPath):
    """How orbax makes a folder appear, here with the digests of its files."""

    async def finalize(self) -> None:
        if self._checkpoint_metadata_store:
            await asyncio.to_thread(self._checkpoint_metadata_store.wait_until_finished)
        folder, final = pathlib.Path(self.get()), pathlib.Path(self.get_final())
        if final.name.isdigit():  # the checkpoint itself, not one of its parts
            digests = await asyncio.to_thread(_digests, folder, sync=True)
            with (folder / DIGESTS).open("w") as file:
                json.dump(digests, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
        folder.rename(final)


def _digests(folder: pathlib.Path, sync: bool = False) -> dict[str, str]:
    """The SHA-256 of each file but `DIGESTS`, by its path. With `sync`, they are on the disk, not just on their way."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / DIGESTS:
            with path.open("rb") as file:
                digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
                if sync:
                    os.fsync(file.fileno())
    return digests


@dataclasses.dataclass(frozen=True)
class Stored:
    """A checkpoint or snapshot on disk, of which every byte has been compared with what was saved."""

    folder: pathlib.Path
    record: Record

    @classmethod
    def read(cls, folder: pathlib.Path) -> Self:
        """Opens the checkpoint or snapshot in this folder.

        Raises:
            DamagedError: a file is missing or changed.
            UserError: it was made by another version of this project.
        """
        record, stored = _read_record(folder)
        try:
            found = _digests(folder)
        except OSError as error:
            raise DamagedError(folder, f"it cannot be read ({error})") from error
        differing = sorted(name for name, digest in stored.items() if found.get(name) != digest)
        if differing:
            state = f"not what {DIGESTS} says" if differing[0] in found else f"missing, though {DIGESTS} lists it"
            raise DamagedError(folder, f"{differing[0]} is {state}")
        return cls(folder, record)

    @property
    def is_snapshot(self) -> bool:
        """Whether it is a snapshot."""
        return self.folder.parent.name == "snapshots"

    @property
    def curves(self) -> tuple[str, ...]:
        """The names of the weights that it holds."""
        return "raw", *(average.name for average in self.record.averages)

    def check_fits(self, state: CustomTrainState) -> None:
        """Checks that this checkpoint can be restored onto a state, of which only shapes and dtypes count.

        Raises:
            UserError: it is of another model or optimizer.
        """
        like = jax.eval_shape(lambda s: s.with_averages(self.record.averages), state)
        if difference := _difference(self.record.leaves, _describe_leaves(like)):
            raise UserError(
                f"{self.folder} does not fit the config's model or optimizer: {difference}. "
                "Repeat the run's own config, or use another --workdir."
            )

    def restore_state(self, state: CustomTrainState) -> CustomTrainState:
        """The state in this checkpoint.

        Args:
            state: one that it fits (see `check_fits`), whose shardings and averages the result has. Averages that the
                checkpoint lacks start from the restored parameters, those that `state` lacks are dropped, others go on
                from what they were.
        """
        self.check_fits(state)
        # A checkpoint can only be read as what it is, so the averages are exchanged before and after.
        like = jax.eval_shape(lambda s: s.with_averages(self.record.averages), state)
        sharding = state.step.sharding
        restored = self._restore("state", jax.tree.map(lambda x: _abstract(x, sharding), like))
        saved = {average.name: average for average in self.record.averages}
        averages = (
            average.continuing(saved[average.name], self.record.counts[average.name])
            if average.name in saved
            else average
            for average in state.averages
        )
        return restored.with_averages(tuple(averages))

    def restore_sums(self, sums: Any) -> Any:
        """The metric sums in this checkpoint, with shapes and shardings like `sums`.

        Raises:
            UserError: they are of other metrics.
        """
        try:
            return self._restore("sums", jax.tree.map(lambda x: _abstract(x, x.sharding), sums))
        except ValueError as error:
            raise UserError(
                f"{self.folder} holds sums of other metrics than {', '.join(sums)}, which the loss function gives: "
                "it has changed since. Continue with the one of before, or use another --workdir."
            ) from error

    def _restore(self, item: str, abstract: Any) -> Any:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(self.folder / item, abstract)

    def weights_like(self, name: str, state: CustomTrainState) -> dict[str, Any]:
        """The part of the saved state that holds these weights, with the leaves of a state that they are for.

        Raises:
            UserError: they are of another model.
        """
        fields = {"params": state.params, "batch_stats": state.batch_stats}
        if name == "raw":
            tree, roots = fields, tuple(f"{field}/" for field in fields)
        else:
            tree = {f"ema_{field}": {name: values} for field, values in fields.items()}
            roots = tuple(f"ema_{field}/{name}/" for field in fields)
        # What is read is compared first: orbax would leave what it does not find as it happens to be.
        saved = {path: leaf for path, leaf in self.record.leaves.items() if path.startswith(roots)}
        if difference := _difference(saved, _describe_leaves(tree)):
            raise UserError(f"{self.folder} does not fit the config's model: {difference}")
        return tree

    def read_weights(self, name: str, state: CustomTrainState) -> dict[str, Any]:
        """Reads weights, whatever optimizer and averages the run has that stored them.

        Args:
            name: "raw", or the name of an average that it has.
            state: one whose parameters and batch statistics have the shapes and shardings to read them with.

        Returns:
            `params` and `batch_stats`.

        Raises:
            UserError: they are of another model.
        """
        abstract = jax.tree.map(lambda x: _abstract(x, x.sharding), self.weights_like(name, state))
        args = ocp.args.PyTreeRestore(
            abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract), partial_restore=True
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(self.folder / "state", args=args)
        if name == "raw":
            return restored
        return {field: restored[f"ema_{field}"][name] for field in ("params", "batch_stats")}


class _LatestAndBest(PreservationPolicy):
    """Keeps the latest few checkpoints and, by a rule of its own, the best one.

    Orbax's `best_fn` together with a limit would keep the best ones only, so that continuing a run would roll it back.
    """

    def __init__(self, num_latest: int) -> None:
        self.num_latest = num_latest
        self.best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        del context
        latest = {checkpoint.step for checkpoint in checkpoints[-self.num_latest :]}
        return [checkpoint.step in latest | {self.best_step} for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints below `WORKDIR/checkpoints` and the snapshots below `WORKDIR/snapshots` of a run in progress.

    A checkpoint is what a run continues from. A snapshot holds the weights only, raw and averaged, and is kept for
    good. Both are written in the background.

    A context manager: leaving it, by an exception too, waits until what was saved is on disk.

    Attributes:
        latest: the newest checkpoint from which the run can go on; none if nothing has been trained yet.
    """

    def __init__(self, workdir: str | pathlib.Path, keep: int = 1) -> None:
        """Finds `latest`. Changes nothing yet.

        Args:
            workdir: of the run, which nobody else is using.
            keep: number of latest checkpoints to keep, beside the best one.

        Raises:
            UserError: there are checkpoints and none that the run can go on from, or none although it has been trained.
        """
        self._workdir = pathlib.Path(workdir).absolute()
        self.latest, self._damaged = _find_latest(self._workdir)
        self._policy = _LatestAndBest(keep)

    # Made when there is something to save; they would look at what is still to be set aside.

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(preservation_policy=self._policy, temporary_path_class=_Digested)
        return ocp.CheckpointManager(
            self._workdir / "checkpoints", options=options, item_names=("state", "sums", "record")
        )

    @functools.cached_property
    def _snapshots(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(temporary_path_class=_Digested)
        return ocp.CheckpointManager(self._workdir / "snapshots", options=options, item_names=("state", "record"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with self._errors():
            for name in ("_manager", "_snapshots"):
                if name in vars(self):
                    getattr(self, name).close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Orbax's errors about files, of which those in the background are raised by the next call."""
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

    def save(self, state: CustomTrainState, sums: Any, record: Record) -> None:
        """Saves state and metric sums. Returns once they are copied, so that they may be donated to the next step.

        Raises:
            UserError: this or the previous checkpoint cannot be written.
        """
        self._policy.best_step = record.best["step"] if record.best else None
        self._check_space((state, sums))
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            sums=ocp.args.StandardSave(sums),
            record=ocp.args.JsonSave(_complete(record, state, state)),
        )
        with self._errors():
            if "_snapshots" in vars(self):
                # A run that continues from here will not come by the earlier snapshots again.
                self._snapshots.wait_until_finished()
            if not self._manager.save(record.step, args=args):
                raise ValueError(f"orbax refuses step {record.step}")
            if record.step == 0:
                # On disk before anything else is written: what has metrics and no checkpoint has lost something.
                self._manager.wait_until_finished()

    def save_snapshot(self, state: CustomTrainState, step: int) -> None:
        """Saves the weights, raw and averaged, as they are after `step` steps."""
        weights = {field: getattr(state, field) for field in WEIGHTS}
        self._check_space(weights)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(weights),
            record=ocp.args.JsonSave(_complete(Record(step), state, weights)),
        )
        with self._errors():
            self._snapshots.save(step, args=args)

    def discard_later(self) -> None:
        """Clears away what came after `latest`, and what the run that continues from there makes again.

        Damaged checkpoints are moved below `WORKDIR/damaged`; unfinished ones and later snapshots are removed.
        """
        for error in self._damaged:
            aside = self._workdir / "damaged" / f"{error.folder.name}-{time.time_ns()}"
            aside.parent.mkdir(exist_ok=True)
            error.folder.rename(aside)
            print(f"{error}. It is now {aside}.", flush=True)
        for unfinished in self._workdir.glob(f"*/*{atomicity.TMP_DIR_SUFFIX}*/"):
            print(f"{unfinished} was not finished and is removed", flush=True)
            shutil.rmtree(unfinished)
        for folder in _folders(self._workdir / "snapshots"):
            if int(folder.name) > (self.latest.record.step if self.latest else 0):
                shutil.rmtree(folder)


def _folders(directory: pathlib.Path) -> list[pathlib.Path]:
    """What was saved completely below this folder, in the order of the steps."""
    found = [path for path in directory.glob("*") if re.fullmatch("[0-9]+", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def _newest(directory: pathlib.Path, check: Callable[[Stored], None]) -> tuple[Stored | None, list[DamagedError]]:
    """The newest checkpoint that can be used, and what is wrong with newer ones."""
    damaged: list[DamagedError] = []
    for folder in reversed(_folders(directory)):
        try:
            stored = Stored.read(folder)
            check(stored)
            return stored, damaged
        except DamagedError as error:
            damaged.append(error)
    return None, damaged


def _find_latest(workdir: pathlib.Path) -> tuple[Stored | None, list[DamagedError]]:
    """The newest checkpoint from which the run can go on, and what is wrong with newer ones."""
    metrics = workdir / "metrics.jsonl"
    num_bytes = metrics.stat().st_size if metrics.exists() else 0

    def check(stored: Stored) -> None:
        needed = stored.record.writer.get("lengths", {}).get(metrics.name, 0)
        if num_bytes < needed:
            raise DamagedError(
                stored.folder, f"it goes on after {needed} bytes of {metrics.name}, which has {num_bytes}"
            )

    latest, damaged = _newest(workdir / "checkpoints", check)
    if latest is None and damaged:
        raise UserError(
            "\n".join([f"{workdir} has no checkpoint to go on from", *map(str, damaged)])
            + "\nRestore one from a copy, "
            "or start again with another --workdir."
        )
    if latest is None and (num_bytes or _folders(workdir / "snapshots")):
        raise UserError(
            f"{workdir} has metrics or snapshots of a run and no checkpoint. Restore {workdir / 'checkpoints'}, or "
            "start again with another --workdir."
        )
    return latest, damaged


def has_checkpoints(workdir: pathlib.Path) -> bool:
    """Whether anything has been saved there, damaged since or not."""
    return bool(_folders(workdir / "checkpoints"))


def check_run(workdir: pathlib.Path) -> None:
    """Checks, without going into files, that a workdir's newest checkpoint is of this version and has its config.

    Raises:
        UserError: it is not, or has not.
    """
    folders = _folders(workdir / "checkpoints")
    for folder in folders[-1:]:
        with contextlib.suppress(DamagedError):  # which is for another time
            _read_record(folder)
    if folders and not (workdir / "config.json").exists():
        raise UserError(
            f"{workdir} has checkpoints and no config.json, which says of what. Restore it, or use another --workdir."
        )


def find_checkpoint(workdir: str | pathlib.Path, which: str) -> Stored:
    """A run's "latest" or "best" checkpoint. Writes nothing.

    Raises:
        UserError: there is none that can be used.
    """
    directory = pathlib.Path(workdir).absolute() / "checkpoints"
    latest, damaged = _newest(directory, lambda _: None)
    if latest is None:
        raise UserError("\n".join([f"{workdir} holds no checkpoint; --mode=train makes one", *map(str, damaged)]))
    for error in damaged:
        print(f"Note: {error}; looking at the one before it", flush=True)
    if which == "latest":
        return latest
    if latest.record.best is None:
        raise UserError(f"{workdir} holds no best checkpoint; the first evaluation makes one")
    return Stored.read(directory / str(latest.record.best["step"]))


def list_stored(workdir: str | pathlib.Path, kinds: Sequence[str] = ("checkpoints", "snapshots")) -> list[Stored]:
    """All checkpoints and snapshots of a run, in the order of their steps; of two at the same step, the snapshot.

    Without that of step 0, and without damaged ones, which are named.

    Args:
        workdir: of the run.
        kinds: "checkpoints", "snapshots" or both.
    """
    stored: dict[int, Stored] = {}
    for name in kinds:
        for folder in _folders(pathlib.Path(workdir).absolute() / name):
            try:
                if step := int(folder.name):
                    stored[step] = Stored.read(folder)
            except DamagedError as error:
                print(f"Note: {error}; it is left out", flush=True)
    return [stored[step] for step in sorted(stored)]


def find_weights(workdir: str, name: str, state: CustomTrainState) -> Stored:
    """The latest checkpoint or snapshot of another run, for `config.init_from`.

    Args:
        workdir: of that run.
        name: of the weights that are wanted of it: "raw", or an average's.
        state: that they are for, of which only shapes and dtypes count.

    Raises:
        UserError: there is none, it does not have the average, or it is of another model.
    """
    found = list_stored(pathlib.Path(workdir).expanduser())
    if not found:
        raise UserError(
            f"init_from = {workdir!r} holds no checkpoint; it must be the --workdir of a run that has saved one"
        )
    if name not in found[-1].curves:
        raise UserError(f"init_weights = {name!r}: {workdir} has {', '.join(found[-1].curves)}")
    found[-1].weights_like(name, state)
    return found[-1]


def _complete(record: Record, state: CustomTrainState, saved: Any) -> dict[str, Any]:
    """The record as JSON, with what follows from the state and from the part of it that is saved."""
    step, rejected, counts = jax.device_get((state.step, state.rejected["total"], state.ema_count))
    return dataclasses.replace(
        record,
        averages=state.averages,
        updates=int(step) - int(rejected),
        counts={name: int(count) for name, count in counts.items()},
        leaves=_describe_leaves(saved),
    ).to_json()


def _read_record(folder: pathlib.Path) -> tuple[Record, dict[str, str]]:
    """The record in this folder, and the digests of all files. See `Stored.read`."""
    name = "record/metadata"  # as orbax calls it
    digests: dict[str, str] = {}
    try:
        content = (folder / name).read_bytes()
        if (folder / DIGESTS).exists():  # earlier formats had none
            digests = json.loads((folder / DIGESTS).read_text())
            if digests[name] != hashlib.sha256(content).hexdigest():
                raise DamagedError(folder, f"{name} is not what {DIGESTS} says")
        values = json.loads(content)
        if values["format"] != FORMAT:
            raise UserError(
                f"{folder} has format {values['format']}; this version reads {FORMAT}. Use the version that made it, "
                "or another workdir."
            )
        if not digests:
            raise DamagedError(folder, f"{DIGESTS} is missing")
        if str(values["step"]) != folder.name:
            raise DamagedError(folder, f"it is of step {values['step']}")
        return Record.from_json(values), digests
    except FileNotFoundError as error:
        raise DamagedError(folder, f"{name} is missing") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(folder, f"{name} or {DIGESTS} cannot be read ({type(error).__name__}: {error})") from error


def _abstract(x: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _describe_leaves(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def _difference(saved: dict[str, str], wanted: dict[str, str]) -> str:
    """The first leaf that a checkpoint has otherwise than is wanted, in words; empty if there is none."""
    differing = sorted(name for name in saved | wanted if saved.get(name) != wanted.get(name))
    name = differing[0] if differing else ""
    return f"it has {saved.get(name, 'no')} {name}, the config {wanted.get(name, 'none')}" if differing else ""
