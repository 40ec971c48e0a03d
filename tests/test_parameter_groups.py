"""Parameters that move otherwise than the others: `config.optimizer.groups`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import check, create_experiment, digits_config

import optimizers
from configs import default
from runtime.errors import UserError

FIELDS = {"momentum": 0.9, "nesterov": True, "b1": 0.9, "b2": 0.99, "weight_decay": 0.1}
RNG = np.random.default_rng(0)


def tree() -> dict:
    return {name: {"kernel": jnp.float32(RNG.normal(size=(3, 2)))} for name in ("actor", "critic", "rest")}


START, GRADIENTS = tree(), [tree() for _ in range(4)]


def path_of(groups, name="adamw", clip_norm=0.0, gradients=GRADIENTS, **fields):
    """The parameters after each of these gradients, and what is logged with each."""
    phases = {"schedule": "cosine", "warmup": 2, "stable": 0, "decay": 10}
    common = {"learning_rate": 0.5, **phases, "clip_norm": clip_norm, "gradient_noise": 0.0, "groups": groups}
    tx = optimizers.create_optimizer(name, **common, **FIELDS | fields)
    params, state, path, log = START, tx.init(START), [], []
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params, key=jax.random.key(0))
        params = optax.apply_updates(params, updates)
        path.append(params)
        log.append(optimizers.logged(state))
    return path, log


def leaf(path, name):
    return np.array([params[name]["kernel"] for params in path])


@pytest.mark.parametrize("name", sorted(optimizers.OPTIMIZERS))
def test_groups_that_differ_in_nothing_change_nothing(name):
    path, _ = path_of({"actor": default.group("actor/"), "all_others": default.group("")}, name)
    for one in START:  # up to rounding: XLA computes the groups by themselves
        np.testing.assert_allclose(leaf(path, one), leaf(path_of({}, name)[0], one), atol=1e-6)


@pytest.mark.parametrize("name", sorted(optimizers.OPTIMIZERS))
def test_a_factor_is_a_learning_rate_of_their_own_and_weight_decay_goes_with_it(name):
    path, _ = path_of({"actor": default.group("actor/", factor=0.25)}, name)
    expected, _ = path_of({}, name)
    np.testing.assert_allclose(leaf(path, "critic"), leaf(expected, "critic"), atol=1e-6)
    slow = [
        {
            "actor": {
                "kernel": START["actor"]["kernel"] + 0.25 * (expected[0]["actor"]["kernel"] - START["actor"]["kernel"])
            }
        }
    ]
    np.testing.assert_allclose(leaf(path[:1], "actor"), leaf(slow, "actor"), rtol=1e-6)


def test_a_factor_of_zero_keeps_exactly_these_parameters_and_no_moments_of_them():
    groups = {"actor": default.group("actor/", factor=0.0)}
    path, log = path_of(groups)
    assert (leaf(path, "actor") == START["actor"]["kernel"]).all()
    expected, _ = path_of({})
    for name in ("critic", "rest"):
        np.testing.assert_allclose(leaf(path, name), leaf(expected, name), atol=1e-6)
    assert log[0]["learning_rate_actor"] == 0
    state = optimizers.in_groups(optimizers.adamw, groups)(0.1, b1=0.9, b2=0.99, weight_decay=0.0).init(START)
    moments = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert moments == [(3, 2)] * 4  # two each of critic and rest


def test_a_clip_norm_limits_the_gradient_of_its_group_alone():
    groups = {"actor": default.group("actor/", clip_norm=0.5)}
    path, log = path_of(groups, "sgd", momentum=0.0, nesterov=False, weight_decay=0.0)
    before = np.array([START, *path[:-1]])
    for step, (params, after) in enumerate(zip(before, path, strict=True)):
        gradient, rate = GRADIENTS[step], np.float64(log[step]["learning_rate"])
        norm = np.linalg.norm(np.float64(gradient["actor"]["kernel"]))
        assert norm > 0.5
        moved = {name: (params[name]["kernel"] - after[name]["kernel"]) / rate for name in params}
        np.testing.assert_allclose(moved["actor"], gradient["actor"]["kernel"] * 0.5 / norm, atol=1e-5)
        np.testing.assert_allclose(moved["critic"], gradient["critic"]["kernel"], atol=1e-5)


def test_a_group_that_moves_every_second_update_sees_no_other_gradient():
    """As an optimizer does that gets every second gradient, at its own time in the schedule of learning rates."""
    path, log = path_of({"actor": default.group("actor/", every=2)}, b1=0.5)
    assert (leaf(path, "actor")[0] == START["actor"]["kernel"]).all()
    np.testing.assert_array_equal(leaf(path, "actor")[1], leaf(path, "actor")[2])
    np.testing.assert_allclose(leaf(path, "critic"), leaf(path_of({}, b1=0.5)[0], "critic"), atol=1e-6)
    adam = optax.inject_hyperparams(optax.adamw)(0.0, 0.5, 0.99, weight_decay=0.1)
    params, state = START["actor"], adam.init(START["actor"])
    for step in (1, 3):
        state.hyperparams["learning_rate"] = log[step]["learning_rate"]
        updates, state = adam.update(GRADIENTS[step]["actor"], state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(leaf(path, "actor")[step], params["kernel"], atol=1e-6)  # rounding


def test_the_rate_and_the_gradient_norm_of_each_group_are_logged():
    groups = {"actor": default.group("actor/", factor=0.5, clip_norm=0.1), "others": default.group("critic|rest")}
    _, log = path_of(groups)
    for gradient, line in zip(GRADIENTS, log, strict=True):
        assert line["learning_rate_actor"] == line["learning_rate"] / 2
        assert line["learning_rate_others"] == line["learning_rate"]
        norm = {name: np.linalg.norm(np.float64(gradient[name]["kernel"])) for name in gradient}
        np.testing.assert_allclose(line["grad_norm_actor"], norm["actor"], rtol=1e-6)
        np.testing.assert_allclose(line["grad_norm_others"], np.hypot(norm["critic"], norm["rest"]), rtol=1e-6)


def test_the_first_group_that_matches_the_beginning_of_a_path_has_the_parameter():
    groups = {
        "biases": default.group("actor/bias"),
        "actors": default.group("actor"),
        "ends": default.group(".*/scale$"),
    }
    params = {"actor": {"bias": 0, "kernel": 0}, "old_actor": {"bias": 0}, "critic": {"scale": 0, "scale_too": 0}}
    assert optimizers.group_of(params, groups) == {
        "actor": {"bias": "biases", "kernel": "actors"},
        "old_actor": {"bias": ""},
        "critic": {"scale": "ends", "scale_too": ""},
    }


@pytest.mark.parametrize("name", sorted(optimizers.OPTIMIZERS))
def test_a_weight_decay_factor_multiplies_the_weight_decay_of_its_group_alone(name):
    path, _ = path_of({"actor": default.group("actor/", weight_decay_factor=0.25)}, name)
    for one, weight_decay in {"actor": 0.025, "critic": 0.1}.items():  # 0.1 is that of the optimizer
        expected, _ = path_of({}, name, weight_decay=weight_decay)
        np.testing.assert_allclose(leaf(path, one), leaf(expected, one), atol=1e-6)


@pytest.mark.parametrize(
    ("group", "problem"),
    [
        ({"factor": 0.0, "every": 2}, "every = 2: with a factor of 0 these parameters stay as they are"),
        ({"factor": 0.0, "clip_norm": 1.0}, "clip_norm = 1.0: with a factor of 0 these"),
        ({"factor": 0.0, "weight_decay_factor": 0.0}, "weight_decay_factor = 0.0: with a factor of 0 these"),
        ({"weight_decay_factor": 0.0}, "weight_decay_factor = 0.0: optimizer.weight_decay is 0"),
    ],
)
def test_a_field_of_a_group_that_has_no_effect_is_refused(group, problem):
    config = digits_config()
    config.optimizer.groups.hidden = default.group("Dense_0/", **group)
    with pytest.raises(UserError, match=rf"optimizer\.groups\.hidden\.{problem}"):
        check(config)
    config.optimizer.groups.hidden = default.group("Dense_0/", factor=group.get("factor", 1.0))
    check(config)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("match", "(", "is no regular expression"),
        ("match", "a)|(b", "is no regular expression"),
        ("match", "(?i)a", "is no regular expression"),
        ("match", r"(a)/\1", "must not refer to its own groups"),
        ("match", "(?P<name>a)", "must not refer to its own groups"),
        ("weight_decay_factor", -1.0, "at least 0"),
        ("factor", -1.0, "at least 0"),
        ("clip_norm", -1.0, "at least 0"),
        ("every", 0, "at least 1"),
        ("evry", 2, "did you mean optimizer.groups.hidden.every"),
    ],
)
def test_a_wrong_field_of_a_group_is_named(field, value, problem):
    config = digits_config()
    config.optimizer.groups.hidden = default.group("Dense_0/")
    with config.optimizer.groups.unlocked():
        config.optimizer.groups.hidden[field] = value
    with pytest.raises(UserError, match=rf"optimizer\.groups\.hidden\.{field}.*{problem}"):
        check(config)


@pytest.mark.parametrize("match", ["dense_0/", "Dense_0/kernel"])
def test_a_run_with_a_group_of_no_parameters_ends_before_it_begins(match):
    config = digits_config()
    config.optimizer.groups.first = default.group("Dense_0")
    config.optimizer.groups.hidden = default.group(match)
    with pytest.raises(UserError, match=rf"optimizer.groups.hidden.match = '{match}'.*begin with Dense_0, Dense_1"):
        create_experiment(config)
