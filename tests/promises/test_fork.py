"""A fork may delete what README.md says it may, and is whole without it."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, copy_project, read_metrics

pytestmark = pytest.mark.slow


def deletable() -> list[str]:
    """Files and folders that README.md lists, as paths from the root."""
    [sentence] = re.findall(r"may be deleted in a fork: (.*?)\.\s", (ROOT / "README.md").read_text(), re.DOTALL)
    return re.findall(r"`(.+?)`", sentence)


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fork")
    copy_project(folder, without=deletable())
    return folder


def run(folder, *command: str) -> str:
    result = subprocess.run([sys.executable, *command], cwd=folder, env=os.environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_what_may_be_deleted_is_there():
    assert len(deletable()) >= 6
    assert [name for name in deletable() if not (ROOT / name).exists()] == []


def test_the_demo_runs_without_what_may_be_deleted(fork):
    run(fork, "main.py", "--config=configs/digits.py", "--workdir=runs/digits", "--config.duration=4 steps")
    assert read_metrics(fork / "runs" / "digits", "ema")[-1]["step"] == 4
    assert (fork / "runs" / "digits" / "report.html").stat().st_size > 0
    assert "ema" in run(fork, "-m", "tools.report", "runs/digits", "--format=markdown")


def test_lint_passes_without_what_may_be_deleted(fork):
    run(fork, "-m", "ruff", "check", ".")
    run(fork, "-m", "ruff", "format", "--check", ".")
    run(fork, "-m", "mypy")


def test_the_remaining_tests_need_nothing_that_may_be_deleted(fork, tmp_path):
    """All are collected; run are those of what lies beside something that was deleted."""
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'tests'}")
    run(fork, *pytest, "-m", "slow or not slow", "--collect-only")
    run(fork, *pytest, "tests/tools", "tests/test_optimizers.py")


def test_no_remaining_file_names_what_may_be_deleted_for_its_own_use(fork):
    """The slow tests, too, which would take too long to run."""
    for file in sorted((fork / "tests").rglob("*.py")):
        code = file.read_text()
        assert [name for name in deletable() if re.search(rf"""["'/]{re.escape(name)}["'/]""", code)] == [], file
