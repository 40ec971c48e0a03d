"""Optimizers and learning-rate schedules from `config.optimizer`."""

from collections.abc import Callable, Mapping

import optax

# A new schedule is a function of (peak learning rate, steps from the end of warm-up to the end of training), and its
# name here.
SCHEDULES: Mapping[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda peak, decay_steps: optax.constant_schedule(peak),
    "cosine": optax.cosine_decay_schedule,
}


def create_schedule(learning_rate: float, schedule: str, warmup_steps: int, decay_steps: int) -> optax.Schedule:
    """A linear warm-up to `learning_rate`, then the schedule of this name over `decay_steps`.

    The first step of a warm-up over `w` steps has the rate `learning_rate / w`, not 0: none is wasted.
    """
    after = SCHEDULES[schedule](learning_rate, decay_steps)
    if warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, max(1, warmup_steps - 1))
    return optax.join_schedules([warmup, after], [warmup_steps])


def create_optimizer(
    *, learning_rate: optax.Schedule, momentum: float, clip_norm: float
) -> optax.GradientTransformation:
    """SGD with momentum, after clipping the gradient to a global norm.

    Args:
        learning_rate: schedule over updates; its present value stands in the optimizer state, where it is logged from.
        momentum: 0 for none.
        clip_norm: largest global norm of the gradient, 0 for no limit.
    """
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    # optax reads 0.0 as a momentum to keep a trace for; None keeps none.
    # Momentum stays out of the state: a restored value would win over the config's.
    sgd = optax.inject_hyperparams(optax.sgd, static_args="momentum")
    return optax.chain(clip, sgd(learning_rate=learning_rate, momentum=momentum or None))
