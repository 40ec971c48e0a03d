"""Metrics from the scores of single examples: means, ratios over groups, calibration, and paired differences."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime import intervals

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
            new, old = (x if x.dtype == bool else x.astype(np.float64) for x in map(np.asarray, (items, other_items)))
            _, low, high = intervals.difference(new, old)
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
