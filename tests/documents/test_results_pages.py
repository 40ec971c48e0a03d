"""What the pages of forks whose variants `examples.results.main` trains say is what is stored beside them."""

import json
import re

import numpy as np
import pytest
from conftest import ROOT

from examples.anchor import anchors
from examples.byol import targets as byol
from examples.dqn import targets as dqn
from examples.finetune import rates, transfer
from examples.mean_teacher import teachers
from examples.td3 import targets as td3

FEW_LABELS = json.loads((ROOT / "benchmarks" / "results" / "few_labels.json").read_text())
CLEANRL = json.loads((ROOT / "benchmarks" / "results" / "dqn_cleanrl.json").read_text())
PAGES = {
    page.__name__: (page, json.loads((page.FOLDER / f"{page.__name__.rpartition('.')[2]}.json").read_text()))
    for page in (anchors, byol, dqn, teachers, td3, transfer)
}
NUMBER = r"[+-]?\d+(?:\.\d+)?"
INTERVAL = rf"{NUMBER} \({NUMBER} \.\. {NUMBER}\)"


def text_of(page):
    return (page.FOLDER / "README.md").read_text()


def tables_of_numbers(result):
    if isinstance(result, dict):
        return [shape for value in result.values() for shape in tables_of_numbers(value)]
    return [np.shape(result)] if np.ndim(result) == 2 else []


@pytest.mark.parametrize(("page", "result"), PAGES.values(), ids=PAGES)
def test_what_is_stored_has_every_variant_with_every_seed_and_evaluation(page, result):
    assert [*result["variants"]] == [*page.VARIANTS]
    shapes = {name: {*tables_of_numbers(variant)} for name, variant in result["variants"].items()}
    [[shape]] = {tuple(found) for found in shapes.values()}
    assert shape == (page.NUM_SEEDS, len(result.get("steps", range(20))))
    assert re.fullmatch("[0-9a-f]{40}", result["environment"]["commit"])  # of a working tree without changes


@pytest.mark.parametrize(("page", "result"), PAGES.values(), ids=PAGES)
def test_what_the_text_says_is_what_is_stored(page, result):
    table, findings, text = page.table(result), page.findings(result), text_of(page)
    assert table in text
    assert "\n".join(f"    {line}" for line in findings.splitlines()) in text
    rows = [row for row in FEW_LABELS["rows"] + CLEANRL["summary"] if "low" in row]
    others = {
        f"{row['mean']:{sign}.1f} ({row['low']:{sign}.1f} .. {row['high']:{sign}.1f})"
        for row in rows
        for sign in ("", "+")
    }
    assert {*re.findall(INTERVAL, re.sub(r"\s+", " ", text))} <= {*re.findall(INTERVAL, table + findings), *others}


def test_what_the_text_says_of_pytorch_is_what_is_stored():
    rows = {(row["duration"], row["what"]): row for row in FEW_LABELS["rows"]}
    text = re.sub(r"\s+", " ", text_of(teachers))
    for what, sign, unit in (("here", "", " %"), ("PyTorch", "", " %"), ("difference", "+", "")):
        row = rows[teachers.DURATION, what]
        low_to_high = "{} ({} .. {})".format(*(f"{row[name]:{sign}.1f}" for name in ("mean", "low", "high")))
        assert f"{low_to_high}{unit}" in text
    apart = np.subtract(*FEW_LABELS["accuracy"]["10 steps"].values())
    assert f"differ by at most {np.abs(apart).max():.2f} points" in text


def test_each_way_to_fine_tune_has_the_rate_that_was_best_for_it_on_other_images():
    result = json.loads((rates.FOLDER / "rates.json").read_text())
    assert [*result["variants"]] == [*rates.VARIANTS]
    assert rates.table(result) in text_of(transfer)
    best = dict(line.rsplit(": ", 1) for line in rates.findings(result).splitlines())
    assert {variant: float(rate) for variant, rate in best.items()} == {
        ", ".join(variant): rate for variant, rate in transfer.RATES.items()
    }


def test_what_the_text_says_of_q_learning_is_what_is_stored():
    text, result = text_of(dqn), PAGES[dqn.__name__][1]
    assert all(0 <= value <= 500 for variant in result["variants"].values() for value in np.ravel(variant["returns"]))
    [average] = (row for row in CLEANRL["summary"] if row["curve"] == "raw")
    assert "the mean return of three seeds is {mean:.1f} ({low:.1f} .. {high:.1f})".format(**average) in text
    returns = sorted(line["return"] for seed in CLEANRL["seeds"] for line in seed["metrics"] if line["curve"] == "raw")
    assert returns[1] == 500
    assert {round(seed["train_seconds"]) for seed in CLEANRL["seeds"]} == {19}
    table, quoted = dqn.table(result), r"\d+ of the 30"
    assert {*re.findall(quoted, text)} <= {*re.findall(quoted, table + dqn.findings(result)), "28 of the 30"}
    assert "| 28 |" in table.splitlines()[2]
