"""A package that a run does not need may be missing, and one that it needs is named with the command to install it."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, run_main
from made_runs import make_run

# Makes the imports of these packages fail, and their metadata unknown, as where they are not installed.
SITE = """
import importlib.machinery, importlib.metadata, os

HIDDEN = os.environ["HIDDEN_MODULES"].split(",")
known = importlib.metadata.distribution

def distribution(name):
    if name.replace("-", "_") in HIDDEN:
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)

importlib.metadata.distribution = distribution
find_spec = importlib.machinery.PathFinder.find_spec

def find(name, path=None, target=None):
    return None if name in HIDDEN else find_spec(name, path, target)

importlib.machinery.PathFinder.find_spec = find
"""


@pytest.fixture
def without(tmp_path):
    """The environment of a process that finds none of these modules."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)

    def environment(*modules):
        return {"PYTHONPATH": str(tmp_path / "site"), "HIDDEN_MODULES": ",".join(modules)}

    return environment


def only_line(result, *parts):
    assert result.returncode == 1, result.stdout + result.stderr
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


@pytest.mark.slow
@pytest.mark.parametrize("modules", [("tensorflow", "tensorflow_datasets"), ("matplotlib",), ("PIL",), ("jinja2",)])
def test_the_digits_are_trained_without_what_they_do_not_need(tmp_path, without, modules):
    workdir = tmp_path / "run"
    result = run_main(f"--workdir={workdir}", "--config.duration=20 steps", **without(*modules))
    assert (result.returncode, result.stderr) == (0, "")
    assert "minus raw" in result.stdout
    versions = json.loads((workdir / "environment.json").read_text())["packages"]
    assert {"jax", "tensorflow-datasets"} - versions.keys() == {"tensorflow-datasets"} & {
        name.replace("_", "-") for name in modules
    }
    note = f"Note: there is no report yet, '{modules[0]}', which "
    assert (note in result.stdout) == ("tensorflow" not in modules)
    assert ("pip install -r requirements.txt" in result.stdout) == ("tensorflow" not in modules)
    assert (workdir / "report.html").exists() == ("tensorflow" in modules)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["absl", "clu", "flax", "jax", "sklearn", "tensorboard"])
def test_a_package_that_a_run_needs_is_named_with_the_command_to_install_it(tmp_path, without, module):
    result = run_main(f"--workdir={tmp_path / 'run'}", **without(module))
    only_line(result, f"'{module}', which ", "is not installed: pip install -r requirements.txt")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["tensorflow", "tensorflow_datasets"])
def test_a_data_set_says_what_reads_it(tmp_path, without, module):
    result = run_main(f"--workdir={tmp_path / 'run'}", "--config.dataset=mnist", "--cache_dir=", **without(module))
    only_line(result, "dataset = 'mnist' is read with", f"'{module}', which ", "pip install -r requirements.txt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tool", "module"),
    [
        ("report RUN", "matplotlib"),
        ("show_batch --config=configs/digits.py", "matplotlib"),
        ("export RUN --average=ema --out=x", "safetensors"),
        ("posthoc RUN --average=ema", "jax"),
    ],
)
def test_a_tool_names_the_package_that_it_lacks(tmp_path, without, tool, module):
    make_run(tmp_path / "run")
    arguments = tool.replace("RUN", str(tmp_path / "run")).split()
    command = [sys.executable, "-m", f"tools.{arguments[0]}", *arguments[1:]]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | without(module), capture_output=True, text=True)
    only_line(result, f"'{module}', which ", "pip install -r requirements.txt")


@pytest.mark.slow
def test_a_system_without_fcntl_is_told_where_this_runs(tmp_path, without):
    """Windows, which has no such module."""
    result = run_main(f"--workdir={tmp_path / 'run'}", **without("fcntl"))
    only_line(result, "error: this project runs on Linux and macOS; on Windows, run it in WSL")
