"""Settings ranked by their scores over seeds, and what may be said of the best one, though it was chosen by looking.

Scores are kept so that higher is better: [settings, seeds], NaN where there is no run, -inf where one was not finite.
"""

import math
from collections.abc import Sequence

import numpy as np

from runtime import durations, intervals

Interval = tuple[float, float, float]  # mean, lower and upper bound, NaN where not known
UNKNOWN = (math.nan, math.nan, math.nan)


def rank(scored: np.ndarray) -> np.ndarray:
    """The order of settings, the best mean first.

    Those with fewer seeds come after all that have as many as any: a setting that failed with some would be judged by
    those that it survived. Last are those whose scores are not all finite.
    """
    seeds, means = np.sum(~np.isnan(scored), axis=1), np.nanmean(scored, axis=1)
    return np.lexsort((-means, seeds < seeds.max(), np.isinf(means)))


def interval(values: np.ndarray, comparisons: int = 1) -> Interval:
    """The mean of values [seeds], with an interval that holds at 95 % together with those of other comparisons.

    There are no bounds for a single seed, nor where all values are the same: accuracies on few examples are coarse, and
    three seeds that happen to differ by one image each are no certainty.
    """
    values = values[~np.isnan(values)]
    if not len(values) or not np.isfinite(values).all():
        return UNKNOWN
    mean, low, high = map(float, intervals.mean_interval(values, comparisons))
    same = np.ptp(values) <= 1e-9 * np.abs(values).max()
    return (mean, math.nan, math.nan) if same else (mean, low, high)


def behind(scored: np.ndarray, best: int = 0) -> list[Interval]:
    """How far each setting is behind that in row `best`, paired by seed; the intervals hold at 95 % all together.

    The best one is chosen by looking. So any pair of settings might have been compared, and all of them count.
    """
    pairs = max(1, math.comb(len(scored), 2))
    with np.errstate(invalid="ignore"):  # of two that are not finite
        return [interval(apart, pairs) for apart in scored[best] - scored]


def numbers(values: Sequence[str]) -> list[float] | None:
    """The values of a field as numbers, those of durations in their unit; None if they have no order."""
    try:
        found, units = [float(value) for value in values], {""}
    except ValueError:
        try:
            parsed = [durations.parse(value) for value in values]
        except ValueError:
            return None
        found, units = [float(duration.number) for duration in parsed], {duration.unit for duration in parsed}
    return found if len(units) == 1 and np.isfinite(found).all() else None
