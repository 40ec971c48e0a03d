"""The code of docs/python.md does what the page says, from top to bottom."""

import importlib.util
import json

import pytest
from conftest import ROOT, read_metrics
from document import blocks

import input_pipeline


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {}
    for code in blocks(ROOT / "docs" / "python.md", "python"):
        if "pandas" not in code:
            exec(code, found)
        elif importlib.util.find_spec("pandas"):
            exec(code, found)
            accuracies = {line["step"]: line["accuracy"] for line in read_metrics("runs/python", "ema")}
            assert found["table"]["ema"].dropna().to_dict() == accuracies
    assert (tmp_path / "runs/python/report.html").exists()
    assert "2 seeds" in found["text"]
    label = input_pipeline.find_source("digits").load("test").label
    scores = json.loads((tmp_path / "exported/weights.json").read_text())["scores"]
    assert (found["probabilities"].argmax(axis=1) == label).mean() == scores["ema"]["accuracy"]
    assert found["first"] in "0123456789"
