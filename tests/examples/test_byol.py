"""Momentum encoders as a fork: views, losses, targets and queue, what is measured of features, and that it resumes."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from conftest import ROOT, check, copy, create_experiment, read_metrics
from matplotlib.text import Text
from random_keys import drawn_twice
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

import train
from configs import default as project
from examples import results
from examples.byol import probes, targets
from examples.byol.configs import cifar10_resnet18, default
from examples.byol.train import TASK, embed, loss_fn, view
from runtime.errors import UserError


def byol_config(**fields):
    config = default.get_config()
    config.dataset, config.data.size, config.batch_size, config.seed = "digits", 8, 32, 3
    config.duration, config.log_every = "40 steps", "10 steps"
    config.evaluate_sets_every = config.checkpoint_every = "20 steps"
    config.model.update({"features": 4, "hidden": 16, "outputs": 8})
    for name, value in fields.items():
        group, _, field = name.rpartition("__")
        (config[group] if group else config)[field] = value
    return config


def without_target(**fields):
    return byol_config(averages=ml_collections.ConfigDict(), loss__target="none", **fields)


@pytest.fixture(scope="module")
def experiment():
    config = byol_config(num_validation=100)
    config.averages.frozen = project.average("hard_update", period="100 steps")
    return create_experiment(config)


@pytest.fixture(scope="module")
def state(experiment):
    """One whose target is another network."""
    noise = iter(np.random.default_rng(0).normal(scale=0.3, size=10**4).astype(np.float32) for _ in range(100))
    other = jax.tree.map(lambda x: x + next(noise)[: x.size].reshape(x.shape), experiment.state.params)
    return experiment.state.replace(ema_params={"target": other}, step=jnp.int32(3))


@pytest.fixture(scope="module")
def image(experiment):
    """Of a batch."""
    return jax.jit(experiment.train_data.batch)(experiment.state)[0]["image"]


@jax.jit
def outputs(state, params, views):
    """Projections and predictions in training, and the new batch statistics."""
    variables = {"params": params, "batch_stats": state.batch_stats}
    (_, projection, prediction), updates = state.apply_fn(variables, views, train=True, mutable=["batch_stats"])
    return projection, prediction, updates["batch_stats"]


@jax.jit
def two_views(state, image):
    first, second = jax.random.split(state.step_key("views"))
    return view(first, image, 0.5, 0.2, False), view(second, image, 0.5, 0.2, False)


def rows(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.slow
def test_the_loss_is_two_minus_two_cosines_of_predictions_and_the_targets_other_views(state, image):
    views = jnp.concatenate(two_views(state, image))
    _, prediction, batch_stats = outputs(state, state.params, views)
    aim, _, _ = outputs(state, state.ema_params["target"], views)
    cosine = np.sum(rows(prediction) * rows(np.roll(aim, 32, axis=0)), axis=1)
    objective, (metrics, updates) = jax.jit(loss_fn)(state.params, state, {"image": image})
    assert float(objective) == pytest.approx(np.mean(2 - 2 * cosine), rel=1e-5)  # float32
    assert float(metrics["loss"][0]) / int(metrics["loss"][1]) == pytest.approx(float(objective), rel=1e-6)
    # Of what the two passes made of the statistics, the network's own is kept.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), updates["batch_stats"], batch_stats
    )


@pytest.mark.slow
def test_with_a_queue_the_loss_tells_the_other_view_from_earlier_keys_and_puts_the_new_ones_in_front(state, image):
    before = rows(np.random.default_rng(0).normal(size=(100, 8)))
    state = state.replace(memory=jnp.asarray(before, jnp.float32))
    views = jnp.concatenate(two_views(state, image))
    projection, _, _ = outputs(state, state.params, views)
    aim, _, _ = outputs(state, state.ema_params["target"], views)
    key = rows(np.roll(aim, 32, axis=0))
    logits = (
        np.concatenate([np.sum(rows(projection) * key, axis=1)[:, None], rows(projection) @ before.T], axis=1) / 0.1
    )
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[:, 0])
    loss = jax.jit(functools.partial(loss_fn, queue=100, temperature=0.1))
    objective, (_, updates) = loss(state.params, state, {"image": image})
    assert float(objective) == pytest.approx(expected, rel=1e-5)  # float32
    np.testing.assert_allclose(updates["memory"], np.concatenate([key, before[:36]]), atol=1e-5)


@pytest.mark.slow
def test_no_key_of_a_step_is_drawn_from_twice(experiment):
    assert drawn_twice(experiment.train_program, experiment.state, experiment.train_data) == []


@pytest.mark.slow
def test_views_differ_from_each_other_and_from_step_to_step(experiment, image):
    first, second = two_views(experiment.state, image)
    later, _ = two_views(experiment.state.replace(step=jnp.int32(1)), image)
    assert first.shape == image.shape
    for other in (second, later, image):
        assert (np.abs(first - other).max(axis=(1, 2, 3)) > 0.01).all()
    colour = np.tile(np.asarray(image) * np.float32([1.0, 0.5, 0.2]), (10, 1, 1, 1))
    colourless = np.ptp(jax.jit(view, static_argnums=(2, 3, 4))(jax.random.key(0), colour, 0.5, 0.4, True), axis=-1)
    assert (colourless < 1e-6).all(axis=(1, 2)).mean() == pytest.approx(0.2, abs=4 * 0.4 / 320**0.5)


def gradient(state, image, **fields):
    loss = jax.jit(jax.grad(lambda params, state: loss_fn(params, state, {"image": image}, **fields)[0]))
    return loss(state.params, state)


@pytest.mark.slow
def test_no_gradient_goes_through_a_target_and_without_stop_gradient_one_does(experiment, image):
    """At the start the target is a copy of the network, so all three have the same loss."""
    frozen, own, free = (
        gradient(experiment.state, image, **fields)
        for fields in ({}, {"target": "none"}, {"target": "none", "stop_gradient": False})
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), own, frozen)  # of float32
    apart = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), free, own)
    assert min(jax.tree.leaves(apart["encode"])) > 1e-5


@pytest.mark.slow
def test_the_target_moves_by_its_step_size_toward_the_new_network_and_is_no_other_name_of_it(experiment):
    state = copy(experiment.state)
    advanced, _ = jax.jit(experiment.train_program)(state, experiment.train_data)
    own, target = advanced.params, advanced.ema_params["target"]
    pointers = [{x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)} for tree in (own, target)]
    assert not pointers[0] & pointers[1]
    moved = [float(jnp.abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, (own, state.params)), strict=True)]
    assert max(moved) > 1e-4  # Adam moves what has a gradient by the learning rate, and it rises
    step_size = 0.1 * (1 + np.cos(np.pi / 40)) / 2
    expected = jax.tree.map(lambda old, new: old + step_size * (new - old), state.params, own)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-7), target, expected)
    jax.tree.map(np.testing.assert_array_equal, advanced.ema_params["frozen"], state.params)


def test_a_target_that_is_missing_is_named_before_anything_is_made():
    with pytest.raises(UserError, match=r"averages.target: it is missing, and the loss .* needs it"):
        check(byol_config(averages=ml_collections.ConfigDict()))
    check(without_target())


def test_neighbours_and_ridge_regression_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, 120)
    features, others = (rng.normal(size=(n, 30)) + 0.7 * np.eye(30)[y] for n, y in ((120, label), (300, label[:1])))
    features *= rng.uniform(0.1, 10, (120, 1))  # of any length
    neighbours = KNeighborsClassifier(probes.NUM_NEIGHBOURS, metric="cosine", algorithm="brute").fit(features, label)
    np.testing.assert_array_equal(probes.nearest(features, label, others), neighbours.predict(others))
    alpha = probes.RIDGE * np.square(features - features.mean(axis=0)).mean() * 30
    regression = Ridge(alpha).fit(features, np.eye(5)[label])
    np.testing.assert_array_equal(probes.ridge(features, label, others), regression.predict(others).argmax(axis=1))
    assert len(set(probes.nearest(features, label, others))) > 1


def test_labelled_images_are_so_many_of_each_class_drawn_by_the_seed():
    label = np.random.default_rng(0).integers(0, 3, 100)
    found = [probes.labelled(label, 7, seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(label[found[0]], np.repeat([0, 1, 2], 7))
    np.testing.assert_array_equal(found[0], found[1])
    assert len({*found[0]}) == 21
    assert {*found[0]} != {*found[2]}
    assert len(probes.labelled(label, 1000, 0)) == 100


def test_spread_is_0_if_all_are_the_same_and_one_over_the_root_of_their_numbers_in_all_directions():
    same = np.outer(np.random.default_rng(0).uniform(1, 5, 50), np.arange(1.0, 9))
    assert probes.spread(same) < 1e-12
    anywhere = np.random.default_rng(0).normal(size=(20_000, 16)) * 100
    assert probes.spread(anywhere) == pytest.approx(1 / 4, rel=0.01)  # of 20,000 normal vectors


@pytest.mark.slow
@pytest.mark.parametrize(("split", "number"), [("validation", 100), ("test", 896)])
def test_the_metrics_are_those_of_all_images_of_the_split_for_every_curve(experiment, split, number):
    weights = experiment.state.weights()
    found = TASK.evaluate(experiment, weights, split)
    assert found.keys() == {"raw", "target", "frozen"}
    data, label = experiment.train_data, np.asarray(experiment.train_data.label)
    judged = experiment.eval_data[split]
    few = probes.labelled(label, 10, experiment.config.seed)
    embedded = [
        np.asarray(embed(experiment.state.apply_fn, weights["raw"], data.normalization(image))[0], np.float64)
        for image in (np.asarray(data.image)[few], judged.image)
    ]
    predicted = probes.ridge(embedded[0], label[few], embedded[1])
    mask = np.asarray(judged.mask)
    value, items = found["raw"]["probe"]
    np.testing.assert_array_equal(items, (predicted == judged.label)[mask])
    assert len(items) == len(found["target"]["knn"][1]) == mask.sum() == number
    assert value == items.mean()
    assert 0.15 < found["raw"]["knn"][0] < 1  # of random weights
    assert found["raw"]["std"][1] is None


@pytest.mark.slow
def test_a_target_that_keeps_nothing_is_simsiam_to_the_bit(tmp_path):
    average = project.average("soft_update", tau=1.0)
    config = byol_config(averages=ml_collections.ConfigDict({"target": average}))
    with_target, _ = train.train_and_evaluate(config, tmp_path / "target")
    without, _ = train.train_and_evaluate(without_target(), tmp_path / "none")
    for field in ("params", "batch_stats"):
        jax.tree.map(np.testing.assert_array_equal, getattr(with_target, field), getattr(without, field))
    jax.tree.map(np.testing.assert_array_equal, with_target.params, with_target.ema_params["target"])
    assert not without.ema_params


@pytest.mark.slow
def test_a_run_that_goes_on_from_a_checkpoint_ends_as_one_that_was_not_interrupted_queue_included(tmp_path):
    config = byol_config(loss__queue=100, optimizer__schedule="constant", optimizer__warmup="0 steps")
    config.averages.target.duration = "40 steps"
    whole, _ = train.train_and_evaluate(config, tmp_path / "whole")
    config.duration = "20 steps"
    train.train_and_evaluate(config, tmp_path / "parts")
    config.duration = "40 steps"
    resumed, _ = train.train_and_evaluate(config, tmp_path / "parts")
    for field in ("params", "batch_stats", "opt_state", "ema_params", "memory"):
        jax.tree.map(np.testing.assert_array_equal, getattr(whole, field), getattr(resumed, field))
    assert read_metrics(tmp_path / "whole", "raw") == read_metrics(tmp_path / "parts", "raw")
    start = np.asarray(create_experiment(config).state.memory)
    np.testing.assert_allclose(np.linalg.norm(start, axis=1), 1, rtol=1e-6)
    assert not np.isin(whole.memory, start).any()  # 40 steps have put 64 keys each in front of 100


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_bit_for_bit_as_if_they_had_been_left_alone():
    fields = ["dataset=digits", "data.size=8", "model.features=4", "batch_size=32", "loss.queue=100"]
    fields += ["duration=120 steps", "evaluate_sets_every=40 steps", "checkpoint_every=30 steps", "log_every=17 steps"]
    command = [sys.executable, "tests/chaos/chaos.py", "--runs=1", "--seed=0"]
    command += ["--config=examples/byol/configs/default.py", *(f"--override={field}" for field in fields)]
    command += [f"--phase={phase}" for phase in ("train", "evaluate", "saving")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 of 1 runs ended bit for bit" in result.stdout


@pytest.mark.slow
def test_without_target_and_stop_gradient_all_images_get_the_same_projection(tmp_path):
    fields = {"duration": "300 steps", "evaluate_sets_every": "300 steps", "checkpoint_every": "300 steps"}
    _, stopped = train.train_and_evaluate(without_target(**fields), tmp_path / "stopped")
    _, free = train.train_and_evaluate(without_target(loss__stop_gradient=False, **fields), tmp_path / "free")
    assert free["raw"]["std"] < 0.03 < 0.15 < stopped["raw"]["std"]  # 0.35 in all directions alike
    assert free["raw"]["probe"] < stopped["raw"]["probe"]


def test_a_queue_of_no_length_is_refused():
    with pytest.raises(UserError, match=r"loss.queue = -1: must be at least 0"):
        create_experiment(byol_config(loss__queue=-1))


@pytest.mark.slow
def test_the_config_for_a_gpu_compiles(made_data, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(made_data))
    config = cifar10_resnet18.get_config()
    config.batch_size = 64
    experiment = create_experiment(config)
    jax.jit(experiment.train_program).lower(experiment.state, experiment.train_data)


def made_up_result():
    rng = np.random.default_rng(0)

    def curves(average):
        names = ["raw"] if average is None else ["raw", "target"]
        return {name: {metric: rng.uniform(0.1, 0.9, (3, 4)).tolist() for metric in TASK.metrics} for name in names}

    variants = {name: {"curves": curves(a), "seconds": [1.0] * 3} for name, (a, _) in targets.VARIANTS.items()}
    return {"steps": [250, 500, 750, 1000], "variants": variants}


def test_the_table_has_every_variant_and_the_picture_can_be_read_on_a_phone():
    result = made_up_result()
    lines = targets.table(result).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [*targets.VARIANTS]
    byol, simsiam = (
        np.array(result["variants"][name]["curves"]["raw"]["probe"])[:, -1] for name in ("BYOL", "SimSiam")
    )
    assert f"| {100 * simsiam.mean():.1f} (" in lines[5]
    assert f"| {100 * (simsiam - byol).mean():+.1f} (" in lines[5]
    figure = targets.draw(result)
    figure.draw_without_rendering()
    for text in figure.findobj(Text):
        assert not text.get_text() or text.get_fontsize() / 72 / figure.get_figwidth() * 360 >= 9
    drawn = figure.get_tightbbox()  # in inches
    assert min(drawn.x0, drawn.y0) >= 0
    assert (drawn.x1, drawn.y1) <= (figure.get_figwidth(), figure.get_figheight())


def test_variants_are_configs_that_differ_only_in_target_and_loss():
    base = targets.config_of("BYOL", 0).to_dict()
    for name in targets.VARIANTS:
        config = targets.config_of(name, 0)
        check(config)
        differing = {key for key, value in config.to_dict().items() if value != base[key]}
        assert differing <= {"averages", "loss"}
        assert (name == "BYOL") == (not differing)


@pytest.mark.slow
def test_variants_are_trained_and_read(tmp_path, monkeypatch):
    small = byol_config().to_dict()
    monkeypatch.setattr(targets.default, "get_config", lambda: ml_collections.ConfigDict(small))
    monkeypatch.setattr(targets, "VARIANTS", {name: targets.VARIANTS[name] for name in ("BYOL", "SimSiam")})
    results.train_all(targets.VARIANTS, tmp_path, 1, targets.config_of)
    result = targets.read(tmp_path, 1)
    assert result["steps"] == [20, 40]
    for name, (average, _) in targets.VARIANTS.items():
        found = result["variants"][name]["curves"]
        assert [*found] == (["raw"] if average is None else ["raw", "target"])
        assert all(np.shape(curve[metric]) == (1, 2) for curve in found.values() for metric in TASK.metrics)
        [line] = [x for x in read_metrics(results.workdirs(name, tmp_path, 1)[0], "raw") if x["step"] == 40]
        assert found["raw"]["probe"][0][1] == pytest.approx(line["probe"], abs=1e-4)
