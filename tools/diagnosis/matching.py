"""Matching the hidden units of two networks by their weights.

A network whose hidden units are put into another order computes the same function. Two runs may so end in networks that
lie far from each other and still do much the same; `match` finds the order in which their weights are nearest. It is
the "weight matching" of Ainsworth, Hayase & Srinivasa 2022 (Git Re-Basin, section 3.2): coordinate descent in which
each layer is a linear assignment problem. Which units can change places is found by running the model, so models need
not declare it.
"""

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from scipy import optimize

import evaluation
from runtime import fields
from runtime.errors import UserError
from tools.diagnosis.landscape import BETWEEN, between, line
from tools.diagnosis.subject import Subject
from tools.finished import FinishedRun, Variables

Path = tuple[str, ...]  # of a leaf of the variables, such as ("params", "Conv_0", "kernel")

# How far outputs may differ for rounding, as a share of their standard deviation. The coarsest type that models compute
# in, bfloat16, rounds to 2**-9 = 0.002. A wrong permutation changes outputs by about 1, and still by percents where it
# touches one block of many. A test sees that half of this, and twice, would do.
_TOLERANCE = 0.008
# Random permutations that each have to change nothing: one alone may by chance keep the groups of a small GroupNorm.
_TRIALS = 3
_MAX_ROUNDS = 100  # of the descent, which ends by itself much earlier


@dataclasses.dataclass(frozen=True)
class Units:
    """The hidden units of a layer: which axes of which variables run over them.

    Attributes:
        size: number of units.
        axes: (path in the variables, axis counted from the end). An axis may be a multiple of `size`, for images that
            were flattened before the next layer; the units then run fastest, as channels do.
    """

    size: int
    axes: tuple[tuple[Path, int], ...]


def find_units(apply_fn: Callable[..., jax.Array], variables: Variables, images: jax.Array) -> list[Units]:
    """The layers whose units can change places without a change of the model's function.

    Those between two layers that follow each other, with the normalisation between them, if nothing else reads or adds
    to them. Whether that is so is tried out: permuted, the model has to give the same outputs. It is tried with random
    variables, because those given may hide a difference, as a block does whose last scale is still 0. What leaves the
    outputs of random variables alone does so for any.

    Args:
        apply_fn: the model's `apply`, called as `apply_fn(variables, images, train=False)`.
        variables: of the model; only names, shapes and types count.
        images: some inputs; a few are enough.

    Returns:
        The units of each such layer, in the order of the model. Layers inside a residual block are among them; the
        stream that the blocks add to is not, nor is a layer that two others read.
    """
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> Any:
        if not np.issubdtype(leaf.dtype, np.floating):
            return leaf
        if path[-1].key == "kernel":  # keeps the size of what passes through (He et al. 2015)
            return rng.normal(0, np.sqrt(2 * leaf.shape[-1] / leaf.size), leaf.shape).astype(leaf.dtype)
        return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)  # positive, as a variance has to be

    run = jax.jit(lambda variables, images: jax.tree.leaves(apply_fn(variables, images, train=False)))
    drawn = jax.tree_util.tree_map_with_path(draw, variables)
    expected = [np.asarray(output, np.float64) for output in run(drawn, images)]

    def is_symmetric(units: Units) -> bool:
        order = rng.permutation(units.size)
        cycle = np.empty_like(order)
        cycle[order] = np.roll(order, 1)  # never the identity, which would prove nothing
        outputs = run(permute(drawn, [units], [cycle]), images)
        errors = [np.sqrt(np.mean((found - right) ** 2)) for found, right in zip(outputs, expected, strict=True)]
        return all(error < _TOLERANCE * right.std() for error, right in zip(errors, expected, strict=True))

    candidates = dict.fromkeys(_candidates(apply_fn, variables, images))  # a layer that is called twice is there twice
    return [units for units in candidates if all(is_symmetric(units) for _ in range(_TRIALS))]


def permute(variables: Variables, units: Sequence[Units], permutations: Sequence[np.ndarray]) -> Any:
    """The variables with the units of each layer in another order: unit `i` is what unit `permutation[i]` was."""
    changes = collections.defaultdict(list)
    for layer, permutation in zip(units, permutations, strict=True):
        for path, axis in layer.axes:
            changes[path].append((axis, permutation))

    def reorder(path: Any, leaf: Any) -> Any:
        for axis, permutation in changes[tuple(entry.key for entry in path)]:
            index = np.arange(leaf.shape[axis]).reshape(-1, len(permutation))[:, permutation]
            leaf = leaf.take(index.ravel(), axis=axis)
        return leaf

    return jax.tree_util.tree_map_with_path(reorder, variables)


def match(units: Sequence[Units], reference: Variables, variables: Variables, seed: int = 0) -> list[np.ndarray]:
    """Permutations such that `permute(variables, units, permutations)` is as near to `reference` as the method finds.

    Near is meant of the parameters, all of them with the same weight; batch statistics go along. The descent ends where
    no layer alone can be improved, which need not be the nearest of all.

    Args:
        units: of the model, from `find_units`.
        reference: variables of the network that stays as it is.
        variables: of the one to permute.
        seed: of the order in which layers are visited after the first round, which is in the order of the model.

    Returns:
        A permutation for each of `units`.
    """
    rng = np.random.default_rng(seed)
    fixed, moving = (
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), {"params": tree["params"]})
        for tree in (reference, variables)
    )
    permutations = [np.arange(layer.size) for layer in units]
    for round_number in range(_MAX_ROUNDS):
        changed = False
        # First from the inputs on, whose order both networks share. In a random order a layer may be matched while its
        # inputs are not, and what is then fitted to noise can hold the descent where it is.
        for number in rng.permutation(len(units)) if round_number else range(len(units)):
            similarity = _similarity(units[number], fixed, moving)
            _, best = optimize.linear_sum_assignment(similarity, maximize=True)
            gain = similarity[np.arange(len(best)), best].sum() - similarity.trace()
            if gain > 1e-12 * np.abs(similarity).sum():  # less is rounding, and equal units would change for ever
                moving = permute(moving, [units[number]], [best])
                permutations[number] = permutations[number][best]
                changed = True
        if not changed:
            break
    return permutations


def _similarity(units: Units, fixed: Variables, moving: Variables) -> np.ndarray:
    """Inner products [size, size] of the weights of each unit of `fixed` with those of each unit of `moving`."""
    total = np.zeros((units.size, units.size))
    leaves = [traverse_util.flatten_dict(tree) for tree in (fixed, moving)]
    for path, axis in units.axes:
        if path[0] == "params":
            a, b = (np.moveaxis(tree[path], axis, -1).reshape(-1, units.size) for tree in leaves)
            total += a.T @ b
    return total


def _candidates(apply_fn: Callable[..., Any], variables: Variables, images: jax.Array) -> Iterator[Units]:
    """What would be the units of each layer if the model were a chain of layers in the order of their calls."""
    shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(variables).items()}
    modules = collections.defaultdict(list)
    for path in shapes:
        modules[path[1:-1]].append(path)
    calls: list[Path] = []

    def note(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name == "__call__" and context.module.path in modules:
            calls.append(context.module.path)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda variables, images: apply_fn(variables, images, train=False), variables, images)

    kernels = {module: path for module in calls if len(shapes.get(path := ("params", *module, "kernel"), ())) >= 2}
    with_kernel = [position for position, module in enumerate(calls) if module in kernels]
    for start, end in itertools.pairwise(with_kernel):
        size, inputs = shapes[kernels[calls[start]]][-1], shapes[kernels[calls[end]]][-2]
        if size > 1 and inputs % size == 0:
            axes = [
                (path, -1) for module in calls[start:end] for path in modules[module] if shapes[path][-1:] == (size,)
            ]
            yield Units(size, (*dict.fromkeys(axes), (kernels[calls[end]], -2)))


def find_other(subject: Subject, other: pathlib.Path) -> Variables:
    """The latest averaged weights of another run, whose workdir is `other`.

    Raises:
        UserError: it is of another model or data set, or lacks this average.
    """
    run = FinishedRun.read(other)
    mine, theirs = (fields.flatten(config) for config in (subject.run.config, run.config))
    for field in sorted(mine | theirs):
        if (field == "dataset" or field.startswith("model.")) and mine.get(field) != theirs.get(field):
            raise UserError(
                f"{other} has {field} = {theirs.get(field)}, {subject.run.workdir} {mine.get(field)}; only runs of the "
                "same model and data set can be compared"
            )
    if not run.stored or subject.average not in run.stored[-1].names:
        raise UserError(f"{other} has stored no average named {subject.average}; name another with --average")
    return subject.run.weights(run.stored[-1], subject.average)


def between_runs(subject: Subject, other: pathlib.Path, end: Variables) -> dict[str, Any]:
    """The line to the averaged weights of another run, as they are and after matching their hidden units."""
    start = subject.run.weights(subject.run.stored[-1], subject.average)
    found = between(subject, [str(subject.run.workdir), str(other)], [start, end], BETWEEN, "as trained")
    images = subject.images["train"].batch(jnp.int32(0))["image"]
    units = find_units(subject.run.experiment.state.apply_fn, end, images)
    if units:
        matched = permute(end, units, match(units, start, end))
        found["curves"] += line(subject, start, matched, BETWEEN, "units matched")
        found["matched_distance"] = float(evaluation.distance(start["params"], matched["params"]))
    found["num_units"] = sum(group.size for group in units)
    return found
