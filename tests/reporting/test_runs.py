import math
import re

import numpy as np
import pytest
from made_runs import make_run

from reporting import curves, page, runs, tables
from reporting.runs import Run
from reporting.scores import Scoring
from runtime.errors import UserError


def test_the_last_evaluation_is_that_of_the_test_set():
    lines = [
        {"step": 1, "curve": "raw", "split": "validation"},
        {"step": 2, "curve": "train"},
        {"step": 2, "curve": "raw", "split": "validation"},
        {"step": 2, "curve": "raw", "split": "test"},
        {"step": 2, "curve": "ema", "split": "test"},
    ]
    assert runs.last_evaluation(lines) == lines[3:]


def test_with_a_validation_set_the_row_is_the_test_sets_and_the_best_is_the_validation_sets(tmp_path):
    validation = [
        {"step": step, "curve": "raw", "split": "validation", "accuracy": accuracy, "loss": 1.0}
        for step, accuracy in ((5, 0.9), (20, 0.2))
    ]
    run = make_run(tmp_path / "run", accuracies=((0.7, 0.8),), steps=(20,))
    lines = [*validation, *run.lines]
    group = runs.Group((Run(run.workdir, lines, run.timing, run.config, run.environment, run.averages),))
    raw = group.rows()[0]
    assert (group.curve_split, group.last_split, raw["accuracy"]) == ("validation", "test", 0.7)
    assert (raw["best"], raw["best_step"]) == (0.9, 5)


def test_runs_that_differ_only_in_the_seed_are_pooled_and_paired_over_the_seeds(tmp_path):
    raw, ema = np.array([0.70, 0.60, 0.65]), np.array([0.78, 0.70, 0.71])
    made = [
        make_run(tmp_path / str(seed), seed=seed, accuracies=((0.9, 0.5), (raw[seed], ema[seed]))) for seed in range(3)
    ]
    groups, remarks = runs.group(made)
    assert [len(group.runs) for group in groups] == [3]
    [few] = remarks
    assert "3 seeds are few" in few
    assert runs.group([made[0]])[1] == []
    of_raw, of_ema = groups[0].rows()
    # By hand: the mean of 8, 10 and 6 points is 8, their standard deviation 2, and Student's t for 2 degrees 4.3027.
    half_width = 4.302653 * 0.02 / np.sqrt(3)
    np.testing.assert_allclose(
        [of_ema[f"accuracy_{what}"] for what in ("difference", "low", "high")],
        [0.08, 0.08 - half_width, 0.08 + half_width],
        atol=1e-6,
    )
    assert (of_ema["over"], of_ema["runs"]) == ("seeds", 3)
    assert of_raw["accuracy"] == pytest.approx(0.65, abs=1e-12)
    assert of_raw["accuracy_sd"] == pytest.approx(0.05, abs=1e-12)
    assert (of_raw["best"], of_raw["best_step"]) == (pytest.approx(0.9, abs=1e-12), 10)
    assert (
        groups[0]
        .scoring.verdict(of_ema)
        .startswith("ema scores better than raw: +8.00 (+3.03 .. +12.97) points of accuracy")
    )


@pytest.mark.parametrize(
    ("low", "high", "of", "claim"),
    [
        (0.01, 0.03, "accuracy", "scores better than raw"),
        (-0.01, 0.03, "accuracy", "cannot be told from raw"),
        (-0.03, -0.01, "accuracy", "scores worse than raw"),
        (-0.03, -0.01, "loss", "scores better than raw"),
        (0.01, 0.03, "loss", "scores worse than raw"),
    ],
)
def test_only_of_several_seeds_it_is_claimed_that_averaging_helps(low, high, of, claim):
    scoring = Scoring(of)
    interval = {f"{of}_difference": (low + high) / 2, f"{of}_low": low, f"{of}_high": high}
    row = {"curve": "ema", "runs": 5, "of": of, "better": scoring.directions[of]} | interval
    assert claim in scoring.verdict(row | {"over": "seeds"})
    of_one_run = scoring.verdict(row | {"over": "images", "runs": 1})
    assert not re.search("scores better|scores worse|cannot", of_one_run)


def test_a_run_of_another_config_is_not_pooled_and_the_page_says_what_differs(tmp_path):
    first = make_run(tmp_path / "a")
    second = make_run(tmp_path / "b", seed=1, config={"optimizer": {"name": "adamw", "b1": 0.9}})
    groups, _ = runs.group([first, second])
    assert [len(group.runs) for group in groups] == [1, 1]
    assert runs.differences(groups) == {"optimizer.b1": [None, 0.9], "optimizer.name": ["sgd", "adamw"]}


def test_what_should_not_be_pooled_without_a_thought_is_said(tmp_path):
    first, repeated = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    (tmp_path / "c").mkdir()
    unfinished = make_run(tmp_path / "c" / "d", seed=1, steps=(5, 10))
    (tmp_path / "c" / "d" / "environment.json").write_text('{"commit": "def"}')
    groups, remarks = runs.group([first, repeated, Run.read(unfinished.workdir)])
    assert [[run.workdir.name for run in group.runs] for group in groups] == [["a", "d"]]
    assert len(remarks) == 5
    assert remarks[0] == f"{repeated.workdir} is left out: it has the config and the seed of {first.workdir}."
    assert "differ in more than the seed: in their commit" in remarks[2]
    assert f"{unfinished.workdir} is not finished: it is at step 10 of 20" in remarks[4]
    assert groups[0].last_step == 10  # the last one that both have


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "environment.json",
        "averages.json",
        "metrics.jsonl",
        "timing.jsonl",
        "diagnosis/numbers.json",
    ],
)
def test_a_damaged_file_is_named(tmp_path, name):
    make_run(tmp_path / "run")
    (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / name).write_text("[]\n")
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'run' / name}")):
        Run.read(tmp_path / "run")


def test_the_best_is_that_of_the_mean_over_the_seeds(tmp_path):
    accuracies = [((0.9, 0.5), (0.6, 0.6)), ((0.2, 0.5), (0.6, 0.6))]
    made = [make_run(tmp_path / str(seed), seed=seed, accuracies=accuracies[seed]) for seed in range(2)]
    (group,), _ = runs.group(made)
    raw = group.rows()[0]
    assert (raw["best"], raw["best_step"]) == (pytest.approx(0.6, abs=1e-12), 20)  # not 0.9 of one, nor 0.55 of both


def test_the_best_loss_is_the_smallest(tmp_path):
    run = make_run(tmp_path / "run")
    lines = [
        {"step": step, "curve": "raw", "split": "test", "loss": loss} for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0))
    ]
    group = runs.Group((Run(run.workdir, lines, [], {}, {}, {}),))
    assert [(row["best"], row["best_step"]) for row in group.rows()] == [(1.0, 2)]


def test_a_curve_that_only_one_run_has_is_left_out_of_what_is_pooled(tmp_path):
    extra = [
        {"step": step, "curve": "new", "split": "test", "accuracy": 0.9, "loss": 0.1, "calibration_error": 0.1}
        for step in (10, 20)
    ]
    made = [make_run(tmp_path / "a", lines=extra), make_run(tmp_path / "b", seed=1)]
    (group,), _ = runs.group(made)
    assert group.names == ["raw", "ema"]
    assert [row["curve"] for row in group.rows()] == ["raw", "ema"]
    assert {line.label for panel in curves.panels([group]) for line in panel.lines} == {"raw", "ema", "train"}


@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.parametrize("best_curve", ["raw", "ema", None])
@pytest.mark.parametrize("num_seeds", [1, 2])
def test_the_last_evaluation_is_that_of_what_is_still_evaluated_wherever_it_is_told(
    tmp_path, split, best_curve, num_seeds
):
    """Of averages that ended before raw weights did, joined later, have no score yet, or could not be made at the end.

    Beside a shorter config.
    """
    curves = {"before": (10, 20), "later": (30,), "ema:half_life=3%": (10, 20), "lawa:last=2": (20, 30)}
    config = {"duration": 30} | ({"best_curve": best_curve} if best_curve else {})

    def made(seed):
        extra = [
            {"step": step, "curve": f"{curve}{end}", "split": "test", "accuracy": 0.99, "loss": 0.01}
            for curve, steps in curves.items() for step in steps for end in ("", "-raw")
        ]  # fmt: skip
        accuracies = ((0.5, 0.9), (0.7, 0.8), (0.6, 0.75))
        run = make_run(
            tmp_path / str(seed), seed=seed, config=config, accuracies=accuracies, steps=(10, 20, 30), lines=extra
        )
        lines = [line | {"split": split} if "split" in line else line for line in run.lines]
        tested = [line for line in run.lines if split != "test" and "split" in line and line["step"] == 30]
        averages = {name: run.averages["ema"] for name in ("ema", "later", "unborn")}
        return Run(run.workdir, [*lines, *tested], run.timing, run.config, run.environment, averages)

    shorter = make_run(tmp_path / "shorter")
    (group, other), _ = runs.group([*map(made, range(num_seeds)), shorter])
    assert (group.last_step, group.last_split, other.last_step) == (30, "test", 20)
    assert group.main_curve == (best_curve or "ema")
    last = [("raw", 0.6), ("ema", 0.75), ("later", 0.99), ("lawa:last=2", 0.99)]
    assert [(row["curve"], pytest.approx(row["accuracy"])) for row in group.rows()] == last
    best = {row["curve"]: (row["best"], row["best_step"], row["best_split"]) for row in group.rows()}
    assert best == {"raw": (0.7, 20, split), "ema": (0.9, 10, split), "later": (0.99, 30, split)} | {
        "lawa:last=2": (0.99, 20, split)
    }
    assert "step 30, test images" in tables.title(group)
    assert [(row["step"], row["curve"]) for row in tables.to_rows([group, other])] == [
        *((30, name) for name, _ in last), (20, "raw"), (20, "ema"),
    ]  # fmt: skip
    assert tables.headline([group])[0].startswith("After 30 steps")
    score = "60.00%" if best_curve == "raw" else "75.00%"
    assert f"worst, with {score}" in tables.headline([group, other])[0]
    steps = {line.label: line.steps.tolist() for line in curves_of(group, "accuracy, %")}
    assert steps == {"raw": [10, 20, 30], "ema": [10, 20, 30]} | {name: [*steps] for name, steps in curves.items()}


def curves_of(group, title):
    """The lines of a panel."""
    return next(panel.lines for panel in curves.panels([group]) if panel.title == title)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("step", [10, 20])
@pytest.mark.parametrize("curve", ["raw", "ema"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_in_one_seed_is_a_dash_and_no_mean_of_the_others(tmp_path, seed, step, curve, value):
    made = []
    for number in range(3):
        accuracies = {10: {"raw": 0.1, "ema": 0.2}, 20: {"raw": 0.7, "ema": 0.8 + number / 100}}
        if number == seed:
            accuracies[step][curve] = value
        values = [tuple(of_step.values()) for of_step in accuracies.values()]
        made.append(make_run(tmp_path / str(number), seed=number, accuracies=values))
    (group,), _ = runs.group(made)
    known = {"raw": 0.7, "ema": 0.81} if step == 10 else {"raw": 0.7, "ema": 0.81} | {curve: None}
    rows = {row["curve"]: row for row in group.rows()}
    apart = None if step == 20 else 0.11
    for name, mean in known.items():
        row = rows[name]
        assert row["accuracy"] == (mean and pytest.approx(mean))
        assert ("accuracy_sd" in row) == ("loss_sd" in row) == (mean is not None)
        best = ({"raw": 0.1, "ema": 0.2}[name], 10) if mean is None else (mean, 20)
        assert (row["best"], row["best_step"]) == (pytest.approx(best[0]), best[1])
        (line,) = [line for line in curves_of(group, "accuracy, %") if line.label == name]
        finite = [name != curve or step != of for of in (10, 20)]
        assert np.isfinite([line.values, *line.band]).tolist() == [finite] * 3
    assert rows["ema"]["accuracy_difference"] == (apart and pytest.approx(apart))
    assert [rows["ema"][f"accuracy_{end}"] is None for end in ("low", "high")] == [apart is None] * 2
    assert rows["ema"]["agreement"] == pytest.approx(0.9)
    assert ("not all scores are finite" in group.scoring.verdict(rows["ema"])) == (apart is None)
    (line,) = curves_of(group, "accuracy minus raw, points")
    assert np.isfinite([line.values, *line.band]).tolist() == [[step != 10, step != 20]] * 3


@pytest.mark.parametrize("has_it", [0, 1])
def test_a_metric_that_only_one_seed_has_at_the_last_step_is_left_out_of_what_is_pooled(tmp_path, has_it):
    """As one of whole sets, where one of the runs ended there and was then made longer."""
    made = [make_run(tmp_path / str(seed), seed=seed) for seed in range(2)]
    path = made[has_it].workdir / "metrics.jsonl"
    path.write_text(path.read_text().replace('"loss":', '"return": 1.0, "loss":'))
    (group,), _ = runs.group([Run.read(run.workdir) for run in made])
    assert [[name for name in row if "return" in name] for row in group.rows()] == [[], []]
    assert [row["accuracy"] for row in group.rows()] == [0.7, 0.8]


def test_an_evaluation_that_is_still_being_written_is_not_the_last(tmp_path):
    run = make_run(tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    for kept, ending in ((lines[:-2], ""), (lines[:-1], ""), (lines[:-1], lines[-1][:9])):
        (tmp_path / "run" / "metrics.jsonl").write_text("".join(kept) + ending)
        (group,), _ = runs.group([Run.read(run.workdir)])
        assert group.last_step == (10 if kept == lines[:-2] else 20)
        assert [row["curve"] for row in group.rows()] == ["raw", "ema"]


def test_a_longer_run_with_a_validation_set_is_shown_at_its_newest_evaluation(tmp_path):
    """The test set was scored at what was the end before."""
    run = make_run(tmp_path / "run")
    validation = [line | {"split": "validation"} for line in run.lines if "split" in line]
    later = [line | {"step": 30} for line in validation if line["step"] == 20]
    tested = [line for line in run.lines if line.get("split") and line["step"] == 20]
    group = runs.Group((Run(run.workdir, [*validation, *tested, *later], [], {}, {}, run.averages),))
    assert (group.last_split, group.last_step) == ("validation", 30)


def test_seeds_that_were_never_evaluated_at_the_same_step_are_refused(tmp_path):
    made = [make_run(tmp_path / str(seed), seed=seed, steps=(10 + seed, 20 + seed)) for seed in range(2)]
    (group,), _ = runs.group(made)
    with pytest.raises(UserError, match="no evaluation at the same step"):
        group.rows()


def test_times_are_those_at_the_end_and_rates_those_of_training(tmp_path):
    made = [make_run(tmp_path / str(seed), seed=seed, config={"batch_size": 8}) for seed in range(2)]
    (tmp_path / "0" / "timing.jsonl").write_text(
        '{"step": 10, "train_seconds": 1.0, "eval_seconds": 9.0}\n'
        '{"step": 20, "train_seconds": 1.0, "eval_seconds": 3.0}\n'
    )
    (group,), _ = runs.group([Run.read(run.workdir) for run in made])
    assert group.times() == {
        "train_seconds": 2.5, "eval_seconds": 2.0, "steps_per_second": 8.0, "images_per_second": 64.0
    }  # fmt: skip


def test_infinities_are_not_finite_and_make_a_page(tmp_path):
    for seed in range(2):
        path = make_run(tmp_path / f"seed{seed}", seed=seed).workdir / "metrics.jsonl"
        path.write_text(re.sub(r'(": )-?\d+\.\d+', r"\1Infinity", path.read_text()))
    assert "not all scores are finite" in page.write(tmp_path / "out", [tmp_path / "seed0", tmp_path / "seed1"])
