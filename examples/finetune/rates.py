"""Learning rates of fine-tuning, chosen on training images that are not among the few, with seeds of their own.

    python -m examples.finetune.rates runs/rates          # trains what it lacks yet, two processes at a time
    python -m examples.finetune.rates runs/rates --draw   # only reads what it has stored

Writes `rates.json` and `rates.png` beside this file.
"""

import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
from matplotlib.figure import Figure

from examples import results
from examples.finetune import start, transfer

FOLDER = pathlib.Path(__file__).parent
NUM_SEEDS = 2
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
VARIANTS = {
    f"{variant}, {rate}": (variant, rate)
    for variant in transfer.VARIANTS
    for rate in RATES
    if rate <= 0.1 or variant.endswith("frozen")  # on the digits others diverge with one seed or both
}


def config_of(variant: str, seed: int) -> ml_collections.ConfigDict:
    """The config of a run."""
    fine_tuned, rate = VARIANTS[variant]
    return transfer.config_of(fine_tuned, start.FIRST_TUNING_SEED + seed, rate)


def read(folder: pathlib.Path, num_seeds: int = NUM_SEEDS) -> dict[str, Any]:
    """By variant and curve the accuracy in % [seeds][1]."""
    variants = {variant: transfer.accuracies(results.workdirs(variant, folder, num_seeds)) for variant in VARIANTS}
    return {"steps": [transfer.DURATION], "variants": variants}


def means(result: Mapping[str, Any], variant: str, curve: str) -> np.ndarray:
    """Mean accuracies of a variant of `transfer`, [rates], NaN where a rate was not tried."""
    tried = [result["variants"].get(f"{variant}, {rate}") for rate in RATES]
    return np.array([np.mean(found[curve]) if found else np.nan for found in tried])


def table(result: Mapping[str, Any]) -> str:
    """The accuracies at each rate."""
    lines = [f"| | | {' | '.join(map(str, RATES))} |", f"|---|---|{'---|' * len(RATES)}"]
    for variant, curve in itertools.product(transfer.VARIANTS, transfer.COLOURS):
        cells = ["" if np.isnan(x) else f"{x:.1f}" for x in means(result, variant, curve)]
        lines.append(f"| {' | '.join([variant, curve, *cells])} |")
    return "\n".join(lines)


def findings(result: Mapping[str, Any]) -> str:
    """The rate of each that is best for its average."""
    best = {variant: RATES[int(np.nanargmax(means(result, variant, "ema")))] for variant in transfer.VARIANTS}
    return "\n".join(f"{variant}: {rate}" for variant, rate in best.items())


def draw(result: Mapping[str, Any]) -> Figure:
    """Accuracy over the rate."""
    figure = Figure((9, 3.2), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, task in zip(axes, transfer.STARTS, strict=True):
        for arm in transfer.ARMS:
            ax.semilogx(RATES, means(result, f"{task}, {arm}", "ema"), "-o", label=arm)
        ax.set_title(task, fontsize=10)
        ax.set_xlabel("learning rate")
        ax.set_ylabel("accuracy of the average in %")
    axes[0].legend(frameon=False, loc="center right")
    return figure


if __name__ == "__main__":
    results.main(__doc__, FOLDER / "rates.json", VARIANTS, NUM_SEEDS, config_of, read, table, findings, draw)
