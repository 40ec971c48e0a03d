"""The results of tools.diagnose as text, tables and pictures. Reads no weights, and imports no JAX."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from reporting import pictures
from runtime.files import replace_file

Found = Mapping[str, Any]

_SPLITS = {"train": "-", "test": "--", "validation": "--"}


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the diagnosis.

    Attributes:
        name: of its picture.
        title: heading.
        text: paragraphs that explain the result.
        draw: takes a width in inches and draws the picture; None if there is no picture.
        cells: the header and the rows of a table; empty if there is no table.
    """

    name: str
    title: str
    text: Sequence[str]
    draw: Callable[[float], Figure] | None = None
    cells: Sequence[Sequence[str]] = ()


def sections(found: Found) -> list[Section]:
    """The sections of a diagnosis."""
    if not found:
        return []
    average = found["average"]
    titles = {
        "line": f"The loss on the line through raw and {average}",
        "checkpoints": "The loss between two checkpoints",
        "runs": "The loss between two runs",
        "plane": f"The loss in the plane through raw, {average} and an earlier checkpoint",
        "sharpness": f"How sharply the loss curves at raw and {average}",
        "ensembles": "Averaged weights and averaged predictions",
        "oscillations": f"What {average} removes, by frequency",
        "distance": f"The distance of raw and {average}",
    }
    made = {
        "line": _line,
        "checkpoints": _line,
        "runs": _runs,
        "plane": _plane,
        "sharpness": _sharpness,
        "ensembles": _ensembles,
        "oscillations": _oscillations,
        "distance": _distance,
    }
    done = []
    for name, make in made.items():
        part = found.get(name)
        if part and "skipped" in part:
            done.append(Section(name, titles[name], [f"Left out: {part['skipped']}."]))
        elif part:
            done.append(dataclasses.replace(make(part, average), name=name, title=titles[name]))
    return done


def write_pictures(folder: pathlib.Path, found: Found) -> str:
    """Writes each part's picture into a folder, as `line.png` and so on.

    Returns:
        A line with the path of the folder.
    """
    for section in sections(found):
        path = folder / f"{section.name}.png"
        if section.draw:
            replace_file(path, pictures.to_png(section.draw(pictures.WIDTHS["wide"])))
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


def _line(part: Found, average: str) -> Section:
    start, end = part["ends"]
    norm = f", which have a norm of {part['norm']:.3g}," if "norm" in part else ""
    text = [
        f"{start} is at 0 and {end} at 1; their parameters{norm} are {part['distance']:.3g} apart. Differences are "
        f"{end} minus {start}."
    ]
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
    return Section("", "", text, lambda width: _draw_line(part, width), cells)


def _label(curve: Found) -> str:
    return f"{curve['split']}, {curve['name']}" if curve["name"] else curve["split"]


def _runs(part: Found, average: str) -> Section:
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
    return dataclasses.replace(section, text=[*section.text, matched, images])


@matplotlib.rc_context(pictures.STYLE)
def _draw_line(part: Found, width: float) -> Figure:
    metrics = [name for name in ("loss", "accuracy") if name in part["curves"][0]]
    labels = [_label(curve) for curve in part["curves"]]
    columns = 4 if width > 6 and len(labels) < 5 and max(map(len, labels)) < 20 else 2 if width > 6 else 1
    above, room = 0.25 * -(-len(labels) // columns), 30 if width > 6 else 13
    figure, axes = pictures.stack(width, [2.4] * len(metrics), above=above, lines=1)
    looks = pictures.styles(list(dict.fromkeys(curve["name"] for curve in part["curves"])))
    for axis, metric in zip(axes, metrics, strict=True):
        for label, curve in zip(labels, part["curves"], strict=True):
            values = np.array(curve[metric], float) * (100 if metric == "accuracy" else 1)
            hollow = {} if curve["split"] == "train" else {"markerfacecolor": "none"}
            look = {**looks[curve["name"]], "linestyle": _SPLITS[curve["split"]], **hollow}
            axis.plot(part["shares"], values, label=label, **look)
        for place in (0, 1):
            axis.axvline(place, color="#808080", linewidth=1)
        axis.set_title("accuracy, %" if metric == "accuracy" else "loss", loc="left", fontsize=10)
        if metric == "loss":
            values = np.array([curve["loss"] for curve in part["curves"]], float)
            if np.nanmin(values) > 0 and np.nanmax(values) > 20 * np.nanmin(values):
                axis.set_yscale("log")
    start, end = (name if len(name) <= room else f"…{name[1 - room :]}" for name in part["ends"])
    axes[-1].set_xlabel(f"0: {start}, 1: {end}")
    handles, _ = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper left", ncols=columns, frameon=False)
    return figure


def _plane(part: Found, average: str) -> Section:
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
    return Section("", "", text, lambda width: _draw_plane(part, average, width))


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
        axis.clabel(lines, lines.levels[4::2], fmt="%.3g", fontsize=9)  # further in there is no room
        for where, dashes in (("paths", "-"), ("repeated", ":")):
            for name, path in part[where].items():
                look = {**looks[name], "markersize": 3, "linewidth": 1, "linestyle": dashes}
                label = f"{name}, {'stored' if where == 'paths' else 'repeated steps'}"
                axis.plot(*np.array(path)[:, :2].T, label=label, **look)
        for name, (x, y) in part["corners"].items():
            axis.plot(x, y, marker="*", markersize=11, color=looks.get(name, looks["raw"])["color"], linestyle="")
            axis.annotate(name, (x, y), xytext=(-5, 4), textcoords="offset points", fontsize=9, ha="right")
        axis.set(xlim=(part["x"][0], part["x"][-1]), ylim=(part["y"][0], part["y"][-1]))
        axis.set_title(f"loss on {split} images", loc="left", fontsize=10)
        axis.set_xlabel("distance of the parameters from raw")
        axis.grid(visible=False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4 if wide else 2, frameon=False)
    return figure


def _sharpness(part: Found, average: str) -> Section:
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
    return Section("", "", text, cells=cells)


def _ensembles(part: Found, average: str) -> Section:
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
    return Section("", "", text, lambda width: _draw_ensembles(part, metric, width))


@matplotlib.rc_context(pictures.STYLE)
def _draw_ensembles(part: Found, metric: str, width: float) -> Figure:
    metrics = list(dict.fromkeys([metric, "loss"]))
    figure, axes = pictures.stack(width, [2.2] * len(metrics), above=0.3 if width > 6 else 0.8, lines=1)
    labels = {
        "single": "the oldest of them alone",
        "weights": "averaged weights",
        "predictions": "averaged predictions",
    }
    looks = pictures.styles(["raw", "weights", "predictions"])
    for axis, name in zip(axes, metrics, strict=True):
        for (kind, label), look in zip(labels.items(), looks.values(), strict=True):
            values = np.array([row[name] for row in part[kind]], float) * (100 if name == "accuracy" else 1)
            look = {**look, "linestyle": ""} if kind == "single" else look
            axis.plot(range(1, len(values) + 1), values, label=label, **look)
        axis.set_title("accuracy, %" if name == "accuracy" else "loss", loc="left", fontsize=10)
        axis.locator_params(axis="x", integer=True)
    axes[-1].set_xlabel("number of the newest networks")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper left", ncols=3 if width > 6 else 1, frameon=False)
    return figure


def _oscillations(part: Found, average: str) -> Section:
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
    return Section("", "", text, lambda width: _draw_oscillations(part, average, width))


@matplotlib.rc_context(pictures.STYLE)
def _draw_oscillations(part: Found, average: str, width: float) -> Figure:
    figure, axes = pictures.stack(width, [2.4, 2.0], above=0.3 if width > 6 else 0.8, lines=1)
    looks = pictures.styles(["raw", average])
    periods = 1 / np.array(part["frequencies"])
    raw, averaged = (np.array(part[name]) for name in ("raw", "averaged"))
    looks = {name: {**look, "markersize": 3, "linewidth": 1} for name, look in looks.items()}
    axes[0].loglog(periods, raw, label="raw", **looks["raw"])
    axes[0].loglog(periods, averaged, label=f"{average}, measured", **looks[average])
    axes[1].loglog(periods, averaged / raw, **looks[average])
    if "kept" in part:
        kept = np.array(part["kept"])
        predicted = {"color": "#0072B2", "linestyle": "--", "linewidth": 1.3, "label": f"{average}, from its kernel"}
        axes[0].loglog(periods, kept**2 * raw, **predicted)
        axes[1].loglog(periods, kept**2, **predicted)
    axes[0].set_title("power of a weight's oscillations, mean", loc="left", fontsize=10)
    axes[1].set_title("share of the power that is kept", loc="left", fontsize=10)
    axes[-1].set_xlabel("period of the oscillation, in steps")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper left", ncols=3 if width > 6 else 1, frameon=False)
    return figure


def _distance(part: Found, average: str) -> Section:
    text = [
        "The Euclidean distance of their parameters at each evaluation: the noise that the average has removed, and "
        "how far it lags behind."
    ]
    return Section("", "", text, lambda width: _draw_distance(part, average, width))


@matplotlib.rc_context(pictures.STYLE)
def _draw_distance(part: Found, average: str, width: float) -> Figure:
    figure, (axis,) = pictures.stack(width, [1.8], above=0.1, lines=1)
    axis.plot(part["steps"], part["distances"], **pictures.styles(["raw", average])[average])
    axis.set_ylim(bottom=0)
    axis.set_title("distance of the parameters", loc="left", fontsize=10)
    axis.set_xlabel("step")
    return figure
