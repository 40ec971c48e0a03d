"""The page of a sweep and its pictures."""

import math
import pathlib

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from reporting import pictures
from reporting.ranking import interval, numbers
from reporting.sweep import Sweep
from runtime.files import replace_file


@matplotlib.rc_context(pictures.STYLE)
def draw(found: Sweep, field: str, width: float = pictures.WIDTHS["wide"]) -> Figure:
    """The mean of the metric over the values of a field, raw and averaged, with bands of 95 % over the seeds.

    The axis is logarithmic where the values are positive and span a decade or more; elsewhere they stand side by side.

    Args:
        found: the sweep.
        field: whose values.
        width: of the picture, in inches.
    """
    values, curves = found.along(field)
    known = numbers(values) or [0.0]
    is_log = min(known) > 0 and max(known) >= 10 * min(known)
    places = np.log10(known) if is_log else np.arange(len(values))
    is_upright = 0.09 * len(values) * max(map(len, values)) > width - 1
    below = 0.55 + is_upright * min(0.08 * max(map(len, values)), 2.0)
    figure = Figure(figsize=(width, 3.0 + below))
    axis = figure.add_axes((0.85 / width, below / (3.0 + below), (width - 1.0) / width, 2.4 / (3.0 + below)))
    looks = pictures.styles(sorted(curves, key="raw".__ne__))
    factor = found.sign * (100 if found.scoring.is_percent(found.metric) else 1)
    for curve, scored in curves.items():
        mean, low, high = factor * np.array([interval(row) for row in scored]).T
        axis.plot(places, mean, label=curve, **looks[curve])
        axis.fill_between(places, low, high, color=looks[curve]["color"], alpha=0.2, linewidth=0)
    if not is_log:
        axis.set_xlim(-0.5, len(values) - 0.5)
    axis.set_xticks(places, [value if len(value) < 26 else f"{value[:25]}…" for value in values])
    axis.tick_params(axis="x", rotation=90 * is_upright)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_xlabel(found.labels[field])
    axis.set_title(pictures.title(found.metric, found.scoring), loc="left", fontsize=10)
    figure.legend(loc="upper left", ncols=2, frameon=False)
    return figure


def write(folder: pathlib.Path, found: Sweep) -> str:
    """Writes `report.html` and a picture of each field, and returns a line with the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn, paths = {}, [folder / "report.html"]
    for number, field in enumerate(found.drawn):
        figures = {kind: draw(found, field, width) for kind, width in pictures.WIDTHS.items()}
        alt = f"{found.metric} over {found.labels[field]}, the other fields as in the best setting. "
        alt += " ".join(found.about(field))
        drawn[field] = {
            kind: pictures.inline(pictures.to_svg(figure), alt, f"field-{number}-{kind}")
            for kind, figure in figures.items()
        }
        paths.append(folder / f"{found.labels[field]}.png")
        replace_file(paths[-1], pictures.to_png(figures["wide"]))
    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    pairs = math.comb(len(found.settings), 2)
    replace_file(paths[0], environment.get_template("sweep.html").render(sweep=found, drawn=drawn, pairs=pairs))
    return f"Report: {', '.join(map(str, paths))}"
