"""Learning from few labels as a fork: which labels there are, what teaches, with which noise, and that it resumes."""

import functools
import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, check, copy, create_experiment, read_metrics, resolve, state_at
from PIL import Image
from random_keys import drawn_twice

import settings
import train
from augmentation import Augmentation
from configs import default as project
from examples import results
from examples.mean_teacher import labels, teachers
from examples.mean_teacher.configs import cifar10_4000, default
from examples.mean_teacher.train import TASK, loss_fn, ramp
from input_pipeline import Normalization, TrainData, find_source
from runtime import sharding
from runtime.errors import UserError

NOISY = {"model__name": "cnn", "model__batch_norm": True, "model__dropout": 0.25}


def teacher_config(**overrides):
    """Digits with 3 labels of each class, batches of 12 labelled images and 8 others."""
    config = default.get_config()
    config.dataset, config.batch_size, config.duration = "digits", 20, "20 steps"
    config.log_every, config.eval_every, config.checkpoint_every = "4 steps", "10 steps", "10 steps"
    config.data.labels_per_class, config.data.labelled_share = 3, 0.6
    config.augment.crop_padding, config.augment.cutout = 1, 2
    config.model.name, config.model.hidden_sizes = "mlp", (16,)
    config.loss.weight, config.loss.ramp_up = 10.0, "8 steps"
    config.averages.teacher = project.average("ema", half_life="5 steps")
    for name, value in overrides.items():
        *groups, field = name.split("__")
        functools.reduce(lambda group, key: group[key], groups, config)[field] = value
    if config.model.name != "mlp":
        config.model.hidden_sizes = (256, 256)
    return config


@pytest.fixture(scope="module")
def experiment():
    return create_experiment(teacher_config())


loss = jax.jit(loss_fn, static_argnames=("weight", "ramp_up", "teacher", "threshold"))


make_batch = jax.jit(lambda data, state: data.batch(state)[0])


def batch_of(experiment, step=0):
    return make_batch(experiment.train_data, experiment.state.replace(step=jnp.int32(step)))


def data_of(**overrides):
    resolved = resolve(teacher_config(**overrides))
    return settings.create_data(TASK, resolved, sharding.create_mesh()).train


def test_the_labels_that_are_kept_are_balanced_and_vary_with_the_seed_and_with_nothing_else():
    truth = find_source("digits").load("train").label
    data = data_of()
    kept = np.asarray(data.labelled)
    np.testing.assert_array_equal(np.bincount(truth[kept], minlength=10), np.full(10, 3))
    assert len({*kept.tolist()}) == 30
    masked = np.asarray(data.data.label)
    np.testing.assert_array_equal(masked[kept], truth[kept])
    assert (np.delete(masked, kept) == -1).all()
    same = data_of(batch_size=40, data__labelled_share=0.5, augment__cutout=0, duration="9 steps", loss__weight=0.0)
    np.testing.assert_array_equal(same.labelled, kept)
    assert not {*kept.tolist()} <= {*np.asarray(data_of(seed=1).labelled).tolist()}
    assert {*kept.tolist()} < {*np.asarray(data_of(data__labels_per_class=5).labelled).tolist()}


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"loss__teacher": "none"}, {"loss__threshold": 0.2}])
def test_no_other_label_is_ever_read(tmp_path, fields):
    """All labels but those that are kept become the class of which all are found first, so that the same are kept."""
    images = {split: find_source("digits").load(split) for split in ("train", "test")}
    label, seed = images["train"].label, teacher_config().seed
    kept = labels.choose(label, 10, 3, seed)
    order = np.random.default_rng([seed, 2]).permutation(len(label))
    ranks = [np.flatnonzero(label[order] == one)[2] for one in range(10)]
    garbage = np.full_like(label, np.argmin(ranks))
    garbage[kept] = label[kept]
    assert np.mean(garbage != label) > 0.8
    ends = []
    for name, of_train in (("right", label), ("wrong", garbage)):
        arrays = {"train_image": images["train"].image, "train_label": of_train}
        arrays |= {f"test_{field}": getattr(images["test"], field) for field in ("image", "label")}
        np.savez(tmp_path / f"{name}.npz", **arrays)
        config = teacher_config(dataset=f"arrays:{tmp_path / name}.npz", **fields)
        state, _ = train.train_and_evaluate(config, tmp_path / name)
        ends.append((state.params, state.ema_params))
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert read_metrics(tmp_path / "right") == read_metrics(tmp_path / "wrong")


def numbered(batch_size, num_labelled, augmentation=None):
    """Forty images whose pixel is their number, of which every fourth has a label."""
    image, rows = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1), np.arange(0, 40, 4, dtype=np.int32)
    label = np.full(40, -1, np.int32)
    label[rows] = rows // 4
    plain = Normalization(np.zeros(1, np.float32), np.ones(1, np.float32))
    data = TrainData(image, label, plain, 10, batch_size, augmentation or Augmentation())
    return labels.FewLabels(jax.device_put(data), jnp.asarray(rows), num_labelled)


def test_a_batch_has_labelled_images_first_and_then_any_each_once_in_an_epoch():
    data = numbered(batch_size=13, num_labelled=5)
    state = state_at(jax.random.key(0), 0)
    batches = [make_batch(data, state.replace(step=jnp.int32(step))) for step in range(10)]
    pixels = np.array([batch["image"][:, 0, 0, 0] for batch in batches]).astype(int)
    for batch, found in zip(batches, pixels, strict=True):
        assert batch["label"].shape == (5,)
        np.testing.assert_array_equal(found[:5], 4 * batch["label"])
        np.testing.assert_array_equal(batch["target"], np.eye(10)[batch["label"]])
        np.testing.assert_array_equal(batch["teacher_image"], batch["image"])  # without augmentation
    for two_steps in pixels[:, :5].reshape(5, 10):
        assert sorted(two_steps) == [*range(0, 40, 4)]
    for five_steps in pixels[:, 5:].reshape(2, 40):
        assert sorted(five_steps) == [*range(40)]
    assert (pixels[0] != pixels[2]).any()
    assert (pixels[0] != make_batch(data, state.replace(rng=jax.random.key(1)))["image"][:, 0, 0, 0]).any()


@pytest.mark.slow
def test_no_key_of_a_step_is_drawn_from_twice(experiment):
    assert drawn_twice(experiment.train_program, experiment.state, experiment.train_data) == []


@pytest.mark.slow
def test_student_and_teacher_see_the_same_images_under_noise_of_their_own(experiment):
    first, again, later = (batch_of(experiment, step) for step in (0, 0, 1))
    for name, other in (("image", "teacher_image"), ("teacher_image", "image")):
        apart = np.abs(first[name] - first[other]).max(axis=(1, 2, 3))
        assert np.mean(apart > 0) > 0.9  # two draws of shift and square are rarely the same
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != later[name]).any()


def other_params(params):
    return jax.tree.map(lambda x: x + 0.15 * jax.random.normal(jax.random.key(1), x.shape), params)


def probabilities(state, params, image):
    logits = np.asarray(state.apply_fn({"params": params}, image, train=True), np.float64)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("threshold", [0.0, 0.4])
@pytest.mark.parametrize(("step", "share"), [(0, math.exp(-5)), (4, math.exp(-5 / 4)), (8, 1), (1000, 1)])
def test_the_loss_is_its_formula_in_float64(experiment, threshold, step, share):
    state = experiment.state.replace(step=jnp.int32(step))
    state = state.replace(ema_params={"teacher": other_params(state.params)})
    batch = batch_of(experiment)
    student = probabilities(state, state.params, batch["image"])
    teacher = probabilities(state, state.ema_params["teacher"], batch["teacher_image"])
    sure = teacher.max(axis=1) >= threshold
    pseudo = -np.log(student[np.arange(20), teacher.argmax(axis=1)]) * sure
    assert not threshold or 0 < sure.sum() < 20
    apart = pseudo if threshold else np.mean((student - teacher) ** 2, axis=1)
    labelled = -np.log(student[np.arange(12), batch["label"]])
    objective, (metrics, _) = loss(
        state.params, state, batch, weight=3.0, ramp_up=8, teacher="teacher", threshold=threshold
    )
    assert float(objective) == pytest.approx(labelled.mean() + 3 * share * apart.mean(), rel=1e-5)  # float32
    assert float(metrics["loss"][0]) == pytest.approx(labelled.sum(), rel=1e-5)
    assert int(metrics["accuracy"][0]) == (student[:12].argmax(axis=1) == batch["label"]).sum()
    assert float(metrics["apart"][0]) == pytest.approx(apart.sum(), rel=1e-4)
    assert (metrics["loss"][1], metrics["accuracy"][1], metrics["apart"][1]) == (12, 12, 20)
    assert not threshold or (int(metrics["sure"][0]), metrics["sure"][1]) == (sure.sum(), 20)


def test_without_a_ramp_the_weight_is_whole_from_the_first_step():
    assert ramp(jnp.int32(0), 0) == 1


def test_no_gradient_goes_through_the_teacher(experiment):
    """Whoever teaches, the gradient is that of a loss in which what it says is a constant."""
    state = experiment.state.replace(step=jnp.int32(8))
    batch = batch_of(experiment, 8)
    taught = probabilities(state, state.params, batch["teacher_image"])

    def with_constant(params):
        logits = state.apply_fn({"params": params}, batch["image"], train=True)
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits[:12]), batch["label"][:, None], axis=1)
        return nll.mean() + 7 * jnp.square(jax.nn.softmax(logits) - taught).mean()

    expected = jax.jit(jax.grad(with_constant))(state.params)
    for teacher in ("none", "teacher"):  # the average is still a copy of the network
        fields = {"weight": 7.0, "ramp_up": 8, "teacher": teacher}
        found = jax.jit(jax.grad(lambda params, fields=fields: loss_fn(params, state, batch, **fields)[0]))(
            state.params
        )
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), found, expected)  # float32


def test_the_teacher_is_no_other_name_of_the_network(experiment):
    state = copy(experiment.state)
    advanced, _ = train.train_step(state, batch_of(experiment, 0), experiment.loss_fn)
    places = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((advanced.params, advanced.ema_params))]
    assert len({*places}) == len(places) == 8
    second, _ = train.train_step(advanced, batch_of(experiment, 1), experiment.loss_fn)
    decay = 2 ** (-1 / 5)
    step_size = (1 - decay) / (1 - decay**2)  # the second, with bias correction; the first copies
    expected = jax.tree.map(lambda old, new: old + step_size * (new - old), advanced.params, second.params)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), second.ema_params["teacher"], expected
    )


def test_with_a_weight_of_zero_only_labelled_images_count_bit_for_bit(experiment):
    alone = functools.partial(loss_fn, weight=0.0)
    ours = theirs = experiment.state
    for step in range(5):
        batch = batch_of(experiment, step)
        unread = {"image": batch["image"].at[12:].set(jnp.nan), "teacher_image": jnp.full_like(batch["image"], jnp.nan)}
        ours, _ = train.train_step(ours, batch | unread, alone)
        labelled = {name: batch[name] for name in ("label", "target")} | {"image": batch["image"][:12]}
        theirs, _ = train.train_step(theirs, labelled, train.loss_fn)
    assert int(ours.rejected["total"]) == 0
    jax.tree.map(np.testing.assert_array_equal, (ours.params, ours.ema_params), (theirs.params, theirs.ema_params))
    assert not TASK.needs({"weight": 0.0, "teacher": "teacher"})


@pytest.mark.slow
def test_the_teacher_has_dropout_of_its_own_and_the_statistics_of_its_batch():
    experiment = create_experiment(teacher_config(**NOISY))
    state, batch = experiment.state, batch_of(experiment)
    at_once = {"weight": 1.0, "ramp_up": 1, "teacher": "teacher"}
    updates = loss(state.params, state, batch, **at_once)[1][1]
    for name, is_students in (("image", True), ("teacher_image", False)):
        expected = train.apply_model(state.params, state, {"image": batch[name]})[1]
        close = jax.tree.map(lambda x, y: np.allclose(x, y, rtol=1e-4, atol=1e-6), updates, expected)  # of float32
        assert all(jax.tree.leaves(close)) == is_students
    same = batch | {"teacher_image": batch["image"]}
    _, (metrics, _) = loss(state.params, state, same, **at_once)
    assert float(metrics["apart"][0]) > 1e-3  # of the same network and images, by dropout alone
    garbage = state.replace(ema_batch_stats=jax.tree.map(lambda x: x + 100, state.ema_batch_stats))
    objectives = [float(loss(state.params, other, same, **at_once)[0]) for other in (state, garbage)]
    assert objectives[0] == objectives[1]


@pytest.mark.slow
def test_an_average_that_keeps_nothing_is_the_pi_model_bit_for_bit(tmp_path):
    fields = NOISY | {"averages__teacher": project.average("soft_update", tau=1.0)}
    ends = []
    for teacher in ("teacher", "none"):
        state, _ = train.train_and_evaluate(teacher_config(**fields, loss__teacher=teacher), tmp_path / teacher)
        ends.append(state)
    for field in ("params", "opt_state", "batch_stats", "ema_params"):
        jax.tree.map(np.testing.assert_array_equal, *(getattr(state, field) for state in ends))
    other, _ = train.train_and_evaluate(teacher_config(**NOISY), tmp_path / "other")
    assert (jax.tree.leaves(other.params)[0] != jax.tree.leaves(ends[0].params)[0]).any()


@pytest.mark.slow
def test_a_run_that_goes_on_from_a_checkpoint_ends_as_one_that_was_not_interrupted(tmp_path):
    whole, _ = train.train_and_evaluate(teacher_config(**NOISY), tmp_path / "whole")
    train.train_and_evaluate(teacher_config(**NOISY, duration="10 steps"), tmp_path / "parts")
    resumed, _ = train.train_and_evaluate(teacher_config(**NOISY), tmp_path / "parts")
    for field in ("params", "opt_state", "batch_stats", "ema_params", "ema_batch_stats", "ema_count"):
        jax.tree.map(np.testing.assert_array_equal, getattr(whole, field), getattr(resumed, field))
    assert read_metrics(tmp_path / "whole", "teacher") == read_metrics(tmp_path / "parts", "teacher")
    for change, found in (
        ({"averages__teacher__half_life": "6 steps"}, r"averages.teacher"),
        ({"data__labels_per_class": 4}, r"data.labels_per_class: 3 before, 4 now"),
    ):
        with pytest.raises(UserError, match=found):
            train.train_and_evaluate(teacher_config(**NOISY, **change), tmp_path / "parts")


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_bit_for_bit_as_if_they_had_been_left_alone():
    fields = [
        "dataset=digits",
        "batch_size=20",
        "data.labels_per_class=3",
        "model.name=mlp",
        "model.hidden_sizes=(16,)",
    ]
    fields += ["augment.cutout=2", "duration=120 steps", "eval_every=40 steps", "checkpoint_every=30 steps"]
    command = [sys.executable, "tests/chaos/chaos.py", "--runs=1", "--seed=0"]
    command += ["--config=examples/mean_teacher/configs/default.py", *(f"--override={field}" for field in fields)]
    command += [f"--phase={phase}" for phase in ("train", "evaluate", "saving")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 of 1 runs ended bit for bit" in result.stdout


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        (
            {"data__labelled_share": 0.0},
            r"data.labelled_share = 0.0: is 0 images of a batch of 20; must be more than 0",
        ),
        ({"data__labelled_share": 1.2}, r"data.labelled_share = 1.2: is 24 images"),
        ({"data__labelled_share": 0.25, "accumulate": 2}, r"is 5 images .* a multiple of 2"),
        ({"data__labels_per_class": 0}, r"data.labels_per_class = 0: must be 1 to 87"),
        ({"data__labels_per_class": 100}, r"data.labels_per_class = 100: must be 1 to 87, the images of a class"),
        ({"augment__mixup": 1.0}, r"augment.mixup = 1.0: it mixes the parts of a batch; set it to 0"),
        ({"augment__cutmix": 1.0}, r"augment.cutmix = 1.0"),
        ({"loss__threshold": 95.0}, r"loss.threshold = 95.0: must be a probability"),
    ],
)
def test_data_that_cannot_be_made_are_refused(fields, found):
    with pytest.raises(UserError, match=found):
        data_of(**fields)


def test_a_teacher_that_is_missing_is_named_unless_nothing_is_taught():
    fields = {"averages__teacher": project.average("none")}
    with pytest.raises(UserError, match=r"averages.teacher: kind = 'none', and the loss .* needs it"):
        check(teacher_config(**fields))
    check(teacher_config(**fields, loss__teacher="none"))
    check(teacher_config(**fields, loss__weight=0.0))


@pytest.mark.slow
def test_the_config_for_a_gpu_compiles(made_data, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(made_data))
    config = cifar10_4000.get_config()
    config.batch_size, config.data.labels_per_class = 64, 4  # there are 16 images of each class
    experiment = create_experiment(config)
    jax.jit(experiment.train_program).lower(experiment.state, experiment.train_data)


@pytest.mark.slow
def test_variants_are_trained_read_and_drawn(tmp_path, monkeypatch):
    config = teacher_config()
    monkeypatch.setattr(default, "get_config", lambda: config.copy_and_resolve_references())
    monkeypatch.setitem(teachers.VARIANTS, "pseudo-labels", {"threshold": 0.2, "weight": 1.0})
    results.train_all(teachers.VARIANTS, tmp_path, 2, functools.partial(teachers.config_of, duration="20 steps"))
    result = json.loads(json.dumps(teachers.read(tmp_path, 2)))
    assert result["steps"] == [10, 20]
    lines = read_metrics(tmp_path / "Pi_model" / "seed1", "teacher")
    assert result["variants"]["Pi model"]["teacher"][1] == [round(100 * line["accuracy"], 2) for line in lines]
    assert len({json.dumps(variant["raw"]) for variant in result["variants"].values()}) == 4
    assert teachers.table(result).count("|\n") == 1 + len(teachers.VARIANTS)
    assert teachers.findings(result).count("\n") == len(teachers.PAIRS)
    teachers.draw(result).savefig(tmp_path / "teachers.png")
    with Image.open(tmp_path / "teachers.png") as picture:
        assert len(set(picture.convert("L").get_flattened_data())) > 10  # not blank
