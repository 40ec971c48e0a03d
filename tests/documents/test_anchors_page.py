"""What examples/anchor/README.md says is what is stored, and docs/history.md names what runs."""

import importlib
import json
import re

import numpy as np
from conftest import ROOT

import averaging
from examples.anchor import anchors

STORED = anchors.FOLDER / "anchors.json"
TEXT = (anchors.FOLDER / "README.md").read_text()


def test_what_is_stored_has_every_variant_with_every_seed():
    result = json.loads(STORED.read_text())
    assert [*result["variants"]] == [*anchors.VARIANTS]
    for variant in result["variants"].values():
        assert all(np.shape(variant[metric]) == (anchors.NUM_SEEDS, 30) for metric in anchors.METRICS)
    assert re.fullmatch("[0-9a-f]{40}", result["environment"]["commit"])  # of a working tree without changes


def test_what_the_text_says_of_anchors_is_what_is_stored():
    result = json.loads(STORED.read_text())
    table, findings = anchors.table(result), anchors.findings(result)
    assert table in TEXT
    assert "\n".join(f"    {line}" for line in findings.splitlines()) in TEXT
    quoted = r"[+-]\d+\.\d+ \([+-]\d+\.\d+ \.\. [+-]\d+\.\d+\)"
    results = TEXT[TEXT.index("## Results") :]
    assert {*re.findall(quoted, results)} <= {*re.findall(quoted, table + findings)}


def test_every_kind_in_the_history_is_one_that_the_config_beside_it_has():
    rows = re.findall(r"^\| .* \| ([^|]*) \| `([\w/]+)\.py` \|$", (ROOT / "docs" / "history.md").read_text(), re.M)
    assert len(rows) == 9
    for kinds, config in rows:
        names = [name for name in re.findall(r"`(\w+)`", kinds) if name in averaging.SCHEDULES]
        averages = importlib.import_module(config.replace("/", ".")).get_config().averages
        assert names
        assert {*names} <= {average.kind for average in averages.values()}
