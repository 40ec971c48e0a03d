"""How far two sets of points are apart, and how much of one the other covers."""

import numpy as np

NUM_GROUPS = 20  # of points, for intervals


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means [NUM_GROUPS + 1, d] and covariances [..., d, d] of x [number, d]: of all, then without each group."""
    mean = x.mean(axis=0)
    parts = [(x - mean)[group::NUM_GROUPS] for group in range(NUM_GROUPS)]
    sums, squares = np.stack([p.sum(axis=0) for p in parts]), np.stack([p.T @ p for p in parts])
    number = len(x) - np.array([0, *map(len, parts)])[:, None, None]
    off = -np.concatenate([np.zeros((1, x.shape[1])), sums])[:, :, None] / number  # of the mean
    left = squares.sum(axis=0) - np.concatenate([np.zeros((1, *squares.shape[1:])), squares])
    return mean + off[:, :, 0], (left - number * off @ off.swapaxes(1, 2)) / (number - 1)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> tuple[float, np.ndarray]:
    """The squared Frechet distance of normal distributions with the moments of two sets [number, d], or NaN.

    Returns:
        The distance, and items [NUM_GROUPS] whose mean it is and whose standard error is its own: pseudo-values of a
        grouped jackknife (Tukey 1958), moved to the mean. Its bias stays, which is about the same for all weights.
    """
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return np.nan, np.full(NUM_GROUPS, np.nan)
    (mean, cov), (other_mean, other_cov) = moments(first), moments(second)
    values, vectors = np.linalg.eigh(cov)
    root = vectors * np.sqrt(np.maximum(values, 0))[:, None]  # cov = root @ root.T
    overlap = np.linalg.eigvalsh(root.swapaxes(1, 2) @ other_cov @ root)
    traces = np.trace(cov + other_cov, axis1=1, axis2=2) - 2 * np.sqrt(np.maximum(overlap, 0)).sum(axis=1)
    distance, *without = np.sum((mean - other_mean) ** 2, axis=1) + traces
    return float(distance), distance - (NUM_GROUPS - 1) * (np.array(without) - np.mean(without))


def covered(points: np.ndarray, others: np.ndarray, k: int = 3) -> np.ndarray:
    """Whether each of the points is as near to one of the others as this is to its k-th neighbour, bool [points].

    Of samples and real images the mean is precision, of real images and samples recall (Kynkaanniemi et al. 2019).
    """

    def squared(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2 * first @ second.T

    points, others = points.astype(np.float32), others.astype(np.float32)  # in half the time
    radius = np.partition(squared(others, others), k, axis=1)[:, k]  # the nearest is itself
    return np.any(squared(points, others) <= radius, axis=1)
