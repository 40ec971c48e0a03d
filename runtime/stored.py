"""Checkpoints and snapshots on disk: what they hold, whether they are sound, and how they are found and read.

Each is a folder with the digest of every file in it, so that damage is noticed before anything is restored.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Self

import jax

import optimizers
from runtime.errors import UserError
from runtime.metric_writing import Written
from runtime.progress import say
from runtime.trees import abstract, describe_leaves, difference, laid_out_as, read_part, read_tree, saved_names
from train_state import Average, CustomTrainState

FORMAT = 6  # of what is saved; another one is refused
DIGESTS = "sha256.json"  # in every checkpoint and snapshot: the digest of each other file
FIELDS = ("params", "batch_stats")  # of the state, which make the variables of a model
RECORD = "record/metadata"  # the file of the record, as orbax calls it


@dataclasses.dataclass(frozen=True)
class Best:
    """The best evaluation so far.

    Attributes:
        step: steps done by then.
        weights: "raw", or the name of an average.
        metric: by which it is the best.
        value: of that metric.
    """

    step: int
    weights: str
    metric: str
    value: float


@dataclasses.dataclass(frozen=True)
class Record:
    """Everything in a checkpoint that is no array.

    Attributes:
        step: steps done.
        best: the best evaluation so far; None before the first.
        writer: how far the logs had got. Without as many bytes of `metrics.jsonl` the run cannot continue from here.
        averages: those that the state has.
        updates: steps done that were not rejected.
        counts: updates of each average since it was created, by name.
        leaves: dtype and shape of every leaf of the state, by its path.
        format: `FORMAT` when it was made.
    """

    step: int = 0
    best: Best | None = None
    writer: Written = dataclasses.field(default_factory=Written)
    averages: tuple[Average, ...] = ()
    updates: int = 0
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    leaves: dict[str, str] = dataclasses.field(default_factory=dict)
    format: int = FORMAT

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        objects = {
            "best": Best(**values["best"]) if values["best"] else None,
            "writer": Written(**values["writer"]),
            "averages": tuple(map(Average.from_dict, values["averages"])),
        }
        return cls(**values | objects)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self) | {"averages": [average.to_dict() for average in self.averages]}


class DamagedError(UserError):
    """A checkpoint or snapshot is not what was saved."""

    def __init__(self, folder: pathlib.Path, found: str) -> None:
        super().__init__(f"{folder} is damaged: {found}")
        self.folder = folder


@dataclasses.dataclass(frozen=True)
class Stored:
    """A checkpoint or snapshot on disk."""

    folder: pathlib.Path
    record: Record

    @classmethod
    def read(cls, folder: pathlib.Path, *, check_files: bool = True) -> Self:
        """Opens the checkpoint or snapshot in this folder.

        Args:
            folder: named after its step.
            check_files: whether to compare every byte with what was saved, or those of the record only.

        Raises:
            DamagedError: a file is missing or changed.
            UserError: it was made by another version of this project.
        """
        record, saved = _read_record(folder)
        try:
            found = compute_digests(folder) if check_files else saved
        except OSError as error:
            raise DamagedError(folder, f"it cannot be read ({error})") from error
        differing = sorted(name for name, digest in saved.items() if found.get(name) != digest)
        if differing:
            state = f"not what {DIGESTS} says" if differing[0] in found else f"missing, though {DIGESTS} lists it"
            raise DamagedError(folder, f"{differing[0]} is {state}")
        return cls(folder, record)

    @property
    def is_snapshot(self) -> bool:
        """Whether it holds weights only."""
        return self.folder.parent.name == "snapshots"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the weights that it holds: "raw", then the averages."""
        return "raw", *(average.name for average in self.record.averages)

    def check_fits(self, like: CustomTrainState) -> None:
        """Checks that this checkpoint can be restored onto a state.

        Args:
            like: the state, of which only shapes and dtypes count.

        Raises:
            UserError: it is of another model or optimizer, or of data with another memory.
        """
        if found := difference(self.record.leaves, describe_leaves(self._as_saved(like))):
            raise UserError(
                f"{self.folder} does not fit the config's model, optimizer or data: {found}. "
                "Repeat the run's own config, or use another --workdir; if it is the run's own, their code has changed "
                "since."
            )

    def restore_state(self, state: CustomTrainState) -> CustomTrainState:
        """The state in this checkpoint.

        Args:
            state: one that it fits (see `check_fits`), whose shardings and averages the result has. An average whose
                definition is not the same in the checkpoint, or that the checkpoint lacks, starts from the restored
                parameters with its count at 0; one that `state` lacks is dropped.
        """
        self.check_fits(state)
        # A checkpoint can only be read as what it is, so the averages are exchanged before and after.
        like, sharding = self._as_saved(state), state.step.sharding
        shardings = jax.tree.map(lambda _: sharding, like)
        for name, average in state.ema_params.items():
            if describe_leaves(average) == describe_leaves(like.ema_params.get(name)):
                shardings.ema_params[name] = jax.tree.map(lambda x: x.sharding, average)
        restored = read_tree(self.folder / "state", jax.tree.map(abstract, like, shardings))
        unchanged = tuple(average for average in self.record.averages if average in state.averages)
        return laid_out_as(state, restored.with_averages(unchanged).with_averages(state.averages))

    def _as_saved(self, state: CustomTrainState) -> CustomTrainState:
        """The shapes of a state with the averages of this checkpoint, which may leave out other parameters."""
        return jax.eval_shape(lambda s: s.with_averages(()).with_averages(self.record.averages), state)

    def restore_sums(self, sums: Any) -> Any:
        """The metric sums in this checkpoint, for the metrics that `sums` has, with its shapes and shardings.

        A metric that the checkpoint lacks keeps what `sums` has; one that `sums` lacks is dropped. Each is said.
        """
        saved, step = saved_names(self.folder / "sums"), self.record.step
        for name in sorted(saved ^ sums.keys()):
            change = "is gone" if name in saved else f"is new: its first mean is over the steps after {step}"
            say(f"The metric {name} of the loss {change}")
        some = next(iter(sums.values()))  # for those that are dropped, of which only the structure counts
        like = jax.tree.map(lambda x: abstract(x, x.sharding), {name: sums.get(name, some) for name in saved})
        restored = read_tree(self.folder / "sums", like)
        return {name: restored.get(name, zero) for name, zero in sums.items()}

    def places(self, name: str) -> dict[str, str]:
        """Where each array of some weights is stored, by its path among them, such as "params/Dense_0/kernel".

        What an average leaves out, for it is frozen, is that of the raw weights.

        Args:
            name: "raw", or the name of an average that it has.
        """
        roots = {f"{field}/": f"{field}/" for field in FIELDS}
        if name != "raw":
            roots = {"params/": "params/"} | {f"ema_{field}/{name}/": f"{field}/" for field in FIELDS}
        return {
            f"{to}{path.removeprefix(root)}": path
            for root, to in roots.items()
            for path in self.record.leaves
            if path.startswith(root)
        }

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
        fields = {field: getattr(state, field) for field in FIELDS}
        # What is read is compared first: orbax would leave what it does not find as it happens to be.
        saved = {path: self.record.leaves[place] for path, place in self.places(name).items()}
        if found := difference(saved, describe_leaves(fields)):
            raise UserError(f"{self.folder} does not fit the config's model: {found}")
        wanted = jax.tree.map(lambda x: abstract(x, x.sharding), fields)
        if name == "raw":
            return read_part(self.folder / "state", wanted)
        frozen = next(average.frozen for average in self.record.averages if average.name == name)
        averaged = wanted | {"params": optimizers.moving(wanted["params"], frozen)}
        tree = {f"ema_{field}": {name: values} for field, values in averaged.items()}
        restored = read_part(self.folder / "state", tree | ({"params": wanted["params"]} if frozen else {}))
        weights = {field: restored[f"ema_{field}"][name] for field in FIELDS}
        if frozen:
            weights["params"] = optimizers.whole(weights["params"], restored["params"])
        return weights


def saved_folders(directory: pathlib.Path) -> list[pathlib.Path]:
    """The checkpoints or snapshots in a directory that were saved completely, in the order of their steps."""
    found = [path for path in directory.absolute().glob("*") if re.fullmatch("[0-9]+", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def find_latest(workdir: pathlib.Path, *, num_bytes: int | None = None) -> tuple[Stored | None, list[DamagedError]]:
    """The newest checkpoint that can be used, and what is wrong with newer ones.

    Args:
        workdir: of the run.
        num_bytes: of its `metrics.jsonl`, of which a run that continues needs as many as the checkpoint knows of; None
            where nothing is to continue.
    """
    damaged: list[DamagedError] = []
    for folder in reversed(saved_folders(workdir / "checkpoints")):
        try:
            stored = Stored.read(folder)
            needed = stored.record.writer.lengths.get("metrics.jsonl", 0)
            if num_bytes is not None and num_bytes < needed:
                raise DamagedError(folder, f"it goes on after {needed} bytes of metrics.jsonl, which has {num_bytes}")
            return stored, damaged
        except DamagedError as error:
            damaged.append(error)
    return None, damaged


def find_checkpoint(workdir: str | pathlib.Path, which: str) -> Stored:
    """A run's "latest" or "best" checkpoint. Writes nothing.

    Raises:
        UserError: there is none that can be used.
    """
    latest, damaged = find_latest(pathlib.Path(workdir))
    if latest is None:
        raise UserError("\n".join([f"{workdir} holds no checkpoint; --mode=train makes one", *map(str, damaged)]))
    for error in damaged:
        say(f"Note: {error}; looking at the one before it")
    if which == "latest":
        return latest
    if latest.record.best is None:
        raise UserError(f"{workdir} holds no best checkpoint; the first evaluation makes one")
    return Stored.read(latest.folder.with_name(str(latest.record.best.step)))


def is_finished(workdir: pathlib.Path, num_steps: int) -> bool:
    """Whether a run has trained for as many steps, and saved and logged it all. Reads no weights."""
    metrics = workdir / "metrics.jsonl"
    try:
        record = Stored.read(saved_folders(workdir / "checkpoints")[-1], check_files=False).record
        return record.step == num_steps and metrics.stat().st_size >= record.writer.lengths[metrics.name]
    except (IndexError, OSError, DamagedError):
        return False


def list_stored(workdir: str | pathlib.Path, kinds: Sequence[str] = ("checkpoints", "snapshots")) -> list[Stored]:
    """All checkpoints and snapshots of a run, in the order of their steps; of two at the same step, the snapshot.

    Without that of step 0, and without damaged ones, which are named.

    Args:
        workdir: of the run.
        kinds: "checkpoints", "snapshots" or both.
    """
    stored: dict[int, Stored] = {}
    for kind in kinds:
        for folder in saved_folders(pathlib.Path(workdir) / kind):
            try:
                if step := int(folder.name):
                    stored[step] = Stored.read(folder)
            except DamagedError as error:
                say(f"Note: {error}; it is left out")
    return [stored[step] for step in sorted(stored)]


def _read_record(folder: pathlib.Path) -> tuple[Record, dict[str, str]]:
    """The record in this folder, and the digests of all its files. See `Stored.read`."""
    digests: dict[str, str] = {}
    try:
        content = (folder / RECORD).read_bytes()
        if (folder / DIGESTS).exists():  # earlier formats had none
            digests = json.loads((folder / DIGESTS).read_text())
            if digests[RECORD] != hashlib.sha256(content).hexdigest():
                raise DamagedError(folder, f"{RECORD} is not what {DIGESTS} says")
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
        raise DamagedError(folder, f"{RECORD} is missing") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(folder, f"{RECORD} or {DIGESTS} cannot be read ({type(error).__name__}: {error})") from error


def compute_digests(folder: pathlib.Path, *, sync: bool = False) -> dict[str, str]:
    """The SHA-256 of each file but `DIGESTS`, by its path. With `sync`, they are on the disk, not just on their way."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / DIGESTS:
            with path.open("rb") as file:
                digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
                if sync:
                    os.fsync(file.fileno())
    return digests
