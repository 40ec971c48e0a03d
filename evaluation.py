"""Scores of raw and averaged weights on the same images, and the paired statistics of their difference."""

import functools
import math
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from input_pipeline import EvalData
from runtime import batch_statistics, predictions, score_metrics, stream
from runtime.errors import UserError
from runtime.progress import first_time
from runtime.score_metrics import NO_METRICS, Scores, Sets
from runtime.sharding import fetch, put, replicated, split_batch
from runtime.stored import Best
from runtime.stream import Stream
from train_state import CustomTrainState

ScoreFn = Callable[[Callable[..., Any], Any, Mapping[str, jax.Array]], Scores]
EvalStep = Callable[[Any, EvalData, ArrayLike], tuple[jax.Array, Scores]]
Metrics = dict[str, dict[str, float]]  # by name of the weights, or of a difference, and of the metric


def score_fn(apply_fn: Callable[..., jax.Array], variables: Any, batch: Mapping[str, jax.Array]) -> Scores:
    """Scores a batch with one set of weights. Another task has a function of its own in `train.TASKS`.

    Args:
        apply_fn: the model's `apply`.
        variables: its parameters and batch statistics.
        batch: `image` [batch, height, width, channels] and `label` [batch].

    Returns:
        Arrays [batch]: `loss` (the negative log-likelihood), `accuracy` (True or False), `predicted` (the class) and
        `confidence` (its probability). Any name may be added, and becomes a metric: the mean over the images, in points
        if it is of booleans. One that is a ratio is a pair (sum, count), and `group`, int [batch], says which examples
        belong together, such as the lines of a document. `Task.metrics` says of which metrics it is known what is
        better.
    """
    logits, label = apply_fn(variables, batch["image"], train=False), classes(batch)
    predicted = jnp.argmax(logits, axis=-1)
    return {
        "loss": optax.softmax_cross_entropy_with_integer_labels(logits, label),
        "accuracy": predicted == label,
        "predicted": predicted,
        "confidence": jnp.max(jax.nn.softmax(logits), axis=-1),
    }


def classes(batch: Mapping[str, jax.Array]) -> jax.Array:
    """The labels of a batch, int32 [batch].

    Raises:
        UserError: they are not classes.
    """
    label = batch["label"]
    if label.ndim != 1:
        raise UserError(
            f"the labels of this data set are {label.dtype}{list(label.shape)}, not classes: of one-hot labels take "
            "labels.argmax(axis=1); to predict numbers, config.task must name a task of your own in train.TASKS"
        )
    return label


@functools.partial(jax.jit, static_argnames=("apply_fn", "score_fn", "sharding"))
def eval_step(
    variables: Any,
    data: EvalData,
    index: jax.Array,
    *,
    apply_fn: Callable[..., Any],
    score_fn: ScoreFn,
    sharding: jax.sharding.Sharding,
) -> tuple[jax.Array, Scores]:
    """Scores one batch with one set of weights.

    Args:
        variables: the model's parameters and batch statistics, each whole on every device.
        data: the evaluation images.
        index: int32 scalar, which batch.
        apply_fn: the model's `apply`.
        score_fn: see the function of that name.
        sharding: how to split the batch over devices.

    Returns:
        `mask`, bool [batch], False for padding; and the scores [batch].
    """
    batch = jax.lax.with_sharding_constraint(data.batch(index), sharding)
    return batch["mask"], score_fn(apply_fn, variables, batch)


def create_eval_step(
    state: CustomTrainState, task: Any, data: EvalData | Stream, mesh: jax.sharding.Mesh
) -> tuple[EvalStep | None, tuple[str, ...]]:
    """`eval_step` with its keyword arguments, and the metrics that are proportions; None and none without a `score_fn`.

    Args:
        state: with the model.
        task: the `train.Task`.
        data: to evaluate, or a `Stream` of them.
        mesh: the devices.

    Raises:
        UserError: see `check_scores`.
    """
    if not task.score_fn:
        return None, ()
    step = functools.partial(eval_step, apply_fn=state.apply_fn, score_fn=task.score_fn, sharding=split_batch(mesh))
    mask, scores = jax.eval_shape(step, state.weights()["raw"], stream.like(data), jnp.int32(0))
    # What the task's own `evaluate` adds is not known yet.
    return step, check_scores(scores, {} if task.evaluate else task.metrics, mask.shape)


def weights_to_score(
    state: CustomTrainState, data: Any, num_batches: int, mesh: jax.sharding.Mesh
) -> dict[str, dict[str, Any]]:
    """The state's raw and averaged weights, each with the batch statistics that it is to be scored with.

    Args:
        state: as it is in training.
        data: the training data.
        num_batches: number of training batches that recomputed statistics come from; see
            `batch_statistics.recompute`.
        mesh: the devices.
    """
    weights = state.weights()
    for average in state.averages:
        if average.batch_stats == "recompute":
            variables = weights[average.name]
            whole = put(variables, replicated(mesh))
            variables["batch_stats"] = batch_statistics.recompute(
                whole, data, state, batches=range(num_batches), sharding=split_batch(mesh), frozen=average.frozen
            )
    return weights


def score(weights: Mapping[str, Any], data: EvalData | Stream, eval_step: EvalStep) -> dict[str, Scores]:
    """Scores sets of weights on all images.

    Args:
        weights: the variables of the model, by name; one of them is named `raw`.
        data: the images; each is scored once, padding is dropped.
        eval_step: the function of that name with its keyword arguments.

    Returns:
        NumPy arrays [number of images] for each set of weights, floats in float64.
    """
    on_every_device = jax.tree.leaves(weights["raw"])[0].sharding  # averages may be in parts, see `sharding.of_state`
    batches: dict[str, list[Any]] = {name: [] for name in weights}
    with stream.groups(data) as groups:
        for group in groups:
            for name, variables in weights.items():
                variables = put(variables, on_every_device)  # one at a time, for all may be too large
                with first_time("Compiling the evaluation, and the first one"):
                    batches[name] += fetch([eval_step(variables, part, np.int32(index)) for part, index in group])
    mask = np.concatenate([mask for mask, _ in batches["raw"]])

    def join(*parts: np.ndarray) -> np.ndarray:
        values = np.concatenate(parts)[mask]
        return values.astype(np.float64) if jnp.issubdtype(values.dtype, jnp.floating) else values  # bfloat16, too

    return {name: jax.tree.map(join, *(scores for _, scores in found)) for name, found in batches.items()}


@np.errstate(over="ignore", invalid="ignore")  # weights that have diverged give metrics that are not finite
def evaluate(
    weights: dict[str, Any],
    data: Any,
    eval_step: EvalStep | None,
    sets: Sets | None = None,
    wanted: Collection[str] = (),
    keep: pathlib.Path | None = None,
) -> Metrics:
    """Metrics of each set of weights, and of each average's paired difference to the raw weights, named `NAME-raw`.

    Takes what `score` takes, or no `eval_step`, what the task's `evaluate` found, and the metrics that there must be;
    one of the `weights` is named `raw`. The differences come with the `distance` of the parameters. In the folder
    `keep` it stores what each example was taken for; see `predictions.write`.
    """
    if sets is not None:
        score_metrics.check_sets(sets, weights)
    raw = weights["raw"]["params"]
    scores = score(weights, data, eval_step) if eval_step else {name: {} for name in weights}
    if keep and eval_step:
        predictions.write(keep, scores, data)
    metrics = {name: score_metrics.summarize(values) for name, values in scores.items()}
    for name in scores:
        if name != "raw":
            apart = distance(put(weights[name]["params"], jax.tree.leaves(raw)[0].sharding), raw)
            metrics[f"{name}-raw"] = score_metrics.compare(scores[name], scores["raw"]) | {"distance": float(apart)}
    found_raw = sets["raw"] if sets else {}
    for name, found in (sets or {}).items():
        metrics[name] |= {metric: float(value) for metric, (value, _) in found.items()}
        if name != "raw":
            metrics[f"{name}-raw"] |= score_metrics.compare_sets(found, found_raw)
    score_metrics.check_metrics(metrics, weights, wanted)
    return metrics


@jax.jit
def distance(params: Any, others: Any) -> jax.Array:
    """The Euclidean distance of two trees of parameters, a scalar."""
    return optax.tree.norm(optax.tree.sub(params, others))


def check_scores(scores: Scores, metrics: Mapping[str, str], shape: tuple[int, ...]) -> tuple[str, ...]:
    """Checks what a `score_fn` returns, before anything is computed.

    Args:
        scores: of one batch, only their shapes and types.
        metrics: `Task.metrics`.
        shape: [batch].

    Returns:
        The metrics that are proportions: means of booleans.

    Raises:
        UserError: a score is not one value per example or has a reserved name, or one of `metrics` has no score.
    """
    for name, values in scores.items():
        pair = values if isinstance(values, tuple) and len(values) == 2 and name not in NO_METRICS else (values,)
        if any(not hasattr(x, "shape") or x.shape != shape for x in pair):
            found = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", values)
            raise UserError(
                f"score_fn returns {name} = {found}; expected one value per example, {list(shape)}, or (sum, count)"
            )
        if name == "group" and not jnp.issubdtype(values.dtype, jnp.integer):
            raise UserError(f"score_fn returns group of {values.dtype}; expected integers, the same for one group")
        score_metrics.check_name("score_fn", name)
    known = score_metrics.summarized(scores)
    if missing := [name for name in metrics if name not in known]:
        raise UserError(f"Task.metrics has {', '.join(missing)}; score_fn returns only {', '.join(known)}")
    return tuple(n for n, x in scores.items() if n not in NO_METRICS and not isinstance(x, tuple) and x.dtype == bool)


def better(
    best: Best | None,
    step: int,
    metrics: Metrics,
    name: str,
    metric: str,
    directions: Mapping[str, Literal["higher", "lower"]],
) -> Best | None:
    """The best evaluation so far: `best`, or this step's if it is finite and better, or the first to count.

    Args:
        best: the best one before, which does not count if it is of other weights or another metric; None for none.
        step: steps done.
        metrics: of this step's evaluation.
        name: of the weights that count.
        metric: that counts.
        directions: for each metric, whether a higher or a lower value is better.
    """
    if metric not in metrics[name]:  # it is not due
        return best
    value = metrics[name][metric]
    if best and (best.weights, best.metric) != (name, metric):
        best = None
    if not math.isfinite(value):
        return best
    is_better = best is None or (value > best.value if directions[metric] == "higher" else value < best.value)
    return Best(step, name, metric, value) if is_better else best
