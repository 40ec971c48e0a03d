"""The notebooks run anywhere, show what they make, and what they say holds."""

import ast
import os

import nbclient
import nbformat
import pytest
from conftest import ROOT, copy_project

NOTEBOOK = ROOT / "docs" / "polyak.ipynb"  # about averaging
TEMPLATE = ROOT / "docs" / "template.ipynb"  # about the use of this project


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def read_summary(notebook) -> dict[str, float]:
    """What the last cell prints: `name = value`, line by line."""
    lines = code_cells(notebook)[-1].outputs[0].text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" = ", 1) for line in lines)}


def check_claims(summary: dict[str, float]) -> None:
    """What the text says in words. Seeds are fixed, but another JAX may draw other numbers from them."""
    assert summary["kernel: largest error"] < 1e-12  # sums of 100 terms in float64
    assert summary["gain: largest relative error"] < 1e-6  # step sizes come in float32
    # The standard error of a variance of 4,000 runs is 2.2 %; five of them, for it is the largest of fifteen.
    assert summary["variance: largest relative error"] < 0.11
    assert summary["filter: smallest error / error without an average"] < 0.5
    assert summary["filter: largest error / error without an average"] > 1  # a horizon that is too long does harm
    assert summary["rounding: where a float32 average ends"] > 0.999
    assert summary["rounding: where a bfloat16 average ends"] < 0.9

    deviation = "constant rate: standard deviation over seeds"
    assert summary[f"{deviation}, averaged"] < summary[f"{deviation}, raw"]
    gain = summary["constant rate: averaged minus raw"]
    assert summary["constant rate: averaged minus raw, low"] > 0
    assert summary["cosine: averaged minus raw, halfway, low"] > 0
    assert abs(summary["cosine: averaged minus raw"]) < gain / 5  # "next to nothing"
    assert summary["raw: cosine minus constant rate, low"] > 0
    assert abs(summary["averaged at constant rate minus raw of cosine"]) < gain / 2  # "near"
    assert summary["averaged at constant rate minus raw of cosine, halfway, low"] > 0
    # Sums in another order change the logits' last digits, and at most three of 899 images with them.
    assert summary["made afterwards: largest difference from the tracked average"] < 0.4
    assert summary["early, half-life 64: started at the initialisation minus bias-corrected, high"] < 0
    assert summary["late, half-life 512: started at the initialisation minus bias-corrected, high"] < 0
    assert summary["early, bias-corrected: half-life 512 minus 4, high"] < 0
    assert summary["late, bias-corrected: half-life 512 minus 4, high"] > 0  # "does no harm"


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_imports_nothing_of_the_project_and_only_in_its_first_cell(committed):
    first, *others = (ast.parse(cell.source) for cell in code_cells(committed))
    assert all(isinstance(node, ast.Import | ast.ImportFrom) for node in first.body)
    modules = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in first.body]
    assert {module.split(".")[0] for module in modules} == {"flax", "jax", "matplotlib", "numpy", "optax", "sklearn"}
    assert not any(isinstance(node, ast.Import | ast.ImportFrom) for tree in others for node in ast.walk(tree))


@pytest.mark.parametrize(("path", "pictures"), [(NOTEBOOK, 6), (TEMPLATE, 2)])
def test_it_is_committed_as_it_was_run_from_top_to_bottom(path, pictures):
    committed = nbformat.read(path, as_version=4)
    cells = code_cells(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert {output.get("name", output.output_type) for output in outputs(committed)} == {"stdout", "display_data"}
    assert sum("image/png" in output.get("data", {}) for output in outputs(committed)) == pictures


def test_what_the_committed_one_says_holds(committed):
    check_claims(read_summary(committed))


@pytest.mark.parametrize("path", [NOTEBOOK, TEMPLATE])
def test_it_is_small_and_says_nothing_of_the_machine_that_it_was_run_on(path):
    text, committed = path.read_text(), nbformat.read(path, as_version=4)
    assert text == nbformat.writes(committed) + "\n"  # so that a diff shows what has changed
    assert len(text) < 700_000
    assert committed.metadata.keys() == {"kernelspec", "language_info"}
    assert committed.metadata.language_info == {"name": "python"}  # and no version
    assert not any(cell.metadata for cell in committed.cells)  # where times of execution would stand
    printed = "".join(output.get("text", "") for output in outputs(committed))
    assert not any(f"/{folder}/" in printed for folder in ("home", "opt", "root", "tmp", "usr", "var", "Users"))


def run(path, folder, scratch):
    """The notebook, run in a fresh process in this folder."""
    from matplotlib import font_manager  # noqa: F401  # where its cache of fonts is new, it says so on stderr

    # A fresh process with nothing of this one's settings. The CPU, because a GPU that JAX was not installed for is
    # something that it mentions on stderr.
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "PYTHON", "XLA_"))}
    settings |= {"JAX_PLATFORMS": "cpu", "IPYTHONDIR": str(scratch / "ipython")}
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,  # for one cell, which takes ten seconds: only so that a hang ends
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=settings)
    assert not [output.text for output in outputs(notebook) if output.get("name") == "stderr"]
    return notebook


@pytest.mark.slow
def test_it_runs_in_an_empty_folder_without_a_word_on_stderr_and_its_claims_hold(committed, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    summary = read_summary(run(NOTEBOOK, empty, tmp_path))
    assert list(empty.iterdir()) == []
    check_claims(summary)
    assert summary.keys() == read_summary(committed).keys()  # what is committed is of the same code


@pytest.mark.slow
def test_the_one_about_this_project_runs_in_a_clone_and_predicts_what_the_run_says(tmp_path):
    copy_project(tmp_path / "clone")
    summary = read_summary(run(TEMPLATE, tmp_path / "clone" / "docs", tmp_path))
    assert summary == pytest.approx(read_summary(nbformat.read(TEMPLATE, as_version=4)), abs=0.02)
    assert summary["accuracy of the predictions"] == summary["accuracy, ema"] > summary["accuracy, raw"]
    assert (tmp_path / "clone" / "runs" / "notebook" / "report.html").exists()
