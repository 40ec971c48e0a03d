"""The tests and the seeded faults that examples/faults.md names are there."""

import re

import pytest
from conftest import ROOT

PAGE = ROOT / "examples" / "faults.md"


@pytest.mark.slow  # a fork may rename its tests
def test_every_fault_is_ruled_out_by_tests_and_seeded_faults_that_exist():
    seeded = "".join(page.read_text() for page in (ROOT / "tests" / "mutants").glob("*.md"))
    titles = {*re.findall(r"^### (.+)$", seeded, re.MULTILINE)}
    rows = re.findall(r"^\| (?!fault \||---)(.+?) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) >= 20
    for fault, ruled_out in rows:
        tests, faults = re.findall(r"`([\w/.]+)::(\w+)`", ruled_out), re.findall(r'"(.+?)"', ruled_out)
        assert tests or faults, fault
        assert {*faults} <= titles, fault
        for file, name in tests:
            assert f"def {name}(" in (ROOT / file).read_text(), fault
