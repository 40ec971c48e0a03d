import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, digits_config, read_metrics

import averaging
import evaluation
import train
from configs import default
from reporting import runs
from runtime.errors import UserError
from runtime.stored import list_stored
from tools import posthoc
from tools.finished import FinishedRun

BASIS = ["narrow", "wide"]


def config(**overrides):
    """A run of 160 steps with 16 snapshots of two power-function averages, and an EMA to compare with."""
    config = digits_config(
        **{"duration": "160 steps", "eval_every": "80 steps", "checkpoint_every": "100%", "log_every": "100%"}
        | overrides
    )
    config.snapshot_every = "10 steps"
    config.averages.ema = default.average("ema", half_life="5%")
    config.averages.narrow = default.average("power_ema", width=0.05)
    config.averages.wide = default.average("power_ema", width=0.10)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("posthoc")
    state, _ = train.train_and_evaluate(config(), workdir)
    assert [stored.record.step for stored in list_stored(workdir, ["snapshots"])] == [*range(10, 170, 10)]
    return workdir, state


def test_an_ema_made_after_training_scores_as_the_one_tracked_in_training(run):
    workdir, _ = run
    lines = posthoc.posthoc(workdir, ["ema:half_life=5%"], BASIS)
    tracked = {line["step"]: line for line in read_metrics(workdir, "ema")}
    made = {line["step"]: line for line in lines if line["curve"] == "ema:half_life=5%"}
    assert made[160]["fit_error"] <= 0.003
    # 0.3 % of the kernel, in the loss.
    assert made[160]["loss"] == pytest.approx(tracked[160]["loss"], rel=0.003)
    assert abs(made[160]["accuracy"] - tracked[160]["accuracy"]) <= 2 / 896
    differences = {line["step"]: line for line in lines if line["curve"] == "ema:half_life=5%-raw"}
    raw = read_metrics(workdir, "raw")[-1]
    assert differences[160]["accuracy"] == pytest.approx(made[160]["accuracy"] - raw["accuracy"])


def test_what_was_tracked_is_made_exactly_at_every_step(run):
    workdir, _ = run
    lines = posthoc.posthoc(workdir, ["ema:half_life=5%", "power_ema:width=0.1"])
    made = [line for line in lines if ":" in line["curve"] and not line["curve"].endswith("-raw")]
    assert [line["step"] for line in made if line["curve"].startswith("ema")] == [*range(10, 170, 10)]
    assert all(line["fit_error"] < 1e-9 for line in made)
    for step, line in zip((80, 160), read_metrics(workdir, "wide"), strict=True):
        [found] = [m for m in made if m["step"] == step and m["curve"].startswith("power")]
        assert found["loss"] == pytest.approx(line["loss"], rel=1e-5)


def test_only_the_last_step_is_scored_if_so_asked(run):
    workdir, _ = run
    everywhere = posthoc.posthoc(workdir, ["ema:half_life=5%"], BASIS)
    assert posthoc.posthoc(workdir, ["ema:half_life=5%"], BASIS, last=True) == [
        line for line in everywhere if line["step"] == 160
    ]


@pytest.mark.slow
def test_lawa_and_the_tail_mean_are_means_of_snapshots(run):
    workdir, state = run
    experiment = FinishedRun.read(workdir).experiment
    raw = [stored.read_weights("raw", state) for stored in list_stored(workdir)]
    assert len(raw) == 16
    for text, last in (("lawa:last=3", 3), ("running_mean:start=120 steps,every=10 steps", 4)):
        mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *raw[-last:])
        weights = {"raw": raw[-1], "mean": mean}
        expected = evaluation.evaluate(weights, experiment.eval_data["test"], experiment.eval_step)["mean"]
        lines = posthoc.posthoc(workdir, [text], ["raw"])
        [line] = [line for line in lines if line["curve"] == text and line["step"] == 160]
        assert line["fit_error"] < 1e-9
        assert {key: line[key] for key in expected} == pytest.approx(expected, rel=1e-5)
    # A mean of three snapshots exists from the third on.
    assert min(line["step"] for line in posthoc.posthoc(workdir, ["lawa:last=3"])) == 30


@pytest.mark.slow
def test_a_fit_that_is_not_good_enough_is_said_and_left_out(run, capsys):
    workdir, _ = run
    assert posthoc.posthoc(workdir, ["ema:half_life=1 steps"], ["wide"]) == []
    said = capsys.readouterr().out
    assert "the fit of ema:half_life=1 steps is off by" in said
    assert said.count("left out") == 16
    assert "ema:half_life=1 steps could not be made at the end, at step 160" in said
    assert posthoc.posthoc(workdir, ["lawa:last=17"]) == []
    assert "lawa:last=17 could not be made" in capsys.readouterr().out
    # Until it starts, a tail mean is the raw weights, which fit; in the end it does not.
    lines = posthoc.posthoc(workdir, ["running_mean:start=120 steps"], ["wide", "raw"], max_error=1e-6)
    assert max(line["step"] for line in lines) == 120
    assert "running_mean:start=120 steps could not be made at the end, at step 160" in capsys.readouterr().out


@pytest.mark.slow
def test_averages_that_joined_or_changed_later_are_taken_for_what_they_were(tmp_path):
    first = config(duration="40 steps", checkpoint_every="40 steps")
    del first.averages.wide
    train.train_and_evaluate(first, tmp_path)
    second = config(duration="80 steps", checkpoint_every="40 steps")
    second.averages.narrow.width = 0.2
    train.train_and_evaluate(second, tmp_path)
    lines = posthoc.posthoc(tmp_path, ["power_ema:width=0.1,start=40 steps"], ["wide"])
    tracked = read_metrics(tmp_path, "wide")[-1]
    [made] = [
        line for line in lines if line["step"] == 80 and line["curve"].startswith("power") and "-" not in line["curve"]
    ]
    assert made["fit_error"] < 1e-9
    assert made["loss"] == pytest.approx(tracked["loss"], rel=1e-5)

    # What was narrow for 40 updates began anew then, as another average, of which the snapshots before know nothing.
    stored = {place.record.step: place for place in list_stored(tmp_path)}
    t = np.arange(1, 81)
    expected = np.where(t <= 40, 1, averaging.power_ema(0.2)(np.maximum(t - 40, 1)))
    for step, schedule in ((40, averaging.power_ema(0.05)(t)), (50, expected), (80, expected)):
        [found] = [found for name, found in posthoc.basis(stored[step], None, "average") if name == "narrow"]
        np.testing.assert_array_equal(found(t)[:step], schedule[:step])
    lines = posthoc.posthoc(tmp_path, ["power_ema:width=0.2,start=40 steps"], ["narrow"])
    [made] = [
        line for line in lines if line["step"] == 80 and line["curve"].startswith("power") and "-" not in line["curve"]
    ]
    assert made["fit_error"] < 1e-9
    assert made["loss"] == pytest.approx(read_metrics(tmp_path, "narrow")[-1]["loss"], rel=1e-5)


TRACKED = {
    "ema": "ema:decay=0.9",
    "late": "warmup_ema:half_life=3 steps,start=2 steps,every=2 steps",
    "again": "power_ema:width=0.2,restart_every=2 steps",
    "target": "hard_update:period=2 steps",
}


@pytest.mark.slow
def test_after_rejections_what_was_tracked_is_made_of_raw_weights_at_every_snapshot(tmp_path, task, capsys):
    """Everything counts updates: those of four steps did not happen, before a resume and after it."""
    rejected = [1, 2, 5, 7]

    def loss_fn(params, state, batch, **kwargs):
        objective, aux = train.loss_fn(params, state, batch, **kwargs)
        return jnp.where(jnp.isin(state.step, jnp.array(rejected)), jnp.nan, 1) * objective, aux

    def train_for(duration, **more):
        config = digits_config(duration=duration, snapshot_every="1 steps", task=task_name)
        config.eval_every = config.log_every = config.checkpoint_every = "6 steps"
        for average, text in (TRACKED | more).items():
            kind, _, fields = text.partition(":")
            values = dict(part.split("=") for part in fields.split(",") if part)
            floats = {key: float(value) for key, value in values.items() if key in ("decay", "width", "tau")}
            config.averages[average] = default.average(kind, **values | floats)
        train.train_and_evaluate(config, tmp_path)
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning")]

    task_name, slow = task(loss_fn=loss_fn), {"slow": "soft_update:tau=0.05"}
    train_for("6 steps", **slow)
    warnings = train_for("10 steps", **slow, joined="running_mean")
    [about] = [line for line in warnings if "'slow' would" in line]  # of the 7 updates that it was to have then
    assert f"{0.95**7:.1%} of the final weight" in about
    described = json.loads((tmp_path / "averages.json").read_text())
    assert (described["slow"]["num_updates"], described["joined"]["num_updates"]) == (7, 4)
    updates = {step: step - sum(other < step for other in rejected) for step in range(1, 11)}
    assert {stored.record.step: stored.record.updates for stored in list_stored(tmp_path)} == updates

    texts = TRACKED | {"joined": "running_mean:start=3 steps"}
    lines = posthoc.posthoc(tmp_path, [*texts.values(), "lawa:last=3"], ["raw"])
    assert max(line.get("fit_error", 0) for line in lines) < 1e-9
    made = {curve: {line["step"]: line for line in lines if line["curve"] == curve} for curve in texts.values()}
    finished = FinishedRun.read(tmp_path)
    for stored in finished.stored:
        weights = {name: finished.weights(stored, name) for name in stored.names}
        tracked = train.evaluate_weights(finished.experiment, weights, "test")
        for name in texts.keys() & weights.keys():
            # Until its first copy a target is what no snapshot is of: the parameters of step 0.
            if name != "target" or stored.record.updates >= 2:
                found = made[texts[name]][stored.record.step]["loss"]
                assert found == pytest.approx(tracked[name]["loss"], rel=1e-5), (name, stored.record.step)
    [(_, joined)] = posthoc.basis(finished.stored[-1], ["joined"], "average")
    expected = averaging.kernel(averaging.starting_at(averaging.running_mean(), 3), 6)
    np.testing.assert_array_equal(averaging.kernel(joined, 6), expected)
    # The means of three snapshots, of which two or three are of the same iterate.
    assert [line["step"] for line in lines if line["curve"] == "lawa:last=3"] == [*range(3, 11)]


def test_with_validation_images_an_epoch_is_of_the_others_and_the_test_set_is_scored_at_the_end(tmp_path):
    config = digits_config(snapshot_every="10 steps", num_validation=500)
    config.averages.ema = default.average("ema", half_life="0.3 epochs")
    train.train_and_evaluate(config, tmp_path)
    name = "ema:half_life=0.3 epochs"
    lines = posthoc.posthoc(tmp_path, [name], ["ema"])
    tracked = {(line["step"], line["split"]): line["loss"] for line in read_metrics(tmp_path, "ema")}
    assert [*tracked] == [(10, "validation"), (20, "validation"), (20, "test")]
    made = {(line["step"], line["split"]): line["loss"] for line in lines if line["curve"] == name}
    assert made == pytest.approx(tracked, rel=1e-6)  # the sum of one average, once
    raw = {(line["step"], line["split"]): line["loss"] for line in lines if line["curve"] == "raw"}
    assert raw == {(line["step"], line["split"]): line["loss"] for line in read_metrics(tmp_path, "raw")}
    posthoc.write(tmp_path, lines)
    assert {line["split"] for line in runs.last_evaluation(runs.read_metrics(tmp_path))} == {"test"}


def test_where_the_run_has_no_evaluation_the_raw_weights_stand_beside(tmp_path):
    train.train_and_evaluate(digits_config(snapshot_every="4 steps"), tmp_path)
    lines = posthoc.posthoc(tmp_path, ["ema:decay=0.9"])
    posthoc.write(tmp_path, lines)
    posthoc.write(tmp_path, lines)
    raw = [line["step"] for line in runs.read_metrics(tmp_path) if line["curve"] == "raw"]
    assert raw == [4, 8, 10, 12, 16, 20]


def test_another_average_leaves_the_raw_weights_beside_earlier_ones_and_one_made_again_replaces_its_own(tmp_path):
    """At other steps: the files of a run may have gone in between."""

    def lines(curve, steps, loss):
        made = [{"step": step, "split": "test", "loss": loss} for step in steps]
        return [line | {"curve": name} for line in made for name in ("raw", curve, f"{curve}-raw")]

    (tmp_path / "metrics.jsonl").write_text("")
    posthoc.write(tmp_path, lines("ema:decay=0.9", (4, 8), 0.1))
    posthoc.write(tmp_path, lines("ema:decay=0.5", (8, 12), 0.2))
    posthoc.write(tmp_path, lines("ema:decay=0.9", (4,), 0.3))
    written = runs.read_lines(tmp_path / "posthoc.jsonl", "curve")
    found = {(line["curve"], line["step"]): line["loss"] for line in written}
    assert len(written) == len(found)
    for name in ("ema:decay=0.5", "ema:decay=0.5-raw"):
        assert {step: loss for (curve, step), loss in found.items() if curve == name} == {8: 0.2, 12: 0.2}
    for name in ("ema:decay=0.9", "ema:decay=0.9-raw"):
        assert {step: loss for (curve, step), loss in found.items() if curve == name} == {4: 0.3}
    assert {step: loss for (curve, step), loss in found.items() if curve == "raw"} == {4: 0.3, 8: 0.2, 12: 0.2}


def test_an_average_without_fields_does_not_take_the_name_of_a_tracked_one(run):
    lines = posthoc.posthoc(run[0], ["ema"], max_error=1.0)
    assert {line["curve"] for line in lines} == {"raw", "ema:", "ema:-raw"}


@pytest.mark.slow
@pytest.mark.parametrize("batch_stats", ["average", "copy", "recompute"])
def test_batch_statistics_of_an_average_made_afterwards_follow_the_policy(tmp_path, batch_stats):
    model = {"model__name": "cnn", "model__hidden_sizes": (256, 256), "model__batch_norm": True}
    cnn = config(duration="12 steps", eval_every="100%", recompute_batches=3, **model)
    cnn.snapshot_every = "4 steps"
    cnn.averages.ema.batch_stats = "recompute"
    cnn.averages.tracked = default.average("ema", half_life="5%", batch_stats=batch_stats)
    train.train_and_evaluate(cnn, tmp_path)
    text = f"ema:half_life=5%,batch_stats={batch_stats}"
    lines = posthoc.posthoc(tmp_path, [text], ["tracked" if batch_stats != "copy" else "ema"])
    [made] = [line for line in lines if line["curve"] == text and line["step"] == 12]
    assert made["loss"] == pytest.approx(read_metrics(tmp_path, "tracked")[-1]["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_combination_with_a_negative_variance_is_left_out(tmp_path, capsys):
    """Far from its basis an average takes large coefficients of both signs, and no activation has such statistics."""
    model = {"model__name": "cnn", "model__hidden_sizes": (256, 256), "model__batch_norm": True}
    cnn = config(duration="12 steps", eval_every="100%", **model)
    cnn.snapshot_every = "4 steps"
    train.train_and_evaluate(cnn, tmp_path)

    def combine(coefficients, weights):
        combined = real(coefficients, weights)
        combined["batch_stats"]["BatchNorm_1"]["var"][3] = -0.1
        return combined

    real = posthoc.combine
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(posthoc, "combine", combine)
        assert posthoc.posthoc(tmp_path, ["ema:half_life=5%"]) == []
        assert posthoc.posthoc(tmp_path, ["ema:half_life=5%,batch_stats=copy"]) != []
    assert "left out: a variance would be negative" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_writes_lines_that_the_report_reads_and_replaces_its_own(run):
    workdir, _ = run
    for average in ("lawa:last=3", "lawa:last=2", "lawa:last=3"):
        command = [sys.executable, "-m", "tools.posthoc", workdir, f"--average={average}"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert f"step 160: the fit of {average} is off by 0.00%" in result.stdout
        assert f"\n{average}  " in result.stdout  # a row of the table
        assert result.stderr == ""
    lines = [json.loads(line) for line in (workdir / "posthoc.jsonl").read_text().splitlines()]
    assert {line["curve"] for line in lines} == {
        "raw",
        *(f"lawa:last={n}{end}" for n in (2, 3) for end in ("", "-raw")),
    }
    assert len({(line["curve"], line["step"]) for line in lines}) == len(lines)
    last = [line["curve"] for line in runs.last_evaluation(runs.read_metrics(workdir))]
    assert {"raw", "ema", "lawa:last=2", "lawa:last=3-raw"} <= set(last)


@pytest.mark.parametrize(
    ("average", "message"),
    [
        ("emma", "'emma' must be one of ema, .*, lawa"),
        ("ema:width=0.1", "'width' is not one of ema's batch_stats=, debias=, decay=, every="),
        ("ema:foo=1", "'foo' is not one of ema's"),
        ("ema:half_life", "'half_life' is not one of ema's .*half_life="),
        ("ema:batch_stats=recompute", "the model has no batch statistics"),
        ("ema:start=5000000000 steps", "must be below 2"),
        ("ema:decay=high", "decay must be like its default, 0.999"),
        ("ema:debias=maybe", "debias must be like its default, True"),
        ("ema:half_life=soon", "is not a duration"),
        ("ema:decay=2", "averages.ema.decay = 2.0: must be in"),
        ("cosine_update:duration=0%", "averages.cosine_update.duration = '0%': a period must be longer than 0"),
        ("soft_update:tau=3", "--average=soft_update:tau=3: tau = 3.0: must be in"),
        ("lawa:last=0", "last must be at least 1"),
        ("lawa:tau=1", "'tau' is not one of lawa's last=, batch_stats="),
    ],
)
def test_an_average_that_cannot_be_is_refused(run, average, message):
    with pytest.raises(UserError, match=message):
        posthoc.posthoc(run[0], [average])


def test_a_basis_that_is_not_stored_or_a_folder_without_a_run_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"--basis=slow: .* stores ema, narrow, raw, wide"):
        posthoc.posthoc(run[0], ["ema"], ["slow"])
    with pytest.raises(UserError, match=r"holds no run: .*config.json"):
        posthoc.posthoc(tmp_path, ["ema"])
