"""A policy near an anchor as a fork: which labels there are, the loss and its anchor, what is logged, and resuming."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, check, create_experiment, read_metrics, resolve, state_at
from PIL import Image

import averaging
import settings
import train
from augmentation import Augmentation
from configs import default as project
from examples import results
from examples.anchor import anchors, bandit
from examples.anchor.configs import default
from examples.anchor.train import TASK, divergence, loss_fn
from input_pipeline import Normalization, TrainData, find_source
from runtime import sharding
from runtime.errors import UserError
from train_state import Average

FIXED = project.average("hard_update", period="1000000 steps", start="8 steps")


def anchor_config(**overrides):
    """Digits with 3 labels of each class for the policy and 5 for the reward model, for 8 steps; then 12 without."""
    config = default.get_config()
    config.dataset, config.batch_size, config.duration = "digits", 20, "20 steps"
    config.log_every, config.eval_every, config.checkpoint_every = "4 steps", "4 steps", "10 steps"
    config.data.policy_labels, config.data.reward_labels = 3, 5
    config.augment.crop_padding = 1
    config.model.hidden_sizes, config.model.block = (16,), 4
    config.averages.start.start = "8 steps"
    config.averages.anchor = project.average("soft_update", tau=0.25, start="8 steps")
    for name, value in overrides.items():
        *groups, field = name.split("__")
        functools.reduce(lambda group, key: group[key], groups, config)[field] = value
    return config


@pytest.fixture(scope="module")
def experiment():
    return create_experiment(anchor_config())


loss = jax.jit(loss_fn, static_argnames=("weight", "anchor"))
make_batch = jax.jit(lambda data, state: data.batch(state)[0])


def data_of(**overrides):
    resolved = resolve(anchor_config(**overrides))
    return settings.create_data(TASK, resolved, sharding.create_mesh()).train


def test_policy_and_reward_model_learn_from_labels_of_different_images_and_no_other_label_is_there():
    truth = find_source("digits").load("train").label
    data = data_of()
    policy, reward = np.asarray(data.policy), np.asarray(data.reward)
    np.testing.assert_array_equal(np.bincount(truth[policy], minlength=10), np.full(10, 3))
    np.testing.assert_array_equal(np.bincount(truth[reward], minlength=10), np.full(10, 5))
    both = np.concatenate([policy, reward])
    assert len({*both.tolist()}) == 80
    masked = np.asarray(data.data.label)
    np.testing.assert_array_equal(masked[both], truth[both])
    assert (np.delete(masked, both) == -1).all()
    np.testing.assert_array_equal(data_of(batch_size=40, loss__weight=0.0).policy, policy)
    assert {*data_of(seed=1).policy.tolist()} != {*policy.tolist()}


def test_a_batch_has_a_half_for_each_and_later_any_images():
    image, label = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1), np.full(40, -1, np.int32)
    rows = {"policy": np.arange(0, 40, 8, dtype=np.int32), "reward": np.arange(4, 40, 8, dtype=np.int32)}
    for those in rows.values():
        label[those] = those // 4
    plain = Normalization(np.zeros(1, np.float32), np.ones(1, np.float32))
    data = bandit.Bandit(TrainData(image, label, plain, 10, 10, Augmentation()), **jax.tree.map(jnp.asarray, rows))
    state = state_at(jax.random.key(0), 0).replace(averages=(Average("start", "hard_update", start=4),))
    batches = [make_batch(data, state.replace(step=jnp.int32(step))) for step in range(8)]
    pixels = np.array([batch["image"][:, 0, 0, 0] for batch in batches]).astype(int)
    for step in range(4):
        assert sorted(pixels[step, :5]) == [*rows["policy"]]
        assert sorted(pixels[step, 5:]) == [*rows["reward"]]
        np.testing.assert_array_equal(batches[step]["label"], pixels[step] // 4)
    assert sorted(pixels[4:].ravel()) == [*range(40)]


def other_params(params, key=1):
    return jax.tree.map(lambda x: x + 0.15 * jax.random.normal(jax.random.key(key), x.shape), params)


def probabilities(state, params, image):
    """Of policy and reward model, in float64."""
    logs = state.apply_fn({"params": params}, image, train=True)
    return [np.exp(np.asarray(x, np.float64)) for x in logs]


@pytest.fixture(scope="module")
def later(experiment):
    """At step 8, with policy, anchor and start apart, and a batch."""
    state = experiment.state.replace(step=jnp.int32(8))
    averages = {"anchor": other_params(state.params, 1), "start": other_params(state.params, 2)}
    state = state.replace(ema_params=averages)
    return state, make_batch(experiment.train_data, state)


@pytest.mark.slow
def test_at_first_the_loss_is_the_cross_entropy_of_both_on_their_halves(experiment):
    state = experiment.state.replace(step=jnp.int32(7))
    batch = make_batch(experiment.train_data, state)
    policy, reward = probabilities(state, state.params, batch["image"])
    rows, label = np.arange(10), np.asarray(batch["label"])
    expected = -np.log(np.concatenate([policy[rows, label[:10]], reward[10 + rows, label[10:]]]))
    objective, (metrics, _) = loss(state.params, state, batch, weight=0.5)
    assert float(objective) == pytest.approx(expected.mean(), rel=1e-5)  # float32
    assert float(metrics["loss"][0]) == pytest.approx(expected.sum(), rel=1e-5)
    assert {name for name, (_, count) in metrics.items() if count} == {"loss"}


@pytest.mark.parametrize(("weight", "anchor"), [(0.0, "anchor"), (0.5, "anchor"), (0.5, "start")])
def test_the_loss_is_its_formula_in_float64(later, weight, anchor):
    state, batch = later
    policy, _ = probabilities(state, state.params, batch["image"])
    start, reward = probabilities(state, state.ema_params["start"], batch["image"])
    held, _ = probabilities(state, state.ema_params[anchor], batch["image"])
    value = (policy * reward).sum(axis=1)
    kl, kl_start = ((policy * np.log(policy / other)).sum(axis=1) for other in (held, start))
    assert min(kl.min(), kl_start.min()) > 1e-4
    objective, (metrics, _) = loss(state.params, state, batch, weight=weight, anchor=anchor)
    assert float(objective) == pytest.approx(weight * kl.mean() - value.mean(), rel=1e-5)  # float32
    found = {name: float(total) / count for name, (total, count) in metrics.items() if count}
    expected = {"reward": value.mean(), "kl_start": kl_start.mean()} | ({"kl_anchor": kl.mean()} if weight else {})
    assert found == pytest.approx(expected, rel=1e-5)


def test_no_gradient_goes_through_the_anchor_or_the_reward_model(later):
    """The gradient is that of a loss in which both are constants, and of the reward model's own parameters it is 0."""
    state, batch = later
    image = batch["image"]
    reward = probabilities(state, state.ema_params["start"], image)[1]
    anchor = np.log(probabilities(state, state.ema_params["anchor"], image)[0])

    def with_constants(params):
        log_policy, _ = state.apply_fn({"params": params}, image, train=True)
        inside = reward - 0.5 * (log_policy - anchor)
        return -(jnp.exp(log_policy) * inside).sum(axis=1).mean()

    expected = jax.jit(jax.grad(with_constants))(state.params)
    found = jax.jit(jax.grad(lambda params: loss_fn(params, state, batch, weight=0.5)[0]))(state.params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), found, expected)  # float32
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(found["reward"]))
    assert all(np.asarray(x).any() for x in jax.tree.leaves(found["policy"]))


def test_the_best_policy_near_an_anchor_is_the_anchor_times_the_exponential_of_the_reward_over_the_weight():
    """With a table for each image the optimum has this closed form, and there the gradient is 0."""
    logits, reward = np.random.default_rng(0).normal(size=(2, 20, 10))
    start = {"policy": jax.nn.log_softmax(logits), "reward": jax.nn.log_softmax(reward)}
    weight = 0.3
    best = {"policy": start["policy"] + jnp.exp(start["reward"]) / weight, "reward": start["reward"]}
    state = state_at(jax.random.key(0), 0).replace(averages=(Average("start", "hard_update"),))
    state = state.replace(
        ema_params={"start": start},
        apply_fn=lambda variables, images, train: [
            jax.nn.log_softmax(variables["params"][name]) for name in ("policy", "reward")
        ],
    )
    batch = {"image": jnp.zeros(20), "label": jnp.zeros(20, jnp.int32)}
    gradient = jax.grad(lambda params: loss_fn(params, state, batch, weight=weight, anchor="start")[0])
    largest = [float(jnp.abs(gradient(params)["policy"]).max()) for params in (best, start)]
    assert largest[0] < 1e-8  # of float32, whose sums of 10 terms below 0.05 round by 1e-9
    assert largest[1] > 1e-4


def test_divergences_are_those_of_float64_also_where_almost_nothing_is_left():
    logits = np.random.default_rng(0).normal(scale=8, size=(2, 500, 10))
    policy, other = np.log(np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True))
    expected = (np.exp(policy) * (policy - other)).sum(axis=-1)
    found = divergence(*map(jax.nn.log_softmax, jnp.asarray(logits, jnp.float32)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)  # float32, of differences up to 60
    assert expected.max() > 20
    assert not np.asarray(divergence(jnp.float32(policy), jnp.float32(policy))).any()


def steps(experiment, state, loss_fn, number):
    """The states of so many steps, the given one first."""
    states = [state]
    for _ in range(number):
        batch = make_batch(experiment.train_data, states[-1])
        states.append(train.train_step(states[-1], batch, loss_fn)[0])
    return states


def rejected_at_3(params, state, batch):
    """The default loss, but for one step."""
    objective, aux = loss_fn(params, state, batch)
    return jnp.where(state.step == 3, jnp.nan, 1) * objective, aux


@pytest.mark.slow
def test_so_many_updates_learn_from_labels_then_the_start_stands_still_and_the_anchor_moves(experiment):
    states, count = steps(experiment, experiment.state, rejected_at_3, 11), jax.jit(rejected_at_3)
    for step, state in enumerate(states[:11]):
        batch = make_batch(experiment.train_data, state)
        _, (metrics, _) = count(state.params, state, batch)
        # 8 updates and a step that was none.
        assert (batch["label"] >= 0).all() == (metrics["loss"][1] > 0) == (step < 9)
    del states[4]
    for state in states[:9]:
        for average in state.ema_params.values():
            jax.tree.map(np.testing.assert_array_equal, average, state.params)
    jax.tree.map(np.testing.assert_array_equal, states[10].ema_params["start"], states[8].params)
    expected = states[8].params
    for state in states[9:]:
        expected = averaging.update(expected, state.params, 0.25)
        apart = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)  # of float32
        jax.tree.map(apart, state.ema_params["anchor"], expected)
        assert (jax.tree.leaves(state.params)[0] != jax.tree.leaves(expected)[0]).any()


@pytest.mark.slow
def test_without_weight_there_is_no_anchor_bit_for_bit(experiment):
    state = experiment.state
    without = state.with_averages(tuple(average for average in state.averages if average.name == "start"))
    free = functools.partial(loss_fn, weight=0.0)
    ours, theirs = (steps(experiment, start, free, 12)[-1] for start in (state, without))
    for field in ("params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(ours, field), getattr(theirs, field))
    held = steps(experiment, state, experiment.loss_fn, 12)[-1]
    assert (jax.tree.leaves(held.params)[1] != jax.tree.leaves(ours.params)[1]).any()
    assert TASK.needs({"weight": 0.0, "anchor": "anchor"}) == ("start",)


@pytest.mark.slow
def test_what_is_logged_of_a_fixed_anchor_is_the_same_as_of_the_start(tmp_path):
    state, scores = train.train_and_evaluate(anchor_config(averages__anchor=FIXED), tmp_path / "run")
    lines = read_metrics(tmp_path / "run", "raw") + read_metrics(tmp_path / "run", "train")
    for line in lines:
        assert line["kl_anchor"] == line["kl_start"]
    raw = read_metrics(tmp_path / "run", "raw")
    assert [line["kl_start"] > 0 for line in raw] == [line["step"] > 8 for line in raw]
    experiment = create_experiment(anchor_config(averages__anchor=FIXED))
    data = experiment.eval_data["test"]
    kept = np.asarray(data.mask)
    image, label = data.normalization(jnp.asarray(data.image)[kept]), np.asarray(data.label)[kept]
    policy, _ = probabilities(state, state.params, image)
    start, reward = probabilities(state, state.ema_params["start"], image)
    expected = {
        "accuracy": (policy.argmax(axis=1) == label).mean(),
        "reward": (policy * reward).sum(axis=1).mean(),
        "kl_start": (policy * np.log(policy / start)).sum(axis=1).mean(),
    }
    assert {name: scores["raw"][name] for name in expected} == pytest.approx(expected, rel=1e-4)  # float32
    assert scores["start"]["kl_start"] == scores["anchor"]["kl_anchor"] == 0


@pytest.mark.slow
def test_a_run_that_goes_on_from_a_checkpoint_ends_as_one_that_was_not_interrupted(tmp_path):
    whole, _ = train.train_and_evaluate(anchor_config(), tmp_path / "whole")
    train.train_and_evaluate(anchor_config(duration="10 steps"), tmp_path / "parts")
    resumed, _ = train.train_and_evaluate(anchor_config(), tmp_path / "parts")
    for field in ("params", "opt_state", "ema_params", "ema_count"):
        jax.tree.map(np.testing.assert_array_equal, getattr(whole, field), getattr(resumed, field))
    for change, found in (
        ({"averages__anchor__tau": 0.5}, r"averages.anchor"),
        ({"averages__start__start": "9 steps"}, r"averages.start"),
        ({"data__reward_labels": 6}, r"data.reward_labels: 5 before, 6 now"),
    ):
        with pytest.raises(UserError, match=found):
            train.train_and_evaluate(anchor_config(**change), tmp_path / "parts")


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_bit_for_bit_as_if_they_had_been_left_alone():
    fields = ["dataset=digits", "batch_size=20", "data.policy_labels=3", "data.reward_labels=5", "model.block=4"]
    fields += ["model.hidden_sizes=(16,)", "averages.start.start=40 steps", "averages.anchor.start=40 steps"]
    fields += ["duration=120 steps", "eval_every=40 steps", "checkpoint_every=30 steps"]
    command = [sys.executable, "tests/chaos/chaos.py", "--runs=1", "--seed=0"]
    command += ["--config=examples/anchor/configs/default.py", *(f"--override={field}" for field in fields)]
    command += [f"--phase={phase}" for phase in ("train", "evaluate", "saving")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 of 1 runs ended bit for bit" in result.stdout


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"data__policy_labels": 0}, r"data.policy_labels = 0, data.reward_labels = 5: both must be 1 or more"),
        ({"data__reward_labels": 100}, r"data.policy_labels \+ data.reward_labels = 103: must be 1 to 87"),
        ({"batch_size": 21}, r"batch_size = 21: its halves .* must be a multiple of 2"),
        ({"batch_size": 20, "accumulate": 4}, r"batch_size = 20: .* must be a multiple of 8"),
        ({"augment__mixup": 1.0}, r"augment.mixup = 1.0: it mixes the parts of a batch; set it to 0"),
    ],
)
def test_data_that_cannot_be_made_are_refused(fields, found):
    with pytest.raises(UserError, match=found):
        data_of(**fields)


def test_blocks_that_do_not_fit_the_image_are_refused():
    with pytest.raises(UserError, match=r"model.block = 3: must divide the 8 x 8 of the images"):
        create_experiment(anchor_config(model__block=3))


def test_an_anchor_that_is_missing_is_named_unless_it_has_no_weight():
    fields = {"averages__anchor": project.average("none")}
    with pytest.raises(UserError, match=r"averages.anchor: kind = 'none', and the loss .* needs it"):
        check(anchor_config(**fields))
    check(anchor_config(**fields, loss__weight=0.0))
    check(anchor_config(**fields, loss__anchor="start"))


def test_the_anchors_that_move_are_equally_old_on_average():
    ages = []
    for variant in ("soft, 0.5", "hard, 0.5", "soft and reset, 0.5"):
        resolved = resolve(anchors.config_of(variant, 0), num_train=60_000)
        [average] = [x for x in settings.create_averages(resolved) if x.name == "anchor"]
        cycle = average.restart_every or dict(average.arguments).get("period", 1)
        done = average.start + 10 * cycle + 2000  # so that nothing is left of the beginning
        schedule = average.schedule
        ages.append(np.mean([averaging.describe(schedule, done + step).mean_age for step in range(cycle)]))
    np.testing.assert_allclose(ages, 99, rtol=0.002)  # of a reset at whole steps


@pytest.mark.slow
def test_variants_are_trained_read_and_drawn(tmp_path, monkeypatch):
    config = anchor_config()
    monkeypatch.setattr(default, "get_config", lambda: config.copy_and_resolve_references())
    results.train_all(anchors.VARIANTS, tmp_path, 2, anchors.config_of)
    result = json.loads(json.dumps(anchors.read(tmp_path, 2)))
    assert result["steps"] == [4, 8, 12, 16, 20]
    lines = read_metrics(tmp_path / "hard_0.5" / "seed1", "raw")
    assert result["variants"]["hard, 0.5"]["reward"][1] == [round(line["reward"], 4) for line in lines]
    assert anchors.paths(result, "hard, 0.5", "accuracy").shape == (2, 4)  # from step 8
    assert anchors.table(result).count("|\n") == 1 + len(anchors.VARIANTS)
    assert len(anchors.findings(result).splitlines()) == len(anchors.PAIRS)
    anchors.draw(result).savefig(tmp_path / "anchors.png")
    with Image.open(tmp_path / "anchors.png") as picture:
        assert len(set(picture.convert("L").get_flattened_data())) > 10  # not blank
