"""Fine-tuning on few images: from nothing, frozen, in full, by depth; and how much of the start an average keeps.

    python -m examples.finetune.start                           # once
    python -m examples.finetune.transfer runs/transfer          # trains what it lacks yet, two processes at a time
    python -m examples.finetune.transfer runs/transfer --draw   # only reads what it has stored

The runs are RUNS/VARIANT/seed0, ..., for tools.report. Writes `transfer.json` and `transfer.png` beside this file.
"""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from matplotlib.figure import Figure

import train
from configs import default
from examples import results
from examples.finetune import start
from reporting.runs import Run
from runtime import intervals
from tools.finished import FinishedRun

FOLDER = pathlib.Path(__file__).parent
NUM_SEEDS = 5
STARTS = {"digits": "mnist", "cifar10": "cifar10"}
DURATION = "200 steps"
# Regular expressions for the layers below the last one, from the input up.
LAYERS = {
    "digits": ["Conv_0/", "Conv_1/", "Dense_0/"],
    "cifar10": ["(Conv|BatchNorm)_0/", *(f"(Conv|BatchNorm)_({i}|{i + 1})/" for i in range(1, 19, 2))],
}
ARMS = ("from nothing", "frozen", "full", "layer-wise")
VARIANTS = {f"{task}, {arm}": (task, arm) for task, arm in itertools.product(STARTS, ARMS)}
# Each is the best of its average, by `examples.finetune.rates`.
RATES = {
    ("digits", "from nothing"): 0.03,
    ("digits", "frozen"): 0.01,
    ("digits", "full"): 0.1,
    ("digits", "layer-wise"): 0.003,
    ("cifar10", "from nothing"): 0.03,
    ("cifar10", "frozen"): 0.3,
    ("cifar10", "full"): 0.01,
    ("cifar10", "layer-wise"): 0.03,
}
# Averages that keep a share of the start at the end: name, share, and the half-life that gives it.
KEPT = (("keep10", 0.1, "30.103%"), ("keep25", 0.25, "50%"), ("keep50", 0.5, "100%"))
LINE = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # shares of the start
COLOURS = {"raw": "#D55E00", "ema": "#0072B2"}  # Okabe and Ito's
PAIRS = (("full", "from nothing"), ("frozen", "full"), ("layer-wise", "full"))


def config_of(variant: str, seed: int, rate: float = 0.0) -> ml_collections.ConfigDict:
    """The config of a run; `rate` is another one than that of `RATES`."""
    task, arm = VARIANTS[variant]
    config = start.config_of(STARTS[task])
    config.seed, config.dataset = seed, f"arrays:{start.arrays(task, seed)}"
    config.batch_size, config.duration = 50, DURATION
    config.log_every, config.eval_every, config.checkpoint_every = "10%", "100%", "100%"
    config.optimizer.learning_rate = rate or RATES[task, arm]
    config.optimizer.schedule, config.optimizer.warmup = "constant", "5%"
    config.averages.ema = default.average("ema", half_life="5%")
    if arm != "from nothing":
        config.init_from, config.init_weights = str(start.weights(STARTS[task])), "ema"
        # The digits are the classes of MNIST; those of CIFAR-10 are others, and have a last layer of their own.
        config.init_skip = ("Dense_0",) if task == "cifar10" else ()
    if arm == "frozen":
        config.optimizer.groups.body = default.group("|".join(LAYERS[task]), factor=0.0)
    if arm == "layer-wise":
        config.optimizer.groups = default.layerwise(0.7, LAYERS[task])
    if task == "digits" and arm == "full":
        for name, _, half_life in KEPT:
            config.averages[name] = default.average("ema", half_life=half_life, debias=False)
    return config


def read(folder: pathlib.Path, num_seeds: int = NUM_SEEDS) -> dict[str, Any]:
    """By variant and curve the accuracy at the end in % [seeds][1]; seconds, ms a step, and `kept` of the digits."""
    variants, seconds, ms = {}, {}, {}
    for variant in VARIANTS:
        workdirs = results.workdirs(variant, folder, num_seeds)
        variants[variant] = accuracies(workdirs)
        seconds[variant] = results.seconds(workdirs)
        last = [Run.read(workdir).timing[-1] for workdir in workdirs]
        ms[variant] = round(1000 * float(np.mean([line["train_seconds"] / line["step"] for line in last])), 1)
    kept = [score_kept(workdir) for workdir in results.workdirs("digits, full", folder, num_seeds)]
    return {"seconds": seconds, "ms": ms, "steps": [DURATION], "variants": variants, "kept": kept}


def accuracies(workdirs: Sequence[pathlib.Path]) -> dict[str, list[list[float]]]:
    """By curve the accuracy at the end in % [seeds][1]."""
    found = results.read(workdirs, [*COLOURS], ["accuracy"])
    return {curve: [[round(100 * x, 2) for x in seed] for seed in found[curve]["accuracy"]] for curve in COLOURS}


def score_kept(workdir: pathlib.Path) -> dict[str, dict[str, float]]:
    """Accuracy in % on the digits, "new", and on MNIST, "old", of averages, and of points between start and end."""
    run, origin = FinishedRun.read(workdir), FinishedRun.read(start.weights("mnist"))
    end, first = run.stored[-1], origin.weights(origin.stored[-1], "ema")
    weights = {name: run.weights(end, name) for name in end.names}
    for share in LINE:
        weights[f"line {share}"] = jax.tree.map(lambda a, b, s=share: s * a + (1 - s) * b, first, weights["raw"])
    found: dict[str, dict[str, float]] = {name: {} for name in weights}
    for which, experiment in {"new": run.experiment, "old": origin.experiment}.items():
        for name, metrics in train.evaluate_weights(experiment, weights, "test").items():
            if name in found:
                found[name][which] = round(100 * metrics["accuracy"], 2)
    return found


def last(result: Mapping[str, Any], variant: str, curve: str) -> np.ndarray:
    """The accuracy at the end, in %, [seeds]."""
    return np.array(result["variants"][variant][curve])[:, -1]


def table(result: Mapping[str, Any]) -> str:
    """Accuracies of the arms, and below of what keeps a share of the start."""
    return f"{table_of_arms(result)}\n\n{table_of_kept(result)}"


def table_of_arms(result: Mapping[str, Any]) -> str:
    """Accuracies with their intervals over the seeds."""
    lines = ["| | raw | average | average minus raw |", "|---|---|---|---|"]
    for variant in VARIANTS:
        raw, ema = (last(result, variant, curve) for curve in COLOURS)
        cells = [results.in_words(raw), results.in_words(ema), results.in_words(ema - raw, sign="+")]
        lines.append(f"| {' | '.join([variant, *cells])} |")
    return "\n".join(lines)


def kept(result: Mapping[str, Any], name: str, which: str) -> np.ndarray:
    """Accuracies of some weights of `score_kept`, in %, [seeds]."""
    return np.array([seed[name][which] for seed in result["kept"]])


def table_of_kept(result: Mapping[str, Any]) -> str:
    """How much of the start some weights have, and what they score on the digits and on MNIST."""
    lines = ["| share of the start | on the line: digits | MNIST | average: digits | MNIST |", "|---|---|---|---|---|"]
    names = {share: name for name, share, _ in KEPT}
    for share in LINE:
        points = [f"line {share}", *([names[share]] if share in names else [])]
        cells = [results.in_words(kept(result, name, which)) for name in points for which in ("new", "old")]
        lines.append(f"| {' | '.join([f'{share:.0%}', *cells, *[''] * (4 - len(cells))])} |")
    return "\n".join(lines)


def findings(result: Mapping[str, Any]) -> str:
    """Paired differences over the seeds, in points, of averages."""
    lines = []
    for task, (one, other) in itertools.product(STARTS, PAIRS):
        apart = last(result, f"{task}, {one}", "ema") - last(result, f"{task}, {other}", "ema")
        lines.append(f"{task}, {one} minus {other}: {results.in_words(apart, sign='+')}")
    forgotten = kept(result, "line 0.0", "old") - kept(result, "line 1.0", "old")
    lines.append(f"the end minus the start, MNIST: {results.in_words(forgotten, sign='+')}")
    for name, share, _ in KEPT:
        for (place, there), (which, words) in itertools.product(
            (("the end", "line 0.0"), ("the line", f"line {share}")), (("new", "digits"), ("old", "MNIST"))
        ):
            apart = kept(result, name, which) - kept(result, there, which)
            lines.append(f"average that keeps {share:.0%} minus {place}, {words}: {results.in_words(apart, sign='+')}")
    lines += [
        f"{task}, ms a step, {arm} / full: {result['ms'][f'{task}, {arm}'] / result['ms'][f'{task}, full']:.2f}"
        for task, arm in itertools.product(STARTS, ("frozen", "layer-wise"))
    ]
    return "\n".join(lines)


def draw(result: Mapping[str, Any]) -> Figure:
    """Accuracies by arm, and on old against new data what keeps more or less of the start."""
    figure = Figure((9, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    for ax, task in zip(axes, STARTS, strict=False):
        for offset, (curve, colour) in zip((-0.12, 0.12), COLOURS.items(), strict=True):
            for i, arm in enumerate(ARMS):
                mean, low, high = intervals.mean_interval(last(result, f"{task}, {arm}", curve))
                ax.errorbar(
                    [mean],
                    [i + offset],
                    xerr=[[mean - low], [high - mean]],
                    fmt="o",
                    color=colour,
                    capsize=3,
                    label=curve if not i else None,
                )
        ax.set_yticks(range(len(ARMS)), ARMS)
        ax.invert_yaxis()
        ax.set_xlabel("test accuracy in %, 95 % interval")
        ax.set_title({"digits": "MNIST to digits", "cifar10": "CIFAR-10, classes 0-4 to 5-9"}[task], fontsize=10)
    axes[0].legend(frameon=False)
    ax = axes[2]
    old, new = (np.array([kept(result, f"line {share}", which).mean() for share in LINE]) for which in ("old", "new"))
    ax.plot(old, new, "-o", color="#000000", label="line from end to start")
    for name, share, _ in KEPT:
        ax.plot(
            kept(result, name, "old").mean(),
            kept(result, name, "new").mean(),
            "s",
            color="#0072B2",
            label="averages" if share == 0.1 else None,
        )
        ax.annotate(
            f"{share:.0%}",
            (kept(result, name, "old").mean(), kept(result, name, "new").mean()),
            textcoords="offset points",
            xytext=(-10, -16),
            color="#0072B2",
        )
    ax.set_xlabel("MNIST, %")
    ax.set_ylabel("digits, %")
    ax.set_title("How much of the start is kept", fontsize=10)
    ax.legend(frameon=False, loc="lower left")
    return figure


if __name__ == "__main__":
    results.main(__doc__, FOLDER / "transfer.json", VARIANTS, NUM_SEEDS, config_of, read, table, findings, draw)
