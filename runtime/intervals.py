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


def mean_interval(values: np.ndarray) -> tuple[Any, Any, Any]:
    """The mean with its 95 % interval by Student's t: mean, lower and upper bound; bounds of NaN for one value.

    Args:
        values: [n], which gives floats, or [n, ...], which gives arrays [...].
    """
    from scipy import special

    mean = np.mean(values, axis=0)
    if len(values) == 1:
        return mean, mean * math.nan, mean * math.nan
    half_width = special.stdtrit(len(values) - 1, 0.975) * np.std(values, axis=0, ddof=1) / math.sqrt(len(values))
    return mean, mean - half_width, mean + half_width
