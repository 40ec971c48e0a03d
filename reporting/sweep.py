"""The verdict of a sweep."""

import json
import pathlib

from reporting.runs import last_evaluation, read_metrics


def write(folder: pathlib.Path, metric: str = "", judge: str = "validation") -> str:
    """The last evaluation of each run of a sweep, as text."""
    runs = json.loads((folder / "sweep.json").read_text())["runs"]
    found = [run["workdir"] for run in runs if (folder / run["workdir"] / "metrics.jsonl").exists()]
    lines = [
        f"{name} {line['curve']} {line[metric or 'accuracy']}"
        for name in found
        for line in last_evaluation(read_metrics(folder / name))
        if "-" not in line["curve"]
    ]
    return "\n".join(lines)
