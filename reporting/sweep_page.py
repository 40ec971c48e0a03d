"""The page of a sweep and its pictures."""

import math
import pathlib

import numpy as np

from reporting import curves, page, pictures
from reporting.curves import Line, Panel
from reporting.ranking import numbers
from reporting.sweep import Sweep
from runtime.files import replace_file


def panel(found: Sweep, field: str) -> Panel:
    """The mean of the metric over the values of a field, raw and averaged, with bands of 95 % over the seeds.

    The axis is logarithmic where the values are positive and span a decade or more; elsewhere they stand side by side.
    """
    values, scores = found.along(field)
    known = numbers(values) or [0.0]
    is_log = min(known) > 0 and max(known) >= 10 * min(known)
    places = np.array(known) if is_log else np.arange(float(len(values)))
    looks = pictures.styles(sorted(scores, key="raw".__ne__))
    factor, unit = (100, ", %") if found.scoring.is_percent(found.metric) else (1, "")
    lines = []
    for curve, scored in scores.items():
        mean, low, high = factor * np.array([found.mean(row) for row in scored]).T
        lines.append(Line(curve, looks[curve], places, mean, (low, high)))
    title = found.metric.replace("_", " ") + unit
    note = f"{found.judge} {found.scoring.examples}, band: 95 % over the seeds"
    return Panel(title, note, lines, x=found.labels[field], ticks=tuple(values), log="x" * is_log)


def write(folder: pathlib.Path, found: Sweep) -> str:
    """Writes `report.html` and a picture of each field, and returns a line with the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {field: panel(found, field) for field in found.drawn}
    paths = [folder / "report.html"]
    for field, drawn in fields.items():
        paths.append(folder / f"{found.labels[field]}.png")
        replace_file(paths[-1], pictures.to_png(pictures.curves([drawn])))
    text = page.render(
        "sweep.html",
        refresh=0,
        sweep=found,
        setup=found.settings[0].setup or found.settings[0].name,
        command=page.command([found.folder]),
        pairs=math.comb(len(found.settings), 2),
        fields=fields,
        panels=curves.panels(found.settings),
    )
    replace_file(paths[0], text)
    return f"Report: {', '.join(map(str, paths))}"
