"""What features tell of classes that nothing was trained on, from few labelled images; in float64 on the host."""

import numpy as np

NUM_NEIGHBOURS = 20
RIDGE = 0.1  # times the mean square of a centred feature, and the number of features


def labelled(label: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """The rows of so many examples of each class, or of all there are, drawn by the seed: class after class."""
    order = np.random.default_rng(seed).permutation(len(label))
    return np.concatenate([order[label[order] == class_][:per_class] for class_ in np.unique(label)])


def nearest(features: np.ndarray, label: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The class of most of the nearest neighbours, by the cosine; of two with as many, the lower one.

    Args:
        features: of the labelled examples, [n, d].
        label: their classes, integers [n].
        others: features of the examples to classify, [m, d].
    """
    cosine = unit(others) @ unit(features).T
    k = min(NUM_NEIGHBOURS, len(label))
    found = label[np.argpartition(-cosine, k - 1, axis=1)[:, :k]]
    return np.stack([(found == class_).sum(axis=1) for class_ in range(label.max() + 1)], axis=1).argmax(axis=1)


def ridge(features: np.ndarray, label: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The class by ridge regression on one-hot targets with an intercept, in closed form; takes what `nearest` does."""
    centre, target = features.mean(axis=0), np.eye(label.max() + 1)[label]
    x = features - centre
    # A matrix of the examples, of which there are fewer than features.
    penalty = RIDGE * max(np.square(x).mean(), 1e-30) * features.shape[1]
    coefficients = np.linalg.solve(x @ x.T + penalty * np.eye(len(x)), target - target.mean(axis=0))
    return ((others - centre) @ x.T @ coefficients + target.mean(axis=0)).argmax(axis=1)


def spread(projections: np.ndarray) -> float:
    """The standard deviation of projections of length 1, the mean over their d numbers.

    0 if all images have the same, and 1 / sqrt(d) if they lie in all directions alike (Chen & He 2021, section 4.1).
    """
    return float(unit(projections).std(axis=0).mean())


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
