"""What a new run starts from instead of random parameters: weights of another run, of an export, of other libraries."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from runtime import foreign_names
from runtime.errors import UserError
from runtime.files import local_path
from runtime.progress import say
from runtime.sharding import put
from runtime.stored import FIELDS, Stored, list_stored
from runtime.trees import abstract, laid_out_as, read_part
from train_state import CustomTrainState

FILES = ("weights.safetensors", "model.safetensors")  # in a folder: of tools.export, of Hugging Face
PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl"}
CONVERT = (
    "python -c \"import torch, safetensors.torch as s; x = torch.load('{0}', map_location='cpu', weights_only=True); "
    "s.save_file({{k: v.clone().contiguous() for k, v in x.items()}}, '{1}')\""
)
EXPECTED = f"a safetensors file, or a folder with {' or '.join(FILES)}; see docs/finetune.md"
# What becomes of arrays, here and there; what is of one of the last four is refused.
KINDS = ("loaded", "resized", "left out", "missing", "unused", "of another shape", "of another type")
SHOWN = 6  # names in a list

Leaves = Mapping[str, Any]  # arrays, or their shapes and dtypes, by path, such as "params/Dense_0/kernel"


@dataclasses.dataclass(frozen=True)
class OfRun:
    """Weights in a checkpoint or snapshot: "raw", or those of an average."""

    stored: Stored
    name: str

    def __str__(self) -> str:
        return f"the {self.name} weights of {self.stored.folder}"

    def leaves(self) -> Leaves:
        """Shape and dtype of each."""

        def parse(leaf: str) -> jax.ShapeDtypeStruct:  # such as "float32[3, 4]"
            dtype, _, shape = leaf.partition("[")
            return jax.ShapeDtypeStruct(tuple(json.loads(f"[{shape}")), dtype)

        return {path: parse(self.stored.record.leaves[place]) for path, place in self.stored.places(self.name).items()}

    def read(self, like: Mapping[tuple[str, ...], Any]) -> Leaves:
        """Those whose paths `like` has, with shapes and dtypes as they are stored and its shardings."""
        there, places = self.leaves(), self.stored.places(self.name)
        wanted = {places["/".join(path)]: abstract(there["/".join(path)], x.sharding) for path, x in like.items()}
        tree = read_part(self.stored.folder / "state", traverse_util.unflatten_dict(wanted, sep="/"))
        found = traverse_util.flatten_dict(tree, sep="/")
        return {"/".join(path): found[place] for path, place in zip(like, wanted, strict=True)}


@dataclasses.dataclass(frozen=True)
class OfFile:
    """Weights in a safetensors file, by the names of tools.export or of another library."""

    path: pathlib.Path

    def __str__(self) -> str:
        return str(self.path)

    def leaves(self) -> Leaves:
        """The arrays themselves.

        Raises:
            UserError: the file is damaged, or has names that are not known.
        """
        try:
            arrays = safetensors.numpy.load_file(self.path)
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{self.path} is no safetensors file, or only a part of one ({error})") from error
        ours = all(name.startswith(tuple(f"{field}/" for field in FIELDS)) for name in arrays)
        return arrays if ours else foreign_names.read(arrays, str(self.path))

    def read(self, like: Mapping[tuple[str, ...], Any]) -> Leaves:
        """Those whose paths `like` has."""
        leaves = self.leaves()
        return {path: leaves[path] for path in map("/".join, like)}


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a run starts from, as one process has found it and all read it.

    Attributes:
        source: of the weights.
        loaded: the paths of those that are loaded.
        table: what is loaded and what is not, in words.
    """

    source: OfRun | OfFile
    loaded: frozenset[str]
    table: str

    def begin(self, state: CustomTrainState) -> CustomTrainState:
        """A state with what is loaded in the place of its own; averages start from its weights, the rest is as it was.

        Args:
            state: at step 0, whose shardings and dtypes the result has.
        """
        present = _flatten(state)
        wanted = {path: x for path, x in present.items() if "/".join(path) in self.loaded}
        found = self.source.read(wanted)
        new = {path: _fit(np.asarray(found["/".join(path)]), x) for path, x in wanted.items()}
        new = put(new, {path: x.sharding for path, x in wanted.items()})
        fields = {field: getattr(state, field) for field in FIELDS}
        weights = jax.tree_util.tree_map_with_path(lambda path, x: new.get(_keys(path), x), fields)
        say(self.table)
        return laid_out_as(state, state.with_weights(**weights))


def locate(init_from: str, weights: str, skip: Sequence[str], like: CustomTrainState) -> Origin:
    """What `config.init_from`, `init_weights` and `init_skip` ask for.

    Args:
        init_from: workdir of a run; a folder with a file of weights; or such a file.
        weights: the name of those that are wanted of a run: "raw", or an average's.
        skip: beginnings of paths, in whole names, of what is not to be loaded.
        like: the state that they are for, of which only shapes and dtypes count.

    Raises:
        UserError: there is nothing to start from, or it does not fit the model.
    """
    source = _find_source(init_from, weights)
    there, here = source.leaves(), {"/".join(path): x for path, x in _flatten(like).items()}
    skip = tuple(name.rstrip("/") for name in skip)
    for name in skip:
        if not any(_is_in(path, (name,)) for path in (*here, *there)):
            raise UserError(f"init_skip: {name!r} matches nothing; paths begin with {_roots(here)}")
    if not here.keys() & there.keys():
        raise UserError(
            f"init_from = {init_from!r}: none of its arrays is one of the model's. The paths of {source} begin with "
            f"{_roots(there)}, those of the model with {_roots(here)}"
        )
    kinds: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for path in dict.fromkeys((*here, *there)):
        kinds["left out" if _is_in(path, skip) else _kind(path, here, there)].append(path)
    rows = [_row(kind, paths, here, there) for kind, paths in kinds.items() if paths]
    loaded = frozenset(kinds["loaded"] + kinds["resized"])
    if wrong := [path for kind in KINDS[3:] for path in kinds[kind]]:
        refused = f"init_from = {init_from!r} does not fit the config's model."
        raise UserError("\n".join([refused, *rows, _advice(skip, wrong, loaded)]))
    if not loaded:
        raise UserError(f"init_skip = {skip}: nothing of {source} is left to load")
    return Origin(source, loaded, "\n".join([f"Starting from {source}", *rows]))


def _find_source(init_from: str, weights: str) -> OfRun | OfFile:
    """Where to read from; raises a UserError if there is nothing, or not these weights."""
    path, given = local_path(init_from, "init_from"), f"init_from = {init_from!r}"
    if not path.exists():
        raise UserError(f"{given} does not exist; must be the --workdir of a run, or {EXPECTED}")
    if path.is_dir():
        if found := list_stored(path):
            if weights not in found[-1].names:
                raise UserError(f"init_weights = {weights!r}: {init_from} has {', '.join(found[-1].names)}")
            return OfRun(found[-1], weights)
        pickles = sorted(file for file in path.iterdir() if PICKLES.intersection(file.suffixes))
        files = [path / name for name in FILES if (path / name).is_file()] + pickles
        if not files:
            raise UserError(
                f"{given} holds no checkpoint of a run and no weights; must be the --workdir of a run, or {EXPECTED}"
            )
        path = files[0]
    if PICKLES.intersection(path.suffixes):  # as of x.pth.tar
        safe = path.with_name("model.safetensors")
        raise UserError(
            f"{given}: {path} is a pickle, which may run any code as it is read, and is not read here. Where torch and "
            f"safetensors are installed,\n{CONVERT.format(path, safe)}\nmakes a file that is"
        )
    if path.suffix != ".safetensors":
        raise UserError(f"{given} is no file of weights; must be the --workdir of a run, or {EXPECTED}")
    name = _average_of(path)
    if weights != "raw" and weights != name:
        what = f"the average {name!r}" if name else "one set of weights"
        raise UserError(f"init_weights = {weights!r}: {path} has {what} only; leave it at --config.init_weights=raw")
    return OfFile(path)


def _average_of(path: pathlib.Path) -> str:
    """The name of the average that a file of tools.export holds; empty if it holds none, or nobody says so."""
    try:
        name = json.loads(path.with_name("weights.json").read_text("utf-8"))["average"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return str(name)


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _flatten(state: CustomTrainState) -> dict[tuple[str, ...], Any]:
    """What can be loaded of a state, by path."""
    leaves = jax.tree_util.tree_leaves_with_path({field: getattr(state, field) for field in FIELDS})
    return {_keys(path): leaf for path, leaf in leaves}


def _within(path: str) -> str:
    """A path as the fields of the config know it: without the field of the state."""
    field, _, rest = path.partition("/")
    return rest if field in FIELDS else path


def _is_in(path: str, parts: Iterable[str]) -> bool:
    """Whether a path is, or lies below, one of these."""
    return any(f"{_within(path)}/".startswith(f"{part}/") for part in parts)


def _roots(paths: Iterable[str]) -> str:
    names = [*dict.fromkeys(_within(path).partition("/")[0] for path in paths)]
    return ", ".join([*names[:SHOWN], *(["..."] if names[SHOWN:] else [])])


def _kind(path: str, here: Leaves, there: Leaves) -> str:
    """What becomes of an array, one of `KINDS`."""
    if path not in there or path not in here:
        return "missing" if path in here else "unused"
    if jnp.issubdtype(there[path].dtype, jnp.floating) != jnp.issubdtype(here[path].dtype, jnp.floating):
        return "of another type"
    if there[path].shape == here[path].shape:
        return "loaded"
    sides = [_side(path, leaves[path].shape) for leaves in (here, there)]
    same_features = here[path].shape[-1:] == there[path].shape[-1:]
    return "resized" if all(sides) and same_features else "of another shape"


def _side(path: str, shape: Sequence[int]) -> int:
    """The patches along each side of a square image, if this is the embedding of their positions; otherwise 0."""
    if path.rpartition("/")[2] != "position_embedding" or len(shape) != 3 or shape[0] != 1:
        return 0
    number = max(shape[1] - 1, 0)  # beside the class token
    return math.isqrt(number) if math.isqrt(number) ** 2 == number else 0


def _fit(x: np.ndarray, like: Any) -> np.ndarray:
    """An array in the dtype of another and, if it embeds positions, for as many of them."""
    if x.shape != like.shape:
        token, grid = jnp.split(jnp.asarray(x, jnp.float32), [1], axis=1)
        old, new = (math.isqrt(shape[1] - 1) for shape in (x.shape, like.shape))
        grid = jax.image.resize(grid.reshape(1, old, old, -1), (1, new, new, x.shape[-1]), "bicubic")
        x = np.asarray(jnp.concatenate([token, grid.reshape(1, new * new, -1)], axis=1))
    return x.astype(like.dtype)


def _row(kind: str, paths: Sequence[str], here: Leaves, there: Leaves) -> str:
    """A line of the table: how many arrays, of how many values, and which if they are not loaded as they are."""
    size = sum(math.prod((here if path in here else there)[path].shape) for path in paths)
    line = f"  {kind}: {len(paths)} array{'s' * (len(paths) != 1)}, {size:,} values"
    if kind == "loaded":
        return line

    def describe(path: str) -> str:
        found = [
            f"{x[path].dtype}{[*x[path].shape]} {where}" for x, where in ((there, "there"), (here, "here")) if path in x
        ]
        return f"{_within(path)} ({', '.join(found)})"

    more = f", and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return f"{line}: {', '.join(map(describe, paths[:SHOWN]))}{more}"


def _advice(skip: Sequence[str], wrong: Iterable[str], loaded: Iterable[str]) -> str:
    """Which `init_skip` would let the rest through."""
    needed = sorted({*skip, *(_within(path).rpartition("/")[0] or _within(path) for path in wrong)})
    if all(_is_in(path, needed) for path in loaded):
        return "Without these nothing would be left to load"
    if len(needed) > SHOWN:
        return f"These are in {len(needed)} parts of the model: is it the same model?"
    option = needed[0] if len(needed) == 1 else f'"{tuple(needed)}"'
    return f"What is to stay random is named by --config.init_skip={option}"
