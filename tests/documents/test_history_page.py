"""What docs/history.md names is what the configs beside it have."""

import importlib
import re

from conftest import ROOT

import averaging


def test_every_kind_in_the_history_is_one_that_the_config_beside_it_has():
    rows = re.findall(r"^\| .* \| ([^|]*) \| `([\w/]+)\.py` \|$", (ROOT / "docs" / "history.md").read_text(), re.M)
    assert len(rows) == 9
    for kinds, config in rows:
        names = [name for name in re.findall(r"`(\w+)`", kinds) if name in averaging.SCHEDULES]
        averages = importlib.import_module(config.replace("/", ".")).get_config().averages
        assert names
        assert {*names} <= {average.kind for average in averages.values()}
