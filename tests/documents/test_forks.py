"""docs/forks.md: a fork that is written from it alone runs, and is as short as it says."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT, copy_project, read_metrics
from document import blocks

PAGE = ROOT / "docs" / "forks.md"
TRAIN, CONFIG = blocks(PAGE, "python")


def test_the_smallest_fork_is_short():
    lines = [line for line in (TRAIN + CONFIG).splitlines() if line.strip()]
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert len(lines) - len(imports) <= 40


def test_every_part_of_a_task_is_explained():
    import train  # imports JAX

    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)
    assert rows == [*dict.fromkeys(rows)]
    assert {*rows} == {*train.Task.__dataclass_fields__}


@pytest.mark.slow
def test_the_smallest_fork_runs_and_its_best_checkpoint_has_the_lowest_metric(tmp_path):
    copy_project(tmp_path / "fork", without=["benchmarks", "tests"])
    folder = tmp_path / "fork" / "examples" / "line"
    (folder / "configs").mkdir(parents=True)
    (folder / "train.py").write_text(TRAIN)
    (folder / "configs" / "default.py").write_text(CONFIG)
    command = re.search(r"^    python (main.py --config=examples/line/.*)$", PAGE.read_text(), re.MULTILINE)[1]
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=tmp_path / "fork", capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "images" not in done.stdout
    workdir = tmp_path / "fork" / "runs" / "line"
    raw, average = read_metrics(workdir, "raw"), read_metrics(workdir, "ema")
    assert raw[-1]["distance_to_line"] < 0.3  # of 1.5, the mean distance of a line through 0
    lowest = min(line["distance_to_line"] for line in average)
    table = done.stdout[done.stdout.index("\nweights") :].splitlines()
    assert f"{lowest:.4g} (" in next(line for line in table if line.startswith("ema"))
    assert '"power": 1.5' in (workdir / "config.json").read_text()
