"""Small images, and a classifier whose features judge generated ones. It is trained once for a run, in seconds."""

import functools
import hashlib
import io
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.flatten_util import ravel_pytree

import input_pipeline
from input_pipeline import TrainData
from runtime.convolution import FastApply
from runtime.errors import UserError
from runtime.files import replace_file
from runtime.progress import under_way


def create_data(config: Any, mesh: Any, *, size: int = 14, num_samples: int = 5000) -> input_pipeline.Data:
    """Images shrunk to `size`, between -1 and 1; `num_samples` are to be judged with them, which changes results.

    Raises:
        UserError: images cannot be shrunk to this size in whole blocks of pixels.
    """
    del num_samples
    data = input_pipeline.create_data(config, mesh, mode="device")

    def shrunk(images: Any) -> Any:
        n, height, width, channels = images.image.shape
        if size < 1 or height % size or width % size:
            raise UserError(f"data.size = {size}: must divide the {height} x {width} of the images of {config.dataset}")
        blocks = np.asarray(images.image).reshape(n, size, height // size, size, width // size, channels)
        half = np.full(channels, 127.5, np.float32)
        normalization = input_pipeline.Normalization(half, half)
        return images.replace(image=blocks.mean((2, 4)).round().astype(np.uint8), normalization=normalization)

    train, evaluated = shrunk(data.train), {name: shrunk(images) for name, images in data.eval.items()}
    return data._replace(train=train, eval=evaluated, example=(jnp.zeros((1, *train.image.shape[1:])), data.example[1]))


class Classifier(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps images [batch, height, width, channels] to 32 features and to logits."""
        for size in (32, 64):
            image = nn.relu(nn.Conv(size, (3, 3), strides=2)(image))
        features = nn.Dense(32)(image.reshape(len(image), -1))
        return features, nn.Dense(self.num_classes)(nn.relu(features))


@functools.partial(jax.jit, static_argnames=("apply_fn", "num_steps"))
def train(data: TrainData, params: Any, apply_fn: Callable[..., Any], num_steps: int) -> Any:
    """The parameters after so many steps of Adam, the same ones for the same images and labels."""
    tx = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))

    def loss(params: Any, rows: jax.Array) -> jax.Array:
        logits = apply_fn(params, data.normalization(data.image[rows]))[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, data.label[rows]).mean()

    def step(index: int, carry: Any) -> Any:
        params, state = carry
        rows = jax.random.randint(jax.random.fold_in(jax.random.key(0), index), (128,), 0, len(data.label))
        updates, state = tx.update(jax.grad(loss)(params, rows), state)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, num_steps, step, (params, tx.init(params)))[0]


def digest(data: TrainData, params: Any) -> str:
    """The SHA-256 of a classifier and of what it was trained on."""
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in (data.image, data.label, params))).hexdigest()


def features(data: TrainData, workdir: pathlib.Path | None, num_steps: int = 2000) -> Callable[[jax.Array], np.ndarray]:
    """A function from images, normalised as the data's, to their features [number, 32], in float64.

    The classifier is that of the workdir, `classifier.npz`. If it has none, one is trained and stored there.

    Raises:
        UserError: what is stored is damaged, or was trained on other images.
    """
    apply_fn = FastApply(Classifier(data.num_classes))
    start = apply_fn.model.init(jax.random.key(0), data.normalization(jnp.asarray(data.image[:1])))
    _, as_tree = ravel_pytree(start)
    path = workdir / "classifier.npz" if workdir else None
    if path and path.exists():
        try:
            with np.load(path) as stored:
                params, found = stored["params"], str(stored["digest"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path} is damaged ({error}). Restore or remove it; a new one may judge otherwise"
            ) from error
        if found != digest(data, params):
            raise UserError(
                f"{path} is damaged or of other images. Restore or remove it; a new one may judge otherwise"
            )
    else:
        with under_way("Training the classifier whose features judge samples"):
            params = np.asarray(ravel_pytree(train(data, start, apply_fn, num_steps))[0])
        if path and path.parent.is_dir():
            np.savez(content := io.BytesIO(), params=params, digest=digest(data, params))
            replace_file(path, content.getvalue())
    tree = as_tree(params)

    def of_images(image: jax.Array) -> np.ndarray:
        parts = [_features(tree, image[start : start + 1000], apply_fn) for start in range(0, len(image), 1000)]
        return np.concatenate(jax.device_get(parts)).astype(np.float64)

    return of_images


@functools.partial(jax.jit, static_argnames="apply_fn")
def _features(params: Any, image: jax.Array, apply_fn: Callable[..., Any]) -> jax.Array:
    return apply_fn(params, image)[0]
