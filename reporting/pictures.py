"""Pictures of runs: curves over training, and the kernels of their averages. Drawn without a display."""

import html
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reporting.runs import Group
from reporting.scores import Scoring
from runtime import intervals

WIDTHS = {"wide": 8.0, "narrow": 4.4}  # inches: for a desk, and for a phone
INK = "#000000"  # of text and raw weights; pages replace it by the colour of their text

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.titley": 1.0,  # otherwise matplotlib looks for a free place, which takes a third of the time
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#808080",  # in the middle of light and dark
    "grid.alpha": 0.25,
    "svg.fonttype": "none",  # text as text: small, and legible to those who cannot see
    "svg.hashsalt": "",  # the same picture of the same run, byte for byte
}


def styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour, a marker and dashes for each curve, distinguishable with any colour vision and with none.

    The colours are Okabe & Ito's. 6 colours and 5 markers give 30 pairs; black is for the raw weights.
    """
    colors = itertools.cycle(("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"))
    others = zip(colors, itertools.cycle("s^DvX"), itertools.cycle(("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))))
    styles = (("#000000", "o", "-") if name == "raw" else next(others) for name in names)
    return {
        name: {"color": color, "marker": marker, "linestyle": dashes, "markersize": 4, "linewidth": 1.3}
        for name, (color, marker, dashes) in zip(names, styles, strict=True)
    }


@matplotlib.rc_context(STYLE)
def curves(group: Group, width: float = WIDTHS["wide"]) -> Figure:
    """Each metric, the difference to the raw weights with its 95 % band, and the learning rate, over the steps.

    Runs that differ in their seed are shown by their mean, with a band of one standard deviation; the difference with
    the interval of its mean over the seeds.

    Args:
        group: the runs.
        width: of the picture, in inches.
    """
    names, split, pooled = group.names, group.curve_split, len(group.runs) > 1
    heights = {panel: 1.0 if panel == "learning rate" else 2.4 for panel in panels(group)}
    columns = max(1, min(len(names), int(11 * width) // (8 + max(len(_short(name)) for name in names))))
    legend = 0.25 * math.ceil(len(names) / columns)
    figure, stacked = stack(width, list(heights.values()), above=legend, lines=1 if width > 6 else 2)
    axes = dict(zip(heights, stacked, strict=True))

    looks = styles(names)
    for number, name in enumerate(names):
        # Markers at other places on each curve.
        style = looks[name] | {"shift": number / len(names)}
        for metric in group.scoring.directions.keys() & axes.keys():
            _draw_scores(axes[metric], group, name, metric, style)
        if name != "raw":
            _draw_difference(axes["difference"], group, name, style)
    if "learning rate" in axes:
        _draw_learning_rate(axes["learning rate"], group)

    scoring = group.scoring
    scored = f"({split} {scoring.examples}, {f'mean ± sd of {len(group.runs)} seeds' if pooled else 'one run'})"
    points = ", points" if scoring.is_percent(scoring.metric) else ""
    difference = f"{scoring.metric.replace('_', ' ')} minus raw{points}"
    titles = {metric: (title(metric, scoring), scored) for metric in scoring.directions} | {
        "difference": (difference, f"(band: 95 % over {'seeds' if pooled else scoring.examples}, paired)"),
        "learning rate": ("learning rate",),
    }
    for panel, axis in axes.items():
        axis.set_label(titles[panel][0])  # `align` compares the labels
        # The title is above the panel, where it is horizontal and takes no width.
        axis.set_title((" " if width > 6 else "\n").join(titles[panel]), loc="left", fontsize=10)
    stacked[-1].set_xlabel("step")
    curves = [line for line in stacked[0].lines if line.get_marker() != "None"]
    figure.legend(curves, map(_short, names), loc="upper left", ncols=columns, frameon=False)
    return figure


def panels(group: Group) -> list[str]:
    """The names of the panels of `curves` for these runs, from top to bottom."""
    metrics = [name for name in group.scoring.directions if group.series("raw", name, group.curve_split)[0].size]
    rate = ["learning rate"] if group.series("train", "learning_rate", "")[0].size else []
    difference = ["difference"] if len(group.names) > 1 else []
    return [*metrics, *difference, *rate]


def title(metric: str, scoring: Scoring) -> str:
    """What a panel of a metric is called."""
    return metric.replace("_", " ") + (", %" if scoring.is_percent(metric) else "")


def align(figures: Sequence[Figure]) -> None:
    """Gives the same panels of several pictures of `curves` the same limits, so that they can be compared by eye."""
    panels = [axis for figure in figures for axis in figure.axes]
    for name in {axis.get_label() for axis in panels}:
        same = [axis for axis in panels if axis.get_label() == name]
        low, high = zip(*(axis.get_ylim() for axis in same), strict=True)
        for axis in same:
            axis.set_ylim(min(low), max(high))


def stack(width: float, heights: Sequence[float], above: float, lines: int) -> tuple[Figure, list[Axes]]:
    """Panels of these heights below each other in a new figure; all in inches.

    Margins are fixed, because matplotlib's own layout takes as long as the drawing.

    Args:
        width: of the figure.
        heights: of the panels.
        above: room above the first panel's title.
        lines: of the panels' titles.
    """
    title, bottom, left, right = 0.1 + 0.19 * lines, 0.55, 0.85, 0.15
    height = above + sum(heights) + len(heights) * (title + 0.1) + bottom
    figure = Figure(figsize=(width, height))
    panels: list[Axes] = []
    top = height - above
    for panel_height in heights:
        top -= title + panel_height
        box = (left / width, top / height, (width - left - right) / width, panel_height / height)
        panels.append(figure.add_axes(box, sharex=panels[0] if panels else None))
        top -= 0.1
    for axis in panels[:-1]:
        axis.tick_params(labelbottom=False)
    for axis in panels:
        axis.yaxis.set_major_formatter("{x:g}")  # 1e-05 at the axis, not above it, where the title is
    return figure, panels


def _draw_scores(axis: Axes, group: Group, name: str, metric: str, style: Mapping[str, Any]) -> None:
    """A metric of one curve: the mean of the runs, with a band of one standard deviation."""
    steps, values = group.series(name, metric, group.curve_split)
    values = values * (100 if group.scoring.is_percent(metric) else 1)
    mean = values.mean(axis=0)
    _line(axis, steps, mean, **style)
    if len(group.runs) > 1:
        spread = np.std(values, axis=0, ddof=1)
        axis.fill_between(steps, mean - spread, mean + spread, **_band(style))
    finite = mean[np.isfinite(mean)]
    if (
        group.scoring.directions[metric] == "lower"
        and finite.size
        and finite.min() > 0
        and finite.max() > 50 * np.median(finite)
    ):
        axis.set_yscale("log")  # a high start would leave no room for the rest


def _draw_difference(axis: Axes, group: Group, name: str, style: Mapping[str, Any]) -> None:
    """The difference of one average to raw, with its 95 % interval: over seeds if there are several, else images."""
    metric = group.scoring.metric
    factor = 100 if group.scoring.is_percent(metric) else 1
    steps, values = group.series(f"{name}-raw", metric, group.curve_split)
    if len(group.runs) > 1:
        middle, low, high = intervals.mean_interval(values)
    else:
        bounds = (group.series(f"{name}-raw", f"{metric}_{end}", group.curve_split)[1][0] for end in ("low", "high"))
        middle, low, high = values[0], *bounds
    _line(axis, steps, factor * middle, **style)
    axis.fill_between(steps, factor * low, factor * high, **_band(style))
    if len(steps) == 1:  # a band of one step would not show
        axis.vlines(steps, factor * low, factor * high, color=style["color"], linewidth=1)
    axis.axhline(0, color="#808080", linewidth=1)

    # The interval of two seeds can be so wide that the curves would look flat. It is cut off.
    curves = np.concatenate([np.ravel(line.get_ydata()) for line in axis.lines])
    bottom, top = np.nanmin(curves), np.nanmax(curves)
    if room := 1.5 * (top - bottom):
        axis.autoscale(axis="y")
        low_end, high_end = axis.get_ylim()
        axis.set_ylim(max(low_end, bottom - room), min(high_end, top + room))


def _draw_learning_rate(axis: Axes, group: Group) -> None:
    steps, values = group.series("train", "learning_rate", "")
    marker = "o" if len(steps) == 1 else ""  # a line of one point would not show
    axis.plot(steps, values.mean(axis=0), color=INK, linewidth=1.3, marker=marker)
    axis.set_ylim(0, 1.1 * np.nanmax(values, initial=0) or 1)


def _line(axis: Axes, steps: np.ndarray, values: np.ndarray, shift: float, **style: Any) -> None:
    # About a dozen markers distinguish the curves; a thousand would hide them.
    every = max(1, len(steps) // 12)
    axis.plot(steps, values, markevery=(int(shift * every), every), **style)


def _short(name: str) -> str:
    """A name that fits on a phone. The space keeps `_name` in legends: matplotlib drops names that begin with `_`."""
    return f" {name}" if name.startswith("_") else name if len(name) <= 30 else f"{name[:29]}…"


def _band(style: Mapping[str, Any]) -> dict[str, Any]:
    return {"color": style["color"], "alpha": 0.2, "linewidth": 0}


@matplotlib.rc_context(STYLE)
def kernels(averages: Mapping[str, Mapping[str, Any]], names: Sequence[str], width: float = WIDTHS["wide"]) -> Figure:
    """The weight in % that each average gives to each iterate at the end of training, and its mean age.

    Args:
        averages: from `averages.json`.
        names: of the curves whose colours they share.
        width: of the picture, in inches.
    """
    figure, all_axes = stack(width, [0.9] * len(averages), above=0.1, lines=1)
    looks = styles([*names, *(averages.keys() - set(names))])
    for axis, (name, average) in zip(all_axes, averages.items(), strict=True):
        edges, heights = _histogram(average)
        axis.stairs(heights, edges, fill=True, color=looks[name]["color"], alpha=0.5)
        axis.stairs(heights, edges, color=looks[name]["color"])
        axis.axvline(average["num_updates"] - average["mean_age"], color=INK, linestyle=":", linewidth=1.3)
        axis.set_title(_short(name), loc="left", fontsize=10)
        axis.set_ylim(bottom=0)
        axis.locator_params(axis="y", nbins=3)
    all_axes[-1].set_xlabel("iterate, counted in updates of the average")
    return figure


def _histogram(average: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The edges of the bins of a stored kernel, and the mean weight in % of an iterate in each of them."""
    per_bin, sums = average["iterates_per_bin"], np.array(average["kernel"])
    edges = np.minimum(np.arange(len(sums) + 1) * per_bin, average["num_updates"])
    return edges, 100 * sums / np.maximum(1, np.diff(edges))


@matplotlib.rc_context(STYLE)
def to_png(figure: Figure) -> bytes:
    """The picture on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    return buffer.getvalue()


@matplotlib.rc_context(STYLE)
def to_svg(figure: Figure) -> str:
    """The picture on white, as a file."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    # A hundredth of a point is fine enough, and makes the file half as large. Numbers that are text stay as they are.
    return re.sub(r' (d|x|y|points)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), buffer.getvalue())


def inline(svg: str, alt: str, name: str) -> str:
    """A picture as an element of a page: transparent, in the colour of the page's text, as wide as there is room.

    Args:
        svg: from `to_svg`.
        alt: the text alternative.
        name: prefix of its ids, unique in the page.
    """
    svg = svg[svg.index("<svg") :].replace("fill: #ffffff", "fill: none")
    # matplotlib names all colours but black, which is the colour of an element without a fill.
    svg = re.sub(rf"{INK}\b", "currentColor", svg)
    svg = re.sub(r' id="\w+_\d+"', "", svg)  # of groups: the same in all pictures, and nothing refers to them
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" fill="currentColor" ', 1)
