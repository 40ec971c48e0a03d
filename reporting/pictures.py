"""Pictures of runs: curves over training, and the kernels of their averages. Drawn without a display."""

import html
import io
import itertools
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter

if TYPE_CHECKING:
    from reporting.curves import Panel

WIDTH = 8.0  # of a picture in a file, in inches
PANEL_WIDTH = 4.6  # of one in a page, where as many stand side by side as there is room for
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
def curves(panels: Sequence["Panel"]) -> Figure:
    """Panels below each other, with a legend above them, for a file."""
    looks = legend(panels)
    columns = max(1, min(len(looks), int(11 * WIDTH) // (8 + max(len(_short(label)) for label in looks))))
    heights = [1.0 if panel.title == "learning rate" else 2.4 for panel in panels]
    above, below = 0.25 * math.ceil(len(looks) / columns), 0.4 * _is_crowded(panels[-1])
    figure, axes = stack(WIDTH, heights, above=above, title=0.29, below=below)
    for panel, axis in zip(panels, axes, strict=True):
        draw(axis, panel)
        # The title is above the panel, where it is horizontal and takes no width.
        axis.set_title(f"{panel.title} ({panel.note})" if panel.note else panel.title, loc="left", fontsize=10)
    axes[-1].set_xlabel(panels[-1].x)
    handles = [Line2D([], [], **look) for look in looks.values()]
    figure.legend(handles, map(_short, looks), loc="upper left", ncols=columns, frameon=False)
    return figure


def legend(panels: Sequence["Panel"]) -> dict[str, dict[str, Any]]:
    """The look of each curve by its label, as it is where it occurs first."""
    looks: dict[str, dict[str, Any]] = {}
    for shown in panels:
        for line in shown.lines:
            looks.setdefault(line.label, line.look)
    return looks


@matplotlib.rc_context(STYLE)
def panel(shown: "Panel") -> tuple[str, dict[str, Any]]:
    """One panel for a page, without title and legend, and what a script needs to find values in it.

    Returns:
        The picture as SVG, in which everything of the line number `k` has the class `line-k`; and numbers for JSON:
        what it is drawn `over` and its `ticks`; `box`, where its axes lie in units of the picture (left, top, width,
        height); the limits `x`, and whether their axis is `log`; `lines` with `label`, `steps`, `values` and `band`.
    """
    figure, (axis,) = stack(PANEL_WIDTH, [2.3], below=0.4 * _is_crowded(shown))
    for number, artists in enumerate(draw(axis, shown)):
        for artist in artists:
            artist.set_gid(f"line-{number}")
    axis.set_xlabel(shown.x)
    svg = re.sub(r' id="(line-\d+)"', r' class="\1"', to_svg(figure))
    place, (width, height) = axis.get_position(), 72 * figure.get_size_inches()
    box = [place.x0 * width, (1 - place.y1) * height, place.width * width, place.height * height]
    lines = [
        {"label": line.label, "steps": line.steps.tolist(), "values": _short_floats(line.values)}
        | ({} if line.band is None else {"band": [*map(_short_floats, line.band)]})
        for line in shown.lines
    ]
    limits = {"box": _short_floats(box), "x": axis.get_xlim(), "log": "x" in shown.log}
    return svg, {"over": shown.x, "ticks": list(shown.ticks), **limits, "lines": lines}


def _short_floats(values: Any) -> list[float | None]:
    """To five digits, as they are shown; None where not finite, which JSON has no number for."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]


def _is_crowded(panel: "Panel") -> bool:
    """Whether the names of the ticks do not fit side by side."""
    return max(map(len, panel.ticks), default=0) * len(panel.ticks) > 36


def draw(axis: Axes, panel: "Panel") -> list[list[Any]]:
    """Draws a panel; returns what was drawn for each of its lines. A star is at the best value of a line."""
    drawn = []
    for number, line in enumerate(panel.lines):
        # Markers at other places on each curve: about a dozen distinguish the curves, and a thousand would hide them.
        every = max(1, len(line.steps) // 12)
        shift = int(number / len(panel.lines) * every)
        look = line.look | ({"marker": "o"} if len(line.steps) == 1 else {})  # a line of one point would not show
        artists: list[Any] = axis.plot(line.steps, line.values, markevery=(shift, every), **look)
        if line.band is not None:
            colour = line.look["color"]
            artists.append(axis.fill_between(line.steps, *line.band, color=colour, alpha=0.2, linewidth=0))
            if len(line.steps) == 1:  # nor would a band of one step
                artists.append(axis.vlines(line.steps, *line.band, color=colour, linewidth=1))
        if line.best is not None and len(line.steps) > 1:
            best = line.steps[line.best], line.values[line.best]
            artists += axis.plot(*best, marker="*", markersize=11, color=line.look["color"], linestyle="none")
        drawn.append(artists)
    for name in panel.log:
        axis.set(**{f"{name}scale": "log"})
        each = getattr(axis, f"{name}axis")
        each.set(major_formatter=LogFormatter(), minor_formatter=LogFormatter(labelOnlyBase=False))
    if panel.ticks:
        short = [tick[:12] for tick in panel.ticks] if _is_crowded(panel) else panel.ticks
        axis.set_xticks(panel.lines[0].steps, short)
        if _is_crowded(panel):
            for label in axis.get_xticklabels():
                label.set(rotation=20, horizontalalignment="right")
        axis.minorticks_off()
    # How training began is no reason to make its end small.
    skips = panel.title != "learning rate"
    late = [line.values[len(line.steps) // 2 if line.label == "train" and skips else 0 :] for line in panel.lines]
    values = np.concatenate(late)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return drawn
    if panel.has_zero:
        axis.axhline(0, color="#808080", linewidth=1)
        # The interval of two seeds can be so wide that the curves would look flat. It is cut off.
        bottom, top = min(0, *finite), max(0, *finite)
        if room := 1.5 * (top - bottom):
            low_end, high_end = axis.get_ylim()
            axis.set_ylim(max(low_end, bottom - room), min(high_end, top + room))
    elif panel.title == "learning rate":
        axis.set_ylim(0, 1.1 * finite.max() or 1)
    elif panel.lower_is_better and finite.min() > 0 and finite.max() > 50 * np.median(finite):
        axis.set_yscale("log")  # a high start would leave no room for the rest
    elif any(line.label == "train" for line in panel.lines) and len(panel.lines) > 1:
        margin = 0.08 * np.ptp(finite) or 1
        axis.set_ylim(finite.min() - margin, finite.max() + margin)
    return drawn


def stack(
    width: float, heights: Sequence[float], above: float = 0.0, title: float = 0.1, below: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """Panels of these heights below each other in a new figure; all in inches.

    There is room for a `title` above each panel, and more above the first and below the last one. Margins are fixed,
    because matplotlib's own layout takes as long as the drawing.
    """
    bottom, left, right = 0.55 + below, 0.85, 0.15
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


def _short(name: str) -> str:
    """A name that fits on a phone. The space keeps `_name` in legends: matplotlib drops names that begin with `_`."""
    return f" {name}" if name.startswith("_") else name if len(name) <= 30 else f"{name[:29]}…"


@matplotlib.rc_context(STYLE)
def matrix(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """How often a class [rows] was taken for another [columns], as numbers; the more of what is wrong, the darker."""
    figure, (axis,) = stack(PANEL_WIDTH, [0.32 * len(names) + 0.1])
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    wrong = np.ma.masked_equal(shares * (1 - np.eye(len(names))), 0)
    axis.imshow(wrong, cmap="Oranges", vmin=-0.05, vmax=0.3, aspect="auto")
    for (true, taken), count in np.ndenumerate(counts):
        if count:
            ink = INK if true == taken else "#010101"  # on orange black on any page
            axis.text(taken, true, f"{count}", ha="center", va="center", fontsize=9.5, color=ink)
    short = [_short(name)[:9] for name in names]
    axis.set_xticks(range(len(names)), short, rotation=90 if max(map(len, short)) > 3 else 0)
    axis.set_yticks(range(len(names)), short)
    axis.grid(visible=False)
    axis.set_xlabel("taken for")
    return figure


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
    """A picture of `to_svg` as an element of a page: transparent, in the colour of its text, as wide as there is room.

    Its ids begin with `name`, which has to be unique in the page.
    """
    svg = svg[svg.index("<svg") :].replace("fill: #ffffff", "fill: none")
    # matplotlib names all colours but black, which is the colour of an element without a fill.
    svg = re.sub(rf"{INK}\b", "currentColor", svg)
    svg = re.sub(r' id="\w+_\d+"', "", svg)  # of groups: the same in all pictures, and nothing refers to them
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" fill="currentColor" ', 1)
