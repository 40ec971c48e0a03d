"""What the tests of tools.diagnose share."""

import json
import pathlib
import sys

import pytest

from tools import diagnose

ROUNDING = 2e-6  # of a loss in float32, whose sums go another way for batches of another size


def run_diagnose(*arguments) -> dict:
    """What main does, without a process of its own, and what it stored."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["diagnose", *map(str, arguments)])
        diagnose.main()
    return json.loads((pathlib.Path(arguments[0]) / "diagnosis" / "numbers.json").read_text())


def curve(part, split, name=""):
    [found] = [curve for curve in part["curves"] if (curve["name"], curve["split"]) == (name, split)]
    return found
