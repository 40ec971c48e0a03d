import dataclasses
import re

from made_runs import make_run

from reporting import runs, tables
from reporting.page import write
from reporting.runs import Run

METRICS = {
    "raw": {"accuracy": 0.75, "loss": 0.5, "calibration_error": 0.1},
    "ema": {"accuracy": 0.8, "loss": None, "calibration_error": 0.05},
    "ema-raw": {"accuracy": 0.05, "accuracy_low": 0.01, "accuracy_high": 0.09, "agreement": 0.9},
}


def test_the_table_shows_each_curve_and_its_paired_difference_in_points():
    header, raw, ema = tables.of_evaluation(METRICS, {}).splitlines()
    assert "minus raw (95 % interval)" in header
    assert raw.split() == ["raw", "75.00%", "0.5", "10.00%"]
    assert ema.split() == ["ema", "80.00%", "+5.00", "(+1.00", "..", "+9.00)", "points", "-", "5.00%", "90.00%"]


def test_without_accuracy_the_table_has_the_loss_and_its_difference():
    metrics = {
        "raw": {"loss": 0.5},
        "ema": {"loss": 0.25},
        "ema-raw": {"loss": -0.25, "loss_low": -0.5, "loss_high": 0.1},
    }
    header, _, ema = tables.of_evaluation(metrics, {}).splitlines()
    assert "accuracy" not in header
    assert ema.split() == ["ema", "0.25", "-0.25", "(-0.5", "..", "+0.1)", "loss"]


def test_runs_judged_by_different_metrics_name_theirs(tmp_path):
    found = []
    for metric, size in (("accuracy", " points of accuracy"), ("loss", " loss")):
        run = make_run(tmp_path / metric)
        run = dataclasses.replace(run, config=run.config | {"best_metric": metric})
        found.append((run, metric, size))
    groups, _ = runs.group([run for run, *_ in found])
    header, *lines = tables.cells(tables.to_rows(groups), tables.scoring_of(groups))
    for group, (_, metric, size) in zip(groups, found, strict=True):
        cells = dict(zip(header, next(line for line in lines if line[:2] == [group.name, "ema"]), strict=True))
        assert cells["minus raw (95 % interval)"].endswith(size)
        assert f" {metric} (" in cells["best (step)"]


def test_a_difference_on_a_single_image_is_shown_without_an_interval(tmp_path):
    run = make_run(tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text(re.sub(r'("(accuracy|loss)_(low|high)"): [\d.-]+', r"\1: null", metrics.read_text()))
    (group,), _ = runs.group([Run.read(run.workdir)])
    row = group.rows()[1]
    size = f"{100 * row['accuracy_difference']:+.2f} points"
    assert tables.cells(group.rows(), group.scoring)[2][2] == size
    assert group.scoring.verdict(row) == f"{row['curve']} minus raw: {size} of accuracy, of a single image."
    write(run.workdir)


def test_a_difference_that_is_not_finite_is_a_dash_and_no_claim(tmp_path):
    run = make_run(tmp_path / "run")
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    (tmp_path / "run" / "metrics.jsonl").write_text(
        re.sub(r'("(accuracy|loss|learning_rate)(_low|_high)?"): [\d.-]+', r"\1: null", text)
    )
    (group,), _ = runs.group([Run.read(run.workdir)])
    row = group.rows()[1]
    assert (row["accuracy"], row["accuracy_difference"]) == (None, None)
    assert "not all scores are finite" in group.scoring.verdict(row)
    assert tables.cells(group.rows(), group.scoring)[2][1:3] == ["-", "-"]
    write(run.workdir)


def test_the_headline_says_what_came_out_and_no_more(tmp_path):
    accuracies = ((0.5, 0.6), (0.7, 0.8), (0.6, 0.7))
    (alone,), _ = runs.group([make_run(tmp_path / "a", accuracies=accuracies, steps=(10, 20, 30))])
    first, best = tables.headline([alone])
    assert first == (
        "After 30 steps, the average ema has 70.00% accuracy on the test images and the raw weights 60.00%."
    )
    assert best == (
        "At its best evaluation, step 20, ema had 80.00%: what stopping there would have given, if the test images "
        "that chose it did not flatter it."
    )
    seeds = [make_run(tmp_path / f"s{seed}", seed=seed) for seed in (0, 1)]
    (pooled,), _ = runs.group(seeds)
    (only,) = tables.headline([pooled])
    assert only.endswith("the raw weights 70.00% ± 0.00% (mean ± sd of 2 seeds).")
    worse = make_run(tmp_path / "b", config={"batch_size": 3}, accuracies=((0.1, 0.2), (0.2, 0.3)))
    groups, _ = runs.group([*seeds, worse])
    (compared,) = tables.headline(groups)
    assert compared.startswith("Of 2 configs, batch_size=none (2 seeds) ends best, with 80.00% ± 0.00% accuracy of ema")
    assert "batch_size=3 worst, with 30.00% accuracy. Whether that is more than chance" in compared
    broken = make_run(tmp_path / "c", accuracies=((0.5, 0.6), (0.7, 0.8)))
    lines = [line | ({"accuracy": None} if line["step"] == 20 and "accuracy" in line else {}) for line in broken.lines]
    (nothing,), _ = runs.group([Run(broken.workdir, lines, [], broken.config, {}, broken.averages)])
    assert tables.headline([nothing])[0].startswith(
        "After 20 steps, the average ema has no finite accuracy on the test"
    )
