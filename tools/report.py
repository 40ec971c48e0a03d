"""The table and the picture of a finished run, from its `metrics.jsonl`.

python -m tools.report runs/digits
"""

import itertools
import json
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from errors import UserError

Metrics = Mapping[str, Any]


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, and what `posthoc.jsonl` adds to them, if there is one, by their steps."""
    lines: dict[tuple[int, str, str], dict[str, Any]] = {}
    for name in ("metrics.jsonl", "posthoc.jsonl"):
        for line in read_lines(workdir / name):
            lines.setdefault((line["step"], line["curve"], line.get("split", "")), line)
    return sorted(lines.values(), key=lambda line: line["step"])


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of such a file, if there is one; one that is still being written is left out.

    Raises:
        UserError: a line is damaged.
    """
    lines = []
    for number, text in enumerate(path.read_text().split("\n")[:-1] if path.exists() else (), 1):
        try:
            line: dict[str, Any] = json.loads(text)
            int(line["step"]), str(line["curve"])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}, line {number}, is damaged ({error}). Restore the file, or remove it.") from error
        lines.append(line)
    return lines


def table(metrics: Mapping[str, Metrics]) -> str:
    """Raw against averaged weights as text.

    Args:
        metrics: of each curve, and of each paired difference `NAME-raw`, as `evaluation.evaluate` returns them.
    """
    header = ("weights", "accuracy", "loss", "calibration error", "accuracy minus raw, points (95 % interval)")
    rows = [header]
    for curve, values in metrics.items():
        if curve.endswith("-raw"):
            continue
        difference = metrics.get(f"{curve}-raw", {})
        points = ["accuracy", "accuracy_low", "accuracy_high"]
        known = all(difference.get(point) is not None for point in points)
        interval = (
            "{:+.2f} ({:+.2f} .. {:+.2f})".format(*(100 * difference[point] for point in points)) if known else ""
        )
        rows.append(
            (
                curve,
                _format(values.get("accuracy"), "{:.2%}"),
                _format(values.get("loss"), "{:.4f}"),
                _format(values.get("calibration_error"), "{:.2%}"),
                interval,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _format(value: float | None, template: str) -> str:
    return "-" if value is None else template.format(value)


def draw(lines: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws accuracy, loss, and the paired difference to the raw weights with its interval, over the steps.

    Args:
        lines: of `metrics.jsonl`.
        path: of the picture.
    """
    from matplotlib.figure import Figure

    split = next(line["split"] for line in lines if "split" in line)
    curves: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if line.get("split") == split:
            curves.setdefault(line["curve"], []).append(line)
    # Okabe & Ito's colours can be told apart with any colour vision; the markers, without colour, too. Of 6 and 5, all
    # 30 pairs come up; black is for the raw weights.
    names = [name for name in curves if not name.endswith("-raw")]
    names.sort(key=lambda name: (name != "raw", ":" in name))  # then what was tracked, then what tools.posthoc made
    colors = itertools.cycle(("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"))
    styles = zip(colors, itertools.cycle("s^DvX"), strict=False)
    style_of = {name: ("#000000", "o") if name == "raw" else next(styles) for name in names}

    figure = Figure(figsize=(8, 9), layout="constrained")
    accuracy, loss, difference = figure.subplots(3, sharex=True)
    for name in names:
        color, marker = style_of[name]
        style = {"color": color, "marker": marker, "markersize": 4, "label": name}
        steps = [line["step"] for line in curves[name]]
        accuracy.plot(steps, _column(curves[name], "accuracy", 100), **style)
        loss.plot(steps, _column(curves[name], "loss"), **style)
        pairs = curves.get(f"{name}-raw", [])
        if pairs:
            steps = [line["step"] for line in pairs]
            difference.plot(steps, _column(pairs, "accuracy", 100), **style)
            low, high = (_column(pairs, bound, 100) for bound in ("accuracy_low", "accuracy_high"))
            difference.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
            if len(steps) == 1:  # of which a band would not show
                difference.vlines(steps, low, high, color=color, linewidth=1)
    difference.axhline(0, color="gray", linewidth=1)
    accuracy.set(ylabel=f"accuracy, % of {split} images")
    loss.set(ylabel="negative log-likelihood")
    difference.set(ylabel="accuracy minus raw, points\n(band: 95 %, paired)", xlabel="step")
    name = path.parent.name.replace("$", r"\$")  # which would begin a formula
    accuracy.set_title(f"Raw and averaged weights, {name}")
    for axes in (accuracy, loss, difference):
        axes.grid(alpha=0.3)
    num_columns = max(1, min(4, len(names), 90 // (8 + max(map(len, names)))))  # as many as the width has room for
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside upper center", ncols=num_columns)
    figure.savefig(path, dpi=120)


def _column(lines: list[dict[str, Any]], name: str, factor: float = 1) -> list[float]:
    """One value of every line; a gap where it is missing or was not finite."""
    return [math.nan if line.get(name) is None else factor * line[name] for line in lines]


def last_evaluation(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of the last evaluation: the test set's, where the curves come from a validation set."""
    evaluations = [line for line in lines if "split" in line]
    step, split = (evaluations[-1][key] for key in ("step", "split"))
    return [line for line in evaluations if (line["step"], line["split"]) == (step, split)]


def write(workdir: pathlib.Path) -> str:
    """Draws `curves.png`, and returns the table of the last evaluation with the picture's path below it."""
    lines = read(workdir)
    last = last_evaluation(lines)
    draw(lines, workdir / "curves.png")
    title = f"{workdir}, step {last[0]['step']}, {last[0]['split']} images"
    return f"{title}\n{table({line['curve']: line for line in last})}\nCurves: {workdir / 'curves.png'}"


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    if not (pathlib.Path(sys.argv[1]) / "metrics.jsonl").is_file():
        sys.exit(f"error: {sys.argv[1]} holds no metrics.jsonl; python main.py --workdir={sys.argv[1]} makes one")
    try:
        if not any("split" in line for line in read(pathlib.Path(sys.argv[1]))):
            sys.exit(
                f"error: {sys.argv[1]} has no evaluation yet; python main.py makes the first after config.eval_every"
            )
        print(write(pathlib.Path(sys.argv[1])))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
