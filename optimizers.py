"""Optimizers and learning-rate schedules from `config.optimizer`."""

import functools
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib


def constant(peak: float, *, warmup: int, stable: int, decay: int) -> optax.Schedule:
    """A linear warm-up to `peak`, then `peak`."""
    del stable, decay
    return _warm_up(peak, warmup, optax.constant_schedule(peak))


def cosine(peak: float, *, warmup: int, stable: int, decay: int) -> optax.Schedule:
    """From `peak` to 0 along half a cosine, after a linear warm-up (Loshchilov & Hutter 2017)."""
    del stable
    return _warm_up(peak, warmup, optax.cosine_decay_schedule(peak, decay))


def one_cycle(peak: float, *, warmup: int, stable: int, decay: int) -> optax.Schedule:
    """From `peak / 25` to `peak` and on to `peak / 250,000`, along half a cosine each (Smith & Topin 2018)."""
    del stable
    # As optax.cosine_onecycle_schedule, which however takes the end of the rise as a share and rounds it down.
    return optax.piecewise_interpolate_schedule("cosine", peak / 25, {warmup: 25, warmup + decay: 1 / 250_000})


def warmup_stable_decay(peak: float, *, warmup: int, stable: int, decay: int) -> optax.Schedule:
    """A linear warm-up to `peak`, `peak` for a while, and a linear decay to 0 (Hu et al. 2024, Hägele et al. 2024)."""
    fall = optax.linear_schedule(peak, 0, decay)
    return _warm_up(peak, warmup, optax.join_schedules([optax.constant_schedule(peak), fall], [stable]))


def _warm_up(peak: float, steps: int, after: optax.Schedule) -> optax.Schedule:
    """A linear warm-up whose first step has the rate `peak / steps`: a step at rate 0 would be wasted."""
    if steps == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(peak / steps, peak, max(1, steps - 1)), after], [steps])


# A new schedule is a function of the peak learning rate and the numbers of updates of its three phases, and its name
# here. `phases` says what they are.
SCHEDULES: Mapping[str, Callable[..., optax.Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "wsd": warmup_stable_decay,
}


def is_kernel(params: Any) -> Any:
    """Whether each parameter has weight decay and L2 penalty: not biases, normalisation, tokens and positions.

    Returns:
        A tree of bools like `params`: whether the parameter has the name that linen gives to kernels.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def kernels(params: Any) -> list[jax.Array]:
    """The parameters with weight decay and L2 penalty, as a list; see `is_kernel`."""
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(is_kernel(params)), strict=True)
    return [param for param, kernel in leaves if kernel]


def sgd(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum."""
    return optax.chain(
        # A momentum of 0 would keep a trace all the same.
        optax.trace(momentum, nesterov) if momentum else optax.identity(),
        optax.add_decayed_weights(weight_decay, is_kernel),
        optax.scale_by_learning_rate(learning_rate),
    )


def adamw(
    learning_rate: optax.ScalarOrSchedule, *, b1: float, b2: float, weight_decay: float
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019)."""
    return optax.adamw(learning_rate, b1, b2, weight_decay=weight_decay, mask=is_kernel)


def lion(
    learning_rate: optax.ScalarOrSchedule, *, b1: float, b2: float, weight_decay: float
) -> optax.GradientTransformation:
    """Lion (Chen et al. 2023)."""
    return optax.lion(learning_rate, b1, b2, weight_decay=weight_decay, mask=is_kernel)


def muon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float,
    nesterov: bool,
    b1: float,
    b2: float,
    weight_decay: float,
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for kernels, as matrices of inputs by outputs, and Adam for everything else.

    Muon's updates are scaled to the size of Adam's, so that one learning rate serves both (Liu et al. 2025).
    """

    def dimensions(params: Any) -> Any:
        def of(path: Any, kernel: bool, param: jax.Array) -> contrib.MuonDimensionNumbers | None:
            if not kernel:
                return None
            axes = range(param.ndim)
            # Attention has its outputs, heads by features, in two axes.
            num_outputs = 2 if {key.key for key in path} & {"query", "key", "value"} else 1
            return contrib.MuonDimensionNumbers(tuple(axes[:-num_outputs]), tuple(axes[-num_outputs:]))

        return jax.tree_util.tree_map_with_path(of, is_kernel(params), params)

    return contrib.muon(
        learning_rate,
        beta=momentum,
        nesterov=nesterov,
        adam_b1=b1,
        adam_b2=b2,
        weight_decay=weight_decay,
        muon_weight_dimension_numbers=dimensions,
        consistent_rms=0.2,
    )


# A new optimizer is a function of the learning rate and of fields of `config.optimizer`, and its name here. Its weight
# decay is multiplied by the learning rate only: it is decoupled from the gradient.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": sgd,
    "adamw": adamw,
    "lion": lion,
    "muon": muon,
}


def optimizer_fields(name: str) -> frozenset[str]:
    """The fields of `config.optimizer` that the optimizer of this name takes."""
    return frozenset(inspect.signature(OPTIMIZERS[name]).parameters) - {"learning_rate"}


def unused_fields(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The fields of `config.optimizer` that others of it make meaningless, each with the reason."""
    name, schedule = config["name"], config["schedule"]
    for field in sorted(frozenset().union(*map(optimizer_fields, OPTIMIZERS)) - optimizer_fields(name)):
        yield field, f"optimizer {name!r} has no such field"
    if name == "sgd" and config["momentum"] == 0:
        yield "nesterov", "there is no momentum"
    if schedule != "wsd":
        yield "decay", f"schedule {schedule!r} has no such field"


def phases(optimizer: Mapping[str, Any], num_steps: int, to_steps: Callable[[str, str], Any]) -> dict[str, int]:
    """The three phases of the learning rate in steps: `warmup`, `stable` and `decay`.

    Only the warm-up counts where it is constant: the others are 0 then, so that training can be made longer.

    Args:
        optimizer: `config.optimizer`.
        num_steps: the length of training.
        to_steps: turns a duration, after the name of its field, into steps.

    Raises:
        ValueError: they do not fit into the training.
    """
    warmup, decay = (math.ceil(to_steps(f"optimizer.{name}", optimizer[name])) for name in ("warmup", "decay"))
    rest, schedule = num_steps - warmup, optimizer["schedule"]
    stable = rest - decay if schedule == "wsd" else 0
    decay = decay if schedule == "wsd" else rest
    if min(rest, stable) < 0 or (schedule != "constant" and decay == 0):
        names = ("warmup", "decay") if schedule == "wsd" else ("warmup",)
        found = " and ".join(f"optimizer.{name} = {optimizer[name]!r}" for name in names)
        raise ValueError(f"{found}: too long for the training of {num_steps} steps")
    return {"warmup": warmup, "stable": stable, "decay": 0 if schedule == "constant" else decay}


def create_optimizer(
    name: str,
    *,
    schedule: str,
    learning_rate: float,
    warmup: int,
    stable: int,
    decay: int,
    clip_norm: float,
    gradient_noise: float,
    groups: Mapping[str, Mapping[str, Any]],
    **fields: Any,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a resolved `config.optimizer`.

    Args:
        name: a key of `OPTIMIZERS`.
        schedule: a key of `SCHEDULES`.
        learning_rate: at its peak. The optimizer state holds the current one, which is logged.
        warmup: steps of the schedule's first phase.
        stable: steps of its second phase.
        decay: steps of its third phase.
        clip_norm: largest global norm of the gradient, 0 for no limit.
        gradient_noise: see `add_gradient_noise`; added after clipping, and therefore not clipped.
        groups: see `in_groups`.
        **fields: the other fields of `config.optimizer`; the optimizer takes the ones that it has.
    """
    rate = SCHEDULES[schedule](learning_rate, warmup=warmup, stable=stable, decay=decay)
    taken = {key: value for key, value in fields.items() if key in optimizer_fields(name)}
    # Everything but the rate stays out of the state: a restored value would override the config's.
    optimizer = in_groups(OPTIMIZERS[name], groups) if groups else OPTIMIZERS[name]
    create = optax.inject_hyperparams(optimizer, static_args=taken)
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        add_gradient_noise(gradient_noise) if gradient_noise else optax.identity(),
        create(learning_rate=rate, **taken),
    )


def group_of(params: Any, groups: Mapping[str, Mapping[str, Any]]) -> Any:
    """The group of each parameter: the first that matches its path, "" if there is none.

    Args:
        params: a tree whose paths are those of the parameters.
        groups: by name, the fields of `configs.default.group`.
    """

    def of(path: Any, param: Any) -> str:
        del param
        return next((name for name, group in groups.items() if re.match(group["match"], _text(path))), "")

    return jax.tree_util.tree_map_with_path(of, params)


def moving(params: Any, frozen: str) -> Any:
    """The parameters without the frozen ones, in whose places there is `optax.MaskedNode()`, which has no leaves.

    Args:
        params: a tree whose paths are those of the parameters.
        frozen: a regular expression for the beginning of the paths of the frozen ones; empty if there are none.
    """

    def of(path: Any, param: Any) -> Any:
        return optax.MaskedNode() if frozen and re.match(frozen, _text(path)) else param

    return jax.tree_util.tree_map_with_path(of, params)


def whole(part: Any, params: Any) -> Any:
    """The inverse of `moving`: a tree of which it left a part, with the frozen ones of `params` in their places."""

    def is_missing(x: Any) -> bool:
        return isinstance(x, optax.MaskedNode)

    return jax.tree.map(lambda x, param: param if is_missing(x) else x, part, params, is_leaf=is_missing)


_text = functools.partial(jax.tree_util.keystr, simple=True, separator="/")


class GroupsState(NamedTuple):
    """What is logged of groups of parameters."""

    group_metrics: dict[str, jax.Array]  # scalars by their names


def in_groups(
    create: Callable[..., optax.GradientTransformation], groups: Mapping[str, Mapping[str, Any]]
) -> Callable[..., optax.GradientTransformation]:
    """An optimizer of the same signature for each group of parameters, and one for the rest.

    Args:
        create: of `OPTIMIZERS`.
        groups: see `group_of`.
    """
    labels = functools.partial(group_of, groups=groups)

    @functools.wraps(create)
    def create_all(learning_rate: Any, **fields: Any) -> optax.GradientTransformation:
        parts = {name: part(create, learning_rate, fields, group) for name, group in groups.items()}

        def metrics(norm: Callable[[str], Any]) -> GroupsState:
            rates = {f"learning_rate_{name}": learning_rate * group["factor"] for name, group in groups.items()}
            norms = {f"grad_norm_{name}": norm(name) for name in groups}
            return GroupsState(jax.tree.map(jnp.float32, rates | norms))

        def update(updates: Any, state: GroupsState, params: Any = None) -> tuple[Any, GroupsState]:
            del state, params
            pairs = list(zip(jax.tree.leaves(updates), jax.tree.leaves(labels(updates)), strict=True))
            return updates, metrics(lambda name: optax.tree.norm([g for g, label in pairs if label == name]))

        log = optax.GradientTransformation(lambda params: metrics(lambda name: 0), update)
        return optax.chain(log, optax.partition({**parts, "": create(learning_rate, **fields)}, labels))

    return create_all


def part(
    create: Callable[..., optax.GradientTransformation],
    learning_rate: Any,
    fields: Mapping[str, Any],
    group: Mapping[str, Any],
) -> optax.GradientTransformation:
    """The optimizer of a group of parameters, see `in_groups`; of one that never moves it has no state."""
    if not group["factor"]:
        return optax.set_to_zero()
    if "weight_decay" in fields:  # of groups from before there was such a field, it is that of the optimizer
        fields = {**fields, "weight_decay": fields["weight_decay"] * group.get("weight_decay_factor", 1.0)}
    clip = optax.clip_by_global_norm(group["clip_norm"]) if group["clip_norm"] else optax.identity()
    every, optimizer = group["every"], optax.chain(clip, create(learning_rate * group["factor"], **fields))
    return optax.conditionally_mask(optimizer, lambda count: count % every == every - 1) if every > 1 else optimizer


def add_gradient_noise(eta: float, gamma: float = 0.55) -> optax.GradientTransformationExtraArgs:
    """Adds Gaussian noise of variance `eta / (1 + t) ** gamma` to the gradient at update `t = 0, 1, ...`.

    Neelakantan et al. 2015, who use `eta` of 0.01, 0.3 or 1. Unlike `optax.add_noise` it carries no key: `update`
    takes the key of the step as `key`, which `CustomTrainState.apply_gradients` passes.
    """

    def init(params: Any) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(
        updates: Any, state: optax.ScaleByScheduleState, params: Any = None, *, key: jax.Array, **extra: Any
    ) -> tuple[Any, optax.ScaleByScheduleState]:
        del params, extra
        std = jnp.sqrt(eta / (1 + state.count) ** gamma)
        noise = optax.tree.random_like(key, updates)
        updates = jax.tree.map(lambda g, n: g + std.astype(g.dtype) * n, updates, noise)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def logged(opt_state: Any) -> dict[str, jax.Array]:
    """What is logged of the latest update, scalars by name, from the state of an optimizer of `create_optimizer`.

    The learning rate, and that of each group of parameters with the norm of its gradient before `group.clip_norm`.
    """

    # The state of a schedule has the same name.
    def is_array(path: Any, value: Any) -> bool:
        del path
        return isinstance(value, jax.Array)

    rate: jax.Array = optax.tree.get(opt_state, "learning_rate", filtering=is_array)
    return {"learning_rate": rate, **optax.tree.get(opt_state, "group_metrics", {})}
