"""The state of a training run: everything that one step reads and changes."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.training import train_state

import averaging
import streams


@dataclasses.dataclass(frozen=True)
class Average:
    """A weight average to keep. Plain values, compared by value, so that it can be a static part of a jitted state.

    Attributes:
        name: of its curve.
        kind: a key of `averaging.SCHEDULES`.
        arguments: what that schedule takes, as (name, value); horizons in updates, decays per firing.
        start: updates before averaging begins, during which the average is the raw weights.
        every: updates from firing to firing.
        restart_every: updates after which the average begins anew; 0 for never.
        batch_stats: where its batch statistics come from: "average", as its weights do; "copy", the raw ones;
            "recompute", from training batches at evaluation, see `evaluation.recompute_batch_stats` (until then they
            are averaged).
        earlier: what it was before, if a run was continued with another average of this name: (updates until then,
            average), the oldest first.
    """

    name: str
    kind: str
    arguments: tuple[tuple[str, float], ...] = ()
    start: int = 0
    every: int = 1
    restart_every: int = 0
    batch_stats: str = "average"
    earlier: tuple[tuple[int, "Average"], ...] = ()

    @property
    def schedule(self) -> optax.Schedule:
        """Its step size at update `t >= 1`, over the whole time that it was kept."""
        schedule = averaging.every(averaging.SCHEDULES[self.kind](**dict(self.arguments)), self.every)
        if self.restart_every:
            schedule = averaging.restart_every(schedule, self.restart_every)
        schedule = averaging.starting_at(schedule, self.start)
        for count, average in reversed(self.earlier):
            schedule = averaging.switch_at(average.schedule, count, schedule)
        return schedule

    @property
    def has_interval(self) -> bool:
        """Whether there are updates at which it stays where it is."""
        intervals = self.every, dict(self.arguments).get("period", 1)
        return max(intervals) > 1 or any(average.has_interval for _, average in self.earlier)

    def continuing(self, old: "Average", count: int) -> "Average":
        """This average from here on, and `old`, of the same name, for the `count` updates until now."""
        if self == dataclasses.replace(old, earlier=()):
            return old
        return dataclasses.replace(self, earlier=(*old.earlier, (count, dataclasses.replace(old, earlier=()))))

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        earlier = [[count, average.to_dict()] for count, average in self.earlier]
        return {**vars(self), "arguments": dict(self.arguments), "earlier": earlier}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        earlier = tuple((count, cls.from_dict(average)) for count, average in values["earlier"])
        return cls(**{**values, "arguments": tuple(values["arguments"].items()), "earlier": earlier})


class CustomTrainState(train_state.TrainState):
    """Flax's `TrainState` with batch statistics, a root key, weight averages and a record of rejected steps.

    Attributes:
        step: int32 scalar, the number of batches consumed, rejected ones included.
        batch_stats: batch-norm statistics of the raw parameters; empty for a model without any.
        rng: typed root key, never split and never changed: every key is derived from it with `fold_in`.
        rejected: int32 scalars "total", "streak" (the current run of rejected steps) and "longest".
        ema_params: for each average its parameters, in at least float32.
        ema_batch_stats: for each average its batch statistics.
        ema_count: for each average an int32 scalar, the updates since it was created: the `t` of its schedule.
        microbatch: int32 scalar, which part of an accumulated batch a loss function is called with; none elsewhere.
        averages: which averages there are.
    """

    step: jax.Array
    batch_stats: Any
    rng: jax.Array
    rejected: dict[str, jax.Array]
    ema_params: dict[str, Any]
    ema_batch_stats: dict[str, Any]
    ema_count: dict[str, jax.Array]
    averages: tuple[Average, ...] = struct.field(pytree_node=False)
    microbatch: jax.Array | None = None

    @classmethod
    def create(  # type: ignore[override]  # what a state needs, it asks for
        cls,
        *,
        apply_fn: Any,
        params: Any,
        tx: optax.GradientTransformation,
        batch_stats: Any,
        rng: jax.Array,
        averages: tuple[Average, ...] = (),
        **kwargs: Any,
    ) -> Self:
        """A state at step 0 whose averages are copies of its parameters.

        Args:
            apply_fn: the model's `apply`.
            params: the model's initial parameters.
            tx: the optimizer.
            batch_stats: the model's initial batch statistics, `{}` if it has none.
            rng: typed root key.
            averages: the averages to keep; none is fine and costs nothing.
            **kwargs: fields that a fork adds.
        """
        state = super().create(
            apply_fn=apply_fn,
            params=params,
            tx=tx,
            batch_stats=batch_stats,
            rng=rng,
            rejected={name: jnp.zeros((), jnp.int32) for name in ("total", "streak", "longest")},
            ema_params={},
            ema_batch_stats={},
            ema_count={},
            averages=(),
            **kwargs,
        )
        return state.replace(step=jnp.zeros((), jnp.int32)).with_averages(averages)

    def with_averages(self, averages: tuple[Average, ...]) -> Self:
        """This state with exactly these averages.

        One that the state has already keeps its weights and count; a new one starts from the present parameters with
        its count at 0; one that is not asked for is dropped.
        """
        names = [average.name for average in averages]
        new = [name for name in names if name not in self.ema_params]
        started = {
            "ema_params": {name: averaging.init(self.params) for name in new},
            "ema_batch_stats": {name: averaging.init(self.batch_stats) for name in new},
            "ema_count": {name: jnp.zeros_like(self.step) for name in new},
        }
        fields = {
            field: {name: (values if name in new else getattr(self, field))[name] for name in names}
            for field, values in started.items()
        }
        return self.replace(averages=averages, **fields)

    def step_key(self, stream: str) -> jax.Array:
        """The key of a stream of randomness at the present step, and microbatch if the step has several."""
        key = streams.step_key(self.rng, stream, self.step)
        return key if self.microbatch is None else jax.random.fold_in(key, self.microbatch)

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

    def apply_ema(self) -> Self:
        """Moves every average, and its batch statistics, towards the present ones. Call after `apply_gradients`.

        After a rejected step, as `accept_if` has noted it, they stay where they are, and so do their counts. Leaves
        that are no floats are copied when an average moves.
        """
        accepted = self.rejected["streak"] == 0
        present = self.params, self.batch_stats
        ema_params, ema_batch_stats, ema_count = {}, {}, {}
        for average in self.averages:
            name = average.name
            ema_count[name] = self.ema_count[name] + accepted
            step_size = jnp.where(accepted, average.schedule(ema_count[name]), 0.0)
            moved = self.ema_params[name], self.ema_batch_stats[name]
            if average.has_interval:  # then most steps need not touch its memory
                moved = jax.lax.cond(step_size != 0, averaging.update, lambda old, *_: old, moved, present, step_size)
            else:
                moved = averaging.update(moved, present, step_size)
            ema_params[name], ema_batch_stats[name] = moved
            if average.batch_stats == "copy":
                ema_batch_stats[name] = averaging.update(moved[1], self.batch_stats, 1.0)
        return self.replace(ema_params=ema_params, ema_batch_stats=ema_batch_stats, ema_count=ema_count)

    def accept_if(self, ok: jax.Array, candidate: Self) -> Self:
        """`candidate`, the state after one more step, or, where `ok` is false, this state with that step rejected.

        Of a rejected step only `step` goes on, so that the next one has another batch and other keys. Call before
        `apply_ema`.
        """
        chosen = jax.tree.map(lambda new, old: jnp.where(ok, new, old), candidate, self)
        streak = jnp.where(ok, 0, self.rejected["streak"] + 1)
        rejected = {
            "total": self.rejected["total"] + jnp.where(ok, 0, 1),
            "streak": streak,
            "longest": jnp.maximum(self.rejected["longest"], streak),
        }
        return chosen.replace(step=candidate.step, rejected=rejected)

    def curves(self) -> dict[str, dict[str, Any]]:
        """The variables to evaluate: those of the raw weights, named `raw`, then those of each average."""
        curves = {"raw": {"params": self.params, "batch_stats": self.batch_stats}}
        for name in (average.name for average in self.averages):
            curves[name] = {"params": self.ema_params[name], "batch_stats": self.ema_batch_stats[name]}
        return curves
