import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import CNN, create_experiment, digits_config, read_metrics

import averaging
import evaluation
import input_pipeline
import models
import train
from configs import default
from reporting import page
from runtime.errors import UserError
from runtime.metric_writing import CLOCKS


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return create_experiment(digits_config())


def first_batch(experiment):
    return jax.jit(lambda data, state: data.batch(state)[0])(experiment.train_data, experiment.state)


def numpy_logits(params, image):
    x = np.asarray(image, np.float64).reshape(len(image), -1)
    x = np.maximum(x @ np.asarray(params["Dense_0"]["kernel"], np.float64) + np.asarray(params["Dense_0"]["bias"]), 0)
    return x @ np.asarray(params["Dense_1"]["kernel"], np.float64) + np.asarray(params["Dense_1"]["bias"])


def test_objective_and_metrics_are_what_their_formulas_say(experiment):
    batch = first_batch(experiment)
    batch["target"] = 0.7 * batch["target"] + 0.3 * jnp.roll(batch["target"], 1, axis=0)  # as mixup leaves it
    params = jax.tree.map(lambda p: p + 0.1, experiment.state.params)  # biases start at 0, where no penalty shows
    objective, (metrics, _) = train.loss_fn(params, experiment.state, batch, label_smoothing=0.1, l2_penalty=0.01)
    logits, label = numpy_logits(params, batch["image"]), np.asarray(batch["label"])
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    nll = -log_p[np.arange(32), label]
    smoothed = -(0.9 * (np.asarray(batch["target"]) * log_p).sum(axis=1) + 0.1 * log_p.mean(axis=1))
    kernels = [np.asarray(params[name]["kernel"], np.float64) for name in ("Dense_0", "Dense_1")]
    penalty = 0.5 * 0.01 * sum((kernel**2).sum() for kernel in kernels)
    assert objective == pytest.approx(smoothed.mean() + penalty, rel=1e-6)
    assert metrics["loss"][0] / metrics["loss"][1] == pytest.approx(nll.mean(), rel=1e-6)
    assert metrics["accuracy"][0] == np.sum(logits.argmax(axis=1) == label)


@pytest.mark.slow
def test_a_step_updates_the_parameters_and_then_moves_the_average_to_them(experiment):
    batch = first_batch(experiment)
    state, metrics = jax.jit(train.train_step, static_argnums=2)(experiment.state, batch, train.loss_fn)
    grads = jax.grad(lambda p: train.loss_fn(p, experiment.state, batch)[0])(experiment.state.params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, experiment.state.params, grads)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), state.params, expected)
    # The first step size of a bias-corrected average is 1.
    jax.tree.map(np.testing.assert_array_equal, state.ema_params["ema"], state.params)
    assert metrics["grad_norm"][0] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)
    assert metrics["learning_rate"][0] == pytest.approx(0.1)


def test_dropout_differs_from_step_to_step_and_repeats_at_the_same_step(experiment):
    model = models.create_model("cnn", num_classes=10, dtype="float32", batch_norm=False, dropout=0.5)
    batch = first_batch(experiment)
    params = model.init(jax.random.key(0), batch["image"], train=False)["params"]
    state = experiment.state.replace(apply_fn=model.apply)
    first, again, later = (train.loss_fn(params, state.replace(step=jnp.int32(s)), batch)[0] for s in (3, 3, 4))
    assert first == again
    assert first != later


def test_gradients_accumulated_over_microbatches_are_those_of_the_whole_batch(experiment):
    batch = first_batch(experiment)
    step = jax.jit(train.train_step, static_argnums=(2, 3))
    whole, metrics = step(experiment.state, batch, train.loss_fn, 1)
    for num_microbatches in (2, 4, 32):
        parts, sums = step(experiment.state, batch, train.loss_fn, num_microbatches)
        assert parts.step == parts.ema_count["ema"] == 1
        # In float32; gradients of up to 1 add up in another order.
        for field in ("params", "ema_params", "opt_state"):
            close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
            jax.tree.map(close, getattr(parts, field), getattr(whole, field))
        assert {name: int(count) for name, (_, count) in sums.items()} == {
            name: int(count) for name, (_, count) in metrics.items()
        }
        for name, (total, _) in sums.items():
            assert float(total) == pytest.approx(float(metrics[name][0]), rel=1e-5)


@pytest.mark.slow
def test_microbatches_need_the_memory_of_one(tmp_path):
    def temporary_memory(num_microbatches):
        config = digits_config(batch_size=256, accumulate=num_microbatches, **CNN)
        experiment = create_experiment(config, tmp_path)
        compiled = jax.jit(experiment.train_program).lower(experiment.state, experiment.train_data).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # Activations, a quarter, and gradients, which stay as large as they are.
    assert temporary_memory(4) < 0.5 * temporary_memory(1)


@pytest.mark.slow
def test_microbatches_share_neither_dropout_nor_batch_statistics(experiment):
    """Of two equal microbatches each has its own dropout, and the second updates the statistics of the first."""
    model = models.create_model("cnn", num_classes=10, dtype="float32", batch_norm=True, dropout=0.5)
    image = first_batch(experiment)["image"][:16]
    variables = model.init(jax.random.key(0), image, train=False)
    state = experiment.state.replace(apply_fn=model.apply, **variables).with_averages(())

    def loss_fn(params, state, batch):
        logits, updates = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats}, batch["image"], train=True,
            mutable=["batch_stats"], rngs={"dropout": state.step_key("dropout")},
        )  # fmt: skip
        return logits.sum(), ({"loss": (logits.sum(), 1)}, updates)

    with jax.disable_jit():
        twice = {"image": jnp.repeat(image, 2, axis=0)}
        (first, second), stats = _objectives(state, twice, loss_fn)
        once = loss_fn(state.params, state.replace(rng=jax.random.fold_in(state.rng, 0)), {"image": image})
    assert float(first) == pytest.approx(float(once[0]), rel=1e-4)
    assert float(first) != pytest.approx(float(second), rel=1e-4)
    initial, after_one, after_two = (jax.tree.leaves(s)[0] for s in (state.batch_stats, once[1][1], stats))
    # momentum 0.9: initial + 0.1 (m - initial), and the same again
    np.testing.assert_allclose(after_two - after_one, 0.9 * (after_one - initial), rtol=1e-4, atol=1e-6)


def _objectives(state, batch, loss_fn):
    """The objectives of both microbatches, and the batch statistics after them."""
    objectives = []

    def remember(*args):
        objective, aux = loss_fn(*args)
        jax.debug.callback(objectives.append, objective)
        return objective, aux

    _, _, updates, _ = train.compute_gradients(state, batch, remember, 2)
    return objectives, updates


def poison(poisoned_steps):
    """The loss function with objectives that are not finite at some steps."""

    def loss_fn(params, state, batch, **kwargs):
        objective, aux = train.loss_fn(params, state, batch, **kwargs)
        return jnp.where(jnp.isin(state.step, jnp.asarray(poisoned_steps)), jnp.nan, 1) * objective, aux

    return loss_fn


def test_one_poisoned_batch_is_one_rejection_and_training_finishes(tmp_path, task):
    state, _ = train.train_and_evaluate(digits_config(task=task(loss_fn=poison([7]))), tmp_path)
    assert {name: int(n) for name, n in state.rejected.items()} == {"total": 1, "streak": 0, "longest": 1}
    assert state.step == 20
    assert state.ema_count["ema"] == 19
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.ema_params, state.opt_state)))
    lines = read_metrics(tmp_path, "train")
    assert [line["rejected_steps"] for line in lines] == [0, 1, 1, 1]
    assert all(np.isfinite(line["loss"]) for line in lines)


@pytest.mark.parametrize("schedule", ["constant", pytest.param("cosine", marks=pytest.mark.slow)])
def test_rejected_steps_are_told_while_they_happen_at_the_end_and_on_the_page(tmp_path, schedule, capsys):
    config = digits_config(optimizer__learning_rate=1e38, optimizer__schedule=schedule)
    train.train_and_evaluate(config, tmp_path)
    notes = [line for line in capsys.readouterr().out.splitlines() if "rejected" in line]
    assert notes == [
        "Note: 4 of 5 steps so far were rejected: the loss or the gradient was not finite; --debug_nans stops where "
        "one is made"
    ]  # calm
    told = f"{tmp_path}: 19 of 20 steps were rejected, because the loss or the gradient was not finite."
    annealed = f"{told} The learning-rate schedule therefore stands at step 1."
    sentences = page.write(tmp_path).splitlines() + re.findall("<p.*>(.*)</p>", (tmp_path / "report.html").read_text())
    assert [line for line in sentences if "were rejected" in line] == 2 * [told if schedule == "constant" else annealed]


@pytest.mark.slow
def test_too_many_rejected_steps_in_a_row_end_the_run(tmp_path, task):
    with pytest.raises(UserError) as error:
        train.train_and_evaluate(
            digits_config(max_rejected_steps=5, task=task(loss_fn=poison([10, 11, 12, 13, 14]))), tmp_path
        )
    assert "5 steps in a row had a loss or gradient that is not finite; max_rejected_steps = 5" in str(error.value)
    assert "At step 15: learning rate 0.1, gradient norm nan, first not finite the loss, of outputs" in str(error.value)
    with pytest.raises(UserError, match=r"5 steps in a row.*Later ones were accepted"):
        train.train_and_evaluate(
            digits_config(max_rejected_steps=5, task=task(loss_fn=poison([1, 2, 3, 4, 5]))), tmp_path / "b"
        )
    train.train_and_evaluate(
        digits_config(max_rejected_steps=5, task=task(loss_fn=poison([1, 2, 3, 4, 9]))), tmp_path / "fine"
    )


def test_the_first_layer_that_an_exploding_rate_breaks_is_named(tmp_path):
    config = digits_config(optimizer__learning_rate=1e38, max_rejected_steps=3, log_every="1 steps")
    with pytest.raises(
        UserError, match=r"learning rate 1e\+38, gradient norm nan, first not finite the output of Dense_"
    ):
        train.train_and_evaluate(config, tmp_path)


def test_metrics_of_a_window_without_any_accepted_step_are_null(tmp_path, task):
    train.train_and_evaluate(digits_config(task=task(loss_fn=poison(list(range(5, 10))))), tmp_path)
    losses = [line["loss"] for line in read_metrics(tmp_path, "train")]
    assert [loss is None for loss in losses] == [False, True, False, False]


def test_the_last_curves_are_the_scores_of_the_returned_state(tmp_path):
    config = digits_config(model__name="cnn", model__hidden_sizes=(256, 256), model__batch_norm=True)
    state, _ = train.train_and_evaluate(config, tmp_path)
    experiment = create_experiment(config, tmp_path)
    data = experiment.eval_data["test"]
    metrics = evaluation.evaluate(state.weights(), data, experiment.eval_step)
    for curve in ("raw", "ema", "ema-raw"):
        line = read_metrics(tmp_path, curve)[-1]
        assert {key: line[key] for key in metrics[curve]} == metrics[curve]
    # Batch statistics are averaged along: neither the raw ones nor the initial ones.
    statistics = [jax.tree.leaves(tree) for tree in (state.ema_batch_stats["ema"], state.batch_stats)]
    assert all((a != b).any() for a, b in zip(*statistics, strict=True))


def test_a_task_without_classes_needs_a_loss_and_a_score_of_its_own(tmp_path, task):
    def squared_error(apply_fn, variables, batch):
        return {"loss": jnp.square(apply_fn(variables, batch["image"], train=False)[:, 0] - batch["label"])}

    with pytest.raises(UserError, match=r"best_metric = 'accuracy'.*loss"):
        train.train_and_evaluate(
            digits_config(best_metric="accuracy", task=task(score_fn=squared_error, metrics={"loss": "lower"})),
            tmp_path / "a",
        )
    train.train_and_evaluate(
        digits_config(task=task(score_fn=squared_error, metrics={"loss": "lower"})), tmp_path / "b"
    )
    assert set(read_metrics(tmp_path / "b", "raw")[0]) == {"step", "curve", "split", "loss"}


@pytest.mark.parametrize(("size", "update"), [(-0.5, 1), (1.5, 1), (float("nan"), 1), (None, 7)])
def test_an_average_whose_step_size_leaves_its_range_is_refused(tmp_path, monkeypatch, size, update):
    schedule = (lambda t: 0.0 * t + size) if size is not None else (lambda t: t / 6)
    monkeypatch.setitem(averaging.SCHEDULES, "running_mean", lambda: schedule)
    config = digits_config()
    config.averages.ema = default.average("running_mean")
    with pytest.raises(UserError, match=rf"averages.ema.step_size\({update}\) = .*: must be in \[0, 1\]"):
        train.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_task_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="task = 'ranking': must be one of 'classification'"):
        train.train_and_evaluate(digits_config(task="ranking"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_that_are_numbers_need_a_task_of_their_own(tmp_path, monkeypatch):
    images = input_pipeline.Images(np.zeros((40, 4, 4, 1), np.uint8), np.zeros((40, 2), np.float32))
    source = input_pipeline.Source.from_arrays("numbers", images, images)
    monkeypatch.setattr(input_pipeline, "SOURCES", {"numbers": lambda: source})
    with pytest.raises(
        UserError,
        match=r"set are float32\[32, 2\], not classes: .*labels\.argmax\(axis=1\); .*config\.task must name a task",
    ):
        train.train_and_evaluate(digits_config(dataset="numbers"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_leaves_what_it_promises(tmp_path, capsys):
    train.train_and_evaluate(digits_config(), tmp_path)
    assert [line["step"] for line in read_metrics(tmp_path, "train")] == [5, 10, 15, 20]
    expected = {"step", "curve", "loss", "objective", "accuracy", "grad_norm", "learning_rate", "rejected_steps"}
    assert set(read_metrics(tmp_path, "train")[0]) == expected
    for curve in ("raw", "ema", "ema-raw"):
        assert [line["step"] for line in read_metrics(tmp_path, curve)] == [10, 20]
    timing = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert all(line["steps_per_second"] > 0 for line in timing)
    for clock in CLOCKS:
        assert 0 <= timing[0][clock] <= timing[1][clock] <= timing[3][clock]
    for clock in ("train_seconds", "eval_seconds", "checkpoint_seconds", "startup_seconds"):
        assert timing[-1][clock] > 0
    assert re.search(
        r"Training took .*, evaluation .*, checkpoints .*, compilation .*, the start ", capsys.readouterr().out
    )
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert json.loads((tmp_path / "config.json").read_text())["duration"] == 20


def test_every_microbatch_has_keys_of_its_own(experiment):
    """Also other ones than the whole batch."""

    def loss_fn(params, state, batch):
        bits = jax.random.bits(state.step_key("dropout"), dtype=jnp.uint16).astype(jnp.float32)
        return 0 * params["Dense_0"]["bias"].sum(), ({"bits": (bits, 1), "square": (bits**2, 1)}, {})

    def spread(num_microbatches):  # of the numbers drawn, 0 if all are the same
        _, metrics, _, _ = train.compute_gradients(experiment.state, first_batch(experiment), loss_fn, num_microbatches)
        (total, count), (squares, _) = metrics["bits"], metrics["square"]
        return float(squares / count - (total / count) ** 2), float(total / count)

    assert spread(1)[0] == 0
    assert spread(4)[0] > 0
    assert spread(4)[1] != spread(1)[1]
