import csv
import dataclasses
import html
import io
import json
import math
import re
import sys

import pytest
from made_runs import make_run

from reporting import runs
from reporting.against import compare
from reporting.runs import Run
from reporting.scores import FEW_SEEDS
from runtime.errors import UserError
from tools import report

ADAMW = {"optimizer": {"name": "adamw"}}
# The 97.5 % quantile of Student's t, by the number of seeds; for two degrees of freedom, in closed form.
STUDENT = {3: 0.95 / math.sqrt(2 * 0.975 * 0.025), 5: 2.7764451051977934}


def make_runs(folder, name, by_seed, **more) -> list[Run]:
    """A run for each seed, with these accuracies of (raw, ema) at its end."""
    return [
        make_run(folder / f"{name}{seed}", seed=seed, accuracies=((0.5, 0.5), last), **more)
        for seed, last in by_seed.items()
    ]


def against(runs_, others):
    return compare(runs.group(runs_)[0], runs.group(others)[0])


def with_lines(run, config=(), **curves) -> Run:
    """The run with only these lines in its last evaluation."""
    lines = [{"step": 20, "curve": curve, "split": "test", **values} for curve, values in curves.items()]
    return dataclasses.replace(run, lines=lines, config={**run.config, **dict(config)})


def by_hand(values):
    """The mean of values, and its interval by Student's t."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half_width = STUDENT[len(values)] * math.sqrt(variance / len(values))
    return [mean, mean - half_width, mean + half_width]


def test_the_difference_is_that_of_runs_with_the_same_seed_and_the_others_are_named(tmp_path):
    mine = {7: (0.1, 0.1), 0: (0.70, 0.80), 1: (0.72, 0.81), 2: (0.75, 0.86)}
    others = {2: (0.71, 0.79), 1: (0.65, 0.79), 0: (0.60, 0.71), 8: (0.9, 0.9)}  # in another order
    found = against(make_runs(tmp_path, "a", mine), make_runs(tmp_path, "b", others, config=ADAMW))
    assert [(row["curve"], row["against_curve"], row["seeds"]) for row in found.rows] == [
        ("raw", "raw", 3), ("ema", "ema", 3)
    ]  # fmt: skip
    for number, row in enumerate(found.rows):
        apart = [mine[seed][number] - others[seed][number] for seed in range(3)]
        for metric, sign in (("accuracy", 1), ("loss", -1)):  # the loss is 1 - accuracy
            expected = by_hand([sign * value for value in apart])
            assert [row[f"{metric}_{what}"] for what in ("difference", "low", "high")] == pytest.approx(
                expected, abs=1e-12
            )
    [lone] = [remark for remark in found.remarks if "left out" in remark]
    assert lone.endswith(f"has the seed: {tmp_path / 'a7'} (seed 7), {tmp_path / 'b8'} (seed 8).")
    [few] = [remark for remark in found.remarks if "are few" in remark]
    assert few.startswith(f"{found.title}: 3 seeds are few.")


@pytest.mark.parametrize("few", [True, False])
def test_few_seeds_are_remarked_and_enough_are_not(tmp_path, few):
    by_seed = {seed: (0.5, 0.6 + seed / 100) for seed in range(FEW_SEEDS - few)}
    found = against(make_runs(tmp_path, "a", by_seed), make_runs(tmp_path, "b", by_seed, config=ADAMW))
    assert [f"{FEW_SEEDS - 1} seeds are few" in remark for remark in found.remarks] == [True] * few


@pytest.mark.parametrize(
    ("metrics", "shift", "claim"),
    [
        ({"margin": "higher"}, 0.5, "scores better than"),
        ({"margin": "higher"}, -0.5, "scores worse than"),
        ({"margin": "higher"}, 0.0, "cannot be told from"),
        ({"margin": "lower"}, -0.5, "scores better than"),
        ({"margin": "lower"}, 0.5, "scores worse than"),
        ({"loss": "lower"}, 0.5, "differs from"),  # of which it is not known what is better
    ],
)
def test_the_verdict_follows_the_first_metric_of_the_runs_own_task(tmp_path, metrics, shift, claim):
    config = {"best_metric": "margin"} | {f"metrics.{name}": way for name, way in metrics.items()}
    noise = [0.01, -0.01, 0.03, -0.02, 0.01]
    sides = []
    for name, extra in (("a", shift), ("b", 0.0)):
        made = make_runs(tmp_path, name, dict.fromkeys(range(5), (0.5, 0.5)), config={"name": name})
        sides.append(
            [
                with_lines(run, config, raw={"loss": 1.0, "margin": 2 + extra + extra_noise * (name == "a")})
                for run, extra_noise in zip(made, noise, strict=True)
            ]
        )
    found = against(*sides)
    mean, low, high = by_hand([shift + extra for extra in noise])
    less = " (less is better)" if metrics.get("margin") == "lower" else ""
    a, b = (f"raw of {tmp_path / name}0 (5 seeds)" for name in "ab")
    assert found.verdicts() == [
        f"{a} {claim} {b}: {mean:+.3g} ({low:+.3g} .. {high:+.3g}) in margin{less}, 95 % interval over 5 seeds, "
        "paired by seed."
    ]


def test_where_the_sides_disagree_on_what_is_better_nothing_is_called_better(tmp_path):
    sides = [
        [
            with_lines(run, {"metrics.margin": way}, raw={"margin": value + run.config["seed"] / 100})
            for run in make_runs(tmp_path, name, dict.fromkeys(range(5), (0.5, 0.5)))
        ]
        for name, way, value in (("a", "higher", 2.0), ("b", "lower", 1.0))
    ]
    assert against(*sides).verdicts()[0].startswith(f"raw of {tmp_path}/a0 (5 seeds) differs from")


def test_one_pair_gives_a_difference_without_an_interval_and_no_claim(tmp_path):
    found = against(make_runs(tmp_path, "a", {3: (0.7, 0.8)}), make_runs(tmp_path, "b", {3: (0.6, 0.75)}, config=ADAMW))
    a, b = tmp_path / "a3", tmp_path / "b3"
    assert found.verdicts() == [
        f"raw of {a} minus raw of {b}: +10.00 points of accuracy, of a single seed.",
        f"ema of {a} minus ema of {b}: +5.00 points of accuracy, of a single seed.",
    ]
    assert found.cells()[1] == ["raw", "1", "+10.00 points", "-0.1"]
    assert (found.rows[0]["accuracy_low"], found.rows[0]["accuracy_high"], found.remarks) == (None, None, [])


def test_an_average_that_the_other_side_lacks_is_compared_with_raw_weights_and_metrics_are_those_of_both(tmp_path):
    by_seed = {0: (0.5, 0.5)}
    [mine], [other] = make_runs(tmp_path, "a", by_seed), make_runs(tmp_path, "b", by_seed, config=ADAMW)
    mine = with_lines(mine, raw={"accuracy": 0.5, "top5": 0.9}, ema={"accuracy": 0.75, "top5": 0.9, "loss": 1.0})
    other = with_lines(other, raw={"accuracy": 0.25, "loss": 3.0}, slow={"accuracy": 0.5, "loss": 1.0})
    found = against([mine], [other])
    assert [(row["curve"], row["against_curve"]) for row in found.rows] == [("raw", "raw"), ("ema", "raw")]
    assert found.cells() == [
        ["weights", "seeds", "accuracy", "loss"],
        ["raw", "1", "+25.00 points", ""],
        ["ema against raw", "1", "+50.00 points", "-2"],
    ]
    assert f"ema of {mine.workdir} minus raw of {other.workdir}: +50.00" in found.verdicts()[1]
    assert found.remarks == [
        f"{mine.workdir} against {other.workdir}: slow of {other.workdir} is compared with nothing."
    ]


def test_scores_that_are_not_finite_are_a_dash_and_no_claim(tmp_path):
    by_seed = dict.fromkeys(range(3), (0.5, 0.5))
    sides = [
        [with_lines(run, raw={"accuracy": 0.5 + number / 9, "loss": 1.0}) for run in made]
        for number, made in enumerate(make_runs(tmp_path, name, by_seed, config={"name": name}) for name in "ab")
    ]
    sides[1][1] = with_lines(sides[1][1], raw={"accuracy": 0.1, "loss": None})  # has diverged
    found = against(*sides)
    assert found.cells()[1][3] == "-"
    assert found.rows[0]["loss_difference"] is None
    [verdict] = found.verdicts()
    assert "not all scores are finite" in verdict
    assert "better" not in verdict


@pytest.mark.parametrize(
    ("field", "config", "said"),
    [
        ("dataset", {"dataset": "mnist"}, "dataset (None and mnist)"),
        ("splits", {"splits": ["a", "b"]}, "splits (None and ['a', 'b'])"),
        ("duration", {"duration": 40}, "duration (20 and 40)"),
        ("task", {"task": "regression"}, "task (None and regression)"),
        ("step", {}, "last step (20 and 15)"),
        ("images", {}, "scored images (test and validation)"),
    ],
)
def test_what_else_may_explain_a_difference_is_said(tmp_path, field, config, said):
    last = {0: (0.6, 0.7)}
    steps = (10, 15) if field == "step" else (10, 20)
    mine, others = make_runs(tmp_path, "a", last), make_runs(tmp_path, "b", last, config=config, steps=steps)
    if field == "images":
        lines = [line | {"split": "validation"} if "split" in line else line for line in others[0].lines]
        others = [dataclasses.replace(others[0], lines=lines)]
    assert against(mine, others).remarks == [
        f"{tmp_path}/a0 against {tmp_path}/b0: they differ in {said}, which may explain a difference."
    ]
    assert against(mine, make_runs(tmp_path, "c", last, config=ADAMW)).remarks == []


def test_each_of_several_configs_is_compared_and_one_without_a_pair_is_named(tmp_path):
    mine = [
        *make_runs(tmp_path, "a", {0: (0.6, 0.7)}),
        *make_runs(tmp_path, "b", {0: (0.5, 0.6)}, config={"batch_size": 2}),
        *make_runs(tmp_path, "c", {1: (0.5, 0.6)}, config={"batch_size": 3}),
    ]
    found = against(mine, make_runs(tmp_path, "other", {0: (0.5, 0.5)}, config=ADAMW))
    assert [row[:3] for row in found.cells()] == [
        ["run", "weights", "seeds"],
        *([run, curve, "1"] for run in ("batch_size=none", "batch_size=2") for curve in ("raw", "ema")),
    ]
    assert found.remarks == [
        f"batch_size=3 against {tmp_path}/other0: left out, since no run of the other side has the seed: "
        f"{tmp_path}/c1 (seed 1), {tmp_path}/other0 (seed 0)."
    ]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"b0": (0, ADAMW), "c0": (0, {})}, r"nothing but the seed; these differ in optimizer.name \('adamw', 'sgd'\)"),
        ({"b1": (1, ADAMW), "b2": (2, ADAMW)}, r"no two runs have the same seed.*a0 has 0; .*b1 \(2 seeds\) has 1, 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, others, message):
    made = [make_run(tmp_path / name, seed=seed, config=config) for name, (seed, config) in others.items()]
    with pytest.raises(UserError, match=message):
        against([make_run(tmp_path / "a0")], made)


def test_runs_without_a_metric_in_common_are_refused(tmp_path):
    mine, other = make_run(tmp_path / "a"), make_run(tmp_path / "b", config=ADAMW)
    with pytest.raises(UserError, match=f"{other.workdir}: has no metric of {mine.workdir}"):
        against([with_lines(mine, raw={"accuracy": 0.5})], [with_lines(other, raw={"loss": 0.5})])


def command(monkeypatch, capsys, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    report.main()
    return capsys.readouterr().out


def test_every_format_and_the_page_have_the_differences(tmp_path, monkeypatch, capsys):
    mine = make_runs(tmp_path, "a", {0: (0.70, 0.80), 1: (0.72, 0.81), 2: (0.75, 0.86)})
    others = make_runs(tmp_path, "b", {0: (0.60, 0.71), 1: (0.65, 0.79), 2: (0.71, 0.79)}, config=ADAMW)
    first, second = runs.labelled([*runs.group(mine)[0], *runs.group(others)[0]])
    found = compare([first], [second])
    workdirs = [*(run.workdir for run in mine), "--against", *(run.workdir for run in others)]
    shown = {
        kind: command(monkeypatch, capsys, *workdirs, f"--format={kind}", f"--out={tmp_path / 'out'}")
        for kind in ("table", "markdown", "csv", "json", "html")
    }
    as_json = json.loads(shown["json"])
    assert as_json["against"] == found.rows
    assert len(as_json["rows"]) == 4  # the ordinary ones of both sides
    assert set(found.remarks) < set(as_json["remarks"])
    as_csv = list(csv.DictReader(io.StringIO(shown["csv"])))
    assert [{name: str(value) for name, value in row.items()} for row in found.rows] == as_csv

    page = (tmp_path / "out" / "report.html").read_text()
    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page)))
    for part in (*found.verdicts(), *found.remarks, *(cell for row in found.cells() for cell in row)):
        for kind in ("table", "markdown", "html"):
            assert part in shown[kind]
        assert part in text
    assert f"<h2>{found.title}</h2>" in page
    assert f'data-label="accuracy">{found.cells()[1][2]}</td>' in page  # cards of a phone
    assert f"tools.report {' '.join(map(str, workdirs))}" in text  # which makes this page again
    for group in (*found.groups, found.other):
        assert f"{group.name}, step 20, test images" in text


def test_a_run_against_itself_is_refused(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "a")
    with pytest.raises(SystemExit, match=f"--against: {tmp_path / 'a'} cannot be compared with itself"):
        command(monkeypatch, capsys, tmp_path / "a", "--against", tmp_path / "." / "a")
