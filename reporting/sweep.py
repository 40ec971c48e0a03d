"""The verdict of a sweep: which setting is best, how sure that is, and what each swept field does, raw and averaged."""

import collections
import dataclasses
import functools
import json
import math
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reporting import page, runs, scores, tables
from reporting.ranking import UNKNOWN, Interval, behind, interval, numbers, rank
from reporting.remarks import about_run
from reporting.runs import Group, Run
from reporting.scores import Scoring
from runtime.errors import UserError, missing_package


@dataclasses.dataclass(frozen=True)
class Setting:
    """A combination of values, and its finished runs by seed, of which there is one at least."""

    values: Mapping[str, str]
    runs: Mapping[int, Run]

    @property
    def curve(self) -> str:
        """The weights that it is judged by, `config.best_curve`."""
        return next(iter(self.runs.values())).config.get("best_curve") or "raw"

    def score(self, seed: int, metric: str, split: str, curve: str) -> float | None:
        """The score at the end of training: NaN if there is no run, None if it was not finite."""
        if seed not in self.runs:
            return math.nan
        run = self.runs[seed]
        value: float | None = run.curves.get((curve, split), {}).get(run.config["duration"], {}).get(metric)
        return value


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep, as its files describe it.

    Attributes:
        folder: of the sweep.
        tried: the values of each swept field.
        labels: what each swept field is called.
        metric: by which it is judged.
        judge: the images that it is judged on, "validation" or "test".
        scoring: of the first run.
        settings: those with a finished run, the best first.
        seeds: of all finished runs.
        missing: sentences on runs that are left out.
    """

    folder: pathlib.Path
    tried: Mapping[str, Sequence[str]]
    labels: Mapping[str, str]
    metric: str
    judge: str
    scoring: Scoring
    settings: Sequence[Setting]
    seeds: Sequence[int]
    missing: Sequence[str]

    @property
    def sign(self) -> int:
        """1 if a higher metric is better, else -1."""
        return 1 if self.scoring.directions[self.metric] == "higher" else -1

    @property
    def command(self) -> str:
        """What makes the page."""
        command = ["python", "-m", "tools.report", str(self.folder), f"--metric={self.metric}", f"--judge={self.judge}"]
        return shlex.join(command)

    def scored(self, settings: Sequence[Setting], split: str, curve: str = "") -> np.ndarray:
        """The scores of a curve, or of the one that each setting is judged by, as `ranking` keeps them."""
        found = [[one.score(seed, self.metric, split, curve or one.curve) for seed in self.seeds] for one in settings]
        return np.array([[-math.inf if value is None else self.sign * value for value in row] for row in found])

    def name(self, setting: Setting) -> str:
        """What a setting is called: `learning_rate=0.1, half_life=5%`."""
        return ", ".join(f"{self.labels[field]}={value}" for field, value in setting.values.items()) or "the config"

    def size(self, found: Interval, points: str = " points") -> str:
        """A difference, or with " %" a score, and its interval: `1.50 points (0.50 .. 2.50)`; a dash if not known."""
        percent = self.scoring.is_percent(self.metric)
        mean, *bounds = (f"{100 * x:.2f}" if percent else f"{x:.4g}" for x in found)
        unit = points if percent else ""
        known = f"{mean}{unit} ({' .. '.join(bounds)})" if "nan" not in bounds else f"{mean}{unit}"
        return "-" if math.isnan(found[0]) else known

    @functools.cached_property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each setting, the best first, with the values of its fields.

        The mean `score` and that of the `raw` weights have their own 95 % intervals over the seeds, and that which it
        is `behind` the best one has an interval that holds together with the others, of which the `outcome` speaks.
        The best one has its score on the `test` images, too, unless these have chosen it.
        """
        of_split = [self.scored(self.settings, self.judge, curve) for curve in ("", "raw")]
        rows = []
        for number, (setting, apart) in enumerate(zip(self.settings, behind(of_split[0]), strict=True)):
            score, raw = (interval(self.sign * scored[number]) for scored in of_split)
            outcome = "worse" if apart[1] > 0 else "cannot be told"
            outcome = "not finite" if math.isnan(score[0]) else outcome if number else "best"
            row = {**setting.values, "seeds": len(setting.runs), "weights": setting.curve, "metric": self.metric}
            row |= {"split": self.judge, "outcome": outcome, "score": score, "raw": raw}
            rows.append(row | {"behind": apart if number else UNKNOWN})
        if self.judge != "test":
            rows[0]["test"] = interval(self.sign * self.scored(self.settings[:1], "test")[0])
        return rows

    def to_rows(self) -> list[dict[str, Any]]:
        """The rows with each interval as NAME, NAME_low and NAME_high; what is not known is None."""
        flat = [dict[str, Any]() for _ in self.rows]
        for made, row in zip(flat, self.rows, strict=True):
            for key, value in row.items():
                names = (key, f"{key}_low", f"{key}_high") if isinstance(value, tuple) else (key,)
                found = value if isinstance(value, tuple) else (value,)
                made |= {name: None if x != x else x for name, x in zip(names, found, strict=True)}
        return flat

    def cells(self) -> list[list[str]]:
        """The header and the rows of the table, as text."""
        metric = self.metric.replace("_", " ")
        raw = [f"{metric}, raw weights"] if any(one.curve != "raw" for one in self.settings) else []
        lines = [["setting", "seeds", "weights", metric, *raw, "behind the best", "outcome"]]
        for setting, row in zip(self.settings, self.rows, strict=True):
            shown = [self.size(row[name], " %") for name in ("score", "raw")[: 1 + len(raw)]]
            lines.append([self.name(setting), str(row["seeds"]), row["weights"], *shown])
            lines[-1] += [self.size(row["behind"]), row["outcome"]]
        return lines

    def verdict(self) -> str:
        """Which setting is best, what is known of the others, and its own score on the test images."""
        first, told = self.rows[0], collections.Counter(row["outcome"] for row in self.rows)
        others, examples = len(self.rows) - 1, self.scoring.examples
        if not told["best"]:
            return f"Not all scores of {self.name(self.settings[0])} are finite" + ", nor those of any other." * (
                others > 0
            )
        over = f"over {first['seeds']} seeds" if first["seeds"] > 1 else "with a single seed"
        metric = self.metric.replace("_", " ") + (f" of {first['weights']}" if first["weights"] != "raw" else "")
        less = "" if self.sign > 0 else " (less is better)"
        says = [
            f"{f'Of {others + 1} settings, ' if others else ''}{self.name(self.settings[0])} scored"
            f"{' best' if others else ''} on the {self.judge} {examples}: {metric}{less} "
            f"{self.size(first['score'], ' %')} {over}."
        ]
        worse, untold = told["worse"], told["cannot be told"]
        if untold and first["seeds"] == 1:
            says.append("With a single seed there are no intervals: whether it is better than the others is not known.")
        elif untold:
            better = f"is better than {worse} of the others and " if worse else ""
            says.append(
                f"It {better}cannot be told from {untold if worse else 'any'} of {'them' if worse else 'the others'}."
            )
        elif worse:
            says.append("It is better than each of the others.")
        if broken := told["not finite"]:
            says.append(f"The scores of {broken} are not all finite.")
        if self.judge == "test":
            says.append(f"The {examples} that are to judge it have chosen it, so that its score flatters.")
        else:
            says.append(f"On the test {examples}, looked at for it alone: {self.size(first['test'], ' %')}.")
        return " ".join(says)

    def along(self, field: str) -> tuple[list[str], dict[str, np.ndarray]]:
        """What a field does while the others have the values of the best setting.

        Returns:
            Its values whose scores are finite, in their order if they have one; and, of the curve that the sweep is
            judged by and of the raw weights, the scores [values, seeds] with the seeds that all of them have.
        """
        values, best = self.tried[field], self.settings[0]
        places = numbers(values) or range(len(values))
        ordered = [value for _, value in sorted(zip(places, values, strict=True))]
        found = {
            one.values[field]: one for one in self.settings if {**one.values, field: ""} == {**best.values, field: ""}
        }
        line = [found[value] for value in ordered if value in found]
        curves = {best.curve: self.scored(line, self.judge), "raw": self.scored(line, self.judge, "raw")}
        finite = ~np.any([np.isinf(scored).any(axis=1) for scored in curves.values()], axis=0)
        shared = ~np.any([np.isnan(scored[finite]).any(axis=0) for scored in curves.values()], axis=0)
        values = [one.values[field] for one, kept in zip(line, finite, strict=True) if kept]
        return values, {curve: scored[finite][:, shared] for curve, scored in curves.items()}

    @functools.cached_property
    def drawn(self) -> list[str]:
        """The fields of which several values can be compared."""
        found = {field: next(iter(self.along(field)[1].values())) for field in self.tried}
        return [field for field, scored in found.items() if len(scored) > 1 and scored.size]

    def about(self, field: str) -> list[str]:
        """Whether averaging changes which value is best, and whether its optimum is flatter.

        The best values are chosen by looking. So the first question counts all pairs of values for both curves, and the
        second, on what one step away from the best value costs, all choices of the two best values.
        """
        values, curves = self.along(field)
        if len(curves) < 2 or len({len(one.runs) for one in self.settings}) > 1:  # then it would contradict the ranking
            return []
        (curve, average), (_, raw) = curves.items()
        which = f"{curve} scores best with {self.labels[field]}={values[average.mean(1).argmax()]}"
        if not np.ptp(raw, axis=0).any():  # of averages, which do not change training
            return [f"{which}; the raw weights do not depend on it."]
        best, raw_best, is_ordered = int(average.mean(1).argmax()), int(raw.mean(1).argmax()), bool(numbers(values))

        def cost(scored: np.ndarray, best: int) -> np.ndarray:
            away = [row for row in range(len(values)) if (abs(row - best) == 1 if is_ordered else row != best)]
            return np.asarray(scored[best] - scored[away].mean(axis=0))

        if best == raw_best:
            which += ", and so do the raw weights."
        else:
            gaps = (average[best] - average[raw_best], raw[raw_best] - raw[best])
            sure = all(interval(gap, 2 * math.comb(len(values), 2))[1] > 0 for gap in gaps)
            which += f", the raw weights with {values[raw_best]}"
            which += ": averaging changes which value is best." if sure else ", which the seeds do not bear out."
        costs = [cost(average, best), cost(raw, raw_best)]
        found = interval(costs[1] - costs[0], len(values) ** 2)
        lost = [self.size((float(values.mean()), math.nan, math.nan)) for values in costs]
        told = "is flatter" if found[1] > 0 else "is sharper" if found[2] < 0 else "cannot be called flatter or sharper"
        away = "One step away from its best value" if is_ordered else "With another value than its best"
        flat = f"{away}, {curve} loses {lost[0]} and the raw weights lose {lost[1]}, a difference of {self.size(found)}"
        return [which, f"{flat}: the optimum of {curve} {told}."]

    def remarks(self) -> list[str]:
        """On what was left out, and where the best may lie beyond what was tried."""
        says, best = list(self.missing), self.settings[0].values
        for field, values in self.tried.items():
            places = numbers(values) if len(values) > 1 else None
            if places and self.rows[0]["outcome"] == "best":
                place, name = places[list(values).index(best[field])], f"{self.labels[field]}={best[field]}"
                if place == max(places):
                    says.append(
                        f"{name} is the highest value tried, so that the best may lie above it: add higher ones."
                    )
                elif place == min(places) and place:  # below zero there is nothing
                    says.append(f"{name} is the lowest value tried, so that the best may lie below it: add lower ones.")
        most = max(len(one.runs) for one in self.settings)
        if fewer := [f"{self.name(one)} ({len(one.runs)})" for one in self.settings if len(one.runs) < most]:
            says.append(f"With fewer than {most} seeds, and therefore ranked after the others: {'; '.join(fewer)}.")
        says += scores.few_seeds(str(self.folder), most)
        if {"num_validation", "dataset", "splits"} & self.tried.keys():
            says.append("The settings were scored on different examples.")
        return [
            *says,
            *(
                text
                for one in self.settings
                for run in one.runs.values()
                for text in about_run(run.workdir, run.lines, run.config)
            ),
        ]

    def to_text(self, markdown: bool = False) -> str:
        """The verdict, the table, what each field does, and remarks."""
        says = [*(sentence for field in self.drawn for sentence in self.about(field)), *self.remarks()]
        if markdown:
            return "\n".join(
                [self.verdict(), "", tables.in_markdown(self.cells()), "", *(f"* {text}" for text in says)]
            )
        return "\n".join([self.verdict(), tables.aligned(self.cells()), *says])

    def to_json(self) -> str:
        """The rows, and all that is said of them."""
        found = {"verdict": self.verdict(), "fields": {field: self.about(field) for field in self.drawn}}
        return json.dumps({"rows": self.to_rows(), **found, "remarks": self.remarks()}, indent=1)


def read(folder: pathlib.Path, metric: str = "", judge: str = "validation") -> Sweep:
    """Reads `sweep.json` of a sweep, and what finished runs there are.

    Args:
        folder: of the sweep.
        metric: by which to judge; empty: `config.best_metric`.
        judge: on which images, "validation" or "test".

    Raises:
        UserError: there is no sweep, no finished run, no such metric, or no validation images.
    """
    plan, failed = runs.read_object(folder / "sweep.json"), runs.read_object(folder / "failed.json")
    if not plan:
        raise UserError(f"{folder} has no sweep.json; python -m tools.sweep --config=... --workdir={folder} makes one")
    found: dict[tuple[str, ...], dict[int, Run]] = {}
    left, unfinished = [f"{name} failed, and is left out: {message}" for name, message in failed.items()], []
    for planned in plan["runs"]:
        name, workdir = planned["workdir"], folder / planned["workdir"]
        if name in failed:
            continue
        try:
            run = Run.read(workdir)
        except UserError as error:
            if (workdir / "metrics.jsonl").exists() and "no evaluation yet" not in str(error):
                left.append(f"Left out: {error}")
            else:
                unfinished.append(name)
            continue
        if judge == "validation" and ("raw", judge) not in run.curves:
            raise UserError(
                f"{workdir} has no scores on validation images; a sweep with --config.num_validation=N has them. "
                f"--judge=test chooses on the images that are to judge"
            )
        if "duration" not in run.config:
            left.append(f"Left out: {workdir} has no config.json")
        elif run.config["duration"] in run.curves.get(("raw", judge), {}):
            found.setdefault(tuple(planned["values"].values()), {})[planned["seed"]] = run
        else:
            unfinished.append(name)
    if unfinished:
        left.append(f"Not finished, and left out: {', '.join(unfinished)}.")
    settings = [Setting(dict(zip(plan["fields"], values, strict=True)), by_seed) for values, by_seed in found.items()]
    if not settings:
        raise UserError("\n".join([f"{folder} has no finished run; the command that began the sweep goes on", *left]))
    scorings = [Group((next(iter(one.runs.values())),)).scoring for one in settings]
    metrics = {metric or scoring.metric for scoring in scorings}
    known = set.intersection(*(set(scoring.directions) for scoring in scorings))
    if len(metrics) > 1 or not metrics <= known:
        must = f"must be one of {', '.join(sorted(known))}" if known else "the runs have no metric in common"
        raise UserError(f"--metric={metric or ' or '.join(sorted(metrics))}: {must}")
    last = [field.rpartition(".")[2] for field in plan["fields"]]
    labels = {field: end if last.count(end) == 1 else field for field, end in zip(plan["fields"], last, strict=True)}
    seeds = sorted({seed for one in settings for seed in one.runs})
    sweep = Sweep(folder, plan["fields"], labels, metrics.pop(), judge, scorings[0], settings, seeds, left)
    return dataclasses.replace(sweep, settings=[settings[row] for row in rank(sweep.scored(settings, judge))])


def seeds(folder: pathlib.Path) -> list[pathlib.Path]:
    """The workdirs of a sweep of nothing but seeds; none of any other folder."""
    plan = runs.read_object(folder / "sweep.json")
    return [] if plan.get("fields", True) else [folder / run["workdir"] for run in plan["runs"]]


def write(folder: pathlib.Path, metric: str = "", judge: str = "validation") -> str:
    """Writes the page of a sweep and its pictures into its folder; see `read`.

    Returns:
        The verdict as text, with the paths below it.
    """
    if alone := seeds(folder):
        return page.write(folder, alone)
    found = read(folder, metric, judge)
    return f"{found.to_text()}\n{write_page(folder, found)}"


def write_page(folder: pathlib.Path, found: Sweep) -> str:
    """Writes `report.html` and the pictures, if the packages that draw are installed, and returns a line with paths."""
    try:
        from reporting import sweep_page

        return sweep_page.write(folder, found)
    except ModuleNotFoundError as error:  # the runs are done
        return f"Note: there is no report yet, {missing_package(error)}. Then: {found.command}"
