"""What a target average does for Q-learning: CartPole with six targets, with layer normalisation, and with double Q.

    python -m examples.dqn.targets runs/dqn         # trains what it does not have yet, two processes at a time
    python -m examples.dqn.targets runs/dqn --draw  # only reads it

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
from examples.dqn.configs import default
from reporting.runs import Run
from runtime import intervals

FOLDER = pathlib.Path(__file__).parent
NUM_SEEDS = 30
TARGETS: dict[str, ml_collections.ConfigDict | None] = {
    "none": None,
    "soft 0.04": project.average("soft_update", tau=0.04),
    "hard 49": project.average("hard_update", period="49 steps"),
    "soft 0.005": project.average("soft_update", tau=0.005),
    "hard 399": project.average("hard_update", period="399 steps"),
    "soft 0.0005": project.average("soft_update", tau=0.0005),
}
# By name: the target, whether there is layer normalisation, and whether Q-learning is double.
VARIANTS = {name: (name, False, False) for name in TARGETS} | {
    "none, layer norm": ("none", True, False),
    "soft 0.04, layer norm": ("soft 0.04", True, False),
    "soft 0.04, double": ("soft 0.04", False, True),
}
# Okabe and Ito's; each has a panel of its own.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LARGEST_VALUE = 100  # of any state: 1 / (1 - gamma)


def config_of(variant: str, seed: int, duration: str = "10000 steps") -> ml_collections.ConfigDict:
    """The config of a run."""
    target, layer_norm, double = VARIANTS[variant]
    config = default.get_config()
    config.seed, config.duration = seed, duration
    config.log_every = config.eval_every = "5%"
    config.checkpoint_every = "100%"
    average = TARGETS[target]
    if average is None:
        config.averages, config.loss.target = ml_collections.ConfigDict(), "none"
    else:
        config.averages.target = average
    config.model.layer_norm, config.loss.double = layer_norm, double
    return config


def read(folder: pathlib.Path, num_seeds: int = NUM_SEEDS) -> dict[str, Any]:
    """By variant the network's returns [seeds][evaluations], its values in training [seeds][logs], and the seconds."""
    variants, seconds = {}, {}
    for variant in VARIANTS:
        workdirs = results.workdirs(variant, folder, num_seeds)
        runs, seconds[variant] = [Run.read(workdir) for workdir in workdirs], results.seconds(workdirs)
        variants[variant] = {
            "returns": [[round(line["return"], 4) for line in run.curves["raw", "test"].values()] for run in runs],
            "values": [[round(line["value"], 2) for line in run.curves["train", ""].values()] for run in runs],
        }
    return {"seconds": seconds, "variants": variants}


def over_training(variant: Mapping[str, Any]) -> np.ndarray:
    """The mean return of the evaluations of each seed."""
    return np.mean(variant["returns"], axis=1)


def table(result: Mapping[str, Any]) -> str:
    """A line for each variant: its mean return over training, the difference to no target, spread and extremes."""
    header = [
        "target",
        "return over training",
        "minus none",
        "second half",
        "worst seed",
        "sd",
        "seeds with values > 200",
    ]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    variants = result["variants"]
    for name, variant in variants.items():
        means = over_training(variant)
        later = np.mean(np.array(variant["returns"])[:, len(variant["returns"][0]) // 2 :])
        largest = np.max(variant["values"], axis=1)
        apart = "" if name == "none" else "{:+.0f} ({:+.0f} .. {:+.0f})".format(*difference(variants, name, "none"))
        cells = [name, "{:.0f} ({:.0f} .. {:.0f})".format(*intervals.mean_interval(means)), apart, f"{later:.0f}"]
        cells += [f"{means.min():.0f}", f"{np.std(means, ddof=1):.0f}", f"{np.sum(largest > 2 * LARGEST_VALUE)}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def difference(variants: Mapping[str, Any], name: str, other: str) -> tuple[float, float, float]:
    """The difference of two variants in return over training, paired by seed, with its 95 % interval."""
    return intervals.mean_interval(over_training(variants[name]) - over_training(variants[other]))


# Pairs of variants that differ in one thing.
PAIRS = (
    ("soft 0.04", "hard 49"),
    ("soft 0.005", "hard 399"),
    ("none, layer norm", "soft 0.04"),
    ("soft 0.04, layer norm", "none, layer norm"),
    ("soft 0.04, double", "soft 0.04"),
)


def findings(result: Mapping[str, Any]) -> str:
    """Differences between variants, and the best evaluation of any."""
    lines = []
    for name, other in PAIRS:
        size = "{:+.0f} ({:+.0f} .. {:+.0f})".format(*difference(result["variants"], name, other))
        lines.append(f"{name} minus {other}: {size}")
    means = {name: np.mean(variant["returns"], axis=0) for name, variant in result["variants"].items()}
    best = max(means, key=lambda name: means[name].max())
    end = max(means, key=lambda name: means[name][-1])
    lines.append(f"highest mean of the seeds at an evaluation: {means[best].max():.0f}, {best}")
    lines.append(f"highest at the end: {means[end][-1]:.0f}, {end}")
    return "\n".join(lines)


def draw(result: Mapping[str, Any]) -> Figure:
    """The return of each seed and its mean: the six targets, and two with layer normalisation."""
    names = [*TARGETS, "none, layer norm", "soft 0.04, layer norm"]
    figure = Figure(figsize=(5, 9), layout="constrained")
    all_axes = figure.subplots(4, 2, sharex=True, sharey=True).flat
    for axis, name, colour in zip(all_axes, names, COLOURS, strict=True):
        returns = np.array(result["variants"][name]["returns"])
        steps = np.linspace(0, 10_000, returns.shape[1] + 1)[1:]
        axis.plot(steps, returns.T, color="gray", alpha=0.25, linewidth=0.6)
        axis.plot(steps, returns.mean(axis=0), color=colour, linewidth=2)
        axis.set_title(f"{name}: {over_training(result['variants'][name]).mean():.0f}", loc="left", fontsize=9.5)
    for axis in figure.axes:
        axis.set_xticks([0, 5000, 10_000], ["0", "5,000", "10,000"])
        axis.tick_params(labelsize=9.5)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supylabel("greedy return", fontsize=9.5)
    figure.supxlabel(
        f"step of training ({len(result['variants']['none']['returns'])} seeds and their mean)", fontsize=9.5
    )
    return figure


if __name__ == "__main__":
    results.main(__doc__, FOLDER / "targets.json", VARIANTS, NUM_SEEDS, config_of, read, table, findings, draw)
