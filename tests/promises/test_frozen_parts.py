"""Groups of parameters with a factor of 0 stand still, cost nothing, and are whole wherever weights are asked for."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from conftest import digits_config, read_metrics
from flax import linen as nn
from flax import traverse_util

import averaging
import settings
import train
from configs import default
from models import MLP
from runtime import batch_statistics
from runtime.sharding import split_batch
from runtime.stored import find_checkpoint
from tools import export, posthoc
from tools.finished import FinishedRun, evaluate_checkpoint

FROZEN = ("Dense_0", "BatchNorm_0")
GROUPS = {"body": default.group("(Dense|BatchNorm)_0/", factor=0.0)}


class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        x = images.reshape(len(images), -1)
        for _ in range(2):
            x = nn.Dense(32)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(self.num_classes)(x)


def loss_fn(params, state, batch):
    """Not a number in one step, and changed by the average that it needs."""
    objective, (metrics, updates) = train.loss_fn(params, state, batch)
    variables = {"params": state.ema_params["teacher"], "batch_stats": state.ema_batch_stats["teacher"]}
    teacher = jax.nn.softmax(state.apply_fn(variables, batch["image"], train=False))
    objective -= 0.1 * (teacher * jax.nn.log_softmax(train.apply_model(params, state, batch)[0])).sum(axis=1).mean()
    return jnp.where(state.step == 3, jnp.nan, objective), (metrics, updates)


def config_of(task, groups=GROUPS, **overrides):
    """With every kind of average, weight decay, momentum, accumulated gradients and a rejected step."""
    name = task(
        loss_fn=loss_fn, create_model=lambda example: Net(example[1].shape[-1]), needs=lambda loss: ("teacher",)
    )
    config = digits_config(task=name, accumulate=2, snapshot_every="10 steps", recompute_batches=2)
    config.optimizer.update(learning_rate=0.05, weight_decay=0.1, groups=groups)
    config.model.hidden_sizes = default.get_config().model.hidden_sizes
    kinds = {kind: default.average(kind) for kind in averaging.SCHEDULES}
    kinds["hard_update"].period = kinds["cosine_update"].duration = "4 steps"
    config.averages = {**kinds, "teacher": default.average("ema", decay=0.9, every="2 steps", batch_stats="recompute")}
    config.update_from_flattened_dict(overrides)
    return config


def leaves(tree):
    """Arrays by path; a part that is left out has none."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in found}


def frozen_leaves(tree):
    return {path: leaf for path, leaf in leaves(tree).items() if any(f"{name}/" in path for name in FROZEN)}


def same_bytes(a, b):
    return a.keys() == b.keys() and all(a[path].tobytes() == b[path].tobytes() for path in a)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 20 steps, with what it started from."""
    with pytest.MonkeyPatch.context() as patch:

        def task(**fields):
            patch.setitem(train.TASKS, "frozen", train.Task(**fields))
            return "frozen"

        config, workdir = config_of(task), tmp_path_factory.mktemp("frozen") / "run"
        state, _ = train.train_and_evaluate(config, workdir)
        finished = FinishedRun.read(workdir)
        yield config, finished, jax.device_get(finished.experiment.state.weights()["raw"]), state


@pytest.mark.slow
def test_a_frozen_part_and_its_batch_statistics_stay_to_the_byte_and_no_average_holds_any_of_it(run):
    _, _, start, state = run
    assert state.rejected["total"] == 1
    assert len(frozen_leaves(start)) == 4 + 2
    weights = state.weights()
    assert weights.keys() == {"raw", "teacher", *averaging.SCHEDULES}
    for variables in weights.values():
        assert leaves(variables).keys() == leaves(start).keys()
        assert same_bytes(frozen_leaves(variables), frozen_leaves(start))
    assert not any(frozen_leaves((state.ema_params, state.opt_state)))
    moved = [path for path, leaf in leaves(weights["raw"]).items() if (leaf != leaves(start)[path]).any()]
    assert {*leaves(start)} - {*moved} == {*frozen_leaves(start)}
    num_moving = sum(leaf.size for path, leaf in leaves(start["params"]).items() if not path.startswith(FROZEN))
    assert sum(x.size for x in jax.tree.leaves(state.ema_params)) == (len(weights) - 1) * num_moving
    assert sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim) == num_moving  # momentum


@pytest.mark.slow
def test_a_group_that_stands_still_is_logged_with_a_rate_and_a_gradient_of_0(run):
    for line in read_metrics(run[1].workdir, "train"):
        assert line["learning_rate_body"] == line["grad_norm_body"] == 0 < line["grad_norm"]


def test_what_is_stored_leaves_it_out_and_every_tool_gives_whole_weights(run):
    config, finished, start, state = run
    stored = find_checkpoint(finished.workdir, "latest")
    assert not any(path.startswith("ema_params") for path in frozen_leaves_of(stored.record.leaves))
    assert [one.is_snapshot for one in finished.stored] == [True, True]
    for one in (*finished.stored, stored):
        for name in one.names:
            found = finished.weights(one, name)
            assert same_bytes(frozen_leaves(found), frozen_leaves(start))
            if one is stored:
                assert same_bytes(leaves(found), leaves(state.weights()[name]))
    evaluated = evaluate_checkpoint(config, finished.workdir)
    [last] = [line for line in read_metrics(finished.workdir, "teacher-raw") if line["step"] == 20]
    assert evaluated["teacher-raw"]["distance"] == pytest.approx(last["distance"], rel=1e-6)
    assert evaluated["teacher"]["loss"] == pytest.approx(last["loss"] + evaluated["raw"]["loss"], abs=1e-6)


def frozen_leaves_of(paths):
    return [path for path in paths if any(f"/{name}/" in path for name in FROZEN)]


@pytest.mark.slow
def test_posthoc_averages_and_exports_have_the_frozen_part_of_the_parameters(run, tmp_path, monkeypatch):
    _, finished, start, _ = run
    seen = []
    real = train.evaluate_weights
    monkeypatch.setattr(
        train, "evaluate_weights", lambda e, weights, split: seen.append(weights) or real(e, weights, split)
    )
    posthoc.posthoc(
        finished.workdir, ["ema:decay=0.9", "lawa:last=2", "ema:decay=0.9,batch_stats=recompute"], max_error=1.0
    )
    assert len(seen[-1]) == 4
    for variables in (variables for weights in seen for variables in weights.values()):
        assert same_bytes(frozen_leaves(variables), frozen_leaves(start))
    export.export(finished.workdir, "teacher", tmp_path, "latest")
    exported = safetensors.numpy.load_file(tmp_path / "weights.safetensors")
    assert exported.keys() == leaves(start).keys()
    assert same_bytes(frozen_leaves(traverse_util.unflatten_dict(exported, sep="/")), frozen_leaves(start))
    assert json.loads((tmp_path / "weights.json").read_text())["average"]["frozen"] == "(?:(Dense|BatchNorm)_0/)"


@pytest.mark.slow
def test_a_run_continues_to_the_byte(run, task, tmp_path):
    config, finished, _, state = run
    half = config.copy_and_resolve_references()
    half.duration = "10 steps"
    train.train_and_evaluate(half, tmp_path)
    continued, _ = train.train_and_evaluate(config, tmp_path)
    states = [leaves(x.replace(rng=jax.random.key_data(x.rng))) for x in (continued, state)]
    assert same_bytes(*states)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (finished.workdir / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_run_starts_from_an_average_of_which_another_froze_a_part_and_freezes_another_one(run, task, tmp_path):
    _, finished, _, state = run
    head = {"head": default.group("Dense_2/", factor=0.0)}
    config = config_of(task, head, init_from=str(finished.workdir), init_weights="teacher", duration="1 steps")
    config.optimizer.learning_rate = 0.0
    config.averages = {name: config.averages[name] for name in ("ema", "teacher")}
    started, _ = train.train_and_evaluate(config, tmp_path)
    for variables in started.weights().values():
        assert same_bytes(leaves(variables["params"]), leaves(state.weights()["teacher"]["params"]))
    assert not jax.tree.leaves(started.ema_params["ema"]["Dense_2"])


@pytest.mark.slow
def test_averages_start_anew_where_other_parameters_are_frozen_now(task, tmp_path, capsys):
    """As far as the optimizer allows it: one without a state of each parameter."""
    plain = {"optimizer.momentum": 0.0}
    before, _ = train.train_and_evaluate(config_of(task, duration="2 steps", **plain), tmp_path)
    other = {"body": default.group("Dense_0/", factor=0.0)}
    changed = config_of(task, other, duration="3 steps", **plain)
    after, _ = train.train_and_evaluate(changed, tmp_path, config_change="accept")
    assert (
        "The average 'ema' leaves out other parameters, for others are frozen now: it starts" in capsys.readouterr().out
    )
    assert {*map(int, after.ema_count.values())} == {1}
    found, expected = leaves(after.ema_params["soft_update"]), leaves((before.params, after.params))
    assert "BatchNorm_0/scale" in found
    assert "Dense_0/kernel" not in found
    for path, leaf in found.items():
        old, new = expected[f"0/{path}"], expected[f"1/{path}"]
        np.testing.assert_allclose(leaf, old + 0.005 * (new - old), rtol=1e-6, atol=1e-8)


def test_no_operation_is_spent_on_gradients_of_a_frozen_part_or_below_it():
    """Of the three products of a dense layer, or two of the first, for no gradient of the images is needed."""
    image, target, label = jnp.zeros((32, 8, 8, 1)), jnp.zeros((32, 10)), jnp.zeros(32, jnp.int32)
    batch, model = {"image": image, "target": target, "label": label}, MLP(10, (256, 256), jnp.float32)
    state = train.create_train_state(jax.random.key(0), model, optax.identity(), (), (image[:1], target[:1]))
    products = 2 * 32 * np.array([64 * 256, 256 * 256, 256 * 10])
    for match, times in {"Dense_[01]/": [1, 1, 2], "Dense_1/": [2, 2, 3]}.items():
        config = digits_config(optimizer__groups={"still": default.group(match, factor=0.0)})
        loss = settings.with_fields(train.loss_fn, config)
        gradients = jax.jit(lambda state, batch, loss=loss: train.compute_gradients(state, batch, loss, 1))
        flops = gradients.lower(state, batch).compile().cost_analysis()["flops"]
        # What is done for each feature and class: biases, activations, the loss, and the gradients of these.
        assert products @ times < flops < products @ times + 32 * (15 * 512 + 50 * 10)


def test_recomputed_statistics_of_a_frozen_part_are_the_stored_ones_and_the_others_those_above_it(run):
    _, finished, start, _ = run
    experiment = finished.experiment
    state, data = experiment.state, experiment.train_data
    shifted = jax.tree.map(lambda x: jnp.asarray(x + 0.25), start["batch_stats"])
    variables = {"params": start["params"], "batch_stats": shifted}
    found = batch_statistics.recompute(
        variables, data, state, batches=[4], sharding=split_batch(experiment.mesh), frozen="BatchNorm_0/"
    )
    jax.tree.map(np.testing.assert_array_equal, found["BatchNorm_0"], shifted["BatchNorm_0"])
    x = np.float64(data.batch(state.replace(step=jnp.int32(4)))[0]["image"]).reshape(32, -1)
    params = jax.tree.map(np.float64, start["params"])
    x = x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    x = (x - shifted["BatchNorm_0"]["mean"]) / np.sqrt(shifted["BatchNorm_0"]["var"] + 1e-5)
    x = np.maximum(x * params["BatchNorm_0"]["scale"] + params["BatchNorm_0"]["bias"], 0)
    x = x @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
    np.testing.assert_allclose(found["BatchNorm_1"]["mean"], x.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(found["BatchNorm_1"]["var"], x.var(axis=0), rtol=1e-4)
