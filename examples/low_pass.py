"""An average as a low-pass filter: how much noise it takes away, and how far it lags behind.

    python -m examples.low_pass docs/images/low_pass.png

Prints what is left of noise and the lag behind a straight line, measured and as the kernel predicts, and draws a noisy
signal with its averages.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import averaging

NUM_STEPS = 2000


def run(schedule: optax.Schedule, iterates: jax.Array) -> jax.Array:
    """The average after each update; the first of the iterates is the initial one."""

    def step(average: jax.Array, update: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        average = averaging.update(average, update[1], schedule(update[0]))
        return average, average

    return jax.lax.scan(step, averaging.init(iterates[0]), (jnp.arange(1, len(iterates)), iterates[1:]))[1]


def measure(schedule: optax.Schedule, num_parameters: int) -> tuple[float, float]:
    """The variance that is left of independent noise of variance 1, and the lag behind a straight line, in steps."""
    noise = jax.random.normal(jax.random.key(0), (NUM_STEPS + 1, num_parameters))
    line = jnp.arange(NUM_STEPS + 1.0)
    return float(jnp.var(run(schedule, noise)[-1])), NUM_STEPS - float(run(schedule, line)[-1])


def response(schedule: optax.Schedule) -> tuple[np.ndarray, np.ndarray]:
    """Periods of oscillations, in steps and ascending, and the share of the amplitude that is kept of each."""
    size = 64 * NUM_STEPS  # padded with zeros, for a smooth curve
    kept = np.abs(np.fft.rfft(averaging.kernel(schedule, NUM_STEPS), size))
    return 1 / np.fft.rfftfreq(size)[:0:-1], kept[:0:-1]


def draw() -> Figure:
    """A noisy signal with three averages of it; and what kinds that take away as much noise keep of oscillations."""
    figure = Figure(figsize=(5, 9), layout="constrained")  # at 9.5 points, legible on a phone of 360 pixels
    *panels, transfer = figure.subplots(4, height_ratios=[1, 1, 1, 1.3])
    steps = np.arange(NUM_STEPS + 1)
    signal = np.sin(2 * np.pi * steps / 1000)
    noisy = signal + np.random.default_rng(0).normal(size=signal.shape)
    for axes, half_life in zip(panels, (10, 50, 250), strict=True):
        schedule = averaging.ema(averaging.half_life_to_decay(half_life))
        axes.plot(steps, noisy, ".", color="0.8", markersize=2)
        axes.plot(steps, signal, "--", color="black", linewidth=1)
        axes.plot(steps[1:], run(schedule, jnp.asarray(noisy)), color="#0072B2", linewidth=1.5)
        axes.set(ylim=(-3, 3), xlim=(0, NUM_STEPS), xticks=range(0, NUM_STEPS + 1, 500))
        about, (variance, lag) = averaging.describe(schedule, NUM_STEPS), measure(schedule, 4000)
        axes.set_title(
            f"half-life {half_life}: lag {lag:.0f} steps, {variance**0.5:.0%} of the noise left", fontsize=9.5
        )
        predicted = f"lag {about.mean_age:.2f}, variance {1 / about.effective_number:.5f}"
        print(f"half-life {half_life}: lag {lag:.2f}, variance {variance:.5f} of 1 left; predicted {predicted}")
        print(f"    of an oscillation of {np.interp(0.5, *response(schedule)[::-1]):.0f} steps half is kept")
    panels[1].set_ylabel("a parameter", fontsize=9.5)
    panels[-1].set_xlabel("step (dots: noisy; dashes: signal; line: average)", fontsize=9.5)

    tail = averaging.starting_at(averaging.running_mean(), NUM_STEPS - 144)
    ema = averaging.ema(averaging.half_life_to_decay(50))
    transfer.semilogx(*response(ema), color="0.7", linewidth=4, label="EMA, half-life 50")
    transfer.semilogx(*response(averaging.power_ema(0.034)), "--", color="black", label="power EMA, width 0.034")
    transfer.semilogx(*response(tail), color="#D55E00", linewidth=1, label="mean of the last 144")
    transfer.set(xlim=(10, 10_000), ylim=(0, 1.05))
    transfer.set_xticks([10, 100, 1000, 10_000], ["10", "100", "1,000", "10,000"])
    transfer.set_xlabel("period of an oscillation, in steps", fontsize=9.5)
    transfer.set_title("share of its amplitude that is kept", fontsize=9.5)
    transfer.legend(fontsize=9.5, loc="upper left")
    for axes in (*panels, transfer):
        axes.tick_params(labelsize=9.5)
    return figure


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    draw().savefig(sys.argv[1], dpi=160)
