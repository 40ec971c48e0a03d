import functools
import gzip
import importlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import flags
from conftest import ROOT, digits_config, read_metrics, run_main, zero_sums
from ml_collections import config_flags

import averaging
import evaluation
import input_pipeline
import models
import settings
import train
from configs import default
from runtime import checkpointing
from runtime.errors import UserError
from runtime.metric_writing import CLOCKS

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "default")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return train.set_up(digits_config(), tmp_path_factory.mktemp("none"), "refuse")


def first_batch(experiment):
    return jax.jit(lambda data, state: data.batch(state.rng, state.step))(experiment.train_data, experiment.state)


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
        experiment = train.set_up(config, tmp_path, "refuse")
        program = train.create_train_program(train.loss_fn, experiment.mesh, num_microbatches)
        compiled = program.lower(experiment.state, zero_sums(experiment), experiment.train_data).compile()
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
        return logits.sum(), ({"loss": (logits.sum(), 1)}, updates["batch_stats"])

    with jax.disable_jit():
        twice = {"image": jnp.repeat(image, 2, axis=0)}
        (first, second), stats = _objectives(state, twice, loss_fn)
        once = loss_fn(state.params, state.replace(microbatch=jnp.int32(0)), {"image": image})
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

    _, _, stats, _ = train.compute_gradients(state, batch, remember, 2)
    return objectives, stats


CNN = {"model__name": "cnn", "model__hidden_sizes": (256, 256)}
ADAMW = {"optimizer__name": "adamw"}
MUON = {"optimizer__name": "muon"}


@pytest.fixture(scope="module")
def metrics_of(tmp_path_factory):
    """The training metrics of a run of 4 steps with these overrides; each is run once."""

    @functools.cache
    def run(**overrides):
        workdir = tmp_path_factory.mktemp("run")
        every = {"duration": "4 steps", "log_every": "4 steps"}
        train.train_and_evaluate(digits_config(**every | overrides), workdir)
        return read_metrics(workdir, "train")

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "option"),
    [
        ({}, {"seed": 1}),
        ({}, {"label_noise": 0.4}),
        ({}, {"num_validation": 100}),
        ({}, {"batch_size": 16}),
        ({}, {"model__hidden_sizes": (16,)}),
        ({}, {"model__dtype": "bfloat16"}),
        ({}, CNN),
        (CNN, {"model__dropout": 0.5}),
        (CNN, {"model__batch_norm": True}),
        ({}, {"loss__label_smoothing": 0.1}),
        ({}, {"loss__l2_penalty": 0.01}),
        ({}, {"optimizer__learning_rate": 0.2}),
        ({}, {"optimizer__schedule": "cosine"}),
        ({}, {"optimizer__warmup": "3 steps"}),
        ({}, {"optimizer__momentum": 0.0}),
        ({}, {"optimizer__clip_norm": 0.1}),
        ({}, {"optimizer__nesterov": True}),
        ({}, {"optimizer__weight_decay": 0.1}),
        ({}, {"optimizer__gradient_noise": 0.01}),
        *[({}, {"optimizer__name": name}) for name in ("adamw", "lion", "muon")],
        *[(ADAMW, {f"optimizer__{field}": 0.5}) for field in ("b1", "b2")],
        *[(MUON, {f"optimizer__{field}": 0.5}) for field in ("momentum", "b1", "b2")],
        (MUON, {"optimizer__nesterov": True}),
        ({}, {"optimizer__schedule": "one_cycle", "optimizer__warmup": "50%"}),
        ({}, {"optimizer__schedule": "wsd", "optimizer__decay": "50%"}),
        ({"optimizer__schedule": "wsd"}, {"optimizer__decay": "75%"}),
        ({}, {"augment__flip": True}),
        ({}, {"augment__crop_padding": 2}),
        ({}, {"augment__cutout": 2}),
        ({}, {"augment__mixup": 1.0}),
        (CNN | {"model__dropout": 0.5}, {"accumulate": 2}),
    ],
)
def test_no_option_is_accepted_and_unused(metrics_of, base, option):
    """Those of averages: tests/averaging/test_in_training.py."""
    assert metrics_of(**base | option) != metrics_of(**base)


def test_gradients_of_the_logged_norm_are_those_before_clipping(tmp_path):
    train.train_and_evaluate(digits_config(optimizer__clip_norm=1e-3), tmp_path)
    assert all(line["grad_norm"] > 0.1 for line in read_metrics(tmp_path, "train"))


def poison(poisoned_steps):
    """The loss function with objectives that are not finite at some steps."""

    def loss_fn(params, state, batch, **kwargs):
        objective, aux = train.loss_fn(params, state, batch, **kwargs)
        return jnp.where(jnp.isin(state.step, jnp.asarray(poisoned_steps)), jnp.nan, 1) * objective, aux

    return loss_fn


def test_one_poisoned_batch_is_one_rejection_and_training_finishes(tmp_path, task):
    state = train.train_and_evaluate(digits_config(task=task(poison([7]))), tmp_path)
    assert {name: int(n) for name, n in state.rejected.items()} == {"total": 1, "streak": 0, "longest": 1}
    assert state.step == 20
    assert state.ema_count["ema"] == 19
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.ema_params, state.opt_state)))
    lines = read_metrics(tmp_path, "train")
    assert [line["rejected_steps"] for line in lines] == [0, 1, 1, 1]
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_too_many_rejected_steps_in_a_row_end_the_run(tmp_path, task):
    with pytest.raises(UserError) as error:
        train.train_and_evaluate(digits_config(max_rejected_steps=5, task=task(poison([10, 11, 12, 13, 14]))), tmp_path)
    assert "5 steps in a row had a loss or gradient that is not finite; max_rejected_steps = 5" in str(error.value)
    assert "At step 15: learning rate 0.1, gradient norm nan, first not finite the loss, of outputs" in str(error.value)
    with pytest.raises(UserError, match=r"5 steps in a row.*Later ones were accepted"):
        train.train_and_evaluate(
            digits_config(max_rejected_steps=5, task=task(poison([1, 2, 3, 4, 5]))), tmp_path / "b"
        )
    train.train_and_evaluate(digits_config(max_rejected_steps=5, task=task(poison([1, 2, 3, 4, 9]))), tmp_path / "fine")


def test_the_first_layer_that_an_exploding_rate_breaks_is_named(tmp_path):
    config = digits_config(optimizer__learning_rate=1e38, max_rejected_steps=3, log_every="1 steps")
    with pytest.raises(
        UserError, match=r"learning rate 1e\+38, gradient norm nan, first not finite the output of Dense_"
    ):
        train.train_and_evaluate(config, tmp_path)


def test_metrics_of_a_window_without_any_accepted_step_are_null(tmp_path, task):
    train.train_and_evaluate(digits_config(task=task(poison(list(range(5, 10))))), tmp_path)
    losses = [line["loss"] for line in read_metrics(tmp_path, "train")]
    assert [loss is None for loss in losses] == [False, True, False, False]


def test_the_last_curves_are_the_scores_of_the_returned_state(tmp_path):
    config = digits_config(model__name="cnn", model__hidden_sizes=(256, 256), model__batch_norm=True)
    state = train.train_and_evaluate(config, tmp_path)
    data = train.set_up(config, tmp_path, "refuse").eval_data["test"]
    metrics = evaluation.evaluate(state.curves(), data, apply_fn=state.apply_fn)
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
            digits_config(best_metric="accuracy", task=task(score_fn=squared_error)), tmp_path / "a"
        )
    train.train_and_evaluate(digits_config(task=task(score_fn=squared_error)), tmp_path / "b")
    assert set(read_metrics(tmp_path / "b", "raw")[0]) == {"step", "curve", "split", "loss"}


@pytest.mark.parametrize(("size", "update"), [(-0.5, 1), (1.5, 1), (float("nan"), 1), (None, 7)])
def test_an_average_whose_step_size_leaves_its_range_is_refused(tmp_path, monkeypatch, size, update):
    schedule = (lambda t: 0.0 * t + size) if size is not None else (lambda t: t / 6)
    monkeypatch.setitem(averaging.SCHEDULES, "running_mean", lambda: schedule)
    config = digits_config()
    config.averages.ema = default.average("running_mean")
    with pytest.raises(
        UserError, match=rf"averages.ema: its step size at update {update} is .*; all must be in \[0, 1\]"
    ):
        train.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_task_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="task = 'ranking': must be one of classification"):
        train.train_and_evaluate(digits_config(task="ranking"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_that_are_numbers_need_a_task_of_their_own(tmp_path, monkeypatch):
    images = input_pipeline.Images(np.zeros((40, 4, 4, 1), np.uint8), np.zeros((40, 2), np.float32))
    source = input_pipeline.Source.of("numbers", images, images)
    monkeypatch.setattr(input_pipeline, "SOURCES", {"numbers": lambda: source})
    with pytest.raises(UserError, match=r"its labels are numbers, for which config\.task needs a loss of its own"):
        train.train_and_evaluate(digits_config(dataset="numbers"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_with_validation_images_the_test_set_is_scored_once_at_the_end(tmp_path):
    train.train_and_evaluate(digits_config(num_validation=100), tmp_path)
    scored = [(line["step"], line["split"]) for line in read_metrics(tmp_path, "raw")]
    assert scored == [(10, "validation"), (20, "validation"), (20, "test")]


@pytest.mark.slow
def test_eight_devices_give_the_losses_and_averages_of_one(tmp_path):
    """A CNN with batch norm, dropout and augmentation, over 20 steps.

    Devices add up in another order. At a larger learning rate than here, a ReLU that such a rounding switches makes
    the paths part for good, as they do on one device when the compiler changes.
    """
    overrides = {
        "duration": "20 steps", "log_every": "1 steps", "eval_every": "20 steps", "checkpoint_every": "20 steps",
        "augment.flip": True, "augment.crop_padding": 1,
        "model.name": "cnn", "model.batch_norm": True, "model.dropout": 0.25, "optimizer.learning_rate": 0.01,
    }  # fmt: skip
    config = get_config("digits")
    config.update_from_flattened_dict(overrides)

    def run(devices):
        return run_main(
            f"--workdir={tmp_path / str(devices)}",
            *(f"--config.{name}={value}" for name, value in overrides.items()),
            XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}",
        )

    losses, states = {}, {}
    with ThreadPoolExecutor() as pool:  # side by side, to save time
        results = dict(zip((1, 8), pool.map(run, (1, 8)), strict=True))
    for devices, result in results.items():
        assert result.returncode == 0, result.stderr
        assert f"{devices} x cpu" in result.stdout
        assert f"Batches of 32 = {devices} devices x 1 parts x {32 // devices} images" in result.stdout
        lines = read_metrics(tmp_path / str(devices))
        losses[devices] = [line["loss"] for line in lines if line["curve"] != "ema-raw"]
        states[devices] = saved_state(tmp_path / str(devices), config)
    assert len(losses[1]) == 22  # of 20 steps and two curves
    np.testing.assert_allclose(losses[8], losses[1], rtol=0, atol=1e-4)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    for field in ("ema_params", "ema_batch_stats"):
        jax.tree.map(close, getattr(states[8], field), getattr(states[1], field))


@pytest.mark.slow
def test_eight_devices_compute_what_one_does_but_for_rounding(tmp_path):
    """A residual network at a learning rate of 0.1, at which float32 rounding grows to 3e-3 within 20 steps.

    In float64 the same amplification leaves next to nothing: what differs between the devices is rounding alone.
    """

    def averages(devices):
        file = tmp_path / f"{devices}.npy"
        flag = f"--xla_force_host_platform_device_count={devices}"
        subprocess.run(
            [sys.executable, "tests/float64_run.py", file], cwd=ROOT, check=True,
            env=os.environ | {"XLA_FLAGS": flag, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        return np.load(file)

    one, eight = map(averages, (1, 8))
    np.testing.assert_allclose(eight, one, rtol=0, atol=1e-11)  # 1e-16 grown by as much as 1e-7 grows to 3e-3


def saved_state(workdir, config):
    """What the run's latest checkpoint holds."""
    experiment = train.set_up(config, workdir, "refuse")
    return checkpointing.find_checkpoint(workdir, "latest").restore_state(experiment.state)


def get_config(name):
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "digits" else pytest.mark.slow) for name in CONFIGS]
)
def test_every_shipped_config_trains_two_steps(name, tmp_path, request, monkeypatch):
    config = get_config(name)
    if config.dataset == "mnist":
        request.getfixturevalue("mnist")
    elif config.dataset != "digits":
        monkeypatch.setenv("TFDS_DATA_DIR", str(request.getfixturevalue("made_data")))
    config.duration = "2 steps"
    state = train.train_and_evaluate(config, tmp_path)
    assert state.step == 2
    for file in ("config.json", "environment.json", "metrics.jsonl", "timing.jsonl", "report.html", "curves.png"):
        assert (tmp_path / file).stat().st_size > 0


@pytest.mark.parametrize("name", ["default", *CONFIGS])
def test_every_field_of_every_shipped_config_can_be_overridden(name, monkeypatch):
    def other(value):
        match value:
            case bool():
                return not value
            case str():
                return value + "x"
            case tuple():
                return (7, 8)
            case _:
                return value + 1

    expected = {field: other(value) for field, value in settings.flatten(get_config(name)).items()}
    # The overrides, which config_flags takes from there.
    monkeypatch.setattr(sys, "argv", ["main.py", *(f"--config.{field}={value}" for field, value in expected.items())])
    flag_values = flags.FlagValues()
    config = config_flags.DEFINE_config_dict("config", get_config(name), flag_values=flag_values)
    flag_values(sys.argv)
    assert settings.flatten(config.value) == expected


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["hundred", "mnist"])
def test_a_config_serves_another_data_set_without_an_edit(dataset, tmp_path, request, monkeypatch):
    if dataset == "mnist":
        request.getfixturevalue("mnist")
    else:
        monkeypatch.setenv("TFDS_DATA_DIR", str(request.getfixturevalue("made_data")))
    config = get_config("cifar10_small")
    config.dataset = dataset
    config.duration = "50 steps" if dataset == "mnist" else "2 steps"
    state = train.train_and_evaluate(config, tmp_path)
    assert state.params["Dense_0"]["bias"].shape == ({"hundred": 100, "mnist": 10}[dataset],)
    if dataset == "mnist":
        assert read_metrics(tmp_path, "ema")[-1]["accuracy"] > 0.5  # chance is 0.1


@pytest.mark.slow
def test_bfloat16_is_for_the_computation_while_the_state_stays_float32(tmp_path, made_data, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(made_data))
    config = get_config("cifar10_small")
    config.batch_size = 16
    config.duration = "2 steps"
    config.model.dtype = "bfloat16"
    state = train.train_and_evaluate(config, tmp_path)
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}
    # Parameters in bfloat16 would have nothing in the lower half of their bits.
    average = np.asarray(state.ema_params["ema"]["Conv_0"]["kernel"])
    assert (average.view(np.uint32) & 0xFFFF).any()


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
    assert (pathlib.Path(tmp_path) / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_a_run_starts_from_the_weights_of_another_and_so_do_its_averages(tmp_path, weights):
    model = CNN | {"model__batch_norm": True}
    first = train.train_and_evaluate(digits_config(optimizer__name="adamw", **model), tmp_path / "first")
    config = digits_config(
        init_from=str(tmp_path / "first"),
        init_weights=weights,
        duration="1 steps",
        optimizer__learning_rate=0.0,
        **model,
    )
    config.averages = {"slow": default.average("ema", decay=0.9, debias=False)}
    second = train.train_and_evaluate(config, tmp_path / "second")
    expected = first.curves()[weights]
    jax.tree.map(np.testing.assert_array_equal, second.params, expected["params"])  # at a rate of 0
    jax.tree.map(np.testing.assert_array_equal, second.ema_params["slow"], expected["params"])
    # Batch statistics moved by one step of momentum 0.9 from those of the weights, their average by a tenth of that.
    for name in ("mean", "var"):
        start, raw, average = (
            np.asarray(stats["BatchNorm_0"][name], np.float64)
            for stats in (expected["batch_stats"], second.batch_stats, second.ema_batch_stats["slow"])
        )
        assert (start != raw).any()
        np.testing.assert_allclose(average - start, 0.1 * (raw - start), rtol=1e-3, atol=1e-6)
    assert second.ema_count["slow"] == 1
    # Continuing does not start from the other run again, which may be gone.
    shutil.rmtree(tmp_path / "first")
    config.duration = "2 steps"
    assert train.train_and_evaluate(config, tmp_path / "second").step == 2


def test_a_run_that_cannot_be_started_from_is_refused(tmp_path):
    train.train_and_evaluate(digits_config(duration="1 steps"), tmp_path / "first")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    for overrides, message in [
        ({"init_from": str(tmp_path / "no")}, r"init_from = .*no' holds no checkpoint"),
        ({"init_from": str(tmp_path / "empty")}, r"init_from = .*empty' holds no checkpoint"),
        ({"init_weights": "slow"}, "init_weights = 'slow': .* has raw, ema"),
        (
            {"model__hidden_sizes": (32, 32)},
            r"does not fit .* it has float32\[10\] params/Dense_1/bias, the config .*32",
        ),
        ({"init_weights": "ema", "model__hidden_sizes": ()}, r"it has float32\[32\] ema_params/ema/Dense_0/bias"),
    ]:
        config = digits_config(**{"init_from": str(tmp_path / "first")} | overrides)
        with pytest.raises(UserError, match=message):
            train.train_and_evaluate(config, tmp_path / "second")


@pytest.mark.slow
def test_a_profile_holds_the_chosen_steps_and_changes_nothing_else(tmp_path):
    config = digits_config(steps_per_dispatch=1)  # of a chunk the trace holds the number of its first step only
    train.train_and_evaluate(config, tmp_path / "without")
    config.profile = (7, 9)
    train.train_and_evaluate(config, tmp_path / "with")
    [trace] = (tmp_path / "with" / "profile").rglob("perfetto_trace.json.gz")
    [_] = (tmp_path / "with" / "profile").rglob("*.xplane.pb")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert {event["args"]["step_num"] for event in events if event.get("name") == "train"} == {"7", "8"}
    assert not (tmp_path / "without" / "profile").exists()
    assert (tmp_path / "with" / "metrics.jsonl").read_bytes() == (tmp_path / "without" / "metrics.jsonl").read_bytes()


def test_a_profile_of_the_last_steps_is_written_at_the_end(tmp_path):
    train.train_and_evaluate(digits_config(profile=(19, 30)), tmp_path)
    assert list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))


def test_a_profile_of_steps_that_are_done_already_is_said_to_be_left_out(tmp_path, capsys):
    train.train_and_evaluate(digits_config(), tmp_path)
    train.train_and_evaluate(digits_config(profile=(7, 9), duration="40 steps"), tmp_path)
    assert "Steps 7 .. 9 are not traced: the run continues at step 20" in capsys.readouterr().out
    assert not (tmp_path / "profile").exists()


@pytest.mark.slow
def test_without_jit_a_run_shows_values_and_what_it_prints(tmp_path, capfd, task):
    labels = []

    def loss_fn(params, state, batch, **kwargs):
        objective, aux = train.loss_fn(params, state, batch, **kwargs)
        jax.debug.print("at step {} the objective is {}", state.step, objective)
        if not isinstance(batch["label"], jax.core.Tracer):  # as it is while shapes are inferred
            labels.extend(batch["label"].tolist())
        return objective, aux

    with jax.disable_jit():
        train.train_and_evaluate(digits_config(duration="1 steps", task=task(loss_fn)), tmp_path)
    assert "at step 0 the objective is" in capfd.readouterr().out
    assert len(labels) == 32


def test_prints_of_the_jitted_step_show_up_as_well(tmp_path, capfd, task):
    def loss_fn(params, state, batch, **kwargs):
        jax.debug.print("step {}", state.step)
        return train.loss_fn(params, state, batch, **kwargs)

    train.train_and_evaluate(digits_config(duration="2 steps", task=task(loss_fn)), tmp_path)
    jax.effects_barrier()
    printed = capfd.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("step ") and "/" not in line] == [
        "step 0",
        "step 1",
    ]
