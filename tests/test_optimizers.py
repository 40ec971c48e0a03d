import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import check, digits_config, resolve
from flax import linen as nn

import models
import optimizers
from runtime.errors import UserError

FIELDS = {"momentum": 0.9, "nesterov": False, "b1": 0.9, "b2": 0.999, "weight_decay": 0.0}


def schedule(name, peak=0.4, warmup=0, stable=0, decay=0):
    return optimizers.SCHEDULES[name](peak, warmup=warmup, stable=stable, decay=decay)


def create(name, learning_rate=0.5, clip_norm=0.0, gradient_noise=0.0, **fields):
    phases = {"schedule": "constant", "warmup": 0, "stable": 0, "decay": 0}
    common = {
        "learning_rate": learning_rate,
        **phases,
        "clip_norm": clip_norm,
        "gradient_noise": gradient_noise,
        "groups": {},
    }
    return optimizers.create_optimizer(name, **common, **FIELDS | fields)


def path_of(tx, params, gradients):
    """The parameters after each of these gradients."""
    state, path = tx.init(params), []
    for step, gradient in enumerate(gradients):
        updates, state = tx.update(gradient, state, params, key=jax.random.key(step))
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path


@pytest.mark.parametrize("name", ["constant", "cosine", "wsd"])
def test_warm_up_rises_linearly_from_its_first_step_to_the_peak(name):
    rate = schedule(name, warmup=4, stable=2, decay=10)
    np.testing.assert_allclose([rate(t) for t in range(5)], [0.1, 0.2, 0.3, 0.4, 0.4], rtol=1e-6)


def test_a_constant_rate_stays():
    rate = schedule("constant", warmup=4)
    np.testing.assert_allclose([rate(t) for t in (4, 5, 10**6)], 0.4, rtol=1e-6)


def test_cosine_falls_from_the_peak_after_warm_up_to_zero_at_the_end():
    rate = schedule("cosine", warmup=2, decay=8)
    expected = [0.2 * (1 + np.cos(np.pi * t / 8)) for t in range(9)]
    np.testing.assert_allclose([rate(t) for t in range(2, 11)], expected, atol=1e-7)


def test_one_cycle_rises_and_falls_along_half_a_cosine_each():
    rate = schedule("one_cycle", warmup=29, decay=71)  # 29 / 100 * 100 rounds down to 28 in floating point
    rise = [0.4 + (0.4 / 25 - 0.4) * 0.5 * (1 + np.cos(np.pi * t / 29)) for t in range(30)]
    fall = [0.4 / 250_000 + (0.4 - 0.4 / 250_000) * 0.5 * (1 + np.cos(np.pi * t / 71)) for t in range(72)]
    np.testing.assert_allclose([rate(t) for t in range(101)], rise + fall[1:], rtol=1e-5, atol=1e-7)


def test_warmup_stable_decay_is_linear_up_constant_and_linear_down_to_zero():
    rate = schedule("wsd", warmup=2, stable=3, decay=4)
    np.testing.assert_allclose([rate(t) for t in range(10)], [0.2, *[0.4] * 5, 0.3, 0.2, 0.1, 0], atol=1e-7)


GRADIENTS = np.random.default_rng(0).normal(size=(5, 2, 3))
START = np.random.default_rng(1).normal(size=(2, 3))


def reference(name, *, momentum, nesterov, b1, b2, weight_decay, rate=0.5):
    """The published update rules in float64; weight decay is added to the update, and so multiplied by the rate."""
    p, m, v, path = START.copy(), 0.0, 0.0, []
    for t, g in enumerate(GRADIENTS, start=1):
        if name == "sgd":
            m = momentum * m + g
            update = momentum * m + g if nesterov else m
        elif name == "adamw":
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            update = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
        else:
            update, m = np.sign(b1 * m + (1 - b1) * g), b2 * m + (1 - b2) * g
        p = p - rate * (update + weight_decay * p)
        path.append(p)
    return path


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("sgd", {"momentum": 0.0}),
        ("sgd", {"momentum": 0.9}),
        ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        ("adamw", {"b1": 0.8, "b2": 0.95, "weight_decay": 0.1}),
        ("lion", {"b1": 0.8, "b2": 0.95, "weight_decay": 0.1}),
    ],
)
def test_an_optimizer_follows_its_published_rule(name, fields):
    gradients = [{"kernel": jnp.asarray(g, jnp.float32)} for g in GRADIENTS]
    path = path_of(create(name, **fields), {"kernel": jnp.asarray(START, jnp.float32)}, gradients)
    for step, expected in zip(path, reference(name, **FIELDS | fields), strict=True):
        np.testing.assert_allclose(step["kernel"], expected, rtol=1e-4, atol=1e-5)  # 5 steps in float32


def test_muon_makes_kernels_orthogonal_as_inputs_by_outputs_and_leaves_the_rest_to_adam():
    rng = np.random.default_rng(0)
    shapes = {
        "Conv_0": {"kernel": (3, 3, 4, 8)},
        "Dense_0": {"kernel": (16, 4), "bias": (4,)},
        "query": {"kernel": (12, 2, 3)},
        "out": {"kernel": (2, 3, 12)},
    }
    params = jax.tree.map(lambda s: jnp.zeros(s), shapes, is_leaf=lambda s: isinstance(s, tuple))
    gradient = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    [after] = path_of(create("muon", learning_rate=1.0, momentum=0.95), params, [gradient])
    for layer, matrix in (("Conv_0", (36, 8)), ("Dense_0", (16, 4)), ("query", (12, 6)), ("out", (6, 12))):
        values = np.linalg.svd(np.asarray(after[layer]["kernel"]).reshape(matrix), compute_uv=False)
        # Its five Newton-Schulz iterations leave singular values between about 0.7 and 1.2 (Jordan et al. 2024); then
        # comes 0.2 times the root of the larger side, which gives the update the root mean square of Adam's, 0.2.
        scaled = values / (0.2 * np.sqrt(max(matrix)))
        assert scaled.min() > 0.6
        assert scaled.max() < 1.3
    np.testing.assert_allclose(np.abs(after["Dense_0"]["bias"]), 1, rtol=1e-3)  # Adam's first step is the rate


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion", "muon"])
def test_weight_decay_is_decoupled_and_spares_all_but_kernels(name):
    params = {
        "Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
        "MultiHeadDotProductAttention_0": {"query": {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((2, 2))}},
        "BatchNorm_0": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
        "position_embedding": jnp.ones((1, 2, 3)),
    }
    zero = jax.tree.map(jnp.zeros_like, params)
    path = path_of(create(name, learning_rate=0.5, weight_decay=0.1), params, [zero, zero])
    expected = {
        jax.tree_util.keystr(key): 0.95**2 if "kernel" in jax.tree_util.keystr(key) else 1
        for key, _ in jax.tree_util.tree_leaves_with_path(params)
    }
    for key, leaf in jax.tree_util.tree_leaves_with_path(path[-1]):
        np.testing.assert_allclose(leaf, expected[jax.tree_util.keystr(key)], rtol=1e-6)


def test_clipping_limits_the_global_norm_of_the_gradient():
    tx = create("sgd", momentum=0.0, clip_norm=2.0)
    path = path_of(tx, {"kernel": jnp.zeros(2)}, [{"kernel": jnp.asarray(g)} for g in ([3.0, 4.0], [0.3, 0.4])])
    np.testing.assert_allclose([p["kernel"] for p in path], [[-0.6, -0.8], [-0.75, -1.0]], rtol=1e-6)


def test_gradient_noise_has_the_published_variance_and_no_memory():
    """Variance eta / (1 + t) ** 0.55 (Neelakantan et al. 2015), within 4 standard errors over 40,000 entries."""
    tx = optimizers.add_gradient_noise(0.3)
    zero = {"a": jnp.zeros((200, 100)), "b": jnp.zeros(20_000)}
    state = tx.init(zero)
    assert [leaf.dtype for leaf in jax.tree.leaves(state)] == [jnp.int32]  # a counter, no key
    for t in range(3):
        noise, next_state = tx.update(zero, state, key=jax.random.key(t))
        again, _ = tx.update(zero, state, key=jax.random.key(t))
        other, state = tx.update(zero, state, key=jax.random.key(t + 100))
        jax.tree.map(np.testing.assert_array_equal, noise, again)
        assert next_state.count == state.count == t + 1
        values = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(noise)]).astype(np.float64)
        variance = 0.3 / (1 + t) ** 0.55
        assert abs(np.mean(values**2) / variance - 1) < 4 * np.sqrt(2 / len(values))
        assert abs(np.mean(values)) < 4 * np.sqrt(variance / len(values))
        # Neither two parameters nor two keys share their noise.
        assert abs(np.corrcoef(np.ravel(noise["a"]), noise["b"])[0, 1]) < 4 / np.sqrt(20_000)
        assert abs(np.corrcoef(noise["b"], other["b"])[0, 1]) < 4 / np.sqrt(20_000)


def test_gradient_noise_comes_after_clipping():
    tx = create("sgd", learning_rate=1.0, momentum=0.0, clip_norm=1e-6, gradient_noise=1.0)
    [after] = path_of(tx, {"kernel": jnp.zeros(1000)}, [{"kernel": jnp.ones(1000)}])
    assert np.std(after["kernel"]) == pytest.approx(1, abs=4 / np.sqrt(2 * 1000))


def test_fields_that_only_an_optimizer_declares_are_fields_of_the_config(monkeypatch):
    def stretched(learning_rate, *, b1, stretch: float = 2.0):
        return optax.chain(optax.adam(learning_rate, b1), optax.scale(stretch))

    monkeypatch.setitem(optimizers.OPTIMIZERS, "stretched", stretched)
    assert resolve(digits_config(optimizer__name="stretched")).optimizer.stretch == 2.0
    assert resolve(digits_config(optimizer__name="stretched", optimizer__stretch=3.0)).optimizer.stretch == 3.0
    with pytest.raises(UserError, match=r"optimizer\.stretch = 3 is of type int; must be of type float"):
        check(digits_config(optimizer__name="stretched", optimizer__stretch=3))
    with pytest.raises(UserError, match=r"optimizer\.stretched is unknown; did you mean optimizer\.stretch\?"):
        check(digits_config(optimizer__name="stretched", optimizer__stretched=3.0))
    with pytest.raises(UserError, match=r"optimizer\.stretch is unknown"):
        check(digits_config(optimizer__stretch=3.0))
    check(digits_config())


def test_what_is_defined_anew_under_its_name_gets_the_fields_that_it_has_now(monkeypatch):
    """As in a notebook, where a cell is changed and run again."""

    class First(nn.Module):
        num_classes: int
        dtype: str
        width: int = 1

    class Second(nn.Module):
        num_classes: int
        dtype: str
        height: int = 1

    for model, optimizer in (
        (First, lambda learning_rate, *, momentum: optax.sgd(learning_rate, momentum)),
        (Second, lambda learning_rate, *, b1: optax.adam(learning_rate, b1)),
    ):
        monkeypatch.setitem(models.MODELS, "mine", model)
        monkeypatch.setitem(optimizers.OPTIMIZERS, "mine", optimizer)
        made = models.create_model("mine", num_classes=3, dtype="float32", width=2, height=2)
        assert 2 in (getattr(made, "width", 0), getattr(made, "height", 0))
        state = create("mine", momentum=0.5).init({"kernel": jnp.zeros(2)})
        assert ("mu" in str(state)) == (model is Second)
