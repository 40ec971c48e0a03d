"""Checkpoints and snapshots of a run. The only file that knows orbax."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PreservationPolicy

from errors import UserError
from train_state import Average, CustomTrainState

FORMAT = 3  # of what is saved; another one is refused
WEIGHTS = ("params", "batch_stats", "ema_params", "ema_batch_stats")  # the fields of the state that a snapshot holds


@dataclasses.dataclass(frozen=True)
class Record:
    """What a checkpoint holds beside arrays, and what continuing a run exactly needs.

    Attributes:
        step: steps done.
        best: the best evaluation so far as {"step", "curve", "metric", "value"}; none before the first.
        writer: what `MetricWriter.record` returned.
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
    """The checkpoints below `WORKDIR/checkpoints` and the snapshots below `WORKDIR/snapshots`.

    A checkpoint is what a run continues from. A snapshot holds the weights only, raw and averaged, and is kept for
    good. Both are written in the background.

    A context manager: leaving it, by an exception too, waits until what was saved is on disk.
    """

    def __init__(self, workdir: str | pathlib.Path, keep: int = 1) -> None:
        """Opens the folder, or creates it.

        Args:
            workdir: of the run.
            keep: number of latest checkpoints to keep, beside the best one.
        """
        self._directory = pathlib.Path(workdir).absolute() / "checkpoints"
        self._policy = _LatestAndBest(keep)
        options = ocp.CheckpointManagerOptions(preservation_policy=self._policy)
        self._manager = ocp.CheckpointManager(self._directory, options=options, item_names=("state", "sums", "record"))

    @functools.cached_property
    def _snapshots(self) -> ocp.CheckpointManager:
        """Made when there is one to save: most runs have none."""
        return ocp.CheckpointManager(self._directory.with_name("snapshots"), item_names=("state", "record"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._manager.close()
        if "_snapshots" in vars(self):
            self._snapshots.close()

    def save(self, state: CustomTrainState, sums: Any, record: Record) -> None:
        """Saves state and metric sums. Returns once they are copied, so that they may be donated to the next step."""
        self._policy.best_step = record.best["step"] if record.best else None
        if "_snapshots" in vars(self):
            # A run that continues from here will not come by the earlier snapshots again.
            self._snapshots.wait_until_finished()
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            sums=ocp.args.StandardSave(sums),
            record=ocp.args.JsonSave(_complete(record, state, state)),
        )
        self._manager.save(record.step, args=args)

    def save_snapshot(self, state: CustomTrainState, step: int) -> None:
        """Saves the weights, raw and averaged, as they are after `step` steps."""
        weights = {field: getattr(state, field) for field in WEIGHTS}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(weights),
            record=ocp.args.JsonSave(_complete(Record(step), state, weights)),
        )
        self._snapshots.save(step, args=args)

    def discard_snapshots(self, after: int) -> None:
        """Removes the snapshots of steps after `after`, which a run that continues from there takes again."""
        if self._directory.with_name("snapshots").is_dir():
            for step in self._snapshots.all_steps():
                if step > after:
                    self._snapshots.delete(step)

    def read_record(self, step: int | None = None) -> Record | None:
        """The record of the checkpoint at `step`, by default the latest one; none if there is no checkpoint.

        Raises:
            UserError: it was made by another version of this project.
        """
        step = self._manager.latest_step() if step is None else step
        if step is None:
            return None
        self._manager.wait_until_finished()
        return _read_record(self._directory / str(step))

    def restore_state(self, state: CustomTrainState, record: Record) -> CustomTrainState:
        """The state in the checkpoint that `record` belongs to.

        Args:
            state: one whose shapes, dtypes, shardings and averages the result has. Averages that the checkpoint lacks
                start from the restored parameters, those that `state` lacks are dropped, others go on from what they
                were.
            record: of the checkpoint.

        Raises:
            UserError: the checkpoint is of another model or optimizer.
        """
        sharding = state.step.sharding
        # A checkpoint can only be read as what it is, so the averages are exchanged before and after.
        like = jax.eval_shape(lambda s: s.with_averages(record.averages), state)
        if difference := _difference(record.leaves, _describe_leaves(like)):
            raise UserError(
                f"{self._directory / str(record.step)} does not fit the config's model or optimizer: {difference}. "
                "Repeat the run's own config, or use another --workdir."
            )
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        restored = self._manager.restore(record.step, args=args)["state"]
        saved = {average.name: average for average in record.averages}
        averages = (
            average.continuing(saved[average.name], record.counts[average.name]) if average.name in saved else average
            for average in state.averages
        )
        return restored.with_averages(tuple(averages))

    def restore_sums(self, sums: Any, record: Record) -> Any:
        """The metric sums in the checkpoint that `record` belongs to, with shapes and shardings like `sums`."""
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), sums)
        args = ocp.args.Composite(sums=ocp.args.StandardRestore(abstract))
        return self._manager.restore(record.step, args=args)["sums"]


def find_checkpoint(workdir: str | pathlib.Path, which: str) -> Record:
    """The record of a run's "latest" or "best" checkpoint.

    Raises:
        UserError: there is none.
    """
    record = None
    if (pathlib.Path(workdir) / "checkpoints").is_dir():  # which is made otherwise
        with Checkpoints(workdir) as checkpoints:
            record = checkpoints.read_record()
            if record is not None and which == "best":
                record = checkpoints.read_record(record.best["step"]) if record.best else None
    if record is None:
        what = "checkpoint" if which == "latest" else "best checkpoint"
        raise UserError(f"{workdir} holds no {what}; --mode=train makes one")
    return record


@dataclasses.dataclass(frozen=True)
class Stored:
    """A checkpoint or snapshot on disk."""

    folder: pathlib.Path
    record: Record

    @property
    def is_snapshot(self) -> bool:
        """Whether it is a snapshot."""
        return self.folder.parent.name == "snapshots"

    @property
    def curves(self) -> tuple[str, ...]:
        """The names of the weights that it holds."""
        return "raw", *(average.name for average in self.record.averages)


def list_stored(workdir: str | pathlib.Path) -> list[Stored]:
    """All checkpoints and snapshots of a run, in the order of their steps; of two at the same step, the snapshot."""
    stored: dict[int, Stored] = {}
    for name in ("checkpoints", "snapshots"):
        folder = pathlib.Path(workdir).absolute() / name
        # Without a manager, which would clear up after a run that is still writing.
        steps = ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []
        stored |= {step: Stored(folder / str(step), _read_record(folder / str(step))) for step in steps}
    return [stored[step] for step in sorted(stored)]


def find_weights(workdir: str, name: str) -> Stored:
    """The latest checkpoint or snapshot of another run, for `config.init_from`.

    Raises:
        UserError: there is none, or it does not have the average.
    """
    found = list_stored(workdir)
    if not found:
        raise UserError(
            f"init_from = {workdir!r} holds no checkpoint; it must be the --workdir of a run that has saved one"
        )
    if name not in found[-1].curves:
        raise UserError(f"init_weights = {name!r}: {workdir} has {', '.join(found[-1].curves)}")
    return found[-1]


def read_weights(stored: Stored, name: str, state: CustomTrainState) -> dict[str, Any]:
    """Reads weights, whatever optimizer and averages the run has that stored them.

    Args:
        stored: which checkpoint or snapshot.
        name: "raw", or the name of an average that it has.
        state: one whose parameters and batch statistics have the shapes and shardings to read them with.

    Returns:
        `params` and `batch_stats`.

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
    saved = {path: leaf for path, leaf in stored.record.leaves.items() if path.startswith(roots)}
    if difference := _difference(saved, _describe_leaves(tree)):
        raise UserError(f"{stored.folder} does not fit the config's model: {difference}")
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    args = ocp.args.PyTreeRestore(
        abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract), partial_restore=True
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(stored.folder / "state", args=args)
    return restored if name == "raw" else {field: restored[f"ema_{field}"][name] for field in fields}


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


def _read_record(folder: pathlib.Path) -> Record:
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        values = checkpointer.restore(folder / "record")
    if values.get("format") != FORMAT:
        raise UserError(
            f"{folder} has format {values.get('format')}; this version reads {FORMAT}. "
            "Use the version that made it, or another workdir."
        )
    return Record.from_json(values)


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
