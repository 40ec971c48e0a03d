"""Draws how much weight each kind of average gives to every iterate of a training of 1,000 steps.

python -m examples.kernels docs/images/kernels.png
"""

import sys

import numpy as np
from matplotlib.figure import Figure

import averaging

NUM_STEPS = 1000
AVERAGES = {
    "EMA, half-life 5 %": averaging.ema(averaging.half_life_to_decay(50)),
    "warm-up EMA, decay 0.999": averaging.warmup_ema(0.999),
    "EMA, decay 0.999": averaging.ema(0.999),
    "EMA, 0.999, no bias correction": averaging.ema(0.999, debias=False),
    "soft update, tau 0.005": averaging.soft_update(0.005),
    "hard update, every 300 steps": averaging.hard_update(300),
    "power EMA, width 0.05": averaging.power_ema(0.05),
    "power EMA, width 0.10": averaging.power_ema(0.10),
    "running mean": averaging.running_mean(),
    "polynomial decay mean, eta 3": averaging.polynomial_decay_mean(3),
    "tail mean, last 25 %": averaging.starting_at(averaging.running_mean(), 750),
    "SWA, last 25 %, every 5 %": averaging.swa(750, 50),
}


def draw() -> Figure:
    """Small multiples, one for each average, each to its own scale, with what `averaging.describe` says of it."""
    # Five inches and 9.5 points: on a phone of 360 pixels the text is 9.5 pixels high.
    figure = Figure(figsize=(5, 11.5), layout="constrained")
    panels = figure.subplots(6, 2, sharex=True)
    for axes, (name, schedule) in zip(panels.flat, AVERAGES.items(), strict=True):
        weights = averaging.kernel(schedule, NUM_STEPS)
        about = averaging.describe(weights, NUM_STEPS)
        axes.vlines(np.arange(1, NUM_STEPS + 1), 0, weights[1:], color="0.45", linewidth=1.5)
        axes.vlines([0], 0, weights[:1], color="black", linewidth=5)  # the initial parameters
        title = (
            f"{name}\nmean age {about.mean_age:.0f}, half-life {about.half_life:.0f}\n"
            f"effective number {about.effective_number:.0f}\nweight on the start {about.initial_weight:.1%}"
        )
        axes.set_title(title, loc="left", fontsize=9.5)
        axes.set(xlim=(-20, NUM_STEPS + 10), ylim=(0, 1.1 * weights[1:].max()), xticks=[0, 500, 1000], yticks=[])
        axes.tick_params(labelsize=9.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("iterate (step of training)", fontsize=9.5)
    figure.supylabel("its weight in the average after 1,000 steps", fontsize=9.5)
    return figure


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    draw().savefig(sys.argv[1], dpi=160)
