"""A plain Flax training loop: a small network with batch norm and dropout, on digits with 40 % wrong training labels.

python examples/plain_flax/train.py

It imports nothing of this project. `docs/add_averaging.md` adds weight averaging to it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training import train_state
from sklearn import datasets

NUM_EPOCHS = 10
BATCH_SIZE = 32


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for _ in range(2):
            x = nn.Dense(128)(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = nn.Dropout(0.3, deterministic=not train)(nn.relu(x))
        return nn.Dense(10)(x)


class TrainState(train_state.TrainState):
    batch_stats: Any
    dropout_rng: jax.Array


def create_train_state(rng: jax.Array) -> TrainState:
    params_rng, dropout_rng = jax.random.split(rng)
    model = MLP()
    variables = model.init(params_rng, jnp.zeros((1, 64)), train=False)
    return TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        tx=optax.sgd(0.1, momentum=0.9),
        batch_stats=variables["batch_stats"],
        dropout_rng=dropout_rng,
    )


@jax.jit(donate_argnames="state")
def train_step(state: TrainState, images: jax.Array, labels: jax.Array) -> TrainState:
    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
        logits, updates = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.fold_in(state.dropout_rng, state.step)},
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updates["batch_stats"]

    grads, batch_stats = jax.grad(loss_fn, has_aux=True)(state.params)
    state = state.apply_gradients(grads=grads, batch_stats=batch_stats)
    return state


@jax.jit
def evaluate(state: TrainState, images: jax.Array, labels: jax.Array) -> jax.Array:
    logits = state.apply_fn({"params": state.params, "batch_stats": state.batch_stats}, images, train=False)
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def load_digits(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    images, labels = datasets.load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    # Every second image of each class is a test image.
    test = np.array([np.sum(labels[:i] == label) % 2 == 1 for i, label in enumerate(labels)])
    wrong = (labels + rng.integers(1, 10, len(labels))) % 10
    noisy = np.where(rng.random(len(labels)) < 0.4, wrong, labels)
    return images[~test], noisy[~test], images[test], labels[test]


def main(seed: int = 0) -> TrainState:
    rng = np.random.default_rng(seed)
    images, labels, test_images, test_labels = load_digits(rng)
    num_steps = len(labels) // BATCH_SIZE
    state = create_train_state(jax.random.key(seed))
    for epoch in range(1, NUM_EPOCHS + 1):
        order = rng.permutation(len(labels))[: num_steps * BATCH_SIZE]
        for batch in order.reshape(num_steps, BATCH_SIZE):
            state = train_step(state, images[batch], labels[batch])
        print(f"epoch {epoch:2}: test accuracy {evaluate(state, test_images, test_labels):.2%}")
    return state


if __name__ == "__main__":
    main()
