"""Metrics from the scores of single examples: means, ratios over groups, calibration, and paired differences."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from runtime import intervals
from runtime.errors import UserError

Scores = dict[str, Any]  # by name, an array [batch] or [number of examples], or two of them, (sum, count)
# What a task's `evaluate` returns: by name of the weights and of the metric its value, and if it is the mean over some
# items, such as episodes, the value of each, in the same order for all weights; else None.
Sets = Mapping[str, Mapping[str, tuple[float, np.ndarray | None]]]
# Scores that are no metrics themselves: the first gives `agreement`, the second, with `accuracy`, `calibration_error`.
# Of the examples of one `group`, sums and counts are added up, and the groups are what is independent.
NO_METRICS = ("predicted", "confidence", "group")


def summarized(scores: Scores) -> list[str]:
    """The names of the metrics that `summarize` makes of these scores."""
    has_both = {"accuracy", "confidence"} <= scores.keys() and not isinstance(scores["accuracy"], tuple)
    return [name for name in scores if name not in NO_METRICS] + (["calibration_error"] if has_both else [])


def summarize(scores: Scores) -> dict[str, float]:
    """The metrics of one set of weights: the mean of each score, and `calibration_error` if there is a `confidence`."""
    metrics = {
        name: float(intervals.ratio(*values) if isinstance(values, tuple) else np.mean(values))
        for name, values in in_groups(scores).items()
    }
    if "calibration_error" in summarized(scores):
        metrics["calibration_error"] = calibration_error(scores["confidence"], scores["accuracy"])
    return metrics


def in_groups(scores: Scores) -> Scores:
    """The metrics' values, in the order of the examples; where these have a `group`, the (sum, count) of each group."""
    values = {name: values for name, values in scores.items() if name not in NO_METRICS}
    if "group" not in scores:
        return values
    _, group = np.unique(scores["group"], return_inverse=True)
    pairs = {n: x if isinstance(x, tuple) else (x, np.ones(len(group))) for n, x in values.items()}
    return {name: tuple(np.bincount(group, part) for part in pair) for name, pair in pairs.items()}


def compare(scores: Scores, reference: Scores) -> dict[str, float]:
    """The metrics of a paired difference, `scores` minus `reference`, on the same images.

    Returns:
        Each metric NAME with its 95 % interval `NAME_low` .. `NAME_high` (of booleans Agresti & Min's, of numbers
        Student's, of ratios the jackknife's over groups), and `agreement`, the share of images for which both predict
        the same class. The intervals say how far the difference could be off because of which images the test set has,
        for these weights of this one run. They say nothing of how it varies from run to run.
    """
    metrics: dict[str, float] = {}
    others = in_groups(reference)
    for name, values in in_groups(scores).items():
        metrics |= zip((name, f"{name}_low", f"{name}_high"), intervals.difference(values, others[name]), strict=True)
    if "predicted" in scores:
        metrics["agreement"] = float(np.mean(scores["predicted"] == reference["predicted"]))
    return metrics


def compare_sets(found: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, float]:
    """The difference of each metric of whole sets, with an interval where both are means over the same items."""
    metrics = {}
    for name, (value, items) in found.items():
        other, other_items = reference[name]
        metrics[name] = float(value) - float(other)
        if items is not None:
            _, low, high = intervals.difference(np.asarray(items), np.asarray(other_items))
            metrics |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return metrics


def calibration_error(confidence: np.ndarray, correct: np.ndarray, num_bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017): how far confidence and accuracy are apart, over equal-width bins.

    Args:
        confidence: [n], probability of the predicted class.
        correct: bool [n].
        num_bins: number of bins `(k / num_bins, (k + 1) / num_bins]` of the confidence.
    """
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=num_bins)
    return float(np.sum(np.abs(gaps)) / len(confidence))


def check_name(where: str, name: str) -> None:
    """Checks the name of a metric.

    Args:
        where: the function that returns it, for the message.
        name: to check.

    Raises:
        UserError: it is reserved, or could not be told from another column of a table.
    """
    taken = ("step", "curve", "split", "agreement", "calibration_error", "distance")
    if name in taken or not re.fullmatch(r"[A-Za-z]\w*(?<!_low)(?<!_high)(?<!_sd)(?<!_difference)", name, re.ASCII):
        raise UserError(
            f"{where} returns {name!r}; a metric's name must be letters, digits and _, must not end in _low, _high, "
            f"_sd or _difference, and must be none of {', '.join(taken)}"
        )


def check_sets(found: Any, weights: Collection[str]) -> None:
    """Checks what a task's `evaluate` returns.

    Args:
        found: of the type `Sets`.
        weights: the names of the weights that it was to evaluate.

    Raises:
        UserError: other weights, other metrics or other items for some of the weights, or what is no number.
    """
    if not isinstance(found, Mapping) or {*found} != {*weights}:
        names = ", ".join(found) if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise UserError(f"evaluate returns {names}; expected a dict with the metrics of {', '.join(weights)}")
    sizes = {name: _sizes(f"evaluate, for the weights {name!r},", of_weights) for name, of_weights in found.items()}
    for name, of_weights in sizes.items():
        if of_weights != sizes["raw"]:
            raise UserError(
                f"evaluate returns metrics with numbers of items {of_weights} for the weights {name!r} and "
                f"{sizes['raw']} for 'raw'; expected the same metrics of the same items for all weights"
            )


def _sizes(where: str, metrics: Any) -> dict[str, int | None]:
    """The number of items of each metric of some weights; None for a number without."""
    if not isinstance(metrics, Mapping):
        raise UserError(f"{where} returns a {type(metrics).__name__}; expected a dict of metrics")
    sizes: dict[str, int | None] = {}
    for name, pair in metrics.items():
        check_name(where, name)
        if not isinstance(pair, tuple) or len(pair) != 2 or np.ndim(pair[0]) != 0:
            raise UserError(
                f"{where} returns {name} = {pair!r:.80}; expected (number, items), items None if there are none"
            )
        value, items = pair
        sizes[name] = None if items is None else len(np.atleast_1d(items))
        if items is None:
            continue
        if np.ndim(items) != 1 or not len(items):
            raise UserError(
                f"{where} returns items of {name} of shape {list(np.shape(items))}; expected [number of items]"
            )
        mean = float(np.mean(np.asarray(items), dtype=np.float64))
        if not np.isclose(float(value), mean, rtol=1e-3, equal_nan=True):  # however it was rounded
            raise UserError(
                f"{where} returns {name} = {float(value):g}, of items whose mean is {mean:g}; expected their mean"
            )
    return sizes


def check_metrics(
    metrics: Mapping[str, Mapping[str, float]], weights: Collection[str], wanted: Collection[str]
) -> None:
    """Checks that an evaluation has every metric that a task names, for all weights.

    Args:
        metrics: by name of the weights and of the metric, all that the task scores.
        weights: their names.
        wanted: the names in `Task.metrics`.

    Raises:
        UserError: names what is missing.
    """
    for name in weights:
        if missing := [metric for metric in wanted if metric not in metrics[name]]:
            raise UserError(
                f"Task.metrics has {', '.join(missing)}; for the weights {name!r}, score_fn and evaluate of the task "
                f"return only {', '.join(metrics[name])}"
            )
