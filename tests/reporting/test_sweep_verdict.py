import csv
import io
import json
import math
import re
import sys

import numpy as np
import pytest
from made_sweeps import make_sweep
from scipy import stats

from reporting import curves, sweep
from reporting.ranking import behind, interval, numbers, rank
from runtime.errors import UserError
from tools import report

RATES = {"optimizer.learning_rate": ["0.03", "0.1", "0.3"]}


def made(validation, test=None, raw=0.5):
    """The scores of a run by its rate, the same in both splits if no others are given, a little apart by seed."""

    def score(rate, seed):
        value = validation[rate] + 0.001 * ((3 * seed + ord(rate[-1]) * (seed + 1)) % 5)
        judged = test[rate] + 0.001 * seed if test else value
        return {"validation/raw": raw, "validation/ema": value, "test/raw": 0.123, "test/ema": judged}

    return score


def command(monkeypatch, capsys, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    report.main()
    return capsys.readouterr().out


@pytest.mark.slow
def test_the_best_by_validation_wins_and_no_other_test_score_is_anywhere(tmp_path, monkeypatch, capsys):
    validation = {"0.03": 0.8, "0.1": 0.9, "0.3": 0.85}
    test = {"0.03": 0.9511, "0.1": 0.7622, "0.3": 0.6733}  # the other way round
    folder = make_sweep(tmp_path / "lr", RATES, made(validation, test))
    shown = {
        kind: command(monkeypatch, capsys, folder, f"--format={kind}")
        for kind in ("table", "markdown", "csv", "json", "html")
    }
    page = (folder / "report.html").read_text()
    for kind in ("table", "markdown", "html"):
        assert shown[kind].startswith(
            "Of 3 settings, learning_rate=0.1 scored best on the validation images: accuracy of ema 90.20 % "
        )
        assert "On the test images, looked at for it alone: 76.42 % (76.22 .. 76.62)." in shown[kind]
    assert "76.42 % (76.22 .. 76.62)" in page
    rows = list(csv.DictReader(io.StringIO(shown["csv"])))
    assert [row["optimizer.learning_rate"] for row in rows] == ["0.1", "0.3", "0.03"]
    assert float(rows[0]["test"]) == pytest.approx(0.7642, abs=1e-12)
    assert [row["test"] for row in rows[1:]] == ["", ""]
    assert ["test" in row for row in json.loads(shown["json"])["rows"]] == [True, False, False]
    others = ["95.11", "95.31", "67.33", "67.53", "0.951", "0.953", "0.673", "0.675", "12.3", "0.123"]
    for text in (*shown.values(), page):
        assert not [number for number in others if number in re.sub(r'<svg.*?</svg>|"(M|L) .*?"', "", text, flags=re.S)]


def test_on_test_images_it_chooses_only_if_asked_and_says_that_this_flatters(tmp_path):
    def score(rate, seed):
        return {"test/raw": 0.5, "test/ema": {"0.03": 0.8, "0.1": 0.9, "0.3": 0.7}[rate] + seed / 100}

    with pytest.raises(UserError, match=r"--config.num_validation=N.*--judge=test chooses on the images that are to"):
        sweep.read(make_sweep(tmp_path / "lr", RATES, score, seeds=2))
    found = sweep.read(make_sweep(tmp_path / "test", RATES, score, seeds=2, judge="test"))
    assert "scored best on the test images" in found.verdict()
    assert "flatters" in found.verdict()
    assert "looked at for it alone" not in found.verdict()


def test_the_numbers_are_those_of_the_formulas(tmp_path):
    """Student's t on paired differences, at 1 - 0.05 / 3 for the three pairs of settings."""
    scores = np.random.default_rng(0).normal([[0.8], [0.9], [0.7]], 0.02, (3, 4))
    rates = RATES["optimizer.learning_rate"]

    def score(rate, seed):
        value = scores[rates.index(rate), seed]
        return {"validation/raw": value / 2, "validation/ema": value, "test/ema": value}

    best, second, third = sweep.read(make_sweep(tmp_path / "lr", RATES, score, seeds=4)).rows
    assert [row["optimizer.learning_rate"] for row in (best, second, third)] == ["0.1", "0.03", "0.3"]
    for row, other in ((second, scores[0]), (third, scores[2])):
        apart = scores[1] - other
        half = stats.t.ppf(1 - 0.05 / 6, 3) * apart.std(ddof=1) / 2
        np.testing.assert_allclose(row["behind"], [apart.mean(), apart.mean() - half, apart.mean() + half], rtol=1e-12)
    half = stats.t.ppf(0.975, 3) * scores[1].std(ddof=1) / 2
    np.testing.assert_allclose(
        best["score"], [scores[1].mean(), scores[1].mean() - half, scores[1].mean() + half], rtol=1e-12
    )
    np.testing.assert_allclose(best["raw"], np.array(best["score"]) / 2, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "seeds"), [(2, 3), (4, 5), (9, 3), (9, 10), (30, 5)])
@pytest.mark.parametrize("kind", ["equal", "unequal", "coarse"])
def test_of_equal_settings_none_is_called_better_more_often_than_once_in_twenty(settings, seeds, kind):
    """1,000 sweeps whose settings have the same mean; seeds have effects in common, and variances may differ.

    The upper end of the rate's 99 % interval (Clopper-Pearson) for 5 % of 1,000 is below 7 %: a rate that is right
    does not fail this, one of 10 % does. The coarse ones are accuracies on 50 images, for which 5 % is not promised.
    """
    random = np.random.default_rng([settings, seeds, len(kind)])
    spread = np.linspace(0.2, 3, settings)[:, None] if kind == "unequal" else 1.0
    claims = 0
    for _ in range(1000):
        scored = random.normal(0, 1, (settings, seeds)) * spread + random.normal(0, 2, seeds)
        if kind == "coarse":
            scored = random.binomial(50, 0.97, (settings, seeds)) / 50
        best = rank(scored)[0]
        claims += any(low > 0 for row, (_, low, _) in enumerate(behind(scored, best)) if row != best)
    assert claims <= stats.binom.ppf(0.999, 1000, 0.05)


def test_a_difference_that_is_there_is_found():
    scored = np.random.default_rng(0).normal([[0.0], [1.0], [0.5]], 0.1, (3, 8))
    assert rank(scored)[0] == 1
    assert behind(scored, 1)[0][1] > 0


def test_what_is_the_same_with_every_seed_is_no_certainty():
    """Three seeds that differ by the same number of images are likely by chance."""
    mean, *bounds = interval(np.array([0.93, 0.95, 0.91]) - np.array([0.92, 0.94, 0.90]))
    assert mean == pytest.approx(0.01)
    assert np.isnan(bounds).all()
    assert np.isnan(interval(np.array([0.5]))[1:]).all()


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (["0.03", "1e-1"], [0.03, 0.1]),
        (["5%", "10%"], [5, 10]),
        (["10 epochs", "1 epoch"], [10, 1]),
        (["5%", "10 epochs"], None),
        (["sgd", "adamw"], None),
        (["(32,)", "(64,)"], None),
        (["0.1", "nan"], None),
        (["0.1", ""], None),
    ],
)
def test_values_have_an_order_where_they_are_numbers_of_one_unit(values, found):
    assert numbers(values) == found


@pytest.mark.parametrize(
    ("field", "scores", "said"),
    [
        ("a.rate", {"0.3": 0.7, "0.1": 0.8, "1": 0.9}, "rate=1 is the highest value tried"),
        ("a.rate", {"0.3": 0.7, "0.1": 0.9, "1": 0.8}, "rate=0.1 is the lowest value tried"),
        ("a.rate", {"0.3": 0.9, "0.1": 0.8, "1": 0.7}, ""),
        ("a.rate", {"0": 0.9, "0.1": 0.8}, ""),  # nothing is below
        ("a.length", {"5%": 0.7, "20%": 0.9}, "length=20% is the highest value tried"),
        ("a.length", {"10 epochs": 0.9, "20 epochs": 0.8}, "length=10 epochs is the lowest value tried"),
        ("a.name", {"sgd": 0.9, "adamw": 0.8}, ""),
        ("a.rate", {"0.3": 0.9}, ""),
    ],
)
def test_a_best_value_at_the_edge_of_its_grid_is_said(tmp_path, field, scores, said):
    remarks = sweep.read(make_sweep(tmp_path / "a", {field: list(scores)}, made(scores))).remarks()
    edges = [remark for remark in remarks if "value tried" in remark]
    assert len(edges) == bool(said)
    assert not said or edges[0].startswith(said)


def test_of_a_metric_of_which_less_is_better_the_least_wins(tmp_path):
    scores = {"0.03": 0.30, "0.1": 0.20, "0.3": 0.40}
    metrics = {"error": "lower"}
    found = sweep.read(make_sweep(tmp_path / "lr", RATES, made(scores, raw=0.6), metrics=metrics))
    assert [row["optimizer.learning_rate"] for row in found.rows] == ["0.1", "0.03", "0.3"]
    assert found.rows[1]["behind"][0] == pytest.approx(0.1, abs=2e-3)
    assert found.rows[0]["score"][1] < 0.202 < found.rows[0]["score"][2]
    assert {row["outcome"] for row in found.rows[1:]} == {"worse"}
    assert "error of ema (less is better) 0.202 (" in found.verdict()
    with pytest.raises(UserError, match="--metric=loss: must be one of error"):
        sweep.read(make_sweep(tmp_path / "loss", RATES, made(scores), metrics=metrics, metric="loss"))


def test_an_interval_of_a_proportion_ends_where_proportions_do(tmp_path):
    score = {"validation/raw": 0.0, "validation/ema": 0.9, "test/raw": 0.0, "test/ema": 0.9}
    more = {name: value + 0.1 for name, value in score.items()}
    folder = make_sweep(tmp_path / "lr", RATES, lambda _, seed: more if seed else score, seeds=2)
    best = sweep.read(folder).rows[0]
    assert best["score"] == pytest.approx((0.95, 0.95 - 0.05 * stats.t.ppf(0.975, 1), 1.0))
    assert best["raw"][1] == 0
    accuracy, *_ = curves.panels(sweep.read(folder).settings)
    assert max(line.band[1].max() for line in accuracy.lines) == 100


def test_runs_that_failed_or_are_not_finished_are_named_and_left_out(tmp_path):
    scores = {"0.03": 0.8, "0.1": 0.9, "0.3": 0.95}

    def score(rate, seed):
        return None if (rate, seed) == ("0.03", 4) else made(scores)(rate, seed)

    folder = make_sweep(
        tmp_path / "lr", RATES, score, steps=lambda rate, seed: 10 if (rate, seed) == ("0.03", 3) else 20
    )
    failed = {f"learning_rate=0.3/seed{seed}": f"diverged with {seed}" for seed in range(1, 5)}
    (folder / "failed.json").write_text(json.dumps(failed))
    found = sweep.read(folder)
    # The one that survived with one seed only has the best mean, and is not to be recommended.
    assert [(row["optimizer.learning_rate"], row["seeds"]) for row in found.rows] == [
        ("0.1", 5),
        ("0.3", 1),
        ("0.03", 3),
    ]
    assert [row["outcome"] for row in found.rows] == ["best", "cannot be told", "worse"]
    remarks = "\n".join(found.remarks())
    for name, message in failed.items():
        assert f"{name} failed, and is left out: {message}" in remarks
    assert "Not finished, and left out: learning_rate=0.03/seed3, learning_rate=0.03/seed4." in remarks
    assert "With fewer than 5 seeds, and therefore ranked after the others: learning_rate=0.3 (1); " in remarks
    apart = [
        made(scores)("0.1", seed)["validation/ema"] - made(scores)("0.03", seed)["validation/ema"] for seed in range(3)
    ]
    assert found.rows[2]["behind"][0] == pytest.approx(np.mean(apart), abs=1e-12)  # of the seeds that both have


def test_scores_that_are_not_finite_rank_last(tmp_path):
    def score(rate, seed):
        found = made({"0.03": 0.8, "0.1": 0.9, "0.3": 0.99})(rate, seed)
        return found | ({"validation/ema": None} if (rate, seed) == ("0.3", 2) else {})

    found = sweep.read(make_sweep(tmp_path / "lr", RATES, score))
    assert [row["optimizer.learning_rate"] for row in found.rows] == ["0.1", "0.03", "0.3"]
    assert found.rows[2]["outcome"] == "not finite"
    assert found.cells()[3][3] == "-"
    assert "The scores of 1 are not all finite." in found.verdict()
    assert found.along("optimizer.learning_rate")[0] == ["0.03", "0.1"]
    nothing = sweep.read(
        make_sweep(tmp_path / "none", RATES, lambda *_: {"validation/raw": None, "validation/ema": None})
    )
    assert "nor those of any other" in nothing.verdict()
    assert nothing.drawn == []
    sweep.write(nothing.folder)


def test_with_a_single_seed_nothing_is_called_better(tmp_path):
    text = sweep.write(make_sweep(tmp_path / "lr", RATES, made({"0.03": 0.1, "0.1": 0.9, "0.3": 0.2}), seeds=1))
    assert "With a single seed there are no intervals" in text
    assert "better than the others is not known" in text
    assert "worse" not in text
    assert "(" not in text.split("settings")[1].split(".\n")[0]


def by_rate(ema, raw, noise):
    """Scores with noise that seeds and rates do not share."""
    random = np.random.default_rng(0)

    def score(rate, seed):
        found = {"ema": ema[rate] + noise * random.normal(), "raw": raw[rate] + noise * random.normal()}
        return {f"{split}/{curve}": value for split in ("validation", "test") for curve, value in found.items()}

    return score


@pytest.mark.parametrize(
    ("noise", "which", "flat"),
    [(0.001, "averaging changes", "is flatter"), (0.05, "which the seeds do not bear out", "cannot")],
)
def test_what_averaging_does_to_the_best_value_is_said_as_far_as_the_seeds_bear_it(tmp_path, noise, which, flat):
    ema, raw = {"0.03": 0.90, "0.1": 0.91, "0.3": 0.92}, {"0.03": 0.80, "0.1": 0.6, "0.3": 0.4}
    found = sweep.read(make_sweep(tmp_path / "lr", RATES, by_rate(ema, raw, noise), seeds=6))
    best, flatness = found.about("optimizer.learning_rate")
    assert which in best
    assert flat in flatness
    if noise == 0.001:
        lost = [float(number) for number in re.findall(r"lose?s? ([\d.]+) points", flatness)]
        assert lost == pytest.approx([1, 20], abs=0.3)  # from 0.3 to 0.1, and from 0.03 to 0.1


def test_a_field_that_raw_weights_do_not_depend_on_says_so(tmp_path):
    folder = make_sweep(tmp_path / "lr", RATES, made({"0.03": 0.8, "0.1": 0.9, "0.3": 0.85}))
    assert sweep.read(folder).about("optimizer.learning_rate") == [
        "ema scores best with learning_rate=0.1; the raw weights do not depend on it."
    ]


@pytest.mark.parametrize("names", [["a", "b"], ["nothing"]])
def test_what_is_no_sweep_is_refused_in_words(tmp_path, monkeypatch, capsys, names):
    for name in ("a", "b"):
        make_sweep(tmp_path / name, RATES, made({"0.03": 0.8, "0.1": 0.9, "0.3": 0.85}))
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "sweep.json").write_text('{"fields": {}, "runs": []}')
    with pytest.raises(SystemExit, match=r"the folder of a sweep|has no finished run"):
        command(monkeypatch, capsys, *(tmp_path / name for name in names))
    assert math.isnan(interval(np.array([]))[0])


def test_seeds_alone_are_reported_as_runs_are(tmp_path, monkeypatch, capsys):
    folder = make_sweep(tmp_path / "five", {}, lambda *values: {"test/raw": 0.5, "test/ema": 0.6 + values[-1] / 100})
    text = sweep.write(folder)
    assert text.startswith(f"{folder} (5 seeds), step 20, test images, mean ± standard deviation of 5 seeds")
    assert "62.00%" in text  # the mean of 60 .. 64
    assert (folder / "report.html").is_file()
    assert command(monkeypatch, capsys, folder) == f"{text}\n"
