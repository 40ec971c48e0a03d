"""Averages where they are kept: in the state, through the training step, over batch norm, on several devices."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters import AVERAGES
from conftest import ROOT, copy, create_dispatcher, create_experiment, digits_config, read_metrics
from flax import linen as nn

import evaluation
import train
from configs import default
from runtime import batch_statistics, sharding
from runtime.errors import UserError


class TwoNorms(nn.Module):
    """Batch norm on the images and, inside a submodule and after dropout, on a linear map of them."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(images.reshape(len(images), -1))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return Head()(x, train)


class Head(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.BatchNorm(use_running_average=not train, momentum=0.5, use_scale=False)(nn.Dense(3)(x))


recompute_on_one_device = functools.partial(
    batch_statistics.recompute, sharding=sharding.split_batch(sharding.create_mesh())
)


@pytest.fixture(scope="module")
def norms(tmp_path_factory):
    """An experiment on the digits with that model in place of its own."""
    config = digits_config(augment__crop_padding=1)
    experiment = create_experiment(config)
    model = TwoNorms()
    variables = model.init(jax.random.key(1), jnp.zeros((1, 8, 8, 1)), train=False)
    return experiment, model, variables


@pytest.mark.slow
def test_recomputed_statistics_are_those_of_all_the_images_together(norms):
    """Batches are of equal size, so mean and variance over batches are those over all of their images."""
    experiment, model, variables = norms
    found = recompute_on_one_device(
        variables, experiment.train_data, experiment.state.replace(apply_fn=model.apply), batches=range(7)
    )
    batches = [
        np.asarray(experiment.train_data.batch(experiment.state.replace(step=step))[0]["image"])
        for step in jnp.arange(7)
    ]
    x = np.concatenate(batches).reshape(7 * 32, -1).astype(np.float64)
    np.testing.assert_allclose(found["BatchNorm_0"]["mean"], x.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found["BatchNorm_0"]["var"], x.var(axis=0), rtol=1e-5, atol=1e-6)
    # The second one sees each batch normalised by its own statistics, and without dropout.
    dense = variables["params"]["Head_0"]["Dense_0"]
    norm = variables["params"]["BatchNorm_0"]
    x = np.stack(batches).reshape(7, 32, -1).astype(np.float64)
    x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    y = (x * np.asarray(norm["scale"]) + np.asarray(norm["bias"])) @ np.asarray(dense["kernel"], np.float64)
    y = y.reshape(7 * 32, 3)
    head = found["Head_0"]["BatchNorm_0"]
    np.testing.assert_allclose(head["mean"], y.mean(axis=0), atol=1e-6)
    # JAX computes E[x**2] - E[x]**2 in float32, also of pixels that hardly vary.
    np.testing.assert_allclose(head["var"], y.var(axis=0), rtol=1e-4)


def test_recomputed_statistics_depend_neither_on_the_order_of_batches_nor_on_the_statistics_before(norms):
    experiment, model, variables = norms
    other = variables | {"batch_stats": jax.tree.map(lambda x: x + 3, variables["batch_stats"])}

    def recompute(variables, batches):
        return recompute_on_one_device(
            variables, experiment.train_data, experiment.state.replace(apply_fn=model.apply), batches=batches
        )

    forwards = recompute(variables, [0, 1, 2, 3, 4])
    jax.tree.map(np.testing.assert_array_equal, forwards, recompute(variables, [3, 1, 4, 0, 2]))
    jax.tree.map(np.testing.assert_array_equal, forwards, recompute(other, [0, 1, 2, 3, 4]))
    assert (forwards["BatchNorm_0"]["mean"] != recompute(variables, [0, 1, 2, 3, 5])["BatchNorm_0"]["mean"]).any()


@pytest.mark.slow
def test_eight_devices_recompute_the_statistics_of_one():
    script = """
import jax, numpy as np
from conftest import create_experiment, digits_config
from evaluation import weights_to_score
from runtime import sharding

config = digits_config(model__name="cnn", model__hidden_sizes=(256, 256), model__batch_norm=True, model__dropout=0.5)
config.averages.ema.batch_stats = "recompute"
stats = []
for devices in (1, 8):
    sharding.create_mesh = lambda: jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    made = create_experiment(config)
    weights = weights_to_score(made.state, made.train_data, 5, made.mesh)
    stats.append(weights["ema"]["batch_stats"])
    assert len(jax.tree.leaves(stats[-1])[0].sharding.device_set) == devices
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), *map(jax.device_get, stats))
"""
    flag = "--xla_force_host_platform_device_count=8"
    env = os.environ | {"XLA_FLAGS": flag, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_statistics_that_are_not_those_of_one_batch_norm_each_are_refused_by_name(norms):
    experiment, _, _ = norms

    class Counting(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            seen = self.variable("batch_stats", "seen", jnp.zeros, ())
            seen.value += len(images)
            return nn.BatchNorm(use_running_average=not train)(images)

    class Frozen(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            return nn.BatchNorm(use_running_average=True)(images)

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            norm = nn.BatchNorm(use_running_average=not train)
            return norm(norm(images))

    for module, message in (
        (Counting(), "nn.BatchNorm that is not frozen; the model has seen"),
        (Frozen(), "not frozen; the model has BatchNorm_0/mean, BatchNorm_0/var"),
        (Twice(), "BatchNorm_0 is applied twice"),
    ):
        variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
        with pytest.raises(UserError, match=message):
            recompute_on_one_device(
                variables, experiment.train_data, experiment.state.replace(apply_fn=module.apply), batches=[0]
            )


CNN = {"model__name": "cnn", "model__hidden_sizes": (256, 256), "model__batch_norm": True, "model__dropout": 0.25}


def test_training_is_the_same_to_the_last_bit_with_and_without_averages(tmp_path):
    with_averages, without = digits_config(recompute_batches=3, **CNN), digits_config(**CNN)
    for policy in ("copy", "recompute"):
        with_averages.averages[policy] = default.average("ema", decay=0.9, batch_stats=policy)
    without.averages.ema.kind = "none"
    states = [
        train.train_and_evaluate(with_averages, tmp_path / "on")[0],
        train.train_and_evaluate(without, tmp_path / "off")[0],
    ]
    for field in ("params", "batch_stats", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, *(getattr(state, field) for state in states))
    for curve in ("raw", "train"):
        assert read_metrics(tmp_path / "on", curve) == read_metrics(tmp_path / "off", curve)
    assert {line["curve"] for line in read_metrics(tmp_path / "off")} == {"train", "raw"}
    # Same weights, other statistics, other scores.
    scores = {curve: read_metrics(tmp_path / "on", curve)[-1]["loss"] for curve in ("ema", "copy", "recompute")}
    assert len(set(scores.values())) == 3
    jax.tree.map(np.testing.assert_array_equal, states[0].ema_params["copy"], states[0].ema_params["ema"])
    # What was evaluated is what the state scores with statistics recomputed again.
    experiment = create_experiment(with_averages, tmp_path / "on")
    metrics = train.evaluate(experiment, states[0], ["test"])["test"]
    assert metrics["recompute"]["loss"] == scores["recompute"]


def test_batch_statistics_are_not_asked_of_a_model_without_any(tmp_path):
    config = digits_config(averages__ema__batch_stats="recompute")
    with pytest.raises(
        UserError, match=r'averages.ema.batch_stats = .recompute.: the model has no batch statistics; .*"average"'
    ):
        train.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def weights_to_score(experiment, num_batches):
    return evaluation.weights_to_score(experiment.state, experiment.train_data, num_batches, experiment.mesh)


def test_the_number_of_batches_to_recompute_from_counts(tmp_path):
    def means(recompute_batches):
        config = digits_config(averages__ema__batch_stats="recompute", recompute_batches=recompute_batches, **CNN)
        experiment = create_experiment(config, tmp_path)
        weights = weights_to_score(experiment, recompute_batches)
        return weights["ema"]["batch_stats"]["BatchNorm_0"]["mean"]

    assert (means(1) != means(2)).any()


@pytest.mark.slow
def test_types_shapes_and_shardings_of_the_state_stay_what_they_are(tmp_path):
    config = digits_config(**CNN)
    config.averages = {name: {"kind": average.kind} for name, (average, _) in AVERAGES.items()}
    experiment = create_experiment(config, tmp_path)

    def types(state):
        return jax.tree.map(lambda x: (x.dtype, x.shape, x.sharding), state)

    before = types(experiment.state)
    state, _, _ = create_dispatcher(experiment)(
        copy(experiment.state), copy(experiment.sums), experiment.train_data, 0, 1
    )
    assert types(state) == before


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """The scores of one run of 6 steps with many averages."""
    averages = {
        "ema": {"kind": "ema", "decay": 0.9},
        "decay": {"kind": "ema", "decay": 0.5},
        "half_life": {"kind": "ema", "decay": 0.9, "half_life": "20%"},
        "debias": {"kind": "ema", "decay": 0.9, "debias": False},
        "start": {"kind": "ema", "decay": 0.9, "start": "3 steps"},
        "every": {"kind": "ema", "decay": 0.9, "every": "2 steps"},
        "restart_every": {"kind": "ema", "decay": 0.9, "restart_every": "4 steps"},
        "copy": {"kind": "ema", "decay": 0.9, "batch_stats": "copy"},
        "recompute": {"kind": "ema", "decay": 0.9, "batch_stats": "recompute"},
        "warmup_ema": {"kind": "warmup_ema", "decay": 0.9},
        "warmup_ema_decay": {"kind": "warmup_ema", "decay": 0.1},
        "warmup_ema_half_life": {"kind": "warmup_ema", "half_life": "3%"},
        "running_mean": {"kind": "running_mean"},
        "polynomial_decay_mean": {"kind": "polynomial_decay_mean"},
        "eta": {"kind": "polynomial_decay_mean", "eta": 8.0},
        "power_ema": {"kind": "power_ema"},
        "width": {"kind": "power_ema", "width": 0.2},
        "soft_update": {"kind": "soft_update"},
        "tau": {"kind": "soft_update", "tau": 0.3},
        "cosine_update": {"kind": "cosine_update"},
        "cosine_update_tau": {"kind": "cosine_update", "tau": 0.3},
        "duration": {"kind": "cosine_update", "duration": "50%", "every": "2 steps"},
        "hard_update": {"kind": "hard_update", "period": "4 steps"},
        "period": {"kind": "hard_update", "period": "5 steps"},
    }
    workdir = tmp_path_factory.mktemp("options")
    train.train_and_evaluate(digits_config(duration="6 steps", averages=averages, **CNN), workdir)
    scores = {name: read_metrics(workdir, name)[-1]["loss"] for name in averages}
    return scores, json.loads((workdir / "averages.json").read_text())


@pytest.mark.slow
def test_no_option_of_an_average_is_accepted_and_unused(options):
    scores, _ = options
    assert len(set(scores.values())) == len(scores), scores


def test_the_resolved_schedules_are_those_of_the_config(options):
    _, stored = options
    assert stored["half_life"]["arguments"]["decay"] == pytest.approx(2 ** (-1 / 1.2))
    assert stored["every"]["arguments"]["decay"] == pytest.approx(0.9**2)  # per firing
    assert (stored["start"]["start"], stored["every"]["every"], stored["restart_every"]["restart_every"]) == (3, 2, 4)
    assert stored["period"]["arguments"] == {"period": 5}
    assert stored["cosine_update"]["arguments"] == {"duration": 6, "tau": 0.005}
    assert stored["duration"]["arguments"]["duration"] == 2  # firings, every other of which is within three steps
    for name, average in stored.items():
        assert average["num_updates"] == 6
        assert average["initial_weight"] + sum(average["kernel"]) == pytest.approx(1, abs=1e-5), name
