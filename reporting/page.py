"""The page of runs: curves, tables and a verdict, in one HTML file."""

import contextlib
import itertools
import json
import pathlib
import re
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reporting import runs, scores, tables
from reporting.against import Against
from reporting.runs import Group
from runtime.errors import UserError, missing_package
from runtime.files import replace_file

if TYPE_CHECKING:
    from reporting.curves import Panel

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
    "images_per_second": "examples per second of training",
}


def page(groups: Sequence[Group], remarks: Sequence[str], against: Against | None = None, refresh: int = 0) -> str:
    """The page, a whole HTML file, which a browser loads again after `refresh` seconds, if that is not 0."""
    from reporting import curves, diagnosis
    from reporting.classes import Classes

    names = [group.name for group in groups]
    times = [group.times() for group in groups]
    apart = runs.differences(groups).items()
    # Groups often have the same averages, which are then shown once.
    averages: dict[str, list[Group]] = {}
    for group in groups:
        averages.setdefault(json.dumps(group.runs[0].averages), []).append(group)
    shown = [run for group in groups if not against or group is not against.other for run in group.runs]
    found = [run for group in groups for run in group.runs if run.diagnosis]
    return render(
        "report.html",
        refresh=refresh,
        title=groups[0].name if len(groups) == 1 else f"{len(groups)} configs",
        headline=against.verdicts() if against else tables.headline(groups),
        names=names,
        groups=groups,
        panels=curves.panels(groups),
        more_panels=curves.more_panels(groups),
        classes=Classes.of(groups[0]) if len(groups) == 1 else None,
        together=tables.together(groups) if len(groups) > 1 else [],
        one_run=any(len(group.runs) == 1 and len(group.names) > 1 for group in groups) and scores.ONE_RUN,
        remarks=remarks,
        against=against,
        differences=[
            ["field", *names],
            *([field, *("(none)" if x is None else x for x in found)] for field, found in apart),
        ],
        averages=[(having, having[0].runs[0].averages) for text, having in averages.items() if json.loads(text)],
        describe=_describe,
        kernels=curves.kernels,
        diagnoses=[(run, diagnosis.sections(run.diagnosis)) for run in found],
        times=[
            ["mean of the runs", *names],
            *([what, *(_time(x.get(c)) for x in times)] for c, what in _TIMES.items()),
        ],
        environment=_environment(groups),
        configs=[group.runs[0].config for group in groups],
        command=command([run.workdir for run in shown], [run.workdir for run in against.other.runs] if against else []),
    )


def render(template: str, **values: Any) -> str:
    """A page made of one of the templates beside this file, which draws what it shows."""
    import jinja2

    from reporting import pictures

    count = itertools.count()

    def inline(svg: str, alt: str) -> str:
        return pictures.inline(svg, alt, f"picture-{next(count)}")

    def plot(panel: "Panel") -> dict[str, Any]:
        svg, numbers = pictures.panel(panel)
        labels = ", ".join(dict.fromkeys(line.label for line in panel.lines))
        alt = f"{panel.title} over the {panel.x}: {labels}. The tables have the last values in numbers."
        return {"svg": inline(svg, alt), "numbers": numbers}

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.globals |= {"pictures": pictures, "tables": tables, "inline": inline, "plot": plot}
    return environment.get_template(template).render(values)


def command(workdirs: Sequence[pathlib.Path], others: Sequence[pathlib.Path] = ()) -> str:
    """What makes the page of these workdirs, compared with others; of many the first and the last are named."""

    def named(paths: Sequence[pathlib.Path]) -> str:
        quoted = [shlex.quote(str(path)) for path in paths]
        return " ".join(quoted) if len(paths) <= 6 else f"{quoted[0]} ... {quoted[-1]} ({len(paths)} runs)"

    return f"python -m tools.report {named(workdirs)}" + (f" --against {named(others)}" if others else "")


def _time(value: float | None) -> str:
    return "not known" if value is None else f"{value:,.1f}" if value >= 10 else f"{value:.2g}"


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
            known["began"] = ", ".join(f"{name} {value}" for name, value in known.get("began", {}).items())
            for name in ("devices", "command"):
                known[name] = " ".join(known.get(name, []))
            for name, value in known.items():
                having = found.setdefault(name.replace("_", " "), {}).setdefault(str(value), [])
                if group.name not in having:
                    having.append(group.name)
    return found


def write(folder: pathlib.Path, workdirs: Sequence[pathlib.Path] = (), refresh: int = 0) -> str:
    """Writes the page and the picture of one run or several, if the packages that draw are installed.

    Args:
        folder: to write to.
        workdirs: of the runs; empty: the folder is the workdir.
        refresh: see `page`.

    Returns:
        The table of the last evaluation, with remarks and the page's path below it.
    """
    groups, remarks = runs.read(workdirs or [folder])
    written = if_possible(lambda: write_to(folder, groups, remarks, refresh=refresh), folder)
    return "\n".join([tables.to_text(groups), *remarks, written])


def if_possible(write: Callable[[], str], folder: pathlib.Path) -> str:
    """What `write` returns; or a note if a package that draws is not installed, for the runs themselves are done."""
    try:
        return write()
    except ModuleNotFoundError as error:
        return f"Note: there is no report yet, {missing_package(error)}. Then: {command([folder])}"


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
    """Writes `report.html`, `curves.png` and `curves.svg`.

    Returns:
        A line with the paths.
    """
    from reporting import curves, pictures

    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "report.html", page(groups, remarks, against, refresh))
    if not (panels := curves.panels(groups)):  # nothing is finite
        for name in ("curves.png", "curves.svg"):
            (folder / name).unlink(missing_ok=True)
        return f"Report: {folder / 'report.html'}"
    figure = pictures.curves(panels)
    replace_file(folder / "curves.png", pictures.to_png(figure))
    replace_file(folder / "curves.svg", pictures.to_svg(figure))
    return f"Report: {folder / 'report.html'}, {folder / 'curves.png'}"
