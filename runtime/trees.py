"""Trees of arrays on disk: what their leaves are, and reading all or some of them."""

import pathlib
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from runtime import hosts
from runtime.files import without_wildcards
from runtime.sharding import put

T = TypeVar("T")


def first_leaf(tree: Any) -> Any:
    """The part of a tree that holds its first leaf, as shape, dtype and sharding: see `read_part`."""
    (path, leaf), *_ = jax.tree_util.tree_leaves_with_path(tree)
    part: Any = abstract(leaf, leaf.sharding)
    for key in reversed(path):
        part = {jax.tree_util.keystr((key,), simple=True): part}
    return part


def saved_names(folder: pathlib.Path) -> set[str]:
    """The keys of a saved dict."""
    with without_wildcards(folder) as place:
        return {*ocp.PyTreeCheckpointHandler().metadata(place).tree}


def _alone() -> ocp.options.MultiprocessingOptions:
    """How this process reads: without waiting for others, which may have nothing to read."""
    return ocp.options.MultiprocessingOptions(primary_host=hosts.index(), active_processes={hosts.index()})


def read_tree(folder: pathlib.Path, like: Any) -> Any:
    """Reads a saved tree, with the leaves of this one as `abstract` gives them."""
    options = _alone()
    with (
        without_wildcards(folder) as place,
        ocp.StandardCheckpointer(multiprocessing_options=options) as checkpointer,
    ):
        return checkpointer.restore(place, like)


def read_part(folder: pathlib.Path, like: Any) -> Any:
    """Reads of a saved tree the leaves that this one has, as `abstract` gives them."""
    args = ocp.args.PyTreeRestore(
        like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), partial_restore=True
    )
    options, handler = _alone(), ocp.PyTreeCheckpointHandler()
    with (
        without_wildcards(folder) as place,
        ocp.Checkpointer(handler, multiprocessing_options=options) as checkpointer,
    ):
        return checkpointer.restore(place, args=args)


def describe_leaves(tree: Any) -> dict[str, str]:
    """Dtype and shape of every leaf, such as "float32[3, 4]", by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def difference(saved: dict[str, str], wanted: dict[str, str]) -> str:
    """The first leaf that a checkpoint has otherwise than is wanted, in words; empty if there is none."""
    differing = sorted(name for name in saved | wanted if saved.get(name) != wanted.get(name))
    name = differing[0] if differing else ""
    return f"it has {saved.get(name, 'no')} {name}, the config {wanted.get(name, 'none')}" if differing else ""


def shapes(tree: Any) -> Any:
    """A tree with dtype and shape, in words, in the place of its arrays."""
    return jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") else repr(x), tree)


def laid_out_as(like: T, tree: T) -> T:
    """A tree on the devices on which `like`, of the same structure, has each array, or part of an array."""
    return put(tree, jax.tree.map(lambda x: x.sharding, like))


def abstract(x: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    """What an array is, without its values, and how it lies on the devices."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
