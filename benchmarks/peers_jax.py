"""The training of benchmarks/peers.py written out plainly in JAX, and what its variants have in common."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util
from flax.training import train_state

Weights = dict[str, np.ndarray]  # by path, such as "Conv_0/kernel", in linen's layouts


@dataclasses.dataclass(frozen=True)
class Task:
    """What to train, from where and how.

    Attributes:
        depth: of a ResNet; 0 for the CNN.
        dtype: "float32" or "bfloat16", of the computation.
        params: the initial parameters, in linen's layouts.
        batch_stats: the initial batch statistics.
        batches: float32 images [batch, height, width, channels] and int32 labels [batch]; after the last one the first
            is served again.
        learning_rate: of SGD.
        momentum: of SGD.
        decay: of the average, per step; it begins at the initial parameters.
    """

    depth: int
    dtype: str
    params: Any
    batch_stats: Any
    batches: Sequence[tuple[jax.Array, jax.Array]]
    learning_rate: float
    momentum: float
    decay: float


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        advance: takes this many further steps, waits for them and returns the mean loss.
        weights: gives the present "params", "batch stats" and "average".
        operations: floating-point operations of a step as it is written, if they are known.
    """

    advance: Callable[[int], float]
    weights: Callable[[], dict[str, Weights]]
    operations: float = 0.0


def flatten(tree: Any) -> Weights:
    """Linen's weights by path, on the host; copies, which no later step overwrites."""
    return {path: np.array(value) for path, value in traverse_util.flatten_dict(tree, sep="/").items()}


class PlainCNN(nn.Module):
    """`models.CNN` as the Flax example writes it."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float images [batch, 28, 28, 1] to logits [batch, 10]."""
        for features in (32, 64):
            x = nn.avg_pool(nn.relu(nn.Conv(features, (3, 3), dtype=self.dtype)(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(256, dtype=self.dtype)(x.reshape(len(x), -1)))
        return nn.Dense(10, dtype=self.dtype)(x).astype(jnp.float32)


def blocks(depth: int) -> list[tuple[int, int]]:
    """The features and the strides of each block of a ResNet of this depth."""
    stages, first = {18: ((2, 2, 2, 2), 64), 20: ((3, 3, 3), 16)}[depth]
    return [
        (first * 2**stage, 2 if stage and not block else 1)
        for stage, number in enumerate(stages)
        for block in range(number)
    ]


class PlainResNet(nn.Module):
    """`models.ResNet` of depth 18 or 20, in training."""

    depth: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float images [batch, 32, 32, 3] to logits [batch, 10]."""
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(nn.BatchNorm, use_running_average=False, momentum=0.9, dtype=self.dtype)
        x = nn.relu(norm()(conv(blocks(self.depth)[0][0], (3, 3), padding=1)(x)))
        for features, strides in blocks(self.depth):
            y = nn.relu(norm()(conv(features, (3, 3), strides, padding=1)(x)))
            y = norm()(conv(features, (3, 3), padding=1)(y))
            if strides > 1 and self.depth == 18:
                x = norm()(conv(features, (1, 1), strides)(x))
            elif strides > 1:
                x = jnp.pad(x[:, ::2, ::2], [(0, 0), (0, 0), (0, 0), (0, features // 2)])
            x = nn.relu(x + y)
        return nn.Dense(10, dtype=self.dtype)(x.mean(axis=(1, 2))).astype(jnp.float32)


class State(train_state.TrainState):
    """Flax's, with batch statistics and an average of the parameters."""

    batch_stats: Any
    average: Any


def create(task: Task) -> Variant:
    """A jitted step a batch."""
    # The second copy is the average's own, since a step may overwrite the state.
    params, average, batch_stats = jax.tree.map(jnp.array, (task.params, task.params, task.batch_stats))
    state = State.create(
        apply_fn=(PlainResNet(task.depth, task.dtype) if task.depth else PlainCNN(task.dtype)).apply,
        params=params,
        tx=optax.sgd(task.learning_rate, task.momentum),
        batch_stats=batch_stats,
        average=average,
    )
    batches = itertools.cycle(task.batches)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: State, image: jax.Array, label: jax.Array) -> tuple[State, jax.Array]:
        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updates = state.apply_fn(variables, image, mutable=["batch_stats"])
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
            return loss, updates.get("batch_stats", {})

        (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        state = state.apply_gradients(grads=grads, batch_stats=batch_stats)
        return state.replace(average=optax.incremental_update(state.params, state.average, 1 - task.decay)), loss

    def advance(num_steps: int) -> float:
        nonlocal state
        losses = []
        for image, label in itertools.islice(batches, num_steps):
            state, loss = step(state, image, label)
            losses.append(loss)
        return float(np.mean(jax.device_get(losses)))

    def weights() -> dict[str, Weights]:
        trees = {"params": state.params, "batch stats": state.batch_stats, "average": state.average}
        return {name: flatten(tree) for name, tree in trees.items()}

    costs: Any = step.lower(state, *task.batches[0]).cost_analysis()
    return Variant(advance, weights, costs["flops"])
