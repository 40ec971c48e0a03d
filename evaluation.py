"""Scores of raw and averaged weights on the same images, and the paired statistics of their difference."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util

from input_pipeline import EvalData, TrainData
from runtime import intervals
from runtime.errors import UserError

Scores = dict[str, Any]  # name -> one value per example
ScoreFn = Callable[[Callable[..., Any], Any, Mapping[str, jax.Array]], Scores]


def score_fn(apply_fn: Callable[..., jax.Array], variables: Any, batch: Mapping[str, jax.Array]) -> Scores:
    """Scores a batch with one set of weights. Another task has a function of its own in `train.TASKS`.

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

    Takes what `score` takes; `curves` has one named `raw`. The differences come with the `distance` of the parameters.
    """
    scores = score(curves, data, apply_fn=apply_fn, score_fn=score_fn, sharding=sharding)
    metrics = {curve: summarize(values) for curve, values in scores.items()}
    for curve in scores:
        if curve != "raw":
            apart = float(distance(curves[curve]["params"], curves["raw"]["params"]))
            metrics[f"{curve}-raw"] = compare(scores[curve], scores["raw"]) | {"distance": apart}
    return metrics


@jax.jit
def distance(params: Any, others: Any) -> jax.Array:
    """The Euclidean distance of two trees of parameters, a scalar."""
    return optax.tree.norm(optax.tree.sub(params, others))


def recompute_batch_stats(
    variables: Mapping[str, Any],
    data: TrainData,
    rng: jax.Array,
    *,
    batches: Sequence[int],
    apply_fn: Callable[..., Any],
    sharding: jax.sharding.Sharding | None = None,
) -> Any:
    """The batch statistics that a model with these weights would have: those of training images that it sees.

    An average of weights is a model of its own, whose activations have a mean and a variance of their own (Izmailov et
    al. 2018, section 3.1). Both are those of the population: with the mean `m` and variance `v` of each batch, the mean
    of `m`, and the mean of `v + m**2` minus the square of that mean, which is the mean of `v` plus the variance of `m`.
    The model runs as in training but without dropout.

    Args:
        variables: parameters and batch statistics, of which only the structure counts.
        data: the training set.
        rng: typed root key of the run.
        batches: the training batches to use, by their step: with augmentation, and each the same whenever it is asked
            for. Their order does not matter.
        apply_fn: the model's `apply`.
        sharding: how to split each batch over devices; none leaves it where the data is.

    Returns:
        New batch statistics, a tree like `variables["batch_stats"]`.

    Raises:
        UserError: the model has statistics other than those of an `nn.BatchNorm` that is applied once and learns them.
    """
    per_batch = [
        jax.device_get(_batch_moments(variables, data, rng, np.int32(step), apply_fn=apply_fn, sharding=sharding))
        for step in batches
    ]
    statistics = {}
    for path in per_batch[0]:
        # In float64, in which the order of the batches makes no difference that float32 would show.
        mean, var = np.array([moments[path] for moments in per_batch], np.float64).swapaxes(0, 1)
        statistics[*path, "mean"] = mean.mean(axis=0)
        statistics[*path, "var"] = var.mean(axis=0) + mean.var(axis=0)
    like = traverse_util.flatten_dict(variables["batch_stats"])
    if statistics.keys() != like.keys():
        other = ", ".join("/".join(path) for path in sorted(like.keys() - statistics.keys()))
        raise UserError(f"batch_stats = 'recompute' is for an nn.BatchNorm that is not frozen; the model has {other}")
    return traverse_util.unflatten_dict(
        {path: jax.device_put(statistics[path].astype(leaf.dtype), leaf.sharding) for path, leaf in like.items()}
    )


@functools.partial(jax.jit, static_argnames=("apply_fn", "sharding"))
def _batch_moments(
    variables: Mapping[str, Any],
    data: TrainData,
    rng: jax.Array,
    step: jax.Array,
    *,
    apply_fn: Callable[..., Any],
    sharding: jax.sharding.Sharding | None,
) -> dict[tuple[str, ...], tuple[jax.Array, jax.Array]]:
    """Mean and variance of what each batch norm sees of one training batch, by the path of its module."""
    image = data.batch(rng, step)["image"]
    if sharding is not None:
        image = jax.lax.with_sharding_constraint(image, sharding)
    momentum: dict[tuple[str, ...], float] = {}

    def without_dropout(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if isinstance(module, nn.Dropout):
            return args[0] if args else kwargs["inputs"]
        if isinstance(module, nn.BatchNorm):
            frozen = kwargs.get("use_running_average", args[1] if len(args) > 1 else None)
            frozen = module.use_running_average if frozen is None else frozen
            if module.path in momentum:
                raise UserError(f"batch_stats = 'recompute': {'/'.join(module.path)} is applied twice in the model")
            if not frozen and module.momentum < 1:
                momentum[module.path] = module.momentum
        return call(*args, **kwargs)

    zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    with nn.intercept_methods(without_dropout):
        _, updates = apply_fn(
            {"params": variables["params"], "batch_stats": zeros}, image, train=True, mutable=["batch_stats"]
        )
    moved = traverse_util.flatten_dict(updates["batch_stats"])
    # From zeros, a running statistic moves to (1 - momentum) times that of the batch.
    return {path: (moved[*path, "mean"] / (1 - m), moved[*path, "var"] / (1 - m)) for path, m in momentum.items()}


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
    metrics |= zip(names, intervals.mean_interval(scores["loss"] - reference["loss"]), strict=True)
    if "correct" in scores:
        names = ("accuracy", "accuracy_low", "accuracy_high")
        metrics |= zip(
            names, intervals.paired_proportions_interval(scores["correct"], reference["correct"]), strict=True
        )
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
