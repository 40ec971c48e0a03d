"""The code of docs/tracking.md does what the page says."""

import pytest
from conftest import ROOT, digits_config, read_metrics
from document import blocks

import train
from reporting import runs


@pytest.mark.slow
def test_the_code_of_the_page_about_tracking_does_what_the_page_says(tmp_path, capsys):
    own, called = blocks(ROOT / "docs" / "tracking.md", "python")
    names = {"config": digits_config(), "workdir": tmp_path, "train": train}
    exec(own + called.replace(", trackers.to_wandb", ""), names)
    scores = [f"{tmp_path.name} {line['step']} {line['accuracy']}" for line in read_metrics(tmp_path, "ema")]
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith(tmp_path.name)] == scores
    names["to_console"](tmp_path, iter(runs.read_metrics(tmp_path)))
    assert capsys.readouterr().out.splitlines() == scores
