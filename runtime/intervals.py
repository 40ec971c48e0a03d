"""95 % intervals of paired differences: over the images of a test set, and over seeds."""

import math
from typing import Any

import numpy as np


def paired_proportions_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """The difference of two accuracies on the same images, first minus second, with its 95 % interval.

    Agresti & Min 2005 ("Simple improved confidence intervals for comparing matched proportions"): the Wald interval
    after adding one half to each of the four counts. It keeps its coverage where the two hardly ever differ.

    Args:
        first: bool [n].
        second: bool [n].

    Returns:
        Difference, lower and upper bound, within [-1, 1]; bounds of NaN if there is one image only.
    """
    from scipy import special  # here, for it takes a while that the first training step need not wait

    n = len(first)
    if n == 1:
        return float(first[0]) - float(second[0]), math.nan, math.nan
    gained = int(np.sum(first & ~second))
    lost = int(np.sum(second & ~first))
    discordant, size, centre = gained + lost + 1, n + 2, (gained - lost) / (n + 2)
    half_width = special.ndtri(0.975) * math.sqrt(discordant / size - centre**2) / math.sqrt(size)
    return (gained - lost) / n, max(-1.0, float(centre - half_width)), min(1.0, float(centre + half_width))


def difference(first: Any, second: Any) -> tuple[float, float, float]:
    """The difference of two metrics on the same examples, first minus second, with its 95 % interval.

    Args:
        first: the value of each example, [n], booleans for a proportion; or of a ratio (sum, count), each [n].
        second: of the same kind.
    """
    if isinstance(first, tuple):
        return ratios_interval(first, second)
    if first.dtype == second.dtype == bool:
        return paired_proportions_interval(first, second)
    # Unsigned integers would wrap around below 0, and sums of few bits lose what is small.
    return mean_interval(np.asarray(first, np.float64) - np.asarray(second, np.float64))


def ratio(sums: np.ndarray, counts: np.ndarray) -> Any:
    """The sum of `sums` over that of `counts`, both [..., n]; NaN where nothing was counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sum(sums, axis=-1) / np.sum(counts, axis=-1)


def ratios_interval(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> tuple[float, float, float]:
    """The difference of two ratios over the same groups, with its 95 % interval by the jackknife (Tukey 1958).

    Leaving out one group at a time gives pseudo-values, to which Student's t is applied. With one example in each group
    they are the examples' own differences, and the interval is `mean_interval`'s.

    Args:
        first: (sum, count) of each group, both [n].
        second: of the same groups.
    """
    apart = float(ratio(*first) - ratio(*second))
    n = len(first[0])
    if n == 1:
        return apart, math.nan, math.nan

    def without_one(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            found: np.ndarray = (sums.sum() - sums) / (counts.sum() - counts)
        return found

    pseudo = n * apart - (n - 1) * (without_one(*first) - without_one(*second))
    mean, low, high = mean_interval(pseudo)
    return apart, float(low - mean + apart), float(high - mean + apart)


def mean_interval(values: np.ndarray, comparisons: int = 1) -> tuple[Any, Any, Any]:
    """The mean with its 95 % interval by Student's t: mean, lower and upper bound; bounds of NaN for one value.

    Args:
        values: [n], which gives floats, or [n, ...], which gives arrays [...].
        comparisons: how many such intervals shall all hold together, in 95 % of cases. By Bonferroni's inequality (Dunn
            1961, "Multiple comparisons among means") each is one of 1 - 0.05 / comparisons. That needs neither equal
            variances nor independence, only normally distributed values.
    """
    from scipy import special

    mean = np.mean(values, axis=0)
    if len(values) == 1:
        return mean, mean * math.nan, mean * math.nan
    quantile = special.stdtrit(len(values) - 1, 1 - 0.025 / comparisons)
    half_width = quantile * np.std(values, axis=0, ddof=1) / math.sqrt(len(values))
    return mean, mean - half_width, mean + half_width
