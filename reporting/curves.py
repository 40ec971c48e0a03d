"""What the panels of a picture of runs show, as numbers: each metric over training, and what there is besides."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reporting.pictures import styles
from reporting.runs import Group
from runtime import intervals

NUM_COLOURED = 6  # as many configs can be told apart by their colours; the others of a page are grey
_GREY = {"color": "#808080", "marker": "", "linestyle": "-", "markersize": 4, "linewidth": 1.0}


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve of a panel.

    Attributes:
        label: in the legend.
        look: for matplotlib.
        steps: [k].
        values: [k], NaN where they were not finite.
        band: its lower and upper end, [k] each; None if there is none.
        best: index of the best value; None if it is not known what is better.
    """

    label: str
    look: dict[str, Any]
    steps: np.ndarray
    values: np.ndarray
    band: Sequence[np.ndarray] | np.ndarray | None = None
    best: int | None = None


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: what is shown.
        note: on what it was measured, or what the band is.
        lines: the curves.
        has_zero: whether to draw a line at 0.
        lower_is_better: whether a high start may be squeezed by a logarithmic axis.
        x: what the lines are drawn over.
        ticks: what the steps of the lines are called; empty: what they are.
        log: the axes that are logarithmic, "x" or "xy".
    """

    title: str
    note: str
    lines: Sequence[Line]
    has_zero: bool = False
    lower_is_better: bool = False
    x: str = "step"
    ticks: Sequence[str] = ()
    log: str = ""


@dataclasses.dataclass(frozen=True)
class _Curve:
    label: str
    look: dict[str, Any]
    group: Group
    name: str


def chosen(groups: Sequence[Group]) -> list[_Curve]:
    """The curves to show: of one config all, with that of training; of several its raw and its average weights.

    Of more than `NUM_COLOURED` configs those that ended best have colours.
    """
    if len(groups) == 1:
        names, (group,) = groups[0].names, groups
        looks = styles(names) | {"train": _GREY | {"linestyle": ":"}}
        return [_Curve(name, looks[name], group, name) for name in [*names, "train"]]
    curves = []
    colours = iter(styles([f"config {number}" for number in range(NUM_COLOURED)]).values())
    best = _best_first(groups)[:NUM_COLOURED]
    for group in groups:
        main = group.main_curve
        look = next(colours) if group in best else _GREY
        label = group.label if group in best else "others"
        if main != "raw":
            curves.append(_Curve(f"{label}, {main}" if group in best else label, look, group, main))
        thin = look | {"linestyle": ":", "linewidth": 1.0, "marker": ""}
        curves.append(_Curve(f"{label}, raw" if group in best else label, thin, group, "raw"))
    return curves


def _best_first(groups: Sequence[Group]) -> list[Group]:
    """The groups by the metric of their main curve at their last evaluation; those without a finite one at the end."""

    def badness(group: Group) -> float:
        _, values = group.series(group.main_curve, group.scoring.metric, group.curve_split)
        last = float(values[:, -1].mean()) if values.size else np.nan
        sign = 1 if group.scoring.directions.get(group.scoring.metric) == "lower" else -1
        return sign * last if np.isfinite(last) else np.inf

    return sorted(groups, key=badness)


def panels(groups: Sequence[Group]) -> list[Panel]:
    """Each metric and the difference to the raw weights, then the learning rate unless it is constant."""
    curves, pooled = chosen(groups), any(len(group.runs) > 1 for group in groups)
    scoring = groups[0].scoring
    splits = " or ".join(dict.fromkeys(group.curve_split for group in groups))
    scored = f"{splits} {scoring.examples}, {'mean ± sd over the seeds' if pooled else 'one run'}"
    found = []
    for metric in dict.fromkeys(name for group in groups for name in group.scoring.directions):
        lines = [_metric_line(curve, metric) for curve in curves]
        title = metric.replace("_", " ") + (", %" if scoring.is_percent(metric) else "")
        found.append(Panel(title, scored, lines, lower_is_better=scoring.directions.get(metric) == "lower"))
    averages = [curve for curve in curves if curve.name not in ("raw", "train")]
    points = ", points" if scoring.is_percent(scoring.metric) else ""
    title = f"{scoring.metric.replace('_', ' ')} minus raw{points}"
    note = f"band: 95 % over {'the seeds' if pooled else scoring.examples}, paired"
    found.append(Panel(title, note, [_difference_line(curve) for curve in averages], has_zero=True))
    rates = [_train_line(curve, "learning_rate") for curve in _last_of_each_group(curves)]
    if any(np.ptp(line.values) > 1e-4 * np.max(line.values) for line in rates if line.values.size):  # of float32 means
        found.append(Panel("learning rate", "", rates))
    return _without_empty(found)


def more_panels(groups: Sequence[Group]) -> list[Panel]:
    """The norm of the gradient and how far each average is from the raw weights."""
    curves = chosen(groups)
    norms = [_train_line(curve, "grad_norm") for curve in _last_of_each_group(curves)]
    apart = [_metric_line(c, "distance", f"{c.name}-raw") for c in curves if c.name not in ("raw", "train")]
    found = [
        Panel("norm of the gradient", "mean since the one before", norms, lower_is_better=True),
        Panel("distance to raw", "Euclidean, of all parameters", apart),
    ]
    return _without_empty(found)


def kernels(averages: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Panel:
    """The weight in % that each average of `averages.json` gives to each iterate, in the colours of curves `names`."""
    lines, looks = [], styles([*names, *(averages.keys() - set(names))])
    for name, average in averages.items():
        sums = np.array(average["kernel"])
        edges = np.minimum(np.arange(len(sums) + 1) * average["iterates_per_bin"], average["num_updates"])
        heights = 100 * sums / np.maximum(1, np.diff(edges))
        look = looks[name] | {"marker": "", "drawstyle": "steps-post"}
        lines.append(Line(name, look, edges, np.append(heights, heights[-1:])))
    return Panel("weight of each iterate, %", "", lines, has_zero=True, x="iterate, counted in updates of the average")


def _without_empty(panels: Sequence[Panel]) -> list[Panel]:
    finite = [[line for line in panel.lines if np.isfinite(line.values).any()] for panel in panels]
    return [dataclasses.replace(panel, lines=lines) for panel, lines in zip(panels, finite, strict=True) if lines]


def _last_of_each_group(curves: Sequence[_Curve]) -> list[_Curve]:
    """For what belongs to training: of one config that of training, of several the raw weights."""
    return [*{id(curve.group): curve for curve in curves}.values()]


def _metric_line(curve: _Curve, metric: str, name: str = "") -> Line:
    """A metric over training: the mean of the runs, with a band of one standard deviation."""
    group, is_percent = curve.group, curve.group.scoring.is_percent(metric)
    split = "" if curve.name == "train" else group.curve_split
    steps, values = group.series(name or curve.name, metric, split)
    mean, band = values.mean(axis=0), None
    if len(group.runs) > 1:
        spread = np.std(values, axis=0, ddof=1)
        band = np.array([mean - spread, mean + spread])
        band = np.clip(band, 0, 1) if is_percent else band
    best = group.best(curve.name, metric) if split else {}
    index = int(np.flatnonzero(steps == best["best_step"])[0]) if best else None
    factor = 100 if is_percent else 1
    return Line(curve.label, curve.look, steps, factor * mean, None if band is None else factor * band, index)


def _difference_line(curve: _Curve) -> Line:
    """The difference of an average to raw, with its 95 % interval: over seeds if there are several, else examples."""
    group, metric, split = curve.group, curve.group.scoring.metric, curve.group.curve_split
    steps, values = group.series(f"{curve.name}-raw", metric, split)
    if len(group.runs) > 1:
        found = np.array(intervals.mean_interval(values))
    else:
        ends = (group.series(f"{curve.name}-raw", f"{metric}_{end}", split)[1] for end in ("low", "high"))
        found = np.array([values[0], *(end[0] if end.size else np.full(len(steps), np.nan) for end in ends)])
    middle, *band = found * (100 if group.scoring.is_percent(metric) else 1)
    return Line(curve.label, curve.look, steps, middle, band)


def _train_line(curve: _Curve, metric: str) -> Line:
    steps, values = curve.group.series("train", metric, "")
    return Line(curve.label, curve.look | {"marker": ""}, steps, values.mean(axis=0))
