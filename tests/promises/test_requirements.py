"""requirements*.txt name ranges, constraints.txt the versions that were tested."""

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow  # not for their time: a fork that changes versions shall not have to change tests


def lines(file: str) -> list[str]:
    return (ROOT / file).read_text().splitlines()


def entries(file: str) -> list[Requirement]:
    return [Requirement(line) for line in lines(file) if line and line[0] not in "#-"]


def test_every_requirement_is_a_range_around_the_version_that_is_pinned_for_it():
    pins = {canonicalize_name(pin.name): list(pin.specifier) for pin in entries("constraints.txt")}
    assert {pin.operator for [pin] in pins.values()} == {"=="}
    for file in sorted(ROOT.glob("requirements*.txt")):
        for requirement in entries(file.name):
            assert {bound.operator for bound in requirement.specifier} == {">=", "<"}, requirement
            [pin] = pins[canonicalize_name(requirement.name)]
            assert pin.version in requirement.specifier, requirement


def test_what_is_installed_by_default_are_the_pinned_versions():
    assert "-c constraints.txt" in lines("requirements.txt")
    for file in ("requirements-dev.txt", "requirements-benchmarks.txt"):
        assert "-r requirements.txt" in lines(file)
