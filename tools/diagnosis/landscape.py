"""Lines and planes in the space of weights, and the barrier on a line. Knows of trees of arrays, not of runs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree


@jax.jit
def interpolate(start: Any, end: Any, share: float) -> Any:
    """The point `start + share * (end - start)` of the line through two trees; 0 is the start, 1 the end, exactly."""
    # In float32 `a + (b - a)` is not `b`.
    return jax.tree.map(lambda a, b: jnp.where(share == 1, b, a + share * (b - a)), start, end)


def mean(trees: Sequence[Any]) -> Any:
    """The mean of trees of arrays, leaf by leaf."""
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


def excess(shares: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """How far the loss between two ends of a line lies above the straight line between the losses at these ends.

    The largest value over a line is its barrier (Frankle et al. 2020, "Linear mode connectivity and the lottery ticket
    hypothesis"; this form from Entezari et al. 2022). Where the loss is convex along the line, no value is above 0.

    Args:
        shares: [k], places on the line, among them 0 and 1.
        losses: [k, ...], the loss at each of them, of every image if there are more axes.

    Returns:
        An array like `losses`.
    """
    at = np.asarray(shares).reshape(-1, *[1] * (np.ndim(losses) - 1))
    start, end = losses[np.flatnonzero(shares == 0)[0]], losses[np.flatnonzero(shares == 1)[0]]
    return losses - ((1 - at) * start + at * end)


@dataclasses.dataclass(frozen=True)
class Plane:
    """The plane through three points in the space of weights.

    Attributes:
        origin: float64 [n], the first point.
        axes: float64 [2, n], orthonormal: the first from the first point to the second, the other such that the third
            point lies in the plane, on the side of its positive values.
        unravel: makes a tree of a vector [n].
    """

    origin: np.ndarray
    axes: np.ndarray
    unravel: Callable[[Any], Any]

    @classmethod
    def through(cls, first: Any, second: Any, third: Any) -> Self:
        """The plane through three trees.

        Raises:
            ValueError: they lie on one line.
        """
        _, unravel = ravel_pytree(first)
        origin, *others = (np.asarray(ravel_pytree(tree)[0], np.float64) for tree in (first, second, third))
        axes = np.empty((2, len(origin)))
        for index, other in enumerate(others):
            axis = other - origin
            length = np.linalg.norm(axis)
            for before in axes[:index]:
                axis = axis - (before @ axis) * before
            # Of float32 weights, a distance of less than this share is rounding.
            if np.linalg.norm(axis) <= 1e-6 * (length + np.linalg.norm(origin)):
                raise ValueError("the three points lie on one line")
            axes[index] = axis / np.linalg.norm(axis)
        return cls(origin, axes, unravel)

    def project(self, tree: Any) -> tuple[float, float, float]:
        """The coordinates of the point of the plane that is nearest to a tree, and how far the tree is from it."""
        offset = np.asarray(ravel_pytree(tree)[0], np.float64) - self.origin
        x, y = self.axes @ offset
        return float(x), float(y), float(np.linalg.norm(offset - np.array([x, y]) @ self.axes))

    def at(self, x: float, y: float) -> Any:
        """The tree at a point of the plane."""
        return self.unravel((self.origin + np.array([x, y]) @ self.axes).astype(np.float32))
