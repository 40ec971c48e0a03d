"""The results of tools.diagnose as text, tables and pictures. Reads no weights, and imports no JAX."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from reporting import pictures
from reporting.curves import Line, Panel
from runtime.files import replace_file

Found = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the diagnosis.

    Attributes:
        name: of its picture.
        title: heading.
        text: paragraphs that explain the result.
        panels: what is drawn; empty if that is none or no curve.
        cells: the header and the rows of a table; empty if there is no table.
        draw: takes a width in inches and draws what is no curve; None if there is nothing like it.
    """

    name: str
    title: str
    text: Sequence[str]
    panels: Sequence[Panel] = ()
    cells: Sequence[Sequence[str]] = ()
    draw: Callable[[float], Figure] | None = None


def sections(found: Found) -> list[Section]:
    """The sections of a diagnosis."""
    if not found:
        return []
    average = found["average"]
    titles = {
        "line": (f"The loss on the line through raw and {average}", _line),
        "checkpoints": ("The loss between two checkpoints", _line),
        "runs": ("The loss between two runs", _runs),
        "plane": (f"The loss in the plane through raw, {average} and an earlier checkpoint", _plane),
        "sharpness": (f"How sharply the loss curves at raw and {average}", _sharpness),
        "ensembles": ("Averaged weights and averaged predictions", _ensembles),
        "oscillations": (f"What {average} removes, by frequency", _oscillations),
    }
    done = []
    for name, (title, make) in titles.items():
        part = found.get(name, {})
        if "skipped" in part:
            done.append(Section(name, title, [f"Left out: {part['skipped']}."]))
        elif part:
            done.append(Section(name, title, **make(part, average)))
    return done


def write_pictures(folder: pathlib.Path, found: Found) -> str:
    """Writes each part's picture into a folder, as `line.png` and so on.

    Returns:
        A line with the path of the folder.
    """
    for section in sections(found):
        path = folder / f"{section.name}.png"
        if section.panels or section.draw:
            figure = section.draw(pictures.WIDTH) if section.draw else pictures.curves(section.panels)
            replace_file(path, pictures.to_png(figure))
        else:
            path.unlink(missing_ok=True)
    return f"Pictures and numbers: {folder}"


def _interval(values: Sequence[float | None], form: str = "{:+.3g}") -> str:
    mean, low, high = (form.format(value) if value is not None else "not finite" for value in values)
    return f"{mean} ({low} .. {high})"


def _difference(found: Found, metric: str) -> str:
    """A paired difference of scores with its interval, of accuracy in points."""
    factor, form = (1, "{:+.3g}") if metric == "loss" else (100, "{:+.2f}")
    values = [found[name] for name in (metric, f"{metric}_low", f"{metric}_high")]
    return _interval([value if value is None else factor * value for value in values], form)


def _line(part: Found, average: str) -> dict[str, Any]:
    start, end = part["ends"]
    norm = f", which have a norm of {part['norm']:.3g}," if "norm" in part else ""
    apart = f"{start} is at 0 and {end} at 1; their parameters{norm} are {part['distance']:.3g} apart."
    text = [f"{apart} Differences are {end} minus {start}."]
    if "norm" in part:
        text.append(
            "The barrier is how far the loss between the two rises above the straight line between their losses, at "
            "most. Brackets are 95 % intervals over images, paired; that of the barrier does not count that its "
            "place was chosen."
        )
    scored = [name for name in ("loss", "accuracy") if name in part["curves"][0]]
    headers = {"loss": "loss", "accuracy": "accuracy, points"}
    cells = [["images", *(headers[metric] for metric in scored), "lowest loss at", "barrier"]]
    for curve in part["curves"]:
        cells.append(
            [
                _label(curve),
                *(_difference(curve["difference"], metric) for metric in scored),
                f"{part['shares'][int(np.nanargmin(np.array(curve['loss'], float)))]:.3g}",
                "none"
                if curve["barrier_at"] in (0, 1)
                else f"{_interval(curve['barrier'])} at {curve['barrier_at']:.2g}",
            ]
        )
    looks = pictures.styles(list(dict.fromkeys(curve["name"] for curve in part["curves"])))
    curves = []
    for curve in part["curves"]:
        look = {"linestyle": "-"} if curve["split"] == "train" else {"linestyle": "--", "markerfacecolor": "none"}
        name = f", {curve['name']}" if curve["name"] else ""
        curves.append((f"{curve['split']} images{name}", looks[curve["name"]] | look, curve))
    ends = [end if len(end) <= 15 else f"…{end[-14:]}" for end in part["ends"]]
    x = f"from {ends[0]} (0) to {ends[1]} (1)"
    return {"text": text, "panels": _panels(scored, x, part["shares"], curves), "cells": cells}


def _label(curve: Found) -> str:
    return f"{curve['split']}, {curve['name']}" if curve["name"] else curve["split"]


def _runs(part: Found, average: str) -> dict[str, Any]:
    section = _line(part, average)
    if part["num_units"]:
        matched = (
            f"{part['num_units']} hidden units of the second run were put into the order that is nearest to the first "
            "one's weights (weight matching, Ainsworth et al. 2022). The network computes what it did before, and its "
            f"parameters are {part['matched_distance']:.3g} instead of {part['distance']:.3g} from the first one's."
        )
    else:
        matched = "No hidden units can be put into another order without changing what the network computes."
    images = "All images, and the labels of the training images, are those of the first run."
    return section | {"text": [*section["text"], matched, images]}


def _panels(metrics: Sequence[str], x: str, steps: Sequence[float], curves: Sequence[tuple[str, Found, Found]]) -> Any:
    """A panel for each metric; a curve has a label, a look, and its values by metric."""
    panels = []
    for metric in metrics:
        factor, unit = (100, ", %") if metric == "accuracy" else (1, "")
        lines = [
            Line(label, {**look}, np.array(steps), factor * np.array(y[metric], float)) for label, look, y in curves
        ]
        panels.append(Panel(metric + unit, "", lines, lower_is_better=metric == "loss", x=x))
    return panels


def _plane(part: Found, average: str) -> dict[str, Any]:
    corners = list(part["corners"])
    text = [
        f"Lines of equal loss, on half of the images, in the plane through {', '.join(corners)} (stars), in units of "
        "the distance of parameters. Training does not stay in this plane, so its path is projected: what was stored "
        "of "
        + " and of ".join(
            f"{name} is {np.median([point[2] for point in path]):.3g} away from it (median; at most "
            f"{max(point[2] for point in path):.3g})"
            for name, path in part["paths"].items()
        )
        + ". A point of the path that lies on a line need not have its loss.",
    ]
    return {"text": text, "draw": lambda width: _draw_plane(part, average, width)}


@matplotlib.rc_context(pictures.STYLE)
def _draw_plane(part: Found, average: str, width: float) -> Figure:
    splits, wide = list(part["losses"]), width > 6
    figure = Figure(figsize=(width, 4.5 if wide else 9.5), layout="constrained")
    axes: np.ndarray = figure.subplots(*(1, len(splits)) if wide else (len(splits), 1), squeeze=False).ravel()
    looks = pictures.styles(["raw", average])
    for axis, split in zip(axes, splits, strict=True):
        losses = np.array(part["losses"][split], float)
        finite = losses[np.isfinite(losses)]
        # Denser where it is low: levels at equal steps of the logarithm above the lowest.
        spread = finite.max() - finite.min()
        levels = finite.min() + spread * np.geomspace(0.003, 1, 12)
        lines = axis.contour(part["x"], part["y"], losses, levels=levels[:-1], colors="#808080", linewidths=0.8)
        axis.clabel(lines, lines.levels[4::2], fmt="%.3g", fontsize=9.5)  # further in there is no room
        for where, dashes in (("paths", "-"), ("repeated", ":")):
            for name, path in part[where].items():
                look = {**looks[name], "markersize": 3, "linewidth": 1, "linestyle": dashes}
                label = f"{name}, {'stored' if where == 'paths' else 'repeated steps'}"
                axis.plot(*np.array(path)[:, :2].T, label=label, **look)
        for name, (x, y) in part["corners"].items():
            axis.plot(x, y, marker="*", markersize=11, color=looks.get(name, looks["raw"])["color"], linestyle="")
            axis.annotate(name, (x, y), xytext=(-5, 4), textcoords="offset points", fontsize=9.5, ha="right")
        axis.set(xlim=(part["x"][0], part["x"][-1]), ylim=(part["y"][0], part["y"][-1]))
        axis.set_title(f"loss on {split} images", loc="left", fontsize=10)
        axis.set_xlabel("distance of the parameters from raw")
        axis.grid(visible=False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4 if wide else 2, frameon=False)
    return figure


def _sharpness(part: Found, average: str) -> dict[str, Any]:
    cells = [["", "raw", average, f"{average} minus raw"]]
    for index in range(len(part["raw"]["eigenvalues"])):
        cells.append(
            [
                f"eigenvalue {index + 1}",
                *(
                    f"{part[name]['eigenvalues'][index]:.3g} ± {part[name]['residuals'][index]:.1g}"
                    for name in ("raw", average)
                ),
                "",
            ]
        )
        cells.append(
            [
                "on other images",
                *(_interval(part[name]["elsewhere"][index], "{:.3g}") for name in ("raw", average)),
                _interval(part["difference"]["largest"]) if index == 0 else "",
            ]
        )
    traces = [_interval(part[name]["trace"], "{:.3g}") for name in ("raw", average)]
    cells.append(["trace", *traces, _interval(part["difference"]["trace"])])
    text = [
        "The curvature of the loss on training images: the largest eigenvalues of its Hessian, and their sum, the "
        f"trace. The eigenvalues are those on {part['num_images']} images (Lanczos method), with a bound of the "
        "numerical error. Below each, what as many other images give along the same direction: less on average, "
        "because the direction was chosen to suit the first ones. The trace is Hutchinson's estimate on all of them.",
        "Brackets are 95 % intervals over images. The differences are paired: the same images and random vectors.",
    ]
    return {"text": text, "cells": cells}


def _ensembles(part: Found, average: str) -> dict[str, Any]:
    number, metric = len(part["weights"]), "accuracy" if "accuracy" in part["weights"][0] else "loss"
    of = f"stored at steps {part['steps'][0]} to {part['steps'][-1]}" if part["steps"] else "of the repeated steps"
    text = [
        f"The newest 1, 2, ... {number} of the raw weights {of}: the network with the mean of these weights, beside "
        f"the mean of what the networks predict, on {part['split']} images. Averaged predictions take as many "
        "networks as there are, averaged weights one.",
        f"With all {number}, averaged weights minus averaged predictions: "
        + " and ".join(
            f"{_difference(part['difference'], name)} {'points of accuracy' if name == 'accuracy' else 'in loss'}"
            for name in dict.fromkeys([metric, "loss"])
        )
        + " (95 % interval over images, paired).",
    ]
    raw, *looks = pictures.styles(["raw", "weights", "predictions"]).values()
    kinds = {"single": "the oldest of them alone", "weights": "averaged weights", "predictions": "averaged predictions"}
    curves = [
        (label, look, {name: [row[name] for row in part[kind]] for name in part[kind][0]})
        for (kind, label), look in zip(kinds.items(), [raw | {"linestyle": ""}, *looks], strict=True)
    ]
    metrics = [*dict.fromkeys([metric, "loss"])]
    panels = _panels(metrics, "number of the newest networks", range(1, number + 1), curves)
    return {"text": text, "panels": panels}


def _oscillations(part: Found, average: str) -> dict[str, Any]:
    left = _interval([100 * value for value in part["left"]], "{:.3g}") + " %"
    longest = 1 / part["frequencies"][0]
    text = [
        f"The power spectra of {part['num_weights']} weights, chosen at random, over {part['num_steps']} steps that "
        f"were repeated from step {part['step']} on, raw and averaged. Below, the share of the power that is kept of "
        "each oscillation.",
        f"Of the power in oscillations of up to {longest:.0f} steps, {average} keeps {left} (95 % interval over "
        "weights). Slower ones cannot be seen in so few steps; they leak into the longest periods that are shown, and "
        "raise what is measured there.",
        f"The transfer function of its kernel predicts {100 * part['predicted']:.2g} %, and the dashed curves."
        if "kept" in part
        else f"What {average} does changes in these steps, so that no transfer function predicts it.",
    ]
    looks = {name: look | {"markersize": 3, "linewidth": 1} for name, look in pictures.styles(["raw", average]).items()}
    periods, raw, averaged = (np.array(values) for values in (part["frequencies"], part["raw"], part["averaged"]))
    measured = f"{average}, measured"
    powers = [Line("raw", looks["raw"], 1 / periods, raw), Line(measured, looks[average], 1 / periods, averaged)]
    shares = [Line(measured, looks[average], 1 / periods, averaged / raw)]
    if "kept" in part:
        kept, look = np.array(part["kept"]) ** 2, {"color": "#0072B2", "linestyle": "--", "marker": ""}
        powers.append(Line(f"{average}, from its kernel", look, 1 / periods, kept * raw))
        shares.append(Line(f"{average}, from its kernel", look, 1 / periods, kept))
    titles = {"power of a weight's oscillations, mean": powers, "share of the power that is kept": shares}
    x = "period of the oscillation, in steps"
    return {"text": text, "panels": [Panel(title, "", lines, x=x, log="xy") for title, lines in titles.items()]}
