"""The verdict of a sweep."""

import json
import pathlib

from reporting.runs import last_evaluation, read_metrics


def write(folder: pathlib.Path, metric: str = "", judge: str = "validation") -> str:
    """The last evaluation of each run of a sweep, as text."""
    del judge
    lines = []
    for run in json.loads((folder / "sweep.json").read_text())["runs"]:
        found = read_metrics(folder / run["workdir"])
        scored = last_evaluation(found) if any("split" in line for line in found) else []
        lines += [f"{run['workdir']}: {line['curve']} {line.get(metric or 'loss')}" for line in scored]
    return "\n".join(lines)
