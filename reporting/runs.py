"""Runs, read from the files of their workdirs, and groups of runs that differ only in their seed.

Needs neither JAX nor TensorFlow.
"""

import collections
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from reporting.scores import Scoring, few_seeds
from runtime.errors import UserError
from runtime.fields import flatten

Line = dict[str, Any]


class NotBegunError(UserError):
    """A run that has no evaluation yet."""


def read_lines(path: pathlib.Path, *fields: str) -> list[Line]:
    """The lines of a file of JSON objects, [] if there is no file. A line that is still being written is left out.

    Raises:
        UserError: a line is damaged, or lacks one of the fields.
    """
    lines = []
    for number, text in enumerate(path.read_text("utf-8").split("\n")[:-1] if path.exists() else (), 1):
        try:
            line: Line = json.loads(text, parse_constant=lambda _: None)  # of infinities, which are not JSON
            int(line["step"]), *(line[field] for field in fields)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}, line {number}, is damaged ({error}). Restore the file, or remove it.") from error
        lines.append(line)
    return lines


def read_metrics(workdir: pathlib.Path) -> list[Line]:
    """The lines of `metrics.jsonl` and, if there is one, of `posthoc.jsonl`, in the order of their steps."""
    lines: dict[tuple[int, str, str], Line] = {}
    for name in ("metrics.jsonl", "posthoc.jsonl"):
        for line in read_lines(workdir / name, "curve"):
            lines.setdefault((line["step"], line["curve"], line.get("split", "")), line)
    return sorted(lines.values(), key=lambda line: line["step"])


def last_evaluation(lines: Sequence[Line]) -> list[Line]:
    """The lines of the last evaluation: of the test set, if the curves come from a validation set."""
    evaluations = [line for line in lines if "split" in line]
    step, split = (evaluations[-1][key] for key in ("step", "split"))
    return [line for line in evaluations if (line["step"], line["split"]) == (step, split)]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, as the files of its workdir describe it.

    Attributes:
        workdir: as it was given.
        lines: of `metrics.jsonl` and `posthoc.jsonl`.
        timing: lines of `timing.jsonl`.
        config: `config.json`, as `{"optimizer.name": "sgd"}`.
        environment: `environment.json`.
        averages: `averages.json`: the description and the kernel of each average.
        diagnosis: `diagnosis/numbers.json` of tools.diagnose; empty if there is none.
    """

    workdir: pathlib.Path
    lines: Sequence[Line]
    timing: Sequence[Line]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    averages: Mapping[str, Any]
    diagnosis: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, workdir: pathlib.Path) -> "Run":
        """Reads a run, at whatever step it is.

        Raises:
            UserError: a file is damaged, or the workdir holds no evaluation.
        """
        command = f"python main.py --config=... --workdir={workdir}"
        if not (workdir / "metrics.jsonl").is_file():
            raise NotBegunError(f"{workdir} holds no metrics.jsonl; {command} makes one")
        lines = read_metrics(workdir)
        if not any("split" in line for line in lines):
            raise NotBegunError(f"{workdir} has no evaluation yet; {command} makes the first after config.eval_every")
        names = ("config.json", "environment.json", "averages.json", "diagnosis/numbers.json")
        files = [read_object(workdir / name) for name in names]
        config = flatten(files[0])
        periods = [name for name, value in config.items() if name.endswith("every") and "/" in str(value)]
        config |= {name: float(Fraction(config[name])) for name in periods}  # as people read them
        return cls(workdir, lines, read_lines(workdir / "timing.jsonl"), config, *files[1:])

    @functools.cached_property
    def curves(self) -> dict[tuple[str, str], dict[int, Line]]:
        """The lines by (curve, split), with the split "" for training, and then by step."""
        curves: dict[tuple[str, str], dict[int, Line]] = collections.defaultdict(dict)
        for line in self.lines:
            curves[line["curve"], line.get("split", "")][line["step"]] = line
        return dict(curves)

    def remarks(self) -> list[str]:
        """What to know before its numbers are read: whether it is finished, and how many steps were rejected."""
        remarks, trained = [], [line for line in self.lines if line["curve"] == "train"]
        step, duration = self.lines[-1]["step"], self.config.get("duration")
        if duration and step < duration:
            remarks.append(f"{self.workdir} is not finished: it is at step {step} of {duration}.")
        if trained and (rejected := trained[-1].get("rejected_steps")):
            step = trained[-1]["step"]
            reason = "rejected, because the loss or the gradient was not finite"
            remarks.append(f"{self.workdir}: {rejected} of {step} steps {'was' if rejected == 1 else 'were'} {reason}.")
            if self.config.get("optimizer.schedule") != "constant" or self.config.get("optimizer.warmup"):
                remarks[-1] += f" The learning-rate schedule therefore stands at step {step - rejected}."
        return remarks


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object, {} if there is no file, as in workdirs of other programs."""
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        found.keys()
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}). Restore the file, or remove it.") from error
    return found


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed, one of each."""

    runs: tuple[Run, ...]
    differing: str = ""  # what it differs in from other groups, such as "learning_rate=0.1"

    @property
    def label(self) -> str:
        """What it differs in from other groups, or else the first run's workdir, of several seeds their folder."""
        workdir = self.runs[0].workdir
        is_seed = len(self.runs) > 1 and workdir.name.startswith("seed") and workdir.parent.name
        return self.differing or str(workdir.parent if is_seed else workdir)

    @property
    def name(self) -> str:
        """The label, with the number of seeds if there are several."""
        seeds = f" ({len(self.runs)} seeds)" if len(self.runs) > 1 else ""
        return f"{self.label}{seeds}"

    @property
    def by_seed(self) -> dict[Any, Run]:
        """The runs of which the seed is known."""
        return {run.config["seed"]: run for run in self.runs if "seed" in run.config}

    @property
    def main_curve(self) -> str:
        """The curve by which it is judged: `config.best_curve`, or else the first average at the end."""
        best = self.runs[0].config.get("best_curve")
        if best in self.names:
            return str(best)
        return next((name for name in self.last_lines()[0] if name != "raw" and not name.endswith("-raw")), "raw")

    @property
    def setup(self) -> str:
        """A line about model, data and optimizer; empty if the config lacks one of the fields."""
        config = self.runs[0].config
        fields = ["dataset", "model.name", *(f"optimizer.{name}" for name in ("name", "schedule", "learning_rate"))]
        if not config.keys() >= {*fields, "duration", "batch_size"}:
            return ""
        dataset, model, optimizer, schedule, rate = (config[field] for field in fields)
        noise = f" with {config['label_noise']:.0%} wrong labels" if config.get("label_noise") else ""
        size = self.runs[0].environment.get("parameters")
        model += f" ({size:,} parameters)" if isinstance(size, int) else ""
        length = f"{config['duration']} steps of {config['batch_size']} {self.scoring.examples}"
        return f"{model} on {dataset}{noise}, {optimizer}, learning rate {rate:g}, {schedule}, {length}"

    @functools.cached_property
    def scoring(self) -> Scoring:
        """By which metrics the runs are judged."""
        first = next(line for line in self.runs[0].lines if "split" in line)
        return Scoring.of(self.runs[0].config, [name for name in first if name not in ("step", "curve", "split")])

    @property
    def curve_split(self) -> str:
        """The images that the curves come from, "test" or "validation"."""
        return str(next(line["split"] for line in self.runs[0].lines if "split" in line))

    @property
    def last_split(self) -> str:
        """The images that the last evaluation scored: "test", if all runs have got that far."""
        last = [max(run.curves["raw", self.curve_split], default=0) for run in self.runs]
        tested = [run.curves.get(("raw", "test"), {}) for run in self.runs]
        return "test" if all(step in lines for step, lines in zip(last, tested, strict=True)) else self.curve_split

    @functools.cached_property
    def names(self) -> list[str]:
        """The curves that all runs have: raw, then the averages, then those that were made after training."""
        found = [{curve for curve, split in run.curves if split == self.curve_split} for run in self.runs]
        names = [name for name in set.intersection(*found) if not name.endswith("-raw")]
        return sorted(names, key=_order)

    def series(self, curve: str, metric: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        """A metric over training.

        Args:
            curve: its name in `metrics.jsonl`.
            metric: its name there.
            split: "test", "validation", or "" for the curve of training.

        Returns:
            The steps [k] at which every run has it, and its values [runs, k], NaN where they were not finite.
        """
        runs = [run.curves.get((curve, split), {}) for run in self.runs]
        steps = sorted(set.intersection(*({step for step, line in run.items() if metric in line} for run in runs)))
        values = [[run[step][metric] for step in steps] for run in runs]
        return np.array(steps, int), np.array(values, float).reshape(len(runs), len(steps))

    @property
    def last_step(self) -> int:
        """The step of the last evaluation that every run has, for every curve that is still evaluated.

        Raises:
            UserError: there is none.
        """
        curves = ["raw", *self.runs[0].averages]
        lines = [run.curves.get((curve, self.last_split)) for run in self.runs for curve in curves]
        steps = set.intersection(*(set(found) for found in lines if found))
        if not steps:
            raise UserError(f"{self.name}: the runs have no evaluation at the same step; report them one by one")
        return max(steps)

    def times(self) -> dict[str, float]:
        """Seconds of each clock of `timing.jsonl`, and steps and images per second of training: means over the runs."""
        last = [run.timing[-1] for run in self.runs if run.timing]
        shared = set.intersection(*(set(line) for line in last)) if last else set()
        clocks = sorted(clock for clock in shared if clock.endswith("_seconds"))
        found = {clock: sum(line[clock] for line in last) / len(last) for clock in clocks}
        if found.get("train_seconds"):
            found["steps_per_second"] = sum(line["step"] for line in last) / sum(line["train_seconds"] for line in last)
            found["images_per_second"] = found["steps_per_second"] * self.runs[0].config.get("batch_size", 0)
        return found

    def last_lines(self) -> list[dict[str, Line]]:
        """The lines of the last evaluation of each run, by curve, of the curves that all runs have."""
        split, step = self.last_split, self.last_step
        found = [{name for name, of in run.curves if of == split and step in run.curves[name, of]} for run in self.runs]
        curves = sorted(set.intersection(*found), key=_order)
        return [{curve: run.curves[curve, split][step] for curve in curves} for run in self.runs]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each curve at the last evaluation, as `Scoring.summarize` makes them, with the best of its curve.

        For pooled runs, `best` is the best of the mean over the seeds. It is the best of many evaluations on the same
        images, and therefore too good. `best_split` names these images.
        """
        rows = self.scoring.summarize(self.last_lines())
        return [{"split": self.last_split} | row | self.best(row["curve"], self.scoring.metric) for row in rows]

    def best(self, curve: str, metric: str) -> dict[str, Any]:
        """The best value of a metric, its step and its images; {} if it is not known what is better."""
        steps, values = self.series(curve, metric, self.curve_split)
        means = values.mean(axis=0)
        if metric not in self.scoring.directions or not np.isfinite(means).any():
            return {}
        best = int(np.nanargmax(means) if self.scoring.directions[metric] == "higher" else np.nanargmin(means))
        return {"best": float(means[best]), "best_step": int(steps[best]), "best_split": self.curve_split}


def _order(curve: str) -> tuple[bool, bool, str]:
    """A sort key: raw, then tracked averages, then those of tools.posthoc, such as `ema:half_life=3%`."""
    return curve != "raw", ":" in curve, curve


def group(runs: Iterable[Run]) -> tuple[list[Group], list[str]]:
    """Pools runs that differ only in their seed.

    Returns:
        The groups, in the order of their first runs, and remarks on runs that were left out or that may not be
        comparable.
    """
    by_config: dict[str, dict[Any, Run]] = {}
    remarks = []
    for run in runs:
        config = {field: value for field, value in run.config.items() if field != "seed"}
        # Without a config, runs cannot be known to be equal.
        key = json.dumps(config, sort_keys=True) if config else str(run.workdir)
        seeds, seed = by_config.setdefault(key, {}), run.config.get("seed")
        if seed in seeds:
            remarks.append(f"{run.workdir} is left out: it has the config and the seed of {seeds[seed].workdir}.")
        seeds.setdefault(seed, run)
    groups = labelled([Group(tuple(seeds.values())) for seeds in by_config.values()])
    for number in sorted({len(pooled.runs) for pooled in groups}):
        remarks += few_seeds(", ".join(pooled.name for pooled in groups if len(pooled.runs) == number), number)
    for pooled in groups:
        for field in ("commit", "packages", "devices", "averages"):
            found = [run.averages if field == "averages" else run.environment.get(field) for run in pooled.runs]
            if len({json.dumps(value, sort_keys=True) for value in found}) > 1:
                remarks.append(f"The runs of {pooled.name} differ in more than the seed: in their {field}.")
        for run in pooled.runs:
            remarks += run.remarks()
    return groups, remarks


def read(workdirs: Sequence[pathlib.Path]) -> tuple[list[Group], list[str]]:
    """The runs in these folders, pooled, and remarks, also on why other folders are left out.

    Raises:
        UserError: none holds a run.
    """
    found, problems = [], []
    for workdir in workdirs:
        try:
            found.append(Run.read(workdir))
        except UserError as error:
            problems.append(str(error))
    if not found:
        raise UserError("\n".join(problems))
    groups, remarks = group(found)
    return groups, [*(f"Left out: {problem}" for problem in problems), *remarks]


def labelled(groups: list[Group]) -> list[Group]:
    """The groups, each with what it differs in, if that are one or two fields."""
    found = differences(groups) if len(groups) > 1 else {}
    if not 1 <= len(found) <= 2:
        return groups
    names = [field.removesuffix(".name").rpartition(".")[2] for field in found]  # "optimizer" of "optimizer.name"
    names = names if len({*names}) == len(names) else [*found]
    texts = [
        ", ".join(f"{name}={'none' if x is None else x}" for name, x in zip(names, values, strict=True))
        for values in zip(*found.values(), strict=True)
    ]
    return [Group(group.runs, text) for group, text in zip(groups, texts, strict=True)]


def differences(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """The fields of the configs that differ between groups, with each group's value, None if it lacks the field."""
    configs = [pooled.runs[0].config for pooled in groups]
    fields = sorted(set().union(*configs) - {"seed"})
    values = {field: [config.get(field) for config in configs] for field in fields}
    return {field: found for field, found in values.items() if len(set(map(json.dumps, found))) > 1}
