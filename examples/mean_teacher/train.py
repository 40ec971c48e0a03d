"""Learning from few labels and many images: a network agrees with an average of itself (Tarvainen & Valpola 2017).

    python main.py --config=examples/mean_teacher/configs/default.py --workdir=runs/teacher
    python main.py --config=examples/mean_teacher/configs/default.py --workdir=runs/supervised --config.loss.weight=0.0

A part of each batch has labels (labels.py). All of its images are seen twice, under different augmentation and dropout:
by the network, the student, and by the average that `config.loss.teacher` names.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from examples.mean_teacher.labels import create_data
from train import Task, apply_model
from train_state import CustomTrainState


def ramp(step: jax.Array, ramp_up: int) -> jax.Array | float:
    """The share of the weight at a step: `exp(-5 (1 - step / ramp_up)**2)`, and 1 from `ramp_up` on.

    It begins at 0.0067 and rises like a sigmoid (Laine & Aila 2017, section 2.1).
    """
    return jnp.exp(-5 * jnp.square(1 - jnp.minimum(step / ramp_up, 1))) if ramp_up else 1.0


def teach(params: Any, state: CustomTrainState, image: jax.Array, teacher: str) -> jax.Array:
    """The teacher's logits [batch, classes], with dropout of its own and, as published, the statistics of its batch.

    What batch norm would change of the teacher's stored statistics is dropped: they follow the student's, see
    `batch_stats` of the average.
    """
    variables = {"params": jax.lax.stop_gradient(params), "batch_stats": state.batch_stats}
    if teacher != "none":
        variables = {"params": state.ema_params[teacher], "batch_stats": state.ema_batch_stats[teacher]}
    key = state.step_key("teacher_dropout")
    return state.apply_fn(variables, image, train=True, mutable=["batch_stats"], rngs={"dropout": key})[0]


def loss_fn(
    params: Any,
    state: CustomTrainState,
    batch: dict[str, jax.Array],
    *,
    weight: float = 30.0,
    ramp_up: int | str = "20%",
    teacher: str = "teacher",
    threshold: float = 0.0,
) -> Any:
    """Cross-entropy of the labelled images, plus a weight times how far student and teacher differ on all images.

    Args:
        params: of the student.
        state: with the averages.
        batch: see `FewLabels.batch`.
        weight: after the ramp-up; 0 for learning from labelled images alone.
        ramp_up: steps during which the weight rises, see `ramp`.
        teacher: name of the average that teaches; "none" for the network itself under other noise (the Pi model of
            Laine & Aila 2017, but without a gradient through the teaching side).
        threshold: 0 for the mean squared difference of probabilities; otherwise the teacher's class is a label where
            its probability is at least this, as in FixMatch (Sohn et al. 2020), and elsewhere nothing is learned.
    """
    num = len(batch["label"])
    seen = batch if weight else {**batch, "image": batch["image"][:num]}
    logits, updates = apply_model(params, state, seen)
    nll = optax.softmax_cross_entropy(logits[:num], batch["target"])
    correct = jnp.argmax(logits[:num], axis=-1) == batch["label"]
    metrics = {"loss": (nll.sum(), num), "accuracy": (correct.sum(), num)}
    if not weight:
        return nll.mean(), (metrics, updates)
    taught = jax.nn.softmax(teach(params, state, batch["teacher_image"], teacher))
    if threshold:
        sure = taught.max(axis=-1) >= threshold
        pseudo = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.argmax(taught, axis=-1))
        apart = jnp.where(sure, pseudo, 0)
        metrics["sure"] = (sure.sum(), sure.size)
    else:
        apart = jnp.square(jax.nn.softmax(logits) - taught).mean(axis=-1)
    metrics["apart"] = (apart.sum(), apart.size)
    return nll.mean() + weight * ramp(state.step, int(ramp_up)) * apart.mean(), (metrics, updates)


TASK = Task(
    loss_fn,
    create_data=create_data,
    needs=lambda loss: () if loss["teacher"] == "none" or not loss["weight"] else (loss["teacher"],),
)
