"""The differences between runs of one config and of another, paired by seed."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from reporting import runs, scores, tables
from reporting.runs import Group
from runtime.errors import UserError

# Fields of a config that may explain a difference by themselves.
_FIELDS = ("task", "dataset", "splits", "duration")


@dataclasses.dataclass(frozen=True)
class Against:
    """Groups of runs, each compared with the same other group.

    Attributes:
        groups: the runs that are compared.
        other: the runs that they are compared with.
        rows: for each curve of each group: its `run`, and `against`, the names of the groups; its `curve`, and
            `against_curve`; the number of `seeds`; `of`, the first metric, and what is `better`, "higher" or "lower";
            and for each METRIC the mean over the seeds of the difference, METRIC_difference, with the 95 % interval
            METRIC_low .. METRIC_high by Student's t. Bounds for one seed, and what was not finite, are None.
        remarks: on what was left out, and what else differs.
    """

    groups: Sequence[Group]
    other: Group
    rows: Sequence[dict[str, Any]]
    remarks: Sequence[str]

    @property
    def title(self) -> str:
        """A heading: `runs/a0 (5 seeds) against runs/b0 (5 seeds)`."""
        return f"{self.groups[0].name if len(self.groups) == 1 else 'Each'} against {self.other.name}"

    def cells(self) -> list[list[str]]:
        """The header and the rows of the table, as text."""
        scoring, several = tables.scoring_of([*self.groups, self.other]), len(self.groups) > 1
        names = (name for row in self.rows for name in row)
        metrics = dict.fromkeys(name.removesuffix("_difference") for name in names if name.endswith("_difference"))
        units = {name: " points" if scoring.is_percent(name) else "" for name in metrics}
        lines = [["run", "weights", "seeds", *(name.replace("_", " ") for name in metrics)]]
        for row in self.rows:
            curve, partner = row["curve"], row["against_curve"]
            weights = curve if curve == partner else f"{curve} against {partner}"
            found = (tables.difference(scoring, name, row, unit) for name, unit in units.items())
            lines.append([row["run"], weights, str(row["seeds"]), *found])
        return lines if several else [line[1:] for line in lines]

    def verdicts(self) -> list[str]:
        """A sentence on the first metric of each row."""
        scoring = tables.scoring_of([*self.groups, self.other])
        return [
            scoring.verdict(
                {**row, "curve": f"{row['curve']} of {row['run']}", "over": "seeds", "runs": row["seeds"]}
                | {"loss": row.get("loss_difference", 0.0)},
                f"{row['against_curve']} of {row['against']}",
            )
            for row in self.rows
        ]

    def to_text(self, markdown: bool = False) -> str:
        """The heading, the table, and verdicts."""
        above = f"{self.title}: differences with 95 % intervals, paired by seed"
        return tables.laid_out([above], self.cells(), self.verdicts(), markdown)


def compare(groups: Sequence[Group], others: Sequence[Group]) -> Against:
    """Compares each group with the other one, at the last evaluation of each.

    Args:
        groups: the runs to compare.
        others: the runs to compare them with, which must be one group.

    Raises:
        UserError: the others are several groups, no two runs have the same seed, or they share no metric.
    """
    if len(others) > 1:
        fields = [f"{field} ({', '.join(map(repr, found))})" for field, found in runs.differences(others).items()]
        raise UserError(
            f"--against={' '.join(str(group.runs[0].workdir) for group in others)}: must be runs that differ in "
            f"nothing but the seed; these differ in {', '.join(fields) or 'what is not known without a config.json'}. "
            "Give those of one config after --against, and the others before it."
        )
    (other,) = others
    rows: list[dict[str, Any]] = []
    remarks: list[str] = []
    seeds: list[Any] = []
    for group in groups:
        title = f"{group.name} against {other.name}"
        first, second = group.by_seed, other.by_seed
        paired = [seed for seed in first if seed in second]
        seeds += paired
        if lone := [run for run in (*group.runs, *other.runs) if run.config.get("seed") not in paired]:
            named = ", ".join(f"{run.workdir} (seed {run.config.get('seed', 'unknown')})" for run in lone)
            remarks.append(f"{title}: left out, since no run of the other side has the seed: {named}.")
        if paired:
            left, right = (Group(tuple(by_seed[seed] for seed in paired)) for by_seed in (first, second))
            rows += [{"run": group.name, "against": other.name} | row for row in _rows(left, right)]
            remarks += [f"{title}: {sentence}" for sentence in _about(left, right)]
            remarks += scores.few_seeds(title, len(paired))
    if not seeds:
        found = (f"{group.name} has {', '.join(map(str, group.by_seed)) or 'none'}" for group in (*groups, other))
        raise UserError(
            f"--against: no two runs have the same seed to be paired by: {'; '.join(found)}. "
            "python main.py --config=... --workdir=... --config.seed=... trains one with a seed of the other side."
        )
    if not rows:
        raise UserError(f"--against={other.runs[0].workdir}: has no metric of {groups[0].name}. Give runs of one task.")
    return Against(groups, other, rows, remarks)


def _rows(first: Group, second: Group) -> list[dict[str, Any]]:
    """A row for each curve of the first group, against the second one's of the same name, or its raw weights."""
    rows = []
    left, right = first.last_lines(), second.last_lines()
    for curve in left[0]:
        partner = curve if curve in right[0] else "raw"
        pairs = [(mine[curve], others[partner]) for mine, others in zip(left, right, strict=True)]
        metrics = [name for name in pairs[0][0] if all(name in line for pair in pairs for line in pair)]
        metrics = [name for name in metrics if name not in scores.NO_METRICS]
        if curve.endswith("-raw") or not metrics:
            continue
        metrics.sort(key=[first.scoring.metric, *first.scoring.directions, *metrics].index)
        # Where the two sides see it differently, nothing is known to be better.
        ways = {group.scoring.directions.get(metrics[0], "") for group in (first, second)} - {""}
        row = {"curve": curve, "against_curve": partner, "seeds": len(pairs), "of": metrics[0]}
        row["better"] = ways.pop() if len(ways) == 1 else ""
        for name in metrics:
            found = [(mine[name], others[name]) for mine, others in pairs]
            row |= scores.difference(name, [{name: None if None in pair else pair[0] - pair[1]} for pair in found])
        rows.append(row)
    return rows


def _about(first: Group, second: Group) -> list[str]:
    """What else may explain a difference of two groups, and curves that are not compared."""
    found = [
        {"last step": group.last_step, "scored images": group.last_split}
        | {field: group.runs[0].config.get(field) for field in _FIELDS}
        for group in (first, second)
    ]
    apart = [f"{what} ({mine} and {found[1][what]})" for what, mine in found[0].items() if mine != found[1][what]]
    remarks = [f"they differ in {', '.join(apart)}, which may explain a difference."] if apart else []
    curves = [{name for name in group.last_lines()[0] if not name.endswith("-raw")} for group in (first, second)]
    if only := sorted(curves[1] - curves[0]):
        remarks.append(f"{', '.join(only)} of {second.runs[0].workdir} is compared with nothing.")
    return remarks
