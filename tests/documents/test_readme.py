"""What the README and the pages of docs/ tell a reader to do, done."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, copy_project, git, read_metrics
from document import apply_diff
from PIL import Image
from sklearn import datasets

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def example(title: str) -> tuple[dict[str, list[str]], str]:
    """What an example of README.md or of a page changes, in each file, and its command.

    A diff belongs to the file of the same place in the list of those that are named before the first block.
    """
    text = "".join(page.read_text() for page in (README, ROOT / "docs" / "averages.md", ROOT / "docs" / "data.md"))
    sections = re.split(r"^(?:\*\*|#+ )", text, flags=re.MULTILINE)
    [section] = [section for section in sections if section.startswith(title) and "```diff" in section]
    files = re.findall(r"in `([\w/]+\.py)`", section.partition("```")[0])
    blocks = re.findall(r"^```diff\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    [command] = re.findall(r"^    (python .*(?:\n        .*)*)", section, re.MULTILINE)
    assert len(files) == len(blocks)
    return dict(zip(files, blocks, strict=True)), command


EXAMPLES = ("A set of your own in code", "Your own model", "Your own loss", "Your own average")


def num_changed(block: str) -> int:
    """Lines that are added or removed. Blank ones are not counted."""
    return sum(line[:1] in "+-" and bool(line[1:].strip()) for line in block.splitlines())


def write_photos(folder) -> None:
    """The digits as image files, of two sizes, in a folder for each class."""
    digits = datasets.load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / ("test" if number % 4 == 0 else "train") / f"number{label}"
        path.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray((image * 15).astype(np.uint8))
        (picture if number % 2 else picture.resize((16, 12))).save(path / f"{number}.png")


@pytest.mark.parametrize("title", EXAMPLES)
def test_each_change_has_at_most_ten_lines(title):
    changes, _ = example(title)
    assert 0 < sum(map(num_changed, changes.values())) <= 10


@pytest.mark.slow
@pytest.mark.parametrize("title", EXAMPLES)
def test_exactly_these_changes_to_a_copy_of_the_project_train(title, tmp_path):
    copy_project(tmp_path, without=("benchmarks/results", "tests"))
    changes, command = example(title)
    for name, block in changes.items():
        (tmp_path / name).write_text(apply_diff(block, (tmp_path / name).read_text()))
    formatted = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--check", *changes], cwd=tmp_path, capture_output=True, text=True
    )
    assert formatted.returncode == 0, formatted.stdout
    run = subprocess.run(
        [sys.executable, *re.sub(r"\\\n\s*", "", command).split()[1:]],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": "."}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr

    [workdir] = (tmp_path / "runs").iterdir()
    config = json.loads((workdir / "config.json").read_text())
    last = read_metrics(workdir, "ema")[-1]
    assert last["step"] == config["duration"]
    assert (workdir / "report.html").stat().st_size > 0
    match title:
        case "A set of your own in code":
            assert config["dataset"] == "parity"
            assert last["accuracy"] > 0.8  # half would be chance
        case "Your own model":
            assert config["model"]["name"] == "tiny_cnn"
            assert last["accuracy"] > 0.2  # a tenth would be chance
        case "Your own loss":
            assert config["task"] == "regression"
            assert "accuracy" not in last
            assert last["loss"] < 0.06  # the variance of the digits / 10 is 0.083: what no model at all would score
        case "Your own average":
            average = json.loads((workdir / "averages.json").read_text())["ema"]
            assert (average["kind"], average["arguments"]) == ("inverse_power", {"power": 0.75})


@pytest.mark.slow
def test_a_folder_of_photographs_trains_with_the_command_and_no_change(tmp_path):
    [command] = re.findall(r"^    (python .*folder:photos)$", README.read_text(), re.MULTILINE)
    write_photos(tmp_path / "photos")
    copy_project(tmp_path, without=("benchmarks/results", "tests", "photos"))
    short = ("--config.image_size=32", "--config.duration=3 epochs", "--config.eval_every=3 epochs")
    subprocess.run([sys.executable, *command.split()[1:], *short], cwd=tmp_path, check=True, timeout=400)
    assert read_metrics(tmp_path / "runs" / "photos", "ema")[-1]["accuracy"] > 0.3  # a tenth would be chance


@pytest.mark.slow
def test_a_fork_that_commits_these_changes_keeps_its_workflow_green(tmp_path):
    """That is `make lint` and, of the fast tests, those of what is changed."""
    fork = tmp_path / "fork"
    copy_project(fork)
    for title in EXAMPLES:
        for name, block in example(title)[0].items():
            (fork / name).write_text(apply_diff(block, (fork / name).read_text()))
    git(fork, "commit", "-a", "-m", "Our own data, model, loss and average")
    tests = (
        "tests/test_input_pipeline.py", "tests/test_models.py", "tests/test_train.py", "tests/test_settings.py",
        "tests/averaging/test_schedules.py", "tests/documents/test_readme.py", "tests/mutants",
    )  # fmt: skip
    for command in (
        ("ruff", "format", "--check", "."),
        ("ruff", "check", "."),
        ("mypy",),
        ("pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'tests'}", *tests),
    ):
        result = subprocess.run([sys.executable, "-m", *command], cwd=fork, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    assert git(fork, "status", "--porcelain") == ""


def test_the_readme_fits_in_180_lines():
    assert len(README.read_text().splitlines()) < 180


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page):
    """Links, files in backquotes, configs and modules in commands."""
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]*)(?:#[\w-]+)?\)", text):
        if target and "://" not in target:
            assert (page.parent / target).exists(), target
    for heading in re.findall(r"\]\(#([\w-]+)\)", text):
        headings = [
            re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
            for line in re.findall(r"^#+ (.*)", text, re.MULTILINE)
        ]
        assert heading in headings
    made = re.findall(r"in `([\w/.]+)`:\n\n```", text)  # by the reader, from the page
    for config in re.findall(r"--config=(\S+\.py)", text):
        assert config in made or (ROOT / config).is_file(), config
    for module in re.findall(r"python -m ([\w.]+)", text):
        if module not in ("venv", "pip", "pytest"):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    for file in re.findall(r"`((?:\w+/)*\w+\.py)`", text):
        known = (".", "tools", "tools/diagnosis", "reporting", "tests", "tests/tools/diagnosis")
        assert file in made or any((ROOT / folder / file).is_file() for folder in known), file


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    ["main", "tools.report", "tools.sweep", "tools.posthoc", "tools.export", "tools.show_batch", "benchmarks.seeds"],
)
def test_help_says_what_a_command_is_for_and_shows_one(module):
    result = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "120"},
    )
    assert "Traceback" not in result.stderr
    assert f"python -m {module} " in result.stdout or f"python {module}.py " in result.stdout
    assert "--" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 130
