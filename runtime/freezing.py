"""Parts of a model that stand still in training: groups of parameters with a factor of 0."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from flax import linen as nn

import optimizers
from train_state import CustomTrainState


def paths(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """A regular expression for the beginning of the paths of frozen parameters; empty if there are none.

    Args:
        groups: see `optimizers.group_of`.
    """
    found, others = [], ""
    for group in groups.values():
        if group["factor"]:
            others += f"(?!{group['match']})"
        else:
            found.append(f"{others}(?:{group['match']})")
    return "|".join(found)


def freeze(loss_fn: Callable[..., Any], groups: Mapping[str, Mapping[str, Any]]) -> Callable[..., Any]:
    """A loss for which frozen parameters are constants: no gradient is computed for them, nor for what is below them.

    Their batch norm stands still, see `statistics_stay`, and the averages in the state are whole.

    Args:
        loss_fn: see `train.LossFn`.
        groups: see `optimizers.group_of`.
    """
    if not (frozen := paths(groups)):
        return loss_fn

    def loss(params: Any, state: CustomTrainState, batch: Any) -> Any:
        params = optimizers.whole(optimizers.moving(params, frozen), jax.lax.stop_gradient(params))
        weights = state.weights()
        averages = {average.name: weights[average.name]["params"] for average in state.averages}
        with statistics_stay(frozen):
            return loss_fn(params, state.replace(ema_params=averages), batch)

    return loss


@contextlib.contextmanager
def statistics_stay(frozen: str) -> Iterator[None]:
    """Within it, each `nn.BatchNorm` of a frozen part uses the statistics that it has in training, too, and keeps them.

    Args:
        frozen: see `paths`; it is matched with the path of the mean, such as "BatchNorm_0/mean".
    """

    def keep(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if isinstance(module, nn.BatchNorm) and is_frozen((*module.path, "mean"), frozen):
            # Past Flax's guard of its fields: within `apply` a module is a copy that nobody else sees.
            object.__setattr__(module, "use_running_average", True)
            args, kwargs = args[:1], {**kwargs, "use_running_average": None}
        return call(*args, **kwargs)

    with nn.intercept_methods(keep):
        yield


def is_frozen(path: tuple[str, ...], frozen: str) -> bool:
    """Whether the leaf at this path is frozen; see `paths`."""
    return bool(frozen and re.match(frozen, "/".join(path)))
