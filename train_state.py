"""The state of a training run: everything that one step reads and changes."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.training import train_state
from jax.typing import ArrayLike

import averaging
import optimizers
import streams


@dataclasses.dataclass(frozen=True)
class Average:
    """A weight average to keep. Plain values, compared by value, so that it can be a static part of a jitted state.

    Attributes:
        name: of its curve.
        kind: a key of `averaging.SCHEDULES`.
        arguments: what that schedule takes, as (name, value); horizons in updates, decays per firing.
        start: updates before averaging begins, during which the average is the raw weights.
        every: updates from firing to firing, which are those at which it moves.
        restart_every: updates after which the average begins anew; 0 for never.
        batch_stats: where its batch statistics come from: "average", as its weights do; "copy", the raw ones;
            "recompute", from training batches at evaluation, see `evaluation.recompute_batch_stats` (until then they
            are averaged).
        frozen: paths of the parameters that it leaves out, for they never move; see `optimizers.moving`.
    """

    name: str
    kind: str
    arguments: tuple[tuple[str, float], ...] = ()
    start: int = 0
    every: int = 1
    restart_every: int = 0
    batch_stats: str = "average"
    frozen: str = ""

    @property
    def schedule(self) -> optax.Schedule:
        """Its step size at update `t >= 1`."""
        schedule = averaging.every(averaging.SCHEDULES[self.kind](**dict(self.arguments)), self.every)
        if self.restart_every:
            schedule = averaging.restart_every(schedule, self.restart_every)
        return averaging.starting_at(schedule, self.start)

    @property
    def has_interval(self) -> bool:
        """Whether there are updates at which it stays where it is."""
        return max(self.every, dict(self.arguments).get("period", 1)) > 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**vars(self), "arguments": dict(self.arguments)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**{**values, "arguments": tuple(values["arguments"].items())})


class CustomTrainState(train_state.TrainState):
    """Flax's `TrainState` with batch statistics, a root key, weight averages and a record of rejected steps.

    Attributes:
        step: int32 scalar, the number of batches consumed, rejected ones included.
        batch_stats: batch-norm statistics of the raw parameters; empty for a model without any.
        rng: typed root key, never split and never changed: every key is derived from it with `fold_in`.
        rejected: int32 scalars "total", "streak" (the current run of rejected steps) and "longest".
        ema_params: for each average its parameters, in at least float32, without frozen ones, which `weights` fills in.
        ema_batch_stats: for each average its batch statistics.
        ema_count: for each average an int32 scalar, the updates since it was created: the `t` of its schedule.
        memory: what the training data carries from step to step, such as a buffer for replay; () if nothing.
        averages: which averages there are.
    """

    step: jax.Array
    batch_stats: Any
    rng: jax.Array
    rejected: dict[str, jax.Array]
    ema_params: dict[str, Any]
    ema_batch_stats: dict[str, Any]
    ema_count: dict[str, jax.Array]
    memory: Any
    averages: tuple[Average, ...] = struct.field(pytree_node=False)

    @classmethod
    def create(  # type: ignore[override]  # what a state needs, it asks for
        cls,
        *,
        apply_fn: Any,
        params: Any,
        tx: optax.GradientTransformation,
        rng: jax.Array,
        batch_stats: Any = types.MappingProxyType({}),
        averages: tuple[Average, ...] = (),
        memory: Any = (),
        **kwargs: Any,
    ) -> Self:
        """A state at step 0 whose averages are copies of its parameters.

        Args:
            apply_fn: the model's `apply`.
            params: the model's initial parameters.
            tx: the optimizer.
            rng: typed root key.
            batch_stats: the model's initial batch statistics, if it has any.
            averages: the averages to keep; an empty tuple costs nothing.
            memory: see the class.
            **kwargs: fields that a fork adds.
        """
        return cls(
            step=jnp.zeros((), jnp.int32),
            apply_fn=apply_fn,
            params=params,
            tx=tx,
            opt_state=tx.init(params),
            batch_stats=dict(batch_stats),
            rng=rng,
            rejected={name: jnp.zeros((), jnp.int32) for name in ("total", "streak", "longest")},
            ema_params={avg.name: averaging.init(optimizers.moving(params, avg.frozen)) for avg in averages},
            ema_batch_stats={average.name: averaging.init(dict(batch_stats)) for average in averages},
            ema_count={average.name: jnp.zeros((), jnp.int32) for average in averages},
            averages=averages,
            memory=memory,
            **kwargs,
        )

    def with_averages(self, averages: tuple[Average, ...]) -> Self:
        """This state with exactly these averages.

        One that the state has already keeps its weights and count; a new one starts from the present parameters with
        its count at 0; one that is not asked for is dropped.
        """
        ema_params, ema_batch_stats, ema_count = {}, {}, {}
        for average in averages:
            name, params = average.name, optimizers.moving(self.params, average.frozen)
            has = name in self.ema_params
            ema_params[name] = self.ema_params[name] if has else averaging.init(params)
            ema_batch_stats[name] = self.ema_batch_stats[name] if has else averaging.init(self.batch_stats)
            ema_count[name] = self.ema_count[name] if has else jnp.zeros_like(self.step)
        return self.replace(
            averages=averages, ema_params=ema_params, ema_batch_stats=ema_batch_stats, ema_count=ema_count
        )

    def step_key(self, stream: str) -> jax.Array:
        """The key of a stream of randomness at the present step."""
        return streams.step_key(self.rng, stream, self.step)

    def with_weights(self, params: Any, batch_stats: Any) -> Self:
        """This state with other parameters and batch statistics, from which all its averages start anew."""
        averages = self.averages
        return self.with_averages(()).replace(params=params, batch_stats=batch_stats).with_averages(averages)

    def apply_gradients(self, *, grads: Any, **kwargs: Any) -> Self:
        """The optimizer's update. Transformations that draw random numbers find this step's key as `key`.

        Args:
            grads: tree like the parameters.
            **kwargs: other fields to replace.
        """
        tx = optax.with_extra_args_support(self.tx)
        updates, opt_state = tx.update(grads, self.opt_state, self.params, key=self.step_key("optimizer"))
        params = optax.apply_updates(self.params, updates)
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state, **kwargs)

    def apply_ema(self, moved: ArrayLike = True) -> Self:
        """Moves every average toward the present parameters and batch statistics. Call after `apply_gradients`.

        Args:
            moved: bool scalar, whether the parameters have moved. If not, averages and counts stay as they are.
        """
        ema_params, ema_batch_stats, ema_count = {}, {}, {}
        for average in self.averages:
            name, present = average.name, (optimizers.moving(self.params, average.frozen), self.batch_stats)
            ema_count[name] = self.ema_count[name] + jnp.asarray(moved, jnp.int32)
            with jax.numpy_dtype_promotion("standard"):  # schedules compute with counts and numbers, strict or not
                step_size = jnp.where(moved, average.schedule(ema_count[name]), 0.0)
            old = self.ema_params[name], self.ema_batch_stats[name]
            if average.has_interval:  # then most steps need not touch its memory
                new = jax.lax.cond(step_size != 0, averaging.update, lambda old, *_: old, old, present, step_size)
            else:
                new = averaging.update(old, present, step_size)
            ema_params[name], ema_batch_stats[name] = new
            if average.batch_stats == "copy":
                ema_batch_stats[name] = averaging.update(new[1], self.batch_stats, 1.0)
        return self.replace(ema_params=ema_params, ema_batch_stats=ema_batch_stats, ema_count=ema_count)

    def accept_if(self, ok: jax.Array, candidate: Self) -> Self:
        """`candidate`, the state after one more step, or this state with that step rejected.

        After a rejected step only `step`, `memory` and the counters in `rejected` differ, so that the next step has
        another batch and other keys. Call before `apply_ema(moved=ok)`: until then candidate and state share their
        averages, among which the compiler need not select. A selection among moved averages would cost as much as
        moving them.

        Args:
            ok: bool scalar, whether to take the candidate.
            candidate: of the same structure.
        """
        chosen = jax.tree.map(lambda new, old: jnp.where(ok, new, old), candidate, self)
        streak = jnp.where(ok, 0, self.rejected["streak"] + 1)
        rejected = {
            "total": self.rejected["total"] + jnp.where(ok, 0, 1),
            "streak": streak,
            "longest": jnp.maximum(self.rejected["longest"], streak),
        }
        return chosen.replace(step=candidate.step, rejected=rejected)

    def weights(self) -> dict[str, dict[str, Any]]:
        """The model's variables with raw weights, named `raw`, and with each average's, by its name."""
        weights = {"raw": {"params": self.params, "batch_stats": self.batch_stats}}
        for name in (average.name for average in self.averages):
            params = optimizers.whole(self.ema_params[name], self.params)
            weights[name] = {"params": params, "batch_stats": self.ema_batch_stats[name]}
        return weights
