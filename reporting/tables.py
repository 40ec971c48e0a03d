"""The table of runs, as text, Markdown, CSV and JSON."""

import csv
import dataclasses
import functools
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reporting import runs, scores
from reporting.runs import Group
from reporting.scores import Scoring
from runtime.fields import flatten

Row = Mapping[str, Any]


def cells(rows: Sequence[Row], scoring: Scoring, *, wide: bool = False) -> list[list[str]]:
    """The header and the rows of the table, as text. Columns without any text are left out.

    Args:
        rows: of `Scoring.summarize`.
        scoring: which metrics are proportions.
        wide: whether there is room for the difference of every metric, not only of the first.
    """
    first = list(dict.fromkeys(row["of"] for row in rows))
    named = dict.fromkeys(name.removesuffix("_difference") for row in rows for name in row if "_difference" in name)
    others = [name for name in (*named, "loss", "calibration_error") if name not in first]
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("run", lambda row: row.get("run", "")),
        ("weights", lambda row: row["curve"]),
        *((_in_words(name), functools.partial(_value, scoring, name)) for name in first),
        (
            "minus raw (95 % interval)",
            lambda row: difference(scoring, row["of"], row, unit=_unit(scoring, row, first)),
        ),
        ("best (step)", functools.partial(_best, scoring, first)),
    ]
    for name in dict.fromkeys(others):
        columns.append((_in_words(name), functools.partial(_value, scoring, name)))
        if wide:
            header = f"{_in_words(name)} minus raw (95 % interval)"
            columns.append((header, functools.partial(difference, scoring, name)))
    columns.append(("agreement", functools.partial(_value, scoring, "agreement")))
    texts = [[header, *map(text, rows)] for header, text in columns]
    return [list(row) for row in zip(*(column for column in texts if any(column[1:])), strict=True)]


def _in_words(name: str) -> str:
    return name.replace("_", " ")


def _value(scoring: Scoring, name: str, row: Row) -> str:
    """A metric with its spread; a dash if it was not finite, empty if it was not measured."""
    if row.get(name) is None:
        return "-" if name in row else ""
    value, spread = row[name], row.get(f"{name}_sd")
    if scoring.is_percent(name):
        return f"{value:.2%}" + (f" ± {spread:.2%}" if spread is not None else "")
    return f"{value:.4g}" + (f" ± {spread:.2g}" if spread is not None else "")


def _unit(scoring: Scoring, row: Row, first: Sequence[str]) -> str:
    """What a difference of a row's first metric is counted in, named where the rows of a table have different ones."""
    if not scoring.is_percent(row["of"]):
        return f" {row['of']}"
    return f" points of {row['of']}" if len(first) > 1 else " points"


def _best(scoring: Scoring, first: Sequence[str], row: Row) -> str:
    if row.get("best") is None:
        return ""
    images = "" if row["best_split"] == row.get("split") else f", {row['best_split']}"
    named = f" {row['of']}" if len(first) > 1 else ""
    return f"{_value(scoring, row['of'], {row['of']: row['best']})}{named} ({row['best_step']}{images})"


def difference(scoring: Scoring, name: str, row: Row, unit: str = "") -> str:
    """A difference with its interval; a dash if it was not finite, empty if there is none."""
    if row.get(f"{name}_difference") is None:
        return "-" if f"{name}_difference" in row else ""
    return scoring.format_difference(row, name) + unit


def table(rows: Sequence[Row], scoring: Scoring) -> str:
    """Rows of `Scoring.summarize` as aligned text."""
    return aligned(cells(rows, scoring))


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A header and rows in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def laid_out(above: Sequence[str], lines: Sequence[Sequence[str]], below: Sequence[str], markdown: bool) -> str:
    """A table with sentences above and below it."""
    if not markdown:
        return "\n".join([*above, aligned(lines), *below])
    header, *others = lines
    table = [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *others)]
    return "\n".join([*above, "", *table, "", *(f"* {sentence}" for sentence in below)])


def of_evaluation(metrics: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> str:
    """The table of one evaluation, of what `evaluation.evaluate` returns and the resolved config."""
    scoring = Scoring.of(flatten(config), next(iter(metrics.values())))
    return table(scoring.summarize([metrics]), scoring)


def to_text(groups: Sequence[Group], markdown: bool = False) -> str:
    """A title for each group, the table, and verdicts."""
    rows = to_rows(groups)
    scoring = scoring_of(groups)
    says = [verdict for group in groups for verdict in verdicts(group, len(groups) > 1) if len(group.runs) > 1]
    if any(len(group.runs) == 1 and len(group.names) > 1 for group in groups):
        says.append(scores.ONE_RUN)
    return laid_out([*map(title, groups)], cells(rows, scoring, wide=markdown), says, markdown)


def headline(groups: Sequence[Group]) -> list[str]:
    """What came out, in a sentence or three: of one config its scores at the end, of several which ends best."""
    by_group = [{row["curve"]: row for row in group.rows()} for group in groups]
    mains = [rows[group.main_curve] for rows, group in zip(by_group, groups, strict=True)]
    group, main, raw = groups[0], mains[0], by_group[0]["raw"]
    scoring, metric = group.scoring, main["of"]

    def scored(row: Row, named: bool = True) -> str:
        value, name = _value(scoring_of(groups), row["of"], row), _in_words(row["of"])
        return f"no finite {name}" if value == "-" else f"{value} {name}" if named else value

    where = f"on the {group.last_split} {scoring.examples}"
    if len(groups) > 1:
        known = [row for row in mains if row["of"] == metric and row.get(metric) is not None]
        if not main["better"] or len(known) < len(mains):
            return []
        pairs = zip(mains, groups, strict=True)
        order = sorted(pairs, key=lambda pair: pair[0][metric], reverse=main["better"] == "higher")
        (first, named), (last, worst) = order[0], order[-1]
        return [
            f"Of {len(groups)} configs, {named.name} ends best, with {scored(first)} of {first['curve']} {where}, and "
            f"{worst.name} worst, with {scored(last)}. Whether that is more than chance, --against tells from several "
            "seeds."
        ]
    seeds = f" (mean ± sd of {len(group.runs)} seeds)" if len(group.runs) > 1 else ""
    if main is raw:
        which = "raw weights" if len(group.names) > 1 else "weights"
        return [f"After {group.last_step} steps, the {which} have {scored(raw)} {where}{seeds}."]
    sentences = [
        f"After {group.last_step} steps, the average {main['curve']} has {scored(main)} {where} and the raw weights "
        f"{scored(raw, named=False)}{seeds}."
    ]
    if main.get("best") is not None and main["best_step"] != group.last_step:
        best = _value(scoring, metric, {metric: main["best"]})
        sentences.append(
            f"At its best evaluation, step {main['best_step']}, {main['curve']} had {best}: what stopping there would "
            f"have given, if the {main['best_split']} {scoring.examples} that chose it did not flatter it."
        )
    return sentences


def verdicts(group: Group, named: bool) -> list[str]:
    """A sentence on the difference of each average, with the group's name if there are several groups."""
    prefix = f"{group.name}: " if named else ""
    return [prefix + group.scoring.verdict(row) for row in group.rows() if f"{row['of']}_difference" in row]


def together(groups: Sequence[Group]) -> list[list[str]]:
    """The first columns of the table of all groups: the first metric of each, and its difference to raw."""
    rows = to_rows(groups)
    return [row[: 4 + len({row["of"] for row in rows})] for row in cells(rows, scoring_of(groups))]


def scoring_of(groups: Sequence[Group]) -> Scoring:
    """The first group's scoring, with the proportions of all of them."""
    proportions = [name for group in groups for name in group.scoring.proportions]
    return dataclasses.replace(groups[0].scoring, proportions=tuple(proportions))


def title(group: Group) -> str:
    """A title for the rows of a group: `runs/digits, step 282, test images`."""
    pooled = f", mean ± standard deviation of {len(group.runs)} seeds" if len(group.runs) > 1 else ""
    return f"{group.name}, step {group.last_step}, {group.last_split} {group.scoring.examples}{pooled}"


def to_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """All rows of all groups, each with its `run` and `step` if there are several."""
    if len(groups) == 1:
        return groups[0].rows()
    return [{"run": group.name, "step": group.last_step} | row for group in groups for row in group.rows()]


def to_csv(rows: Sequence[Row]) -> str:
    """Rows with a header, in full precision."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip()


def to_json(groups: Sequence[Group], remarks: Sequence[str], against: Sequence[Row]) -> str:
    """`to_rows`, the rows of `against.Against`, the runs, the differences between the configs, and remarks."""
    of = {group.name: [str(run.workdir) for run in group.runs] for group in groups}
    about = [{"run": group.name, "workdirs": of[group.name], "times": group.times()} for group in groups]
    found = {"rows": to_rows(groups), "against": against, "runs": about, "differences": runs.differences(groups)}
    return json.dumps(found | {"remarks": remarks}, indent=1)
