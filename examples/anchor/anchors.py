"""What an anchor that moves changes: fixed ones, a soft one, a hard one, and one that begins anew, with ten seeds.

    python -m examples.anchor.anchors runs/anchors         # trains what it lacks yet, two processes at a time
    python -m examples.anchor.anchors runs/anchors --draw  # only reads it

The runs are RUNS/VARIANT/seed0, ..., for tools.report. Writes `anchors.json` and `anchors.png` beside this file.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
from matplotlib.figure import Figure

from configs import default as project
from examples import results
from examples.anchor.configs import default

FOLDER = pathlib.Path(__file__).parent
NUM_SEEDS = 10
FIXED = {"kind": "hard_update", "period": "1000000 steps"}
# By name the weight of the penalty, and the anchor; the mean age of those that move is 99 steps.
VARIANTS: Mapping[str, tuple[float, Mapping[str, Any]]] = {
    "fixed, 0.02": (0.02, FIXED),
    "fixed, 0.05": (0.05, FIXED),
    "fixed, 0.1": (0.1, FIXED),
    "fixed, 0.2": (0.2, FIXED),
    "soft, 0.5": (0.5, {"kind": "soft_update", "tau": 0.01}),
    "hard, 0.5": (0.5, {"kind": "hard_update", "period": "199 steps"}),
    "soft and reset, 0.5": (0.5, {"kind": "soft_update", "tau": 0.003, "restart_every": "252 steps"}),
}
METRICS = ("accuracy", "reward", "kl_start", "kl_anchor")
COLOURS = ("#000000", "#56B4E9", "#D55E00", "#E69F00", "#0072B2", "#009E73", "#CC79A7")  # Okabe and Ito's
PAIRS = (
    ("fixed, 0.02", "fixed, 0.2"),
    ("soft, 0.5", "fixed, 0.2"),
    ("soft, 0.5", "fixed, 0.05"),
    ("soft, 0.5", "soft and reset, 0.5"),
    ("soft and reset, 0.5", "fixed, 0.1"),
    ("hard, 0.5", "fixed, 0.1"),
)


def config_of(variant: str, seed: int) -> ml_collections.ConfigDict:
    """The config of a run."""
    weight, anchor = VARIANTS[variant]
    config = default.get_config()
    config.seed, config.loss.weight = seed, weight
    config.checkpoint_every = "100%"
    config.averages.anchor = project.average(**anchor, start=config.averages.start.start)
    return config


def read(folder: pathlib.Path, num_seeds: int = NUM_SEEDS) -> dict[str, Any]:
    """By variant the metrics of the policy [seeds][evaluations] and the seconds of its runs; and the steps."""
    variants = {}
    for variant in VARIANTS:
        runs = results.workdirs(variant, folder, num_seeds)
        variants[variant] = results.read(runs, ["raw"], METRICS)["raw"] | {"seconds": results.seconds(runs)}
    steps = results.steps(results.workdirs(next(iter(VARIANTS)), folder, num_seeds)[0], "accuracy")
    return {"steps": steps, "variants": variants}


def paths(result: Mapping[str, Any], variant: str, metric: str) -> np.ndarray:
    """A metric from the last evaluation at the start on, float64 [seeds, evaluations]; but for divergences in %."""
    found = result["variants"][variant]
    first = np.flatnonzero(np.max(found["kl_start"], axis=0) == 0)[-1]
    return np.array(found[metric])[:, first:] * (1 if metric.startswith("kl") else 100)


def table(result: Mapping[str, Any]) -> str:
    """A line for each variant: accuracy and reward at the end, and the divergences."""
    header = ["anchor, weight", "accuracy", "minus start", "reward", "minus start", "KL to start", "KL to anchor"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for variant in VARIANTS:
        *scores, start, anchor = (paths(result, variant, metric) for metric in METRICS)
        cells = [variant]
        for score in scores:
            cells += [results.in_words(score[:, -1]), results.in_words(score[:, -1] - score[:, 0], sign="+")]
        lines.append(f"| {' | '.join([*cells, *(f'{kl[:, -1].mean():.2f}' for kl in (start, anchor))])} |")
    return "\n".join(lines)


def findings(result: Mapping[str, Any]) -> str:
    """Differences at the end, paired by seed."""
    lines = []
    for name, other in PAIRS:
        words = []
        for metric, label in {"accuracy": "accuracy", "reward": "reward", "kl_start": "KL to start"}.items():
            apart = paths(result, name, metric)[:, -1] - paths(result, other, metric)[:, -1]
            words.append(f"{label} {results.in_words(apart, '.2f' if metric == 'kl_start' else '.1f', sign='+')}")
        lines.append(f"{name} minus {other}: {', '.join(words)}")
    return "\n".join(lines)


def draw(result: Mapping[str, Any]) -> Figure:
    """The frontier: accuracy, and below it reward, over the divergence from the start, of each seed and the means."""
    figure = Figure(figsize=(5, 6.5), layout="constrained")
    words = {"accuracy": "accuracy on test images, %", "reward": "reward by the reward model, %"}
    for axis, (metric, label) in zip(figure.subplots(2, sharex=True), words.items(), strict=True):
        for variant, colour in zip(VARIANTS, COLOURS, strict=True):
            kl, values = paths(result, variant, "kl_start"), paths(result, variant, metric)
            axis.plot(kl.T, values.T, color=colour, alpha=0.2, linewidth=0.5)
            axis.plot(kl.mean(axis=0), values.mean(axis=0), color=colour, linewidth=1.8, label=variant)
            axis.plot(kl[:, -1].mean(), values[:, -1].mean(), "o", color=colour, markersize=5)
        axis.set_title(label, loc="left", fontsize=9.5)
        axis.tick_params(labelsize=9.5)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[1].legend(fontsize=9.5, loc="lower right", frameon=False)
    num_seeds = len(result["variants"]["fixed, 0.02"]["accuracy"])
    figure.supxlabel(f"KL to the start, nats ({num_seeds} seeds and their mean)", fontsize=9.5)
    return figure


if __name__ == "__main__":
    results.main(__doc__, FOLDER / "anchors.json", VARIANTS, NUM_SEEDS, config_of, read, table, findings, draw)
