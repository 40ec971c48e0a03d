"""How good generated images are, as numbers and as a picture.

    python -m examples.samples runs/gan    # draws what raw and averaged weights make of the same noise

The Frechet distance is one in the features of classifier.py. It is no FID: only with itself can it be compared.
"""

import importlib
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import input_pipeline
from examples import classifier
from runtime.files import local_path
from runtime.score_metrics import Sets
from streams import stream_key
from tools.finished import FinishedRun
from train import Experiment

NUM_GROUPS = 20  # of images, for intervals
NUM_NEIGHBOURS = 2000  # images to look for neighbours in
METRICS: dict[str, Literal["higher", "lower"]] = {"frechet": "lower", "precision": "higher", "recall": "higher"}
Sample = Callable[[Experiment, Any, jax.Array, int], jax.Array]  # (experiment, variables, key, number) -> images


def create_data(config: Any, mesh: Any, *, size: int = 14, num_samples: int = 5000) -> input_pipeline.Data:
    """Images shrunk to `size`, between -1 and 1. As many samples as `num_samples` are judged, which changes results."""
    del num_samples
    data = input_pipeline.create_data(config, mesh)

    def shrunk(images: Any) -> Any:
        n, side, _, channels = images.image.shape
        blocks = np.asarray(images.image).reshape(n, size, side // size, size, side // size, channels)
        half = np.full(channels, 127.5, np.float32)
        normalization = input_pipeline.Normalization(half, half)
        return images.replace(image=blocks.mean((2, 4)).round().astype(np.uint8), normalization=normalization)

    train, evaluated = shrunk(data.train), {name: shrunk(images) for name, images in data.eval.items()}
    return data._replace(train=train, eval=evaluated, example=(jnp.zeros((1, *train.image.shape[1:])), data.example[1]))


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

    radius = np.partition(squared(others, others), k, axis=1)[:, k]  # the nearest is itself
    return np.any(squared(points, others) <= radius, axis=1)


def judge(experiment: Experiment, split: str, samples: Mapping[str, jax.Array]) -> Sets:
    """The metrics of sets of images, with items for their intervals, against the real ones of a split."""
    data, features = experiment.eval_data[split], classifier.features(experiment.train_data, experiment.workdir)
    real = features(data.normalization(data.image))[np.asarray(data.mask)]
    found = {}
    for name, images in samples.items():
        made = features(jnp.clip(jnp.round(127.5 * images + 127.5), 0, 255) / 127.5 - 1)  # as files would hold them
        near, few = made[:NUM_NEIGHBOURS], real[:NUM_NEIGHBOURS]
        shares = {"precision": covered(near, few), "recall": covered(few, near)}
        found[name] = {"frechet": frechet_distance(made, real)} | {m: (x.mean(), x) for m, x in shares.items()}
    return found


def evaluate(experiment: Experiment, weights: Mapping[str, Any], split: str, *, sample: Sample) -> Sets:
    """`Task.evaluate` of what is sampled: all weights get the same noise, another seed gets other noise."""
    key, num = stream_key(jax.random.key(experiment.config.seed), "samples"), experiment.config.data.num_samples
    return judge(experiment, split, {name: sample(experiment, w, key, num) for name, w in weights.items()})


def draw_run(workdir: pathlib.Path, path: pathlib.Path) -> None:
    """A picture of twelve samples of each of a run's latest weights, a row each, from the same noise."""
    run = FinishedRun.read(workdir)
    stored, sample = run.stored[-1], importlib.import_module(run.config.task).sample
    figure = Figure(figsize=(5, 0.62 * len(stored.names)), layout="constrained")
    for axis, name in zip(np.ravel(figure.subplots(len(stored.names))), stored.names, strict=True):
        images = sample(run.experiment, run.weights(stored, name), jax.random.key(0), 12)
        axis.imshow(np.clip(np.concatenate(images, axis=1) / 2 + 0.5, 0, 1), cmap="gray", vmin=0, vmax=1)
        axis.set_title(name, loc="left", fontsize=9.5)
        axis.set_axis_off()
    figure.savefig(path, dpi=144)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    draw_run(local_path(sys.argv[1]), local_path(sys.argv[1]) / "samples.png")
