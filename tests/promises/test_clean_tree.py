"""No command of README.md, the Makefile or benchmarks/ leaves anything in the tree that git does not ignore."""

import os
import shlex
import subprocess
import sys

import pytest
from conftest import copy_project, git

# In their shortest form, one after another. What they are called with is what README.md calls them with.
COMMANDS = """
main.py --config=configs/digits.py --workdir=runs/digits --config.duration="4 steps" --config.snapshot_every="1 step"
main.py --config=configs/digits.py --workdir=runs/digits --config.duration="4 steps" --config.snapshot_every="1 step" --mode=eval
main.py --config=configs/digits.py --workdir=runs/digits1 --config.duration="4 steps" --config.seed=1
main.py --config=configs/digits.py --workdir=runs/digits2 --config.duration="2 steps"
-m tools.report runs/digits
-m tools.report runs/digits runs/digits1
-m tools.report runs/digits runs/digits1 --format=markdown
-m tools.report runs/digits --against runs/digits2
-m tools.posthoc runs/digits --average=ema:half_life=25%
-m tools.export runs/digits --average=ema --out=exported
-m tools.show_batch --config=configs/digits.py
-m tools.diagnose runs/digits runs/digits1 --images=32 --steps=48
-m ruff format --check .
-m ruff check .
-m mypy streams.py
-m pytest tests/runtime/test_durations.py
tests/mutants/mutants.py --sample none of them has this title
-m benchmarks.seeds --config=configs/digits.py --seeds=2 --name=digits --config.duration="2 steps"
"""  # noqa: E501
# benchmarks.report takes a minute or more; this is what it times.
REPORT = """
import pathlib
from benchmarks import report
runs = [pathlib.Path("runs", name) for name in "ab"]
for run in runs:
    report.write_run(run, 3)
report.report(runs[0])
report.report(*runs)
"""


@pytest.mark.slow
def test_no_command_leaves_anything_in_the_tree_that_git_does_not_ignore(tmp_path):
    copy_project(tmp_path)
    for line in [*COMMANDS.strip().splitlines(), shlex.join(["-c", REPORT])]:
        command = [sys.executable, *shlex.split(line)]
        result = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True)
        assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"
        # What benchmarks measured is to be committed.
        left = git(tmp_path, "status", "--porcelain", "--", ".", ":!benchmarks/results/*.json")
        assert left == "", f"{line} leaves\n{left}"
    assert git(tmp_path, "status", "--porcelain").split() == ["M", "benchmarks/results/digits.json"]
    for name in (".venv/bin/python", ".hypothesis/examples"):  # `make` installs, and tests of properties keep, these
        assert git(tmp_path, "check-ignore", name)
