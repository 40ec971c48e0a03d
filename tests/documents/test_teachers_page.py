"""What examples/mean_teacher/README.md says is what is stored."""

import json
import re

import numpy as np

from examples.mean_teacher import teachers

STORED = teachers.FOLDER / "teachers.json"
TEXT = (teachers.FOLDER / "README.md").read_text()


def test_what_is_stored_has_every_variant_with_every_seed():
    result = json.loads(STORED.read_text())
    assert [*result["variants"]] == [*teachers.VARIANTS]
    for variant in result["variants"].values():
        assert all(np.shape(variant[curve]) == (teachers.NUM_SEEDS, 10) for curve in teachers.CURVES)
    assert re.fullmatch("[0-9a-f]{40}", result["environment"]["commit"])  # of a working tree without changes


def test_what_the_text_says_of_teachers_is_what_is_stored():
    result = json.loads(STORED.read_text())
    table, findings = teachers.table(result), teachers.findings(result)
    assert table in TEXT
    assert "\n".join(f"    {line}" for line in findings.splitlines()) in TEXT
    quoted = r"[+-]\d+\.\d \([+-]\d+\.\d \.\. [+-]\d+\.\d\)"
    results = TEXT[TEXT.index("## Results") :]
    assert {*re.findall(quoted, results)} <= {*re.findall(quoted, table + findings)}


def test_what_the_text_says_of_pytorch_is_what_is_stored():
    result = json.loads((teachers.FOLDER.parents[1] / "benchmarks" / "results" / "few_labels.json").read_text())
    rows = {(row["duration"], row["what"]): row for row in result["rows"]}
    text = re.sub(r"\s+", " ", TEXT)
    for what, sign, unit in (("here", "", " %"), ("PyTorch", "", " %"), ("difference", "+", "")):
        row = rows[teachers.DURATION, what]
        low_to_high = "{} ({} .. {})".format(*(f"{row[name]:{sign}.1f}" for name in ("mean", "low", "high")))
        assert f"{low_to_high}{unit}" in text
    apart = np.subtract(*result["accuracy"]["10 steps"].values())
    assert f"differ by at most {np.abs(apart).max():.2f} points" in text
