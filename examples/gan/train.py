"""A generator and a discriminator that learn from each other (Goodfellow et al. 2014).

    python main.py --config=examples/gan/configs/default.py --workdir=runs/gan
    python -m examples.samples runs/gan

Both are parts of one model with one objective, in which the loss of each takes the other as constant. So both move in
one step, each by an Adam of its own. Averages are of both; samples come from the generator of each.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from examples import classifier, samples
from examples.gan.players import Players
from train import Experiment, Task
from train_state import CustomTrainState


def create_model(
    example: tuple[Any, Any], *, latents: int = 64, features: int = 256, convolutional: bool = False
) -> Players:
    return Players(example[0].shape[1:], latents, features, convolutional)


def loss_fn(params: Any, state: CustomTrainState, batch: dict[str, jax.Array], *, r1: float = 0.1) -> Any:
    """The non-saturating losses of both, and `r1` / 2 times the squared gradient of the logits by real images.

    Mescheder et al. 2018, "Which training methods for GANs do actually converge?", for the penalty, R1.
    """
    judge = functools.partial(state.apply_fn, method="judge")
    fixed = jax.lax.stop_gradient(params)
    real, num = batch["image"], len(batch["image"])
    made = state.apply_fn({"params": params}, state.step_key("latents"), num, method="generate")
    logits, slope = jax.vjp(lambda image: judge({"params": params}, image), real)
    penalty = jnp.square(slope(jnp.ones(num))[0]).sum(axis=(1, 2, 3))
    made_logits = judge({"params": params}, jax.lax.stop_gradient(made))
    discriminator = nn.softplus(-logits) + nn.softplus(made_logits) + r1 / 2 * penalty
    generator = nn.softplus(-judge({"params": fixed}, made))
    metrics = {"loss": (generator.sum(), num), "discriminator_loss": (discriminator.sum(), num)}
    return generator.mean() + discriminator.mean(), (metrics, {})


def sample(experiment: Experiment, variables: Any, key: jax.Array, num: int) -> jax.Array:
    return experiment.state.apply_fn(variables, key, num, method="generate")


TASK = Task(
    loss_fn,
    score_fn=None,
    metrics=samples.METRICS,
    evaluate=functools.partial(samples.evaluate, sample=sample),
    create_model=create_model,
    create_data=classifier.create_data,
)
