"""Flow matching: noise becomes an image along straight paths (Lipman et al. 2023, Liu et al. 2023).

    python main.py --config=examples/diffusion/configs/default.py --workdir=runs/diffusion
    python -m examples.samples runs/diffusion

The network sees a point `x` of the path from noise to an image, `(1 - t) * noise + t * image`, and estimates the image.
With the velocity `(estimate - x) / (1 - t)`, which sampling follows, the estimate would be reached at t = 1.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from examples import classifier, samples
from examples.diffusion.networks import MLP, UNet
from train import Experiment, Task
from train_state import CustomTrainState


def create_model(example: tuple[Any, Any], *, convolutional: bool = False, features: int = 256, blocks: int = 3) -> Any:
    return (UNet if convolutional else MLP)(features, blocks)


def create_data(config: Any, mesh: Any, *, size: int = 14, num_samples: int = 5000, num_steps: int = 12) -> Any:
    """Shrunk images; `num_steps` are those of sampling, of two evaluations of the network each."""
    del num_steps
    data = classifier.create_data(config, mesh, size=size, num_samples=num_samples)
    return data._replace(example=((data.example[0], jnp.zeros(1)), data.example[0]))


def errors(estimate: Any, image: jax.Array, key: jax.Array, time: jax.Array) -> jax.Array:
    """The squared error [batch] of the estimate of each image at a time [batch] on its way, the mean over pixels."""
    part = time[:, None, None, None]
    noisy = (1 - part) * jax.random.normal(key, image.shape) + part * image
    return jnp.square(estimate((noisy, time)) - image).mean(axis=(1, 2, 3))


def loss_fn(params: Any, state: CustomTrainState, batch: dict[str, jax.Array]) -> Any:
    """The squared error, at times of which more lie in the middle of the way (Esser et al. 2024)."""
    time = jax.nn.sigmoid(jax.random.normal(state.step_key("time"), (len(batch["image"]),)))
    estimate = functools.partial(state.apply_fn, {"params": params}, train=True)
    error = errors(estimate, batch["image"], state.step_key("noise"), time)
    return error.mean(), ({"loss": (error.sum(), error.size)}, {})


def score_fn(apply_fn: Any, variables: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The error of each image at four times, one in each quarter of the way; the same noise for all weights."""
    estimate = functools.partial(apply_fn, variables, train=False)
    time_key, *keys = jax.random.split(jax.random.key(0), 5)
    first = jax.random.uniform(time_key, (len(batch["image"]),)) / 4
    return {
        "loss": jnp.mean(jnp.stack([errors(estimate, batch["image"], keys[i], first + i / 4) for i in range(4)]), 0)
    }


@functools.partial(jax.jit, static_argnames=("apply_fn", "num_steps"))
def follow(apply_fn: Any, variables: Any, noise: jax.Array, num_steps: int) -> jax.Array:
    """Images from noise, by the midpoint rule, in steps that become shorter: late ones make the details."""
    times = 1 - jnp.linspace(1, 0, num_steps + 1) ** 1.2

    def velocity(x: jax.Array, time: Any) -> jax.Array:
        return (apply_fn(variables, (x, jnp.full(1, time)), train=False) - x) / (1 - time)

    def step(index: int, x: jax.Array) -> jax.Array:
        time, length = times[index], times[index + 1] - times[index]
        return x + length * velocity(x + length / 2 * velocity(x, time), time + length / 2)

    return jax.lax.fori_loop(0, num_steps, step, noise)


def sample(experiment: Experiment, variables: Any, key: jax.Array, num: int) -> jax.Array:
    noise = jax.random.normal(key, (num, *experiment.train_data.image.shape[1:]))
    of_noise = functools.partial(
        follow, experiment.state.apply_fn, variables, num_steps=experiment.config.data.num_steps
    )
    return jnp.concatenate([of_noise(noise[start : start + 1000]) for start in range(0, num, 1000)])


TASK = Task(
    loss_fn,
    score_fn,
    metrics=samples.METRICS | {"loss": "lower"},
    evaluate=functools.partial(samples.evaluate, sample=sample),
    create_model=create_model,
    create_data=create_data,
)
