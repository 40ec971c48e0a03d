"""What a loss and a score function of one's own return is reported, and what is mistyped is said."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, create_experiment, digits_config, read_metrics

import evaluation
import settings
import train
from reporting import curves, page, runs, tables
from runtime import run_config
from runtime.dispatch import counted_if
from runtime.errors import UserError
from runtime.stored import find_checkpoint
from tools.command_line import _ConfigParser, _wrong_overrides
from tools.finished import FinishedRun


def own_scores(apply_fn, variables, batch):
    found = evaluation.score_fn(apply_fn, variables, batch)
    logits = apply_fn(variables, batch["image"], train=False)
    top5 = (jax.lax.top_k(logits, 5)[1] == batch["label"][:, None]).any(axis=-1)
    return found | {"top5": top5, "margin": logits.max(axis=-1)}


METRICS = {"accuracy": "higher", "top5": "higher", "margin": "higher", "loss": "lower"}


def test_a_metric_of_ones_own_reaches_file_table_picture_page_and_best_checkpoint(tmp_path, task):
    config = digits_config(task=task(score_fn=own_scores, metrics=METRICS), best_metric="margin")
    _, metrics = train.train_and_evaluate(config, tmp_path)
    raw, average, difference = (read_metrics(tmp_path, curve) for curve in ("raw", "ema", "ema-raw"))
    for name in METRICS:
        assert all(np.isfinite(line[name]) for line in (*raw, *average))
        assert difference[-1][name] == pytest.approx(average[-1][name] - raw[-1][name], abs=1e-9)
        assert difference[-1][f"{name}_low"] < difference[-1][name] < difference[-1][f"{name}_high"]
    assert metrics["ema"]["top5"] > metrics["ema"]["accuracy"]
    best = max(average, key=lambda line: line["margin"])
    record = find_checkpoint(tmp_path, "best").record
    assert (record.step, record.best.metric, record.best.value) == (best["step"], "margin", best["margin"])

    (group,), _ = runs.group([runs.Run.read(tmp_path)])
    header, _, of_ema = tables.cells(group.rows(), group.scoring, wide=True)
    shown = dict(zip(header, of_ema, strict=True))
    assert shown["margin"] == f"{average[-1]['margin']:.4g}"
    assert shown["best (step)"] == f"{best['margin']:.4g} ({best['step']})"
    assert shown["top5"] == f"{average[-1]['top5']:.2%}"  # a share of images, since its scores are booleans
    assert shown["top5 minus raw (95 % interval)"].startswith(f"{100 * difference[-1]['top5']:+.2f} (")
    assert "in margin, 95 % interval over examples" in group.scoring.verdict(group.rows()[1])
    titles = [panel.title for panel in curves.panels([group])]
    assert titles[:4] == ["margin", "accuracy, %", "loss", "top5, %"]
    page.write(tmp_path)
    assert "top5 minus raw" in (tmp_path / "report.html").read_text()


def test_a_score_without_a_direction_is_reported_too(tmp_path, task):
    config = digits_config(task=task(score_fn=own_scores), duration="10 steps", eval_every="10 steps")
    train.train_and_evaluate(config, tmp_path)
    (group,), _ = runs.group([runs.Run.read(tmp_path)])
    assert {"top5", "margin"} <= set(tables.cells(group.rows(), group.scoring)[0])


@pytest.mark.parametrize(
    ("scores", "metrics", "message"),
    [
        ({}, {"top5": "higher"}, r"Task.metrics has top5; score_fn returns only"),
        (
            {"logits": lambda label: jnp.zeros((len(label), 3))},
            {},
            r"logits = float32\[\d+, 3\]; expected one value per",
        ),
        ({"mean": lambda label: label.mean()}, {}, r"mean = float32\[\]; expected one value per example"),
        ({"three": lambda label: (label, label, label)}, {}, r"three = .*; expected one value per example"),
        ({"ratio": lambda label: (label, label[:1].sum())}, {}, r"ratio = .*; expected one value per example"),
        ({"group": lambda label: (label, label)}, {}, r"group = .*; expected one value per example"),
        ({"step": lambda label: label}, {}, r"score_fn returns 'step'; a metric's name must be"),
        ({"loss_low": lambda label: label}, {}, r"score_fn returns 'loss_low'; a metric's name must be"),
        ({"loss_sd": lambda label: label}, {}, r"score_fn returns 'loss_sd'; a metric's name must be"),
        ({"top/5": lambda label: label}, {}, r"score_fn returns 'top/5'; a metric's name must be"),
    ],
)
def test_a_score_that_cannot_be_a_metric_is_refused_before_training(task, scores, metrics, message):
    def score_fn(apply_fn, variables, batch):
        return evaluation.score_fn(apply_fn, variables, batch) | {
            name: score(batch["label"]) for name, score in scores.items()
        }

    with pytest.raises(UserError, match=message):
        create_experiment(digits_config(task=task(score_fn=score_fn, metrics={"loss": "lower"} | metrics)))


def test_counts_that_are_sums_of_weights_keep_their_fractions():
    sums = counted_if(jnp.bool_(True), {"weighted": (0.375, 0.75), "loss": (6.0, 4)}, {"objective": jnp.float32(2)})
    assert {name: (float(total), float(count)) for name, (total, count) in sums.items()} == {
        "weighted": (0.375, 0.75), "loss": (6.0, 4.0), "objective": (2.0, 1.0),
    }  # fmt: skip
    assert sums["loss"][1].dtype == jnp.int32  # exact up to 2**31 examples


@pytest.mark.parametrize("name", ["objective", "step", "rejected_steps"])
def test_a_training_metric_with_a_name_that_is_taken_is_refused(name):
    with pytest.raises(UserError, match=f"the loss returns a metric '{name}', a name that is taken"):
        counted_if(jnp.bool_(True), {name: (1.0, 1)}, {"objective": jnp.float32(2)})


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda loss, aux: loss, r"the loss returns float32\[\]; expected objective, \(metrics, updates\)"),
        (lambda loss, aux: (loss[None], aux), r"the objective float32\[1\]; expected a scalar: objective.mean\(\)"),
        (lambda loss, aux: (None, aux), r"the objective None; expected a scalar"),
        (
            lambda loss, aux: (loss, aux[0]),
            r"returns \{'accuracy': .*\} beside the objective; expected objective, \(met",
        ),
        (lambda loss, aux: (loss, (loss, {})), r"beside the objective; expected .*, metrics in a dict"),
        (
            lambda loss, aux: (loss, (aux[0], None)),
            r"the updates None; expected a dict of fields of the state, such as",
        ),
        (
            lambda loss, aux: (loss, (aux[0], {"teacher": loss})),
            r"updates \['teacher'\]; expected .* has step, .*params",
        ),
    ],
)
def test_a_loss_that_does_not_return_what_a_loss_does_is_refused_before_training(task, returned, message):
    def loss_fn(params, state, batch):
        return returned(*train.loss_fn(params, state, batch))

    with pytest.raises(UserError, match=message):
        create_experiment(digits_config(task=task(loss_fn=loss_fn)))


def focal(params, state, batch, *, num_steps, gamma: float = 2.0):
    objective, aux = train.loss_fn(params, state, batch)
    return objective * (1 + gamma * state.step / num_steps), aux


def test_a_loss_gets_its_own_fields_with_their_defaults_and_the_length_of_training(tmp_path, task):
    config = digits_config(task=task(loss_fn=focal), batch_size=64, duration="4 steps")
    for name in ("log_every", "eval_every", "checkpoint_every"):
        config[name] = "1 steps"
    train.train_and_evaluate(config, tmp_path)
    assert run_config.read(tmp_path).loss.gamma == 2.0
    lines = read_metrics(tmp_path, "train")
    # Of digits nothing is augmented here, so objective and loss of a step differ by the factor alone.
    factors = [line["objective"] / line["loss"] for line in lines]
    np.testing.assert_allclose(factors, [1 + 2 * step / 4 for step in range(4)], rtol=1e-5)  # a few float32 roundings


@pytest.mark.parametrize("given", [["--config.loss.gamma=3"], ["--config.loss.gamma", "3"]])
def test_a_field_that_only_the_loss_declares_can_be_overridden(task, given):
    name = task(loss_fn=focal)
    config = digits_config().lock()

    class Parser:
        def parse(self, argument):
            return config

    argv = ["main.py", "--config=configs/digits.py", f"--config.task={name}", *given]
    assert _ConfigParser(Parser(), argv).parse("configs/digits.py").loss.gamma == 2.0  # of which 3 is an override


def test_a_field_of_the_loss_that_no_loss_takes_is_refused_by_name(task):
    config = digits_config(task=task(loss_fn=focal))
    config.loss.gama = 3.0
    with pytest.raises(UserError, match=re.escape("loss.gama is unknown; did you mean loss.gamma?")):
        settings.check(config, train.find_task(config.task))
    config = digits_config()
    config.loss.gamma = 3.0
    found = "loss.gamma is unknown; the loss of task 'classification' has label_smoothing, l2_penalty"
    with pytest.raises(UserError, match=found):
        settings.check(config, train.find_task(config.task))


def test_a_direction_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"'accuracy': 'up'.*must be 'higher' or 'lower'"):
        train.Task(metrics={"accuracy": "up"})


@pytest.mark.filterwarnings("ignore:the load_module")  # by which ml_collections reads a config file
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--config.loss.gamma=abc", "loss.gamma = 'abc': must be of type float, such as 2.0"),
        ("--config.loss.gama=3", "loss.gama is unknown; did you mean loss.gamma?"),
    ],
)
def test_a_wrong_override_of_a_field_that_only_the_loss_declares_is_named(task, given, message):
    argv = ["main.py", f"--config={ROOT}/configs/digits.py", f"--config.task={task(loss_fn=focal)}", given]
    assert _wrong_overrides(argv)[1:] == [message]


def test_an_error_in_a_task_names_task_and_model(task):
    def two_heads(params, state, batch):
        return train.apply_model(params, state, batch)[0]["other"].mean(), ({}, {})

    with pytest.raises(TypeError) as error:
        create_experiment(digits_config(task=task(loss_fn=two_heads)))
    assert re.fullmatch(r"Do task 'task_\d+' and model 'mlp' fit each other\?", error.value.__notes__[-1])


@pytest.mark.parametrize("metric", [jnp.zeros(()), (jnp.zeros(4), 4), (1.0, 2.0, 3.0), [1.0, 2]])
def test_a_training_metric_must_be_a_sum_and_a_count(metric):
    with pytest.raises(UserError, match=r"the loss returns the metric mine = .*; expected two scalars, \(sum, count\)"):
        counted_if(jnp.bool_(True), {"mine": metric}, {})


@pytest.mark.slow
def test_a_task_finds_the_folder_of_its_run_in_training_and_afterwards(task, tmp_path):
    def evaluate(experiment, weights, split):
        with (experiment.workdir / "kept").open("a") as file:
            file.write("x")
        return {
            name: {"size": (float(jnp.abs(w["params"]["Dense_1"]["bias"]).sum()), None)} for name, w in weights.items()
        }

    config = digits_config(task=task(evaluate=evaluate, metrics={"size": "lower"}))
    train.train_and_evaluate(config, tmp_path / "run")
    assert (tmp_path / "run" / "kept").read_text() == "xx"
    assert FinishedRun.read(tmp_path / "run").experiment.workdir == tmp_path / "run"
    assert create_experiment(config, tmp_path / "run").workdir == tmp_path / "run"
