"""The map of the code says how much there is to read, and it is true.

    python tests/documents/test_code_map.py

writes the present line counts into docs/code.md.
"""

import ast
import pathlib
import re

import pytest

pytestmark = pytest.mark.slow  # a fork's files may be as long as it likes

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "code.md"
TO_READ = ("Yours to edit", "Read once, in this order")


def num_lines(file: str) -> int:
    return len((ROOT / file).read_text().splitlines())


def files(text: str, *headings: str) -> list[str]:
    """The files in the tables under these headings, or in all tables that count lines."""
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    return [
        file
        for heading in headings or sections
        for file in re.findall(r"^\| `([\w/.]+)` \| \d+ \|", sections[heading], re.MULTILINE)
    ]


def with_true_counts(text: str) -> str:
    text = re.sub(r"^\| `([\w/.]+)` \| \d+ \|", lambda row: f"| `{row[1]}` | {num_lines(row[1])} |", text, flags=re.M)
    return re.sub(r"[\d,]+ lines\.$", f"{sum(map(num_lines, files(text, *TO_READ))):,} lines.", text, flags=re.M)


def test_every_line_count_is_that_of_the_file():
    """The difference shows the right numbers."""
    page = PAGE.read_text()
    true = with_true_counts(page)
    assert page.splitlines() == true.splitlines()
    assert f" {sum(num_lines(file) for file in files(page, *TO_READ)):,} lines." in page


def test_what_is_to_be_read_has_at_most_2300_lines():
    assert sum(num_lines(file) for file in files(PAGE.read_text(), *TO_READ)) <= 2300


def test_the_loop_reads_in_one_sitting():
    assert sum(map(num_lines, ("main.py", "train.py", "train_state.py", "evaluation.py"))) <= 970
    assert num_lines("train.py") <= 355


def test_every_file_of_the_root_is_in_exactly_one_table():
    assert sorted(files(PAGE.read_text())) == sorted(["configs/default.py", *(f.name for f in ROOT.glob("*.py"))])


def test_imports_run_downwards_as_the_page_says():
    [block] = re.findall(r"^## Imports run downwards\n[^#]*?\n((?:    .*\n)+)", PAGE.read_text(), re.MULTILINE)
    level = {name: number for number, line in enumerate(block.splitlines()) for name in line.strip().split(", ")}
    paths = [*ROOT.glob("*.py"), *(path for name in level for path in (ROOT / name).rglob("*.py"))]
    importers = {path: path.relative_to(ROOT).parts[0].removesuffix(".py") for path in paths}
    assert set(importers.values()) == set(level)
    for path, importer in importers.items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for imported in (name.split(".")[0] for name in names):
                assert imported == importer or level.get(imported, 99) > level[importer], f"{path} imports {imported}"


if __name__ == "__main__":
    PAGE.write_text(with_true_counts(PAGE.read_text()))
