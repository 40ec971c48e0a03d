"""Scores of raw and averaged weights on the same images, and the paired statistics of their difference."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import special

from input_pipeline import EvalData

Scores = dict[str, Any]  # name -> one value per example
ScoreFn = Callable[[Callable[..., Any], Any, Mapping[str, jax.Array]], Scores]


def score_fn(apply_fn: Callable[..., jax.Array], variables: Any, batch: Mapping[str, jax.Array]) -> Scores:
    """Scores a batch with one set of weights. A fork with another task replaces this function.

    Args:
        apply_fn: the model's `apply`.
        variables: its parameters and batch statistics.
        batch: `image` [batch, height, width, channels] and `label` [batch].

    Returns:
        Arrays [batch]: `loss` (the negative log-likelihood), `correct`, `predicted` (the class) and `confidence` (its
        probability). Only `loss` is obligatory; without the others, what `summarize` and `compare` make of them is
        left out.
    """
    logits = apply_fn(variables, batch["image"], train=False)
    predicted = jnp.argmax(logits, axis=-1)
    return {
        "loss": optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]),
        "correct": predicted == batch["label"],
        "predicted": predicted,
        "confidence": jnp.max(jax.nn.softmax(logits), axis=-1),
    }


@functools.partial(jax.jit, static_argnames=("apply_fn", "score_fn", "sharding"))
def _score_batch(
    curves: dict[str, Any],
    data: EvalData,
    index: jax.Array,
    *,
    apply_fn: Callable[..., Any],
    score_fn: ScoreFn,
    sharding: jax.sharding.Sharding | None,
) -> tuple[jax.Array, dict[str, Scores]]:
    batch = data.batch(index)
    if sharding is not None:
        batch = jax.lax.with_sharding_constraint(batch, sharding)
    return batch["mask"], {curve: score_fn(apply_fn, variables, batch) for curve, variables in curves.items()}


def score(
    curves: dict[str, Any],
    data: EvalData,
    *,
    apply_fn: Callable[..., Any],
    score_fn: ScoreFn = score_fn,
    sharding: jax.sharding.Sharding | None = None,
) -> dict[str, Scores]:
    """Scores several sets of weights on the same images in one pass.

    Args:
        curves: the variables of each curve, by name.
        data: the images; each is scored once, padding is dropped.
        apply_fn: the model's `apply`.
        score_fn: see the function of that name.
        sharding: how to split each batch over devices; none leaves it where the data is.

    Returns:
        For each curve NumPy arrays [number of images], floats in float64.
    """
    batches = [
        _score_batch(curves, data, index, apply_fn=apply_fn, score_fn=score_fn, sharding=sharding)
        for index in np.arange(data.num_batches, dtype=np.int32)
    ]
    masks, scores = zip(*jax.device_get(batches), strict=True)
    mask = np.concatenate(masks)

    def join(*parts: np.ndarray) -> np.ndarray:
        values = np.concatenate(parts)[mask]
        return values.astype(np.float64) if np.issubdtype(values.dtype, np.floating) else values

    joined = jax.tree.map(join, *scores)
    return {curve: joined[curve] for curve in curves}


def evaluate(
    curves: dict[str, Any],
    data: EvalData,
    *,
    apply_fn: Callable[..., Any],
    score_fn: ScoreFn = score_fn,
    sharding: jax.sharding.Sharding | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics of each curve, and of each average's paired difference to the raw weights, named `NAME-raw`.

    Takes what `score` takes; `curves` has one named `raw`.
    """
    scores = score(curves, data, apply_fn=apply_fn, score_fn=score_fn, sharding=sharding)
    metrics = {curve: summarize(values) for curve, values in scores.items()}
    for curve in scores:
        if curve != "raw":
            metrics[f"{curve}-raw"] = compare(scores[curve], scores["raw"])
    return metrics


def summarize(scores: Scores) -> dict[str, float]:
    """The metrics of one curve: mean `loss`, `accuracy`, `calibration_error`, as far as the scores go."""
    metrics = {"loss": float(np.mean(scores["loss"]))}
    if "correct" in scores:
        metrics["accuracy"] = float(np.mean(scores["correct"]))
        if "confidence" in scores:
            metrics["calibration_error"] = calibration_error(scores["confidence"], scores["correct"])
    return metrics


def compare(scores: Scores, reference: Scores) -> dict[str, float]:
    """The metrics of a paired difference, `scores` minus `reference`, on the same images.

    Returns:
        `accuracy` and `loss` with the 95 % intervals `accuracy_low` .. `accuracy_high` and `loss_low` .. `loss_high`,
        and `agreement`, the share of images for which both predict the same class. The intervals say how far the
        difference could be off because of which images the test set has, for these weights of this one run. They say
        nothing of how it varies from run to run.
    """
    metrics: dict[str, float] = {}
    names = ("loss", "loss_low", "loss_high")
    metrics |= zip(names, mean_interval(scores["loss"] - reference["loss"]), strict=True)
    if "correct" in scores:
        names = ("accuracy", "accuracy_low", "accuracy_high")
        metrics |= zip(names, paired_proportions_interval(scores["correct"], reference["correct"]), strict=True)
    if "predicted" in scores:
        metrics["agreement"] = float(np.mean(scores["predicted"] == reference["predicted"]))
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


def paired_proportions_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """The difference of two accuracies on the same images, first minus second, with its 95 % interval.

    Agresti & Min 2005 ("Simple improved confidence intervals for comparing matched proportions"): the Wald interval
    after adding one half to each of the four counts. It keeps its coverage where the two hardly ever differ.

    Args:
        first: bool [n].
        second: bool [n].

    Returns:
        Difference, lower and upper bound, within [-1, 1].
    """
    n = len(first)
    gained = int(np.sum(first & ~second))
    lost = int(np.sum(second & ~first))
    discordant, size, centre = gained + lost + 1, n + 2, (gained - lost) / (n + 2)
    half_width = special.ndtri(0.975) * math.sqrt(discordant / size - centre**2) / math.sqrt(size)
    return (gained - lost) / n, max(-1.0, float(centre - half_width)), min(1.0, float(centre + half_width))


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """The mean of at least two values with its 95 % interval by Student's t: mean, lower and upper bound."""
    mean = float(np.mean(values))
    half_width = special.stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(len(values))
    return mean, float(mean - half_width), float(mean + half_width)
