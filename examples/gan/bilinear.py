"""The smallest game, min over x and max over y of x * y: its players go round in circles, and their averages do not.

A step that moves both at once takes `z = x + iy` to `(1 + i * rate) * z`, so that everything is known in closed form.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from train_state import Average, CustomTrainState

DECAY = 0.995
AVERAGES = (Average("ema", "ema", (("decay", DECAY),)), Average("mean", "running_mean"))


def objective(params: dict[str, jax.Array]) -> jax.Array:
    """The sum of what each of the two minimises, taking the other as constant."""
    x, y = params["x"], params["y"]
    return x * jax.lax.stop_gradient(y) - jax.lax.stop_gradient(x) * y


def play(num_steps: int, rate: float) -> dict[str, np.ndarray]:
    """The players and their averages after each step from (1, 0), complex [num_steps], by the state of training."""
    state = CustomTrainState.create(
        apply_fn=None,
        params={"x": jnp.float32(1), "y": jnp.float32(0)},
        tx=optax.multi_transform({"x": optax.sgd(rate), "y": optax.sgd(rate)}, {"x": "x", "y": "y"}),
        rng=jax.random.key(0),
        averages=AVERAGES,
    )

    def step(state: CustomTrainState, unused: None) -> tuple[CustomTrainState, Any]:
        del unused
        state = state.apply_gradients(grads=jax.grad(objective)(state.params)).apply_ema()
        return state, {"raw": state.params, **state.ema_params}

    path = jax.device_get(jax.jit(lambda state: jax.lax.scan(step, state, length=num_steps))(state)[1])
    return {name: point["x"].astype(np.float64) + 1j * point["y"] for name, point in path.items()}


def closed_form(num_steps: int, rate: float) -> dict[str, np.ndarray]:
    """The same by geometric series: of `turn ** t`, t = 1 .. T, with weights `DECAY ** (T - t)` or equal ones."""
    turn, t = 1 + 1j * rate, np.arange(1, num_steps + 1)
    ema = (1 - DECAY) / (1 - DECAY**t) * turn * (turn**t - DECAY**t) / (turn - DECAY)
    return {"raw": turn**t, "ema": ema, "mean": turn * (turn**t - 1) / (turn - 1) / t}
