"""The verdict of a sweep: which setting is best, how sure that is, and what each swept field does, raw and averaged."""

import collections
import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reporting import page, runs, scores, tables
from reporting.ranking import UNKNOWN, Interval, behind, interval, numbers, rank
from reporting.runs import Group, Run
from reporting.scores import Scoring
from runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Setting(Group):
    """A combination of values: its finished runs, of which there is one at least."""

    values: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep, as its files describe it.

    Attributes:
        folder: of the sweep.
        tried: the values of each swept field.
        labels: what each swept field is called.
        metric: by which it is judged.
        judge: the images that it is judged on, "validation" or "test".
        settings: those with a finished run, the best first.
        missing: sentences on runs that are left out.
    """

    folder: pathlib.Path
    tried: Mapping[str, Sequence[str]]
    labels: Mapping[str, str]
    metric: str
    judge: str
    settings: Sequence[Setting]
    missing: Sequence[str]

    @property
    def scoring(self) -> Scoring:
        """Of the best setting."""
        return self.settings[0].scoring

    @property
    def seeds(self) -> list[int]:
        """Of all finished runs."""
        return sorted({seed for one in self.settings for seed in one.by_seed})

    @property
    def sign(self) -> int:
        """1 if a higher metric is better, else -1."""
        return 1 if self.scoring.directions[self.metric] == "higher" else -1

    def scored(self, settings: Sequence[Setting], split: str, curve: str = "") -> np.ndarray:
        """The scores at the end of a curve, or of the one that each setting is judged by, as `ranking` keeps them."""
        found = np.full((len(settings), len(self.seeds)), np.nan)
        for row, one in zip(found, settings, strict=True):
            for seed, run in one.by_seed.items():
                at_end = run.curves.get((curve or one.main_curve, split), {}).get(run.config["duration"], {})
                value = at_end.get(self.metric)
                row[self.seeds.index(seed)] = -math.inf if value is None else self.sign * value
        return found

    def mean(self, scored: np.ndarray) -> Interval:
        """The mean score of a setting with its own interval, of which what no proportion can be is cut off."""
        found = interval(self.sign * scored)
        return tuple(np.clip(found, 0, 1).tolist()) if self.scoring.is_percent(self.metric) else found

    def size(self, found: Interval, points: str = " points") -> str:
        """A difference, or with " %" a score, and its interval: `1.50 points (0.50 .. 2.50)`; a dash if not known."""
        percent = self.scoring.is_percent(self.metric)
        mean, *bounds = (f"{100 * x:.2f}" if percent else f"{x:.4g}" for x in found)
        known = f" ({' .. '.join(bounds)})" if "nan" not in bounds else ""
        return "-" if math.isnan(found[0]) else mean + (points if percent else "") + known

    @functools.cached_property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each setting, the best first, with the values of its fields.

        The mean `score` and that of the `raw` weights have their own 95 % intervals over the seeds, and that which it
        is `behind` the best one has an interval that holds together with the others, of which the `outcome` speaks.
        The best one has its score on the `test` images, too, unless these have chosen it.
        """
        judged, of_raw = (self.scored(self.settings, self.judge, curve) for curve in ("", "raw"))
        rows: list[dict[str, Any]] = []
        for one, found, raw, apart in zip(self.settings, judged, of_raw, behind(judged), strict=True):
            outcome = "worse" if apart[1] > 0 else "cannot be told" if rows else "best"
            row = {**one.values, "seeds": len(one.runs), "weights": one.main_curve, "metric": self.metric}
            row |= {"split": self.judge, "outcome": "not finite" if np.isinf(found).any() else outcome}
            rows.append(row | {"score": self.mean(found), "raw": self.mean(raw), "behind": apart if rows else UNKNOWN})
        if self.judge != "test":
            rows[0]["test"] = self.mean(self.scored(self.settings[:1], "test")[0])
        return rows

    def to_rows(self) -> list[dict[str, Any]]:
        """The rows with each interval as NAME, NAME_low and NAME_high; what is not known is None."""

        def flat(name: str, value: Any) -> dict[str, Any]:
            names, values = (name, f"{name}_low", f"{name}_high"), value if isinstance(value, tuple) else (value,)
            return {name: None if x != x else x for name, x in zip(names, values, strict=False)}

        return [{key: x for name, value in row.items() for key, x in flat(name, value).items()} for row in self.rows]

    def cells(self) -> list[list[str]]:
        """The header and the rows of the table, as text."""
        metric = self.metric.replace("_", " ")
        shown = {metric: "score"}
        if any(one.main_curve != "raw" for one in self.settings):
            shown[f"{metric}, raw weights"] = "raw"
        lines = [["setting", "seeds", "weights", *shown, "behind the best", "outcome"]]
        for one, row in zip(self.settings, self.rows, strict=True):
            sizes = [*(self.size(row[name], " %") for name in shown.values()), self.size(row["behind"])]
            lines.append([one.label, str(row["seeds"]), row["weights"], *sizes, row["outcome"]])
        return lines

    def verdict(self) -> str:
        """Which setting is best, what is known of the others, and its own score on the test images."""
        first, told = self.rows[0], collections.Counter(row["outcome"] for row in self.rows)
        best, others, examples = self.settings[0].label, len(self.rows) - 1, self.scoring.examples
        if not told["best"]:
            return f"Not all scores of {best} are finite" + ", nor those of any other." * (others > 0)
        found = f"Of {others + 1} settings, {best} scored best" if others else f"{best} scored"
        over = f"over {first['seeds']} seeds" if first["seeds"] > 1 else "with a single seed"
        metric = self.metric.replace("_", " ") + (f" of {first['weights']}" if first["weights"] != "raw" else "")
        less = "" if self.sign > 0 else " (less is better)"
        says = [f"{found} on the {self.judge} {examples}: {metric}{less} {self.size(first['score'], ' %')} {over}."]
        worse, untold = told["worse"], told["cannot be told"]
        if untold and first["seeds"] == 1:
            says.append("With a single seed there are no intervals: whether it is better than the others is not known.")
        elif untold and worse:
            says.append(f"It is better than {worse} of the others and cannot be told from {untold} of them.")
        elif untold:
            says.append("It cannot be told from any of the others.")
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
        best = self.settings[0]
        places = numbers(self.tried[field]) or range(len(self.tried[field]))
        place = dict(zip(self.tried[field], places, strict=True))
        line = [one for one in self.settings if {**one.values, field: ""} == {**best.values, field: ""}]
        line.sort(key=lambda one: place[one.values[field]])
        curves = {best.main_curve: self.scored(line, self.judge), "raw": self.scored(line, self.judge, "raw")}
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
        best, raw_best = int(average.mean(1).argmax()), int(raw.mean(1).argmax())
        which, is_ordered = f"{curve} scores best with {self.labels[field]}={values[best]}", bool(numbers(values))
        if not np.ptp(raw, axis=0).any():  # of averages, which do not change training
            return [f"{which}; the raw weights do not depend on it."]

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
            places = numbers(values) if len(values) > 1 and self.rows[0]["outcome"] == "best" else None
            if places:
                place, name = places[list(values).index(best[field])], f"{self.labels[field]}={best[field]}"
                at_end = [("highest", "above", "higher")] * (place == max(places))
                at_end += [("lowest", "below", "lower")] * (0 != place == min(places))  # below zero there is nothing
                says += [
                    f"{name} is the {edge} value tried, so that the best may lie {there} it: add {which} ones."
                    for edge, there, which in at_end
                ]
        most = max(len(one.runs) for one in self.settings)
        if fewer := [f"{one.label} ({len(one.runs)})" for one in self.settings if len(one.runs) < most]:
            says.append(f"With fewer than {most} seeds, and therefore ranked after the others: {'; '.join(fewer)}.")
        says += scores.few_seeds(str(self.folder), most)
        if {"num_validation", "dataset", "splits"} & self.tried.keys():
            says.append("The settings were scored on different examples.")
        return [*says, *(text for one in self.settings for run in one.runs for text in run.remarks())]

    def to_text(self, markdown: bool = False) -> str:
        """The verdict, the table, what each field does, and remarks."""
        says = [*(sentence for field in self.drawn for sentence in self.about(field)), *self.remarks()]
        return tables.laid_out([self.verdict()], self.cells(), says, markdown)

    def to_json(self) -> str:
        """The rows, and all that is said of them."""
        found = {"verdict": self.verdict(), "fields": {field: self.about(field) for field in self.drawn}}
        return json.dumps({"rows": self.to_rows(), **found, "remarks": self.remarks()}, indent=1)


def read(folder: pathlib.Path) -> Sweep:
    """Reads `sweep.json` of a sweep, and what finished runs there are.

    Raises:
        UserError: there is no sweep, no finished run, no metric to choose by, or no validation images.
    """
    plan, failed = runs.read_object(folder / "sweep.json"), runs.read_object(folder / "failed.json")
    if not plan:
        raise UserError(f"{folder} has no sweep.json; python -m tools.sweep --config=... --workdir={folder} makes one")
    judge = plan.get("judge", "validation")
    found: dict[tuple[str, ...], list[Run]] = {}
    left, unfinished = [f"{name} failed, and is left out: {message}" for name, message in failed.items()], []
    for planned in plan["runs"]:
        name, workdir = planned["workdir"], folder / planned["workdir"]
        if name in failed:
            continue
        try:
            run = Run.read(workdir)
        except runs.NotBegunError:
            unfinished.append(name)
            continue
        except UserError as error:
            left.append(f"Left out: {error}")
            continue
        if judge == "validation" and ("raw", judge) not in run.curves:
            raise UserError(
                f"{workdir} has no scores on validation images; a sweep with --config.num_validation=N has them, and "
                f"one with --judge=test chooses on the images that are to judge"
            )
        if not {"duration", "seed"} <= run.config.keys():
            left.append(f"Left out: {workdir} has no config.json")
        elif run.config["duration"] in run.curves.get(("raw", judge), {}):
            found.setdefault(tuple(planned["values"].values()), []).append(run)
        else:
            unfinished.append(name)
    if unfinished:
        left.append(f"Not finished, and left out: {', '.join(unfinished)}.")
    if not found:
        raise UserError("\n".join([f"{folder} has no finished run; the command that began the sweep goes on", *left]))
    last = [field.rpartition(".")[2] for field in plan["fields"]]
    labels = {field: end if last.count(end) == 1 else field for field, end in zip(plan["fields"], last, strict=True)}
    settings = []
    for texts, finished in found.items():
        label = ", ".join(f"{name}={text}" for name, text in zip(labels.values(), texts, strict=True))
        settings.append(Setting(tuple(finished), label, dict(zip(labels, texts, strict=True))))
    metrics = {plan.get("metric") or one.scoring.metric for one in settings}
    known = set.intersection(*(set(one.scoring.directions) for one in settings))
    if len(metrics) > 1 or not metrics <= known:
        must = f"must be one of {', '.join(sorted(known))}" if known else "the runs have no metric in common"
        raise UserError(f"--metric={' or '.join(sorted(metrics))}: {must}")
    sweep = Sweep(folder, plan["fields"], labels, metrics.pop(), judge, settings, left)
    return dataclasses.replace(sweep, settings=[settings[row] for row in rank(sweep.scored(settings, judge))])


def seeds(folder: pathlib.Path) -> list[pathlib.Path]:
    """The workdirs of a sweep of nothing but seeds; none of any other folder."""
    plan = runs.read_object(folder / "sweep.json")
    return [] if plan.get("fields", True) else [folder / run["workdir"] for run in plan["runs"]]


def write(folder: pathlib.Path) -> str:
    """Writes the page of a sweep and its pictures into its folder, if the packages that draw are installed.

    Returns:
        The verdict as text, with the paths below it.
    """
    if alone := seeds(folder):
        return page.write(folder, alone)
    found = read(folder)

    def draw() -> str:
        from reporting import sweep_page

        return sweep_page.write(folder, found)

    return f"{found.to_text()}\n{page.if_possible(draw, folder)}"
