"""Checkpoints of a run. The only file that knows orbax."""

import dataclasses
import pathlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PreservationPolicy

import averaging
from errors import UserError
from train_state import CustomTrainState

FORMAT = 2  # of what is saved; another one is refused


@dataclasses.dataclass(frozen=True)
class Record:
    """What a checkpoint holds beside arrays, and what continuing a run exactly needs.

    Attributes:
        step: steps done.
        best: the best evaluation so far as {"step", "curve", "metric", "value"}; none before the first.
        writer: what `MetricWriter.record` returned.
        averages: names of the averages that the state has.
        leaves: dtype and shape of every leaf of the state, by its path.
        format: `FORMAT` when it was made.
    """

    step: int = 0
    best: dict[str, Any] | None = None
    writer: dict[str, Any] = dataclasses.field(default_factory=dict)
    averages: tuple[str, ...] = ()
    leaves: dict[str, str] = dataclasses.field(default_factory=dict)
    format: int = FORMAT


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
    """The checkpoints below `WORKDIR/checkpoints`, written in the background.

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._manager.close()

    def save(self, state: CustomTrainState, sums: Any, record: Record) -> None:
        """Saves state and metric sums. Returns once they are copied, so that they may be donated to the next step."""
        self._policy.best_step = record.best["step"] if record.best else None
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            sums=ocp.args.StandardSave(sums),
            record=ocp.args.JsonSave(dataclasses.asdict(record) | {"leaves": _describe_leaves(state)}),
        )
        self._manager.save(record.step, args=args)

    def read_record(self, step: int | None = None) -> Record | None:
        """The record of the checkpoint at `step`, by default the latest one; none if there is no checkpoint.

        Raises:
            UserError: it was made by another version of this project.
        """
        step = self._manager.latest_step() if step is None else step
        if step is None:
            return None
        values = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
        if values.get("format") != FORMAT:
            raise UserError(
                f"{self._directory / str(step)} has format {values.get('format')}; this version reads {FORMAT}. "
                "Use the version that made it, or another workdir."
            )
        return Record(**values | {"averages": tuple(values["averages"])})

    def restore_state(self, state: CustomTrainState, record: Record) -> CustomTrainState:
        """The state in the checkpoint that `record` belongs to.

        Args:
            state: one whose shapes, dtypes, shardings and averages the result has. Averages that the checkpoint lacks
                start from the restored parameters, those that `state` lacks are dropped.
            record: of the checkpoint.

        Raises:
            UserError: the checkpoint is of another model or optimizer.
        """
        sharding = state.step.sharding
        # A checkpoint can only be read as what it is, so the averages are exchanged before and after. Which schedules
        # they have does not matter for that.
        saved = tuple(averaging.Average(name, kind="", arguments=()) for name in record.averages)
        like = jax.eval_shape(lambda s: s.with_averages(saved), state)
        if difference := _difference(record.leaves, _describe_leaves(like)):
            raise UserError(
                f"{self._directory / str(record.step)} does not fit the config's model or optimizer: {difference}. "
                "Repeat the run's own config, or use another --workdir."
            )
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        restored = self._manager.restore(record.step, args=args)["state"]
        return restored.with_averages(state.averages)

    def restore_sums(self, sums: Any, record: Record) -> Any:
        """The metric sums in the checkpoint that `record` belongs to, with shapes and shardings like `sums`."""
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), sums)
        args = ocp.args.Composite(sums=ocp.args.StandardRestore(abstract))
        return self._manager.restore(record.step, args=args)["sums"]


def read_weights(workdir: str | pathlib.Path, name: str, state: CustomTrainState) -> tuple[int, dict[str, Any]]:
    """The weights in the latest checkpoint of a run, whatever optimizer and averages that run has.

    Args:
        workdir: of the run.
        name: "raw", or the name of an average.
        state: one whose parameters and batch statistics have the shapes and shardings to read them with.

    Returns:
        The step of that checkpoint; `params` and `batch_stats`.

    Raises:
        UserError: there is no such run or average, or it is of another model.
    """
    found, record = f"init_from = {str(workdir)!r}", None
    if (pathlib.Path(workdir) / "checkpoints").is_dir():  # which is made otherwise
        with Checkpoints(workdir) as checkpoints:
            record = checkpoints.read_record()
    if record is None:
        raise UserError(f"{found} holds no checkpoint; it must be the --workdir of a run that has saved one")
    curves = ("raw", *record.averages)
    if name not in curves:
        raise UserError(f"init_weights = {name!r}: {workdir} has {', '.join(curves)}")

    fields = {"params": state.params, "batch_stats": state.batch_stats}
    if name == "raw":
        tree, roots = fields, tuple(f"{field}/" for field in fields)
    else:
        tree = {f"ema_{field}": {name: values} for field, values in fields.items()}
        roots = tuple(f"ema_{field}/{name}/" for field in fields)
    # What is read is compared first: orbax would leave what it does not find as it happens to be.
    saved = {path: leaf for path, leaf in record.leaves.items() if path.startswith(roots)}
    if difference := _difference(saved, _describe_leaves(tree)):
        raise UserError(f"{found}, step {record.step}, does not fit the config's model: {difference}")
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    args = ocp.args.PyTreeRestore(
        abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract), partial_restore=True
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        folder = pathlib.Path(workdir).absolute() / "checkpoints" / str(record.step) / "state"
        restored = checkpointer.restore(folder, args=args)
    if name == "raw":
        return record.step, restored
    return record.step, {field: restored[f"ema_{field}"][name] for field in fields}


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
