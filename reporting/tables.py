"""The table of runs, as text, Markdown, CSV and JSON."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reporting import runs
from reporting.runs import Group


def _percent(row: Mapping[str, Any], name: str) -> str:
    spread = f" ± {row[f'{name}_sd']:.2%}" if f"{name}_sd" in row else ""
    return _or_dash(row, name, lambda value: f"{value:.2%}{spread}")


def _number(row: Mapping[str, Any], name: str) -> str:
    spread = f" ± {row[f'{name}_sd']:.2g}" if f"{name}_sd" in row else ""
    return _or_dash(row, name, lambda value: f"{value:.4g}{spread}")


def _best(row: Mapping[str, Any]) -> str:
    value = "{:.2%}" if "accuracy" in row else "{:.4g}"
    images = "" if row.get("best_split") in (None, row.get("split")) else f", {row['best_split']}"
    return _or_dash(row, "best", lambda best: f"{value.format(best)} ({row['best_step']}{images})")


def _difference(row: Mapping[str, Any]) -> str:
    if "difference" not in row or row["difference"] is None:
        return "-" if "difference" in row else ""
    return runs.format_difference(row) + (" points" if row["of"] == "accuracy" else " loss")


def _loss_difference(row: Mapping[str, Any]) -> str:
    if row.get("of") != "accuracy":  # otherwise it is in the column before
        return ""
    names = ("loss_difference", "loss_low", "loss_high")
    if None in (row[name] for name in names):
        return "-"
    return "{:+.3g} ({:+.3g} .. {:+.3g})".format(*(row[name] for name in names))


def _or_dash(row: Mapping[str, Any], name: str, text: Callable[[float], str]) -> str:
    """An empty text if a value was not measured, a dash if it was not finite."""
    if name not in row:
        return ""
    return "-" if row[name] is None else text(row[name])


# Header and text of each column; columns without any text are left out.
_COLUMNS: Sequence[tuple[str, Callable[[Mapping[str, Any]], str]]] = (
    ("run", lambda row: row.get("run", "")),
    ("weights", lambda row: row["curve"]),
    ("accuracy", lambda row: _percent(row, "accuracy")),
    ("minus raw (95 % interval)", _difference),
    ("loss", lambda row: _number(row, "loss")),
    ("best (step)", _best),
    ("calibration error", lambda row: _percent(row, "calibration_error")),
    ("agreement", lambda row: _percent(row, "agreement") if row["curve"] != "raw" else ""),
)


def cells(rows: Sequence[Mapping[str, Any]], *, wide: bool = False) -> list[list[str]]:
    """The header and the rows of the table, as text.

    Args:
        rows: of `runs.summarize`.
        wide: whether there is room for the difference of the loss as well.
    """
    shown = [*_COLUMNS, ("loss minus raw (95 % interval)", _loss_difference)] if wide else _COLUMNS
    columns = [[header, *map(text, rows)] for header, text in shown]
    return [list(row) for row in zip(*(column for column in columns if any(column[1:])), strict=True)]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `runs.summarize` as aligned text."""
    lines = cells(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def to_text(groups: Sequence[Group], markdown: bool = False) -> str:
    """A title for each group, the table, and verdicts."""
    rows = to_rows(groups)
    body = _markdown(rows) if markdown else table(rows)
    says = [verdict for group in groups for verdict in verdicts(group, len(groups) > 1) if len(group.runs) > 1]
    if any(len(group.runs) == 1 and len(group.names) > 1 for group in groups):
        says.append(runs.ONE_RUN)
    if markdown:
        body, says = f"\n{body}\n", [f"* {sentence}" for sentence in says]
    return "\n".join([*map(title, groups), body, *says])


def verdicts(group: Group, named: bool) -> list[str]:
    """A sentence on the difference of each average, with the group's name if there are several groups."""
    prefix = f"{group.name}: " if named else ""
    return [prefix + runs.verdict(row) for row in group.rows() if "difference" in row]


def title(group: Group) -> str:
    """A title for the rows of a group: `runs/digits, step 282, test images`."""
    pooled = f", mean ± standard deviation of {len(group.runs)} seeds" if len(group.runs) > 1 else ""
    return f"{group.name}, step {group.last_step}, {group.last_split} images{pooled}"


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    header, *lines = cells(rows, wide=True)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines))


def to_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """All rows of all groups, each with its `run` and `step` if there are several."""
    if len(groups) == 1:
        return groups[0].rows()
    return [{"run": group.name, "step": group.last_step} | row for group in groups for row in group.rows()]


def to_csv(groups: Sequence[Group]) -> str:
    """`to_rows` with a header, in full precision."""
    rows, text = to_rows(groups), io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip()


def to_json(groups: Sequence[Group], remarks: Sequence[str]) -> str:
    """`to_rows`, their runs, the differences between the configs, and remarks."""
    about = [
        {"run": group.name, "workdirs": [str(run.workdir) for run in group.runs], "times": group.times()}
        for group in groups
    ]
    found = {"rows": to_rows(groups), "runs": about, "differences": runs.differences(groups), "remarks": remarks}
    return json.dumps(found, indent=1)
