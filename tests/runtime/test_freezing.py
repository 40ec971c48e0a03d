import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

import optimizers
from configs import default
from runtime import freezing
from train_state import Average, CustomTrainState


@given(st.lists(st.tuples(st.sampled_from(["a/", "b", "a|c/", ".*/x$", "", "(?!b)", "c/(x|y)"]), st.booleans())))
def test_a_path_is_frozen_where_the_first_group_that_fits_has_the_factor_0(pairs):
    groups = {str(i): default.group(match, factor=float(moves)) for i, (match, moves) in enumerate(pairs)}
    tree = {name: {"x": 0, "y": 0} for name in "abc"}
    found = jax.tree.map(lambda name: bool(name) and not groups[name].factor, optimizers.group_of(tree, groups))
    frozen = freezing.paths(groups)
    for name, leaf in itertools.product("abc", "xy"):
        assert freezing.is_frozen((name, leaf), frozen) == found[name][leaf]
        assert (optimizers.moving(tree, frozen)[name][leaf] == optax.MaskedNode()) == found[name][leaf]


def test_what_moves_is_put_back_among_the_others():
    tree, other = ({"a": {"x": 2 * i, "y": 2 * i + 1}, "b": 10 * i} for i in (1, 2))
    assert jax.tree.leaves(optimizers.moving(tree, "a/x|b")) == [3]
    assert optimizers.whole(optimizers.moving(tree, "a/x|b"), other) == {"a": {"x": 4, "y": 3}, "b": 20}
    assert optimizers.moving(tree, "") == optimizers.whole(tree, other) == tree


class Net(nn.Module):
    """Two dense layers with batch norm, whose argument `evaluated` says which of them are as in evaluation."""

    evaluated: tuple[bool, bool] = (False, False)
    in_call: bool = False

    @nn.compact
    def __call__(self, x, train):
        for evaluated in self.evaluated:
            stored = evaluated or not train
            x = nn.Dense(8)(x)
            if self.in_call:
                x = nn.BatchNorm(momentum=0.5)(x, stored)
            else:
                x = nn.BatchNorm(use_running_average=stored, momentum=0.5)(x)
            x = nn.tanh(x)
        return nn.Dense(2)(x)


X = jnp.asarray(np.random.default_rng(0).normal(size=(32, 5)), jnp.float32)


def create(model, frozen=""):
    variables = model.init(jax.random.key(0), X, train=False)
    stats = jax.tree.map(lambda x: x + 0.5, variables["batch_stats"])
    averages = (Average("slow", "soft_update", (("tau", 0.1),), frozen=frozen),)
    return CustomTrainState.create(
        apply_fn=model.apply, params=variables["params"], tx=optax.sgd(0.1), rng=jax.random.key(0), batch_stats=stats,
        averages=averages,
    )  # fmt: skip


def loss_fn(params, state, batch):
    variables = {"params": params, "batch_stats": state.batch_stats}
    outputs, updates = state.apply_fn(variables, batch, train=True, mutable=["batch_stats"])
    return jnp.square(outputs).mean(), ({"outputs": outputs}, updates)


@pytest.mark.parametrize("in_call", [False, True])
@pytest.mark.parametrize(
    ("match", "evaluated"),
    [
        ("Dense_0/|BatchNorm_0/", (True, False)),
        (".*Norm_1", (False, True)),
        ("Dense|BatchNorm_./scale", (False, False)),
    ],
)
def test_batch_norm_of_a_frozen_part_is_as_in_evaluation_and_the_other_as_in_training(match, evaluated, in_call):
    groups = {"still": default.group(match, factor=0.0)}
    frozen = freezing.freeze(loss_fn, groups)
    state, expected_state = create(Net(in_call=in_call), freezing.paths(groups)), create(Net(evaluated))
    found, expected = frozen(state.params, state, X), loss_fn(state.params, expected_state, X)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    for number, stands in enumerate(evaluated):
        before, after = (
            stats[f"BatchNorm_{number}"]["mean"] for stats in (state.batch_stats, found[1][1]["batch_stats"])
        )
        assert (before == after).all() == stands


def test_gradients_are_those_of_the_same_loss_and_0_where_parameters_are_frozen():
    groups = {"still": default.group("Dense_0/", factor=0.0)}
    state = create(Net(), freezing.paths(groups))
    grads, full = (
        jax.grad(f, has_aux=True)(state.params, state, X)[0] for f in (freezing.freeze(loss_fn, groups), loss_fn)
    )
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads["Dense_0"]))
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(full["Dense_0"]["kernel"]))
    for name in grads.keys() - {"Dense_0"}:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), grads[name], full[name])


def test_a_loss_sees_whole_averages_whose_frozen_part_is_the_parameters():
    groups = {"still": default.group("Dense_0/", factor=0.0)}
    state = create(Net(), freezing.paths(groups))
    assert not jax.tree.leaves(state.ema_params["slow"]["Dense_0"])
    state = state.replace(ema_params=jax.tree.map(lambda x: x + 1, state.ema_params))

    def with_average(params, state, batch):
        assert jax.tree.structure(state.ema_params["slow"]) == jax.tree.structure(params)
        return 0.0, state.ema_params["slow"]

    _, seen = freezing.freeze(with_average, groups)(state.params, state, X)
    jax.tree.map(np.testing.assert_array_equal, seen["Dense_0"], state.params["Dense_0"])
    jax.tree.map(lambda a, p: np.testing.assert_array_equal(a, p + 1), seen["Dense_1"], state.params["Dense_1"])


def test_without_a_frozen_group_the_loss_is_the_same_object():
    assert freezing.freeze(loss_fn, {}) is freezing.freeze(loss_fn, {"a": default.group("", factor=0.1)}) is loss_fn
