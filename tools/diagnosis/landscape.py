"""Lines and planes in the space of weights, and the loss along them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from tqdm import tqdm

import evaluation
from runtime import intervals, score_metrics
from runtime.score_metrics import Scores
from runtime.stored import Stored
from tools.diagnosis.spectrum import Trace
from tools.diagnosis.subject import NotPossibleError, Subject
from tools.finished import Variables

THROUGH = np.arange(-6, 13) / 6  # places on the line through raw and average, which are at 0 and 1
BETWEEN = np.linspace(0, 1, 11)  # places between two other weights
GRID = 10  # points of the plane in each direction


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


def line(
    subject: Subject, start: Variables, end: Variables, shares: np.ndarray, what: str = ""
) -> list[dict[str, Any]]:
    """Scores along the line through two sets of weights.

    Args:
        subject: the run.
        start: at 0.
        end: at 1.
        shares: places on the line, among them 0 and 1.
        what: for the names of the curves, such as "as trained".

    Returns:
        For each treatment of batch statistics and each split a curve: its `name` and `split`, `loss` and, if there is
        one, `accuracy` at each place; the `difference`s of the scores at 1 and at 0; and the `barrier` between these,
        with its 95 % interval over images, and where it is.
    """
    curves: list[dict[str, Any]] = []
    for how, prepare in subject.statistics.items():
        scores: dict[str, list[Scores]] = {split: [] for split in subject.images}
        for share in tqdm(shares, what or how, leave=False, disable=None):
            point = prepare(interpolate(start, end, share))
            for split, of_split in scores.items():
                of_split.append(subject.scores(point, split))
        for split, of_split in scores.items():
            metrics = [score_metrics.summarize(of_place) for of_place in of_split]
            above = excess(shares, np.array([of_place["loss"] for of_place in of_split]))
            highest = max(np.flatnonzero((shares >= 0) & (shares <= 1)), key=lambda place: above[place].mean())
            at_start, at_end = (of_split[np.flatnonzero(shares == place)[0]] for place in (0, 1))
            curve: dict[str, Any] = {"name": ", ".join(filter(None, (what, how))), "split": split}
            for metric in ("loss", "accuracy"):
                if metric in metrics[0]:
                    curve[metric] = [of_place[metric] for of_place in metrics]
            curve["difference"] = score_metrics.compare(at_end, at_start)
            curve["barrier"] = intervals.mean_interval(above[highest])
            curve["barrier_at"] = shares[highest]
            curves.append(curve)
    return curves


def between(
    subject: Subject, ends: Sequence[str], weights: Sequence[Variables], shares: np.ndarray, what: str = ""
) -> dict[str, Any]:
    """The line through two sets of weights, which are called `ends`, and how far these are apart; see `line`."""
    start, end = weights
    distance = float(evaluation.distance(start["params"], end["params"]))
    return {"shares": shares, "ends": ends, "distance": distance, "curves": line(subject, start, end, shares, what)}


def through(subject: Subject) -> dict[str, Any]:
    """The line through raw and averaged weights, beyond both ends."""
    names = ["raw", subject.average]
    weights = [subject.run.weights(subject.run.stored[-1], name) for name in names]
    return between(subject, names, weights, THROUGH) | {"norm": float(optax.tree.norm(weights[0]["params"]))}


def earlier(subject: Subject) -> Stored:
    """The checkpoint or snapshot nearest to the middle of training.

    Raises:
        NotPossibleError: there is nothing but the latest checkpoint.
    """
    *before, last = subject.run.stored
    others = [stored for stored in before if stored.record.updates < last.record.updates]
    if not others:
        raise NotPossibleError("the run has stored nothing but its latest weights")
    return min(others, key=lambda stored: abs(stored.record.step - last.record.step / 2))


def between_checkpoints(subject: Subject) -> dict[str, Any]:
    """The line between the raw weights of two checkpoints of the run."""
    ends = (earlier(subject), subject.run.stored[-1])
    weights = [subject.run.weights(stored, "raw") for stored in ends]
    return between(subject, [f"step {stored.record.step}" for stored in ends], weights, BETWEEN)


def plane(subject: Subject, trace: Trace) -> dict[str, Any]:
    """The loss in the plane through raw, average and an earlier checkpoint, with the path of training projected."""
    first, last = earlier(subject), subject.run.stored[-1]
    names = ("raw", subject.average)
    points = {name: subject.run.weights(last, name) for name in names}
    points[f"step {first.record.step}"] = subject.run.weights(first, "raw")
    try:
        found = Plane.through(*(weights["params"] for weights in points.values()))
    except ValueError as error:
        raise NotPossibleError(f"{', '.join(points)}: {error}") from error

    def project(weights: Variables) -> tuple[float, float, float]:
        return found.project(weights["params"])

    paths = {
        name: [project(subject.run.weights(stored, name)) for stored in subject.run.stored if name in stored.names]
        for name in names
    }
    repeated = {name: [project(weights[name]) for weights in trace.iterates] for name in names}
    corners = {name: project(weights)[:2] for name, weights in points.items()}
    # Room around the corners; of a long path, what is far away is not shown.
    xs, ys = np.array(list(corners.values())).T
    margin = 0.3 * max(np.ptp(xs), np.ptp(ys))
    x, y = (np.linspace(values.min() - margin, values.max() + margin, GRID) for values in (xs, ys))
    losses: dict[str, list[list[float]]] = {split: [] for split in subject.images}
    few = subject.with_half()  # for so many points
    for height in tqdm(y, "rows", leave=False, disable=None):
        row = [few.recomputed({**points["raw"], "params": found.at(place, height)}) for place in x]
        for split, rows in losses.items():
            rows.append([score_metrics.summarize(few.scores(point, split))["loss"] for point in row])
    return {"x": x, "y": y, "losses": losses, "corners": corners, "paths": paths, "repeated": repeated}
