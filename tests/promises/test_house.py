"""The house stays one: who may import whom, and how long a file may get."""

import ast
import functools
import pathlib
import re
import subprocess
import sys

import pytest
from conftest import ROOT

ROOMS = ("configs", "runtime", "reporting", "tools")
FILES = sorted([*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))])
# From the bottom up. A module imports what stands below it, or in its own room.
STOREYS = (
    ("averaging", "streams", "configs"),
    ("optimizers",),
    ("train_state",),
    ("runtime",),
    ("augmentation",),
    ("reporting", "models", "input_pipeline"),
    ("evaluation", "settings"),
    ("train",),
    ("tools",),
    ("main",),
)


def name_of(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def imports(path: pathlib.Path) -> frozenset[str]:
    """The modules of the project that a file imports, inside functions too; `from runtime import a, b` counts 2."""
    modules, found = {name_of(file) for file in FILES}, set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & modules or {node.module}
    return frozenset(found & modules)


def room_of(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_downwards(path):
    storey = {room: number for number, rooms in enumerate(STOREYS) for room in rooms}
    room = room_of(name_of(path))
    above = {name for name in imports(path) if room_of(name) != room and storey[room_of(name)] >= storey[room]}
    assert not above


def test_runtime_knows_little_of_the_project():
    allowed = {"runtime", "train_state", "averaging", "optimizers", "streams"}
    for path in (ROOT / "runtime").glob("*.py"):
        assert {room_of(name) for name in imports(path)} <= allowed, path.name


def test_averaging_imports_nothing_of_the_project_and_configs_only_configs():
    assert not imports(ROOT / "averaging.py")
    for path in (ROOT / "configs").glob("*.py"):
        assert {room_of(name) for name in imports(path)} <= {"configs"}, path.name


def test_reporting_needs_no_jax():
    modules = ", ".join(name_of(path) for path in (ROOT / "reporting").glob("*.py"))
    script = f"import sys, {modules}, tools.report; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=120)


def test_everything_is_printed_in_one_place():
    """Which knows what to do where a console is gone, full, or lacks a sign; what is an error goes elsewhere."""
    printing = {
        name_of(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    }
    assert printing == {"runtime.progress", "runtime.errors", "runtime.interruption"}


def written(path: pathlib.Path) -> set[str]:
    """The calls in a file that write another one, not counting those that write to memory."""
    tree, found = ast.parse(path.read_text()), set()
    memory = {
        ast.unparse(getattr(node, "target", None) or node.targets[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.NamedExpr) and ast.unparse(node.value) == "io.BytesIO()"
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, arguments = ast.unparse(node.func), [ast.unparse(argument) for argument in node.args]
        last, target = name.rpartition(".")[2], (arguments or [""])[0].partition(" :=")[0].strip("(")
        if last in ("open", "fdopen"):
            modes = [
                x for x in (*node.args, *(keyword.value for keyword in node.keywords)) if isinstance(x, ast.Constant)
            ]
            if any(re.fullmatch("[rwaxbt+]*[wax+][rwaxbt+]*", str(mode.value)) for mode in modes):
                found.add(name)
        elif last in ("write_text", "write_bytes", "savefig", "savez", "savez_compressed", "tofile") or (
            last == "save" and name.startswith(("np.", "Image."))
        ):
            found |= {name} - {name for _ in [0] if target in memory}
    return found


def test_every_file_is_written_in_one_place():
    """Which writes it beside the old one and then moves it there; a killed process would leave half of another."""
    examples = sorted((ROOT / "examples").rglob("*.py"))
    found = {name_of(path): calls for path in [*FILES, *examples] if (calls := written(path))}
    # Pictures beside an example, which its command draws anew.
    drawn = {f"{name}.savefig" for name in ("draw()", "draw(result)", "draw(cells)")}
    assert {name: calls for name, calls in found.items() if not (name.startswith("examples.") and calls <= drawn)} == {
        "runtime.files": {"partial.write_bytes"},
        "runtime.checkpointing": {"(partial / DIGESTS).open"},  # in a folder that is moved
        "runtime.metric_writing": {"path.open", "(folder / f'events.out.tfevents.{time.time_ns()}').open"},  # appended
        "runtime.run_folder": {"(workdir / 'lock').open"},
        "tools.show_batch": {"figure.savefig"},  # to be looked at
    }


def test_the_front_of_the_house_can_be_taken_in_at_a_glance():
    assert len(list(ROOT.glob("*.py"))) <= 11
    source = (ROOT / "train.py").read_text()
    assert len(source.splitlines()) <= 355
    assert len(imports(ROOT / "train.py")) <= 15
    [function] = [node for node in ast.parse(source).body if getattr(node, "name", "") == "train_and_evaluate"]
    [loop] = [node for node in ast.walk(function) if isinstance(node, ast.While)]
    assert loop.lineno - function.body[1].lineno <= 30  # the set-up, after the docstring
    core = ("main.py", "train.py", "train_state.py", "evaluation.py")
    assert sum(len((ROOT / name).read_text().splitlines()) for name in core) <= 970


def test_no_file_is_too_long_to_read():
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in files.stdout.splitlines():
        limit = 400 if name in ("averaging.py", "models.py") else 360
        path = ROOT / name
        assert not path.exists() or len(path.read_text().splitlines()) <= limit, name
