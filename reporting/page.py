"""The page of runs: curves, tables and a verdict, in one HTML file."""

import contextlib
import json
import pathlib
import re
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reporting import runs, scores, tables
from reporting.against import Against
from reporting.runs import Group, Run
from runtime.errors import UserError, missing_package
from runtime.files import replace_file

FIRST_PAGE = 30.0  # seconds after the start of a run
REFRESH = 15  # seconds until a browser loads the page of a run again that is still training

# The clocks of `Group.times`, with their labels.
_TIMES = {
    "startup_seconds": "start-up, s",
    "compile_seconds": "compilation, s",
    "train_seconds": "training, s",
    "eval_seconds": "evaluation, s",
    "checkpoint_seconds": "checkpoints, s",
    "steps_per_second": "steps per second of training",
    "images_per_second": "images per second of training",
}


def page(
    groups: Sequence[Group],
    remarks: Sequence[str],
    curves: Sequence[Mapping[str, str]],
    against: Against | None = None,
    refresh: int = 0,
) -> str:
    """The page, a whole HTML file.

    Args:
        groups: of runs.
        remarks: other sentences about them.
        curves: the picture of each group as SVG, "wide" and "narrow".
        against: the comparison of these groups with the last one, if there is one.
        refresh: seconds after which a browser is to load the page again; 0: never.
    """
    import jinja2

    from reporting import diagnosis, pictures

    def inline(drawn: Mapping[str, str], alt: str, name: str) -> dict[str, str]:
        return {kind: pictures.inline(svg, alt, f"{name}-{kind}") for kind, svg in drawn.items()}

    sections = []
    for number, (group, drawn) in enumerate(zip(groups, curves, strict=True)):
        rows, says = group.rows(), tables.verdicts(group, len(groups) > 1)
        alt = (
            f"{', '.join(pictures.panels(group))} of {', '.join(group.names)} over {group.last_step} steps of "
            f"training. At the end, {' '.join(says)}"
        )
        sections.append(
            {
                "name": group.name,
                "title": tables.title(group),
                "setup": group.setup,
                "cells": tables.cells(rows, group.scoring, wide=True),
                "verdicts": says,
                "curves": inline(drawn, alt, f"curves-{number}"),
            }
        )
    # Groups often have the same averages, which are then shown once.
    averages: dict[str, list[Group]] = {}
    for group in groups:
        averages.setdefault(json.dumps(group.runs[0].averages), []).append(group)
    kernels = []
    for number, (text, having) in enumerate(averages.items()):
        described = json.loads(text)
        if described:
            drawn = {
                kind: pictures.to_svg(pictures.kernels(described, having[0].names, width))
                for kind, width in pictures.WIDTHS.items()
            }
            alt = "The weight that each average gives to each iterate of training; the table below has it in numbers."
            kernels.append(
                {
                    "names": [group.name for group in having],
                    "cells": _describe(described),
                    "pictures": inline(drawn, alt, f"kernels-{number}"),
                }
            )
    diagnoses = []
    for number, run in enumerate(run for group in groups for run in group.runs if run.diagnosis):
        parts = []
        for part in diagnosis.sections(run.diagnosis):
            drawn = (
                {kind: pictures.to_svg(part.draw(width)) for kind, width in pictures.WIDTHS.items()}
                if part.draw
                else {}
            )
            alt = f"{part.title}. The text below the picture says what it shows, in numbers."
            parts.append({"part": part, "pictures": inline(drawn, alt, f"diagnosis-{number}-{part.name}")})
        diagnoses.append({"name": str(run.workdir), "found": run.diagnosis, "parts": parts})
    workdirs = [str(run.workdir) for group in groups for run in group.runs]
    if against:
        workdirs.insert(len(workdirs) - len(against.other.runs), "--against")
    source = (pathlib.Path(__file__).parent / "report.html").read_text("utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    return template.render(
        refresh=refresh,
        names=[group.name for group in groups],
        sections=sections,
        together=tables.together(groups) if len(groups) > 1 else [],
        one_run=any(len(group.runs) == 1 and len(group.names) > 1 for group in groups) and scores.ONE_RUN,
        remarks=remarks,
        against=against,
        differences=runs.differences(groups),
        kernels=kernels,
        diagnoses=diagnoses,
        times=[group.times() for group in groups],
        clocks=_TIMES,
        environment=_environment(groups),
        configs=[group.runs[0].config for group in groups],
        command=shlex.join(["python", "-m", "tools.report", *workdirs]),
    )


def _describe(averages: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The header and the rows of the table of averages."""
    header = ["average", "kind", "mean age", "half-life", "effective number", "weight on start"]
    rows = [
        [name, average["kind"]]
        + [f"{average[number]:.4g}" for number in ("mean_age", "half_life", "effective_number")]
        + [f"{average['initial_weight']:.2%}"]
        for name, average in averages.items()
    ]
    return [header, *rows]


def _environment(groups: Sequence[Group]) -> dict[str, dict[str, list[str]]]:
    """The environments of the runs: each value of each entry, with the groups that have it."""
    found: dict[str, dict[str, list[str]]] = {}
    for group in groups:
        for run in group.runs:
            known = dict(run.environment)
            versions = known.pop("packages", {}) | {"Python": known.pop("python", "unknown")}
            known["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
            for name in ("devices", "began_on", "command"):
                known[name] = " ".join(known.get(name, []))
            for name, value in known.items():
                having = found.setdefault(name.replace("_", " "), {}).setdefault(str(value), [])
                if group.name not in having:
                    having.append(group.name)
    return found


def write(workdir: pathlib.Path, refresh: int = 0) -> str:
    """Writes the page and the picture of one run into its workdir, if the packages that draw are installed.

    Args:
        workdir: of the run.
        refresh: see `page`.

    Returns:
        The table of the last evaluation, with remarks and the page's path below it.
    """
    groups, remarks = runs.group([Run.read(workdir)])
    try:
        written = write_to(workdir, groups, remarks, refresh=refresh)
    except ModuleNotFoundError as error:  # the run itself is done
        command = shlex.join(["python", "-m", "tools.report", str(workdir)])
        written = f"Note: there is no report yet, {missing_package(error)}. Then: {command}"
    return "\n".join([tables.to_text(groups), *remarks, written])


def keep_up(workdir: pathlib.Path, lines: Iterable[Any]) -> None:
    """Writes the page of a run again as its lines come; a browser that shows it loads it again until the run ends.

    A tracker, as runtime/trackers.py describes them. It writes for about 5 % of the time, so the first page comes after
    `FIRST_PAGE` seconds, and a short run has none before its end.
    """
    path, due, written = workdir / "report.html", time.monotonic() + FIRST_PAGE, ""
    for _ in lines:
        started = time.monotonic()
        if started >= due:
            with contextlib.suppress(UserError):  # there is no evaluation yet
                write(workdir, refresh=REFRESH)
                written = path.read_text("utf-8") if path.exists() else ""  # where nothing that draws is installed
            due = time.monotonic() + 19 * (time.monotonic() - started)
    if written:  # A run that was stopped has no other page.
        replace_file(path, re.sub('<meta http-equiv="refresh".*>\n', "", written))


def write_to(
    folder: pathlib.Path,
    groups: Sequence[Group],
    remarks: Sequence[str],
    against: Against | None = None,
    refresh: int = 0,
) -> str:
    """Writes `report.html`, and `curves.png` and `curves.svg`, or of several groups `curves-1.png` and so on.

    Pictures under such names that an earlier report of other runs has left there are removed.

    Returns:
        A line with the paths.
    """
    from reporting import pictures

    folder.mkdir(parents=True, exist_ok=True)
    figures = {kind: [pictures.curves(group, width) for group in groups] for kind, width in pictures.WIDTHS.items()}
    drawn = {}
    for kind, same_size in figures.items():
        pictures.align(same_size)
        drawn[kind] = [pictures.to_svg(figure) for figure in same_size]
    by_group = [dict(zip(drawn, of_group, strict=True)) for of_group in zip(*drawn.values(), strict=True)]
    replace_file(folder / "report.html", page(groups, remarks, by_group, against, refresh))
    names = ["curves"] if len(groups) == 1 else [f"curves-{number}" for number in range(1, len(groups) + 1)]
    for old in folder.glob("curves-*"):
        if re.fullmatch(r"curves-[1-9][0-9]*\.(png|svg)", old.name) and old.stem not in names and old.is_file():
            old.unlink()
    for name, figure, svg in zip(names, figures["wide"], drawn["wide"], strict=True):
        replace_file(folder / f"{name}.png", pictures.to_png(figure))
        replace_file(folder / f"{name}.svg", svg)
    return f"Report: {folder / 'report.html'}, {folder / ('curves.png' if len(groups) == 1 else 'curves-*.png')}"
