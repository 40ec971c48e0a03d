"""Averaged weights against averaged predictions of the same networks."""

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

import evaluation
from runtime import score_metrics
from runtime.score_metrics import Scores
from tools.diagnosis import landscape
from tools.diagnosis.spectrum import NUM_ITERATES, Trace
from tools.diagnosis.subject import Subject


def ensembles(subject: Subject, trace: Trace) -> dict[str, Any]:
    """Averaged weights against averaged predictions of the same iterates, of the newest 1, 2, ... of them."""
    stored = subject.run.stored[-NUM_ITERATES:]
    if len(stored) >= NUM_ITERATES // 2:
        steps = [point.record.step for point in stored]
        iterates = [subject.run.weights(point, "raw") for point in stored]
    else:
        steps, iterates = [], [weights["raw"] for weights in trace.iterates]
    _, split = subject.images
    score_fn, images = subject.score_fn, subject.images[split]
    # All at once, as evaluation makes them batch by batch, without padding.
    batches = [jax.device_get(images.batch(jnp.int32(index))) for index in range(images.num_batches)]
    whole = {name: np.concatenate([made[name] for made in batches]) for name in batches[0]}
    batch: dict[str, Any] = {name: values[whole["mask"]] for name, values in whole.items()}
    # Of classes, probabilities are averaged, by their logarithms, which are logits; of other tasks, the outputs.
    classes = score_fn is evaluation.score_fn

    def output(apply_fn: Callable[..., Any], variables: Any, batch: Mapping[str, jax.Array]) -> Scores:
        made = apply_fn(variables, batch["image"], train=False)
        return {"output": jax.nn.log_softmax(made) if classes else made}

    outputs = [subject.scores(subject.recomputed(weights), split, output)["output"] for weights in iterates]

    def score_outputs(some: Sequence[Any]) -> Scores:
        def mean(*of_each: np.ndarray) -> np.ndarray:
            total = special.logsumexp(of_each, axis=0) - math.log(len(of_each)) if classes else np.mean(of_each, axis=0)
            return np.asarray(total, np.float32)  # of what a model returns

        given = jax.tree.map(mean, *some)  # a model may have several outputs
        scores = score_fn(lambda *_, **__: given, {}, batch)
        return {name: np.asarray(values) for name, values in scores.items()}

    found = collections.defaultdict(list)
    for number in range(1, len(iterates) + 1):
        weights = subject.recomputed(landscape.mean(iterates[-number:]))
        scores = {
            "single": score_outputs(outputs[-number:][:1]),
            "weights": subject.scores(weights, split),
            "predictions": score_outputs(outputs[-number:]),
        }
        for name, values in scores.items():
            found[name].append(score_metrics.summarize(values))
    return {
        "steps": steps,
        "split": split,
        "difference": score_metrics.compare(scores["weights"], scores["predictions"]),
        **found,
    }
