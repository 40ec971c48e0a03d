"""Batch-norm statistics of a set of weights, recomputed from training batches."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

import optimizers
from runtime import freezing
from runtime.errors import UserError
from runtime.sharding import put, replicated
from runtime.stream import Stream, ahead
from train_state import CustomTrainState


class TrainData(Protocol):
    """A training set that serves batches, a pytree."""

    def batch(self, state: CustomTrainState) -> tuple[dict[str, jax.Array], Any]:
        """The batch of a state's step, with `image` [batch, height, width, channels], and the state's memory."""


def recompute(
    variables: Mapping[str, Any],
    data: TrainData | Stream,
    state: CustomTrainState,
    *,
    batches: Iterable[int],
    sharding: jax.sharding.NamedSharding,
    frozen: str = "",
) -> Any:
    """The batch statistics of a model with these weights, measured on training images.

    An average of weights is a model of its own, whose activations have a mean and a variance of their own (Izmailov et
    al. 2018, section 3.1). Both are those of the population: with the mean `m` and variance `v` of each batch, the mean
    of `m`, and the mean of `v + m**2` minus the square of that mean, which is the mean of `v` plus the variance of `m`.
    The model runs as in training but without dropout.

    Args:
        variables: parameters and batch statistics; of statistics that are not frozen, only the structure counts.
        data: the training set, or a `Stream` of it.
        state: of the run, for its key and its model.
        batches: the training batches to use, by their step: with augmentation, and each the same whenever it is asked
            for. Their order does not matter.
        sharding: how to split each batch over devices.
        frozen: which statistics stay as they are; see `freezing.statistics_stay`.

    Returns:
        New batch statistics, a tree like `variables["batch_stats"]`.

    Raises:
        UserError: the model has statistics other than those of an `nn.BatchNorm` that is applied once and learns them,
            or batches depend on more than their step.
    """
    if jax.tree.leaves(state.memory):
        raise UserError(
            "batch_stats = 'recompute' needs batches that can be made again, and those of this task come from a memory "
            "that moves on; use 'average' or 'copy'"
        )
    bare = state.with_averages(()).replace(params=(), opt_state=())  # a program that is the same for all averages
    batches = [*batches]
    with ahead(data, batches) as parts:
        per_batch = [
            jax.device_get(
                _batch_moments(variables, part, bare.replace(step=np.int32(step)), sharding=sharding, frozen=frozen)
            )
            for step, part in zip(batches, parts, strict=False)  # data on the device come without end
        ]
    like = traverse_util.flatten_dict(variables["batch_stats"])
    statistics = {path: stats for path, stats in like.items() if freezing.is_frozen(path, frozen)}
    for path in per_batch[0]:
        # In float64, in which the order of the batches makes no difference that float32 would show.
        mean, var = np.array([moments[path] for moments in per_batch], np.float64).swapaxes(0, 1)
        statistics[*path, "mean"] = mean.mean(axis=0)
        statistics[*path, "var"] = var.mean(axis=0) + mean.var(axis=0)
    if statistics.keys() != like.keys():
        other = ", ".join("/".join(path) for path in sorted(like.keys() - statistics.keys()))
        raise UserError(f"batch_stats = 'recompute' is for an nn.BatchNorm that is not frozen; the model has {other}")
    return traverse_util.unflatten_dict(
        {path: put(statistics[path].astype(leaf.dtype), leaf.sharding) for path, leaf in like.items()}
    )


@functools.partial(jax.jit, static_argnames=("sharding", "frozen"))
def _batch_moments(
    variables: Mapping[str, Any],
    data: TrainData,
    state: CustomTrainState,
    *,
    sharding: jax.sharding.NamedSharding,
    frozen: str,
) -> dict[tuple[str, ...], tuple[jax.Array, jax.Array]]:
    """Mean and variance of what each batch norm sees of one training batch, by the path of its module."""
    image = jax.lax.with_sharding_constraint(data.batch(state)[0]["image"], sharding)
    momentum: dict[tuple[str, ...], float] = {}

    def without_dropout(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if isinstance(module, nn.Dropout):
            return args[0] if args else kwargs["inputs"]
        if isinstance(module, nn.BatchNorm):
            stays = kwargs.get("use_running_average", args[1] if len(args) > 1 else None)
            stays = module.use_running_average if stays is None else stays
            if module.path in momentum:
                raise UserError(f"batch_stats = 'recompute': {'/'.join(module.path)} is applied twice in the model")
            if not stays and module.momentum < 1:
                momentum[module.path] = module.momentum
        return call(*args, **kwargs)

    zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    start = optimizers.whole(optimizers.moving(zeros, frozen), variables["batch_stats"])
    with freezing.statistics_stay(frozen), nn.intercept_methods(without_dropout):
        _, updates = state.apply_fn(
            {"params": variables["params"], "batch_stats": start}, image, train=True, mutable=["batch_stats"]
        )
    moved = traverse_util.flatten_dict(updates["batch_stats"])
    # From zeros, a running statistic moves to (1 - momentum) times that of the batch.
    moments = {path: (moved[*path, "mean"] / (1 - m), moved[*path, "var"] / (1 - m)) for path, m in momentum.items()}
    return jax.lax.with_sharding_constraint(moments, replicated(sharding.mesh))
