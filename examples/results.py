"""What the pages of the examples have in common: several seeds of their variants, trained, and read from their runs."""

import argparse
import datetime
import json
import pathlib
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from matplotlib.figure import Figure

from examples import samples
from reporting.runs import Run
from runtime import environment, intervals
from runtime.errors import UserError
from tools import sweep
from tools.finished import FinishedRun


def seeds(folder: pathlib.Path) -> list[pathlib.Path]:
    """The workdirs `seed0`, `seed1`, ... in a folder of tools.sweep."""
    found = sorted(folder.glob("seed*"), key=lambda path: int(path.name[4:]))
    if not found:
        raise UserError(f"{folder} has no runs seed0, seed1, ...; python -m tools.sweep makes them")
    return found


def workdirs(variant: str, folder: pathlib.Path, num_seeds: int) -> list[pathlib.Path]:
    """Of the runs of a variant, in a folder for `tools.report`."""
    name = variant.replace(",", "").replace(" ", "_")
    return [folder / name / f"seed{seed}" for seed in range(num_seeds)]


def train_all(
    variants: Iterable[str],
    folder: pathlib.Path,
    num_seeds: int,
    config_of: Callable[[str, int], ml_collections.ConfigDict],
) -> None:
    """Trains what is not finished, two runs at a time, and exits with what failed.

    Args:
        variants: to train.
        folder: of the runs.
        num_seeds: of each variant.
        config_of: takes a variant and a seed.
    """
    folder = folder.absolute()
    configs = {
        str(workdir.relative_to(folder)): config_of(variant, seed)
        for variant in variants
        for seed, workdir in enumerate(workdirs(variant, folder, num_seeds))
    }
    waiting, failed = sweep.check(folder, configs)
    if failed := failed | sweep.train_all(folder, waiting, jobs=2):
        sys.exit(json.dumps(failed, indent=1))


def main(
    about: str,
    path: pathlib.Path,
    variants: Iterable[str],
    num_seeds: int,
    config_of: Callable[[str, int], ml_collections.ConfigDict],
    read: Callable[[pathlib.Path], Mapping[str, Any]],
    table: Callable[[Mapping[str, Any]], str],
    findings: Callable[[Mapping[str, Any]], str],
    draw: Callable[[Mapping[str, Any]], Figure],
) -> None:
    """The command of a page: trains its variants and stores what they gave, then prints and draws what is stored.

    Args:
        about: what `--help` says.
        path: of the JSON file that the numbers are stored in; the picture is the PNG file beside it.
        variants: see `train_all`, as for the next two.
        num_seeds: see there.
        config_of: see there.
        read: makes what is stored from the folder of the runs.
        table: makes the page's table of what is stored.
        findings: makes the lines below it.
        draw: makes the picture.
    """
    parser = argparse.ArgumentParser(
        f"python -m examples.{path.parent.name}.{path.stem}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=pathlib.Path, help="of the runs")
    parser.add_argument("--draw", action="store_true", help="train nothing")
    args = parser.parse_args()
    if not args.draw:
        train_all(variants, args.folder, num_seeds, config_of)
        made = {"date": datetime.date.today().isoformat(), "environment": environment.describe()}
        path.write_text(json.dumps(made | dict(read(args.folder))) + "\n")
    result = json.loads(path.read_text())
    print(f"{table(result)}\n\n{findings(result)}")
    draw(result).savefig(path.with_suffix(".png"), dpi=144)


def seconds(workdirs: Sequence[pathlib.Path]) -> float:
    """That runs took, all of them together."""
    last = [Run.read(workdir).timing[-1] for workdir in workdirs]
    return round(sum(value for line in last for clock, value in line.items() if clock.endswith("_seconds")), 1)


def read(workdirs: Sequence[pathlib.Path], curves: Collection[str], metrics: Collection[str]) -> dict[str, Any]:
    """By curve and metric the values on test images [seeds][evaluations], only where there are all metrics."""
    found: dict[str, Any] = {curve: {metric: [] for metric in metrics} for curve in curves}
    for run in map(Run.read, workdirs):
        for curve in curves:
            lines = [line for line in run.curves[curve, "test"].values() if {*metrics} <= line.keys()]
            for metric in metrics:
                found[curve][metric].append([round(line[metric], 4) for line in lines])
    return found


def steps(workdir: pathlib.Path, metric: str) -> list[int]:
    """The steps at which a metric was evaluated on test images."""
    return [step for step, line in Run.read(workdir).curves["raw", "test"].items() if metric in line]


def about(workdirs: Sequence[pathlib.Path]) -> dict[str, Any]:
    """When, where and how long they ran, which classifier judged them, and what it says of real images.

    Raises:
        UserError: they were not all judged by the same one.
    """
    with_digest = [str(np.load(workdir / "classifier.npz")["digest"]) for workdir in workdirs]
    if len({*with_digest}) > 1:
        raise UserError(f"the classifiers of {workdirs[0]} and others differ, so their distances cannot be compared")
    times = [json.loads((workdir / "timing.jsonl").read_text().splitlines()[-1]) for workdir in workdirs]
    experiment = FinishedRun.read(workdirs[0]).experiment
    data, num = experiment.train_data, experiment.config.data.num_samples
    floor = samples.judge(experiment, "test", {"real": data.normalization(data.image[:num])})["real"]
    return {
        "date": datetime.date.today().isoformat(),
        "environment": environment.describe(),
        "classifier": with_digest[0],
        "floor": {metric: round(float(value), 4) for metric, (value, _) in floor.items()},
        "seconds": [round(sum(t[name] for name in t if name.endswith("_seconds"))) for t in times],
        "train_seconds": [round(t["train_seconds"]) for t in times],
    }


def in_words(values: Sequence[float] | np.ndarray, form: str = ".1f", sign: str = "") -> str:
    """A mean with its 95 % interval over the seeds (Student's t)."""
    low_to_high = [f"{value:{sign}{form}}" for value in intervals.mean_interval(np.asarray(values))]
    return "{} ({} .. {})".format(*low_to_high)


def last(curve: Mapping[str, Any], metric: str) -> np.ndarray:
    """The values of a metric at the end of each training, [seeds]."""
    return np.array(curve[metric])[:, -1]


def row(words: str, curves: Mapping[str, Any]) -> str:
    """A line for docs/averages.md: the distance at the end of raw weights, and of three EMAs minus raw."""
    raw = last(curves["raw"], "frechet")
    apart = [in_words(last(curves[name], "frechet") - raw, sign="+") for name in ("ema01", "ema05", "ema20")]
    return f"| {' | '.join([words, in_words(raw), *apart])} |"
