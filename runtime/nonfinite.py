"""Where a loss or a gradient stops being finite."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import optimizers
from runtime import stream
from runtime.errors import UserError
from train_state import CustomTrainState


def check_rejections(state: CustomTrainState, limit: int, data: Any, gradient_fn: functools.partial[Any]) -> int:
    """How many steps were rejected so far.

    Args:
        state: after the latest step.
        limit: `config.max_rejected_steps`.
        data: the training data, whose `batch(state)` is the batch of its step.
        gradient_fn: `train.compute_gradients` with its `loss_fn` and `num_microbatches` as keyword arguments.

    Raises:
        UserError: `limit` steps in a row were rejected; says what the last of them shows of the reason.
    """
    rejected: dict[str, np.ndarray] = jax.device_get(state.rejected)
    if rejected["longest"] < limit:
        return int(rejected["total"])
    if jax.tree.leaves(state.memory):
        found = "The last of them cannot be taken again: its batch came from a memory that has moved on."
    elif rejected["streak"] == 0:
        found = "Later ones were accepted; --config.log_every=1steps ends training earlier, and tells more."
    else:
        before = state.replace(step=state.step - 1)
        batch, _ = stream.at(data, int(before.step)).batch(before)
        _, _, updates, grads = jax.jit(gradient_fn)(before, batch)
        rate = optimizers.logged(before.apply_gradients(grads=grads, **updates).opt_state)["learning_rate"]
        found = (
            f"At step {state.step}: learning rate {rate:g}, gradient norm "
            f"{optax.tree.norm(grads):g}, first not finite "
            f"{first_layer(gradient_fn.keywords['loss_fn'], before, batch, grads)}."
        )
    raise UserError(
        f"{rejected['longest']} steps in a row had a loss or gradient that is not finite; max_rejected_steps = "
        f"{limit} allows no more. {found} A smaller optimizer.learning_rate or a limit for the "
        "gradient such as --config.optimizer.clip_norm=1 may help. The last checkpoint is as it was."
    )


def first_layer(
    loss_fn: Callable[..., Any], state: CustomTrainState, batch: Mapping[str, jax.Array], grads: Any
) -> str:
    """The first place that is not finite, on the way through the model and back, in words.

    Runs `loss_fn` once, operation by operation.

    Args:
        loss_fn: see `train.LossFn`.
        state: before the step.
        batch: of the step.
        grads: the gradients of the step, a tree like the parameters.
    """
    modules: list[tuple[str, ...]] = []  # in the order in which they end, so the inner ones first
    broken: list[tuple[str, ...]] = []

    def watch(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        modules.append(context.module.path)
        if not is_finite(output):
            broken.append(context.module.path)
        return output

    if not is_finite(batch):
        return "the batch"
    with nn.intercept_methods(watch):
        objective, _ = loss_fn(state.params, state, batch)
    if broken:
        return f"the output of {'/'.join(broken[0]) or 'the model'}"
    if not is_finite(objective):
        return "the loss, of outputs that are finite"
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    paths = [tuple(key.key for key in path) for path, leaf in leaves if not is_finite(leaf)]
    # Backwards, so from the last layer to the first.
    paths.sort(key=lambda path: modules.index(path[:-1]) if path[:-1] in modules else -1)
    return f"the gradient of {'/'.join(paths[-1])}" if paths else "the norm of the gradient, a sum of finite numbers"


def is_finite(tree: Any) -> bool:
    """Whether all floating-point numbers in a tree are; those that are being traced pass."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not isinstance(leaf, jax.core.Tracer)]
    return all(np.all(jnp.isfinite(leaf)) for leaf in leaves if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))
