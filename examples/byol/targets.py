"""What the target network does for features that are learned without labels: six trainings that differ in it.

    python -m examples.byol.targets runs/byol         # trains what it does not have yet, two processes at a time
    python -m examples.byol.targets runs/byol --draw  # only draws what it has stored

The runs are RUNS/VARIANT/seed0, ..., for tools.report. Writes `targets.json` and `targets.png` beside this file.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
from matplotlib.figure import Figure

from configs import default as project
from examples import results
from examples.byol.configs import default
from examples.byol.train import TASK

FOLDER = pathlib.Path(__file__).parent
NUM_SEEDS = 5
# By name: the average that is the target, None for the network itself, and fields of `config.loss`.
VARIANTS: Mapping[str, tuple[ml_collections.ConfigDict | None, Mapping[str, Any]]] = {
    "BYOL": (default.get_config().averages.target, {}),
    "constant tau": (project.average("soft_update", tau=default.get_config().averages.target.tau), {}),
    "frozen target": (project.average("hard_update", period="1000000 steps"), {}),
    "SimSiam": (None, {"target": "none"}),
    "no stop-gradient": (None, {"target": "none", "stop_gradient": False}),
    "MoCo": (default.get_config().averages.target, {"queue": 4096}),
}
CURVES = {"raw": "#D55E00", "target": "#0072B2"}  # Okabe and Ito's
PAIRS = (
    ("BYOL", "constant tau"),
    ("BYOL", "frozen target"),
    ("BYOL", "SimSiam"),
    ("SimSiam", "no stop-gradient"),
    ("MoCo", "BYOL"),
)


def config_of(variant: str, seed: int) -> ml_collections.ConfigDict:
    """The config of a run."""
    average, loss = VARIANTS[variant]
    config = default.get_config()
    config.seed = seed
    config.averages = ml_collections.ConfigDict({} if average is None else {"target": average})
    config.loss.update(loss)
    return config


def read(folder: pathlib.Path, num_seeds: int = NUM_SEEDS) -> dict[str, Any]:
    """The metrics of each variant by curve, [seeds][evaluations], and the seconds that its runs took."""
    variants = {}
    for variant, (average, _) in VARIANTS.items():
        runs = results.workdirs(variant, folder, num_seeds)
        variants[variant] = {
            "curves": results.read(runs, ["raw"] if average is None else [*CURVES], TASK.metrics),
            "seconds": results.seconds(runs),
        }
    steps = results.steps(results.workdirs("BYOL", folder, num_seeds)[0], "probe")
    return {"steps": steps, "variants": variants}


def last(result: Mapping[str, Any], variant: str, metric: str, curve: str = "raw") -> np.ndarray:
    """The values of a metric at the end of each training, in % but for `std`, [seeds]."""
    return results.last(result["variants"][variant]["curves"][curve], metric) * (1 if metric == "std" else 100)


def table(result: Mapping[str, Any]) -> str:
    """A line for each variant: both accuracies of the network and what they are more than BYOL's, target, and std."""
    header = ["variant", "probe, %", "minus BYOL", "kNN, %", "minus BYOL", "probe of the target minus raw", "std"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name, (average, _) in VARIANTS.items():
        cells = [name]
        for metric in ("probe", "knn"):
            apart = last(result, name, metric) - last(result, "BYOL", metric)
            cells += [results.in_words(last(result, name, metric))]
            cells += ["" if name == "BYOL" else results.in_words(apart, sign="+")]
        own = None if average is None else last(result, name, "probe", "target") - last(result, name, "probe")
        cells += ["" if own is None else results.in_words(own, sign="+"), f"{last(result, name, 'std').mean():.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def findings(result: Mapping[str, Any]) -> str:
    """Differences of pairs in the probe, and what features of a network that never learned are worth."""
    lines = []
    for name, other in PAIRS:
        apart = last(result, name, "probe") - last(result, other, "probe")
        lines.append(f"{name} minus {other}: {results.in_words(apart, sign='+')} points")
    # The frozen target is the network at its start.
    random = {metric: last(result, "frozen target", metric, "target") for metric in ("probe", "knn")}
    words = {metric: results.in_words(values) for metric, values in random.items()}
    lines.append(f"random weights: probe {words['probe']} %, kNN {words['knn']} %")
    learned = last(result, "frozen target", "probe") - random["probe"]
    lines.append(f"frozen target minus random weights: {results.in_words(learned, sign='+')} points")
    return "\n".join(lines)


def draw(result: Mapping[str, Any]) -> Figure:
    """The probe of each seed and its mean over training, of networks and targets."""
    figure = Figure(figsize=(5, 7), layout="constrained")
    for axis, (name, variant) in zip(figure.subplots(3, 2, sharex=True).flat, result["variants"].items(), strict=True):
        for curve in variant["curves"]:
            values = 100 * np.array(variant["curves"][curve]["probe"])
            axis.plot(result["steps"], values.T, color=CURVES[curve], alpha=0.3, linewidth=0.6)
            axis.plot(result["steps"], values.mean(axis=0), color=CURVES[curve], linewidth=2, label=curve)
        axis.set_title(f"{name}: {last(result, name, 'probe').mean():.1f} %", loc="left", fontsize=9.5)
        axis.tick_params(labelsize=9.5)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(fontsize=9.5, loc="lower right", frameon=False)
    figure.supylabel("accuracy of a probe, %", fontsize=9.5)
    num_seeds = len(last(result, "BYOL", "probe"))
    figure.supxlabel(f"step of training ({num_seeds} seeds and their mean)", fontsize=9.5)
    return figure


if __name__ == "__main__":
    results.main(__doc__, FOLDER / "targets.json", VARIANTS, NUM_SEEDS, config_of, read, table, findings, draw)
