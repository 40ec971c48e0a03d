import functools
import logging
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from flax import linen as nn
from jax import lax

import models
from runtime import convolution

NHWC = ("NHWC", "HWIO", "NHWC")
EPSILON = float(np.finfo(np.float32).eps)

# (height, width, channels), (kernel height, kernel width, features), strides, padding, what the forward pass is of:
# few squares, so that it makes a difference to take the height for the width.
CASES = [
    ((8, 7, 32), (3, 3, 16), 1, "SAME", convolution.winograd),
    ((9, 8, 16), (3, 3, 32), 1, "VALID", convolution.winograd),
    ((7, 9, 32), (3, 3, 32), 1, [(0, 2), (1, 0)], convolution.winograd),
    ((8, 9, 3), (3, 5, 16), 1, "SAME", convolution.xla),
    ((9, 8, 16), (5, 3, 16), 1, [(4, 0), (1, 2)], convolution.xla),
    ((6, 9, 1), (5, 4, 32), 1, "VALID", convolution.xla),
    ((7, 8, 4), (1, 1, 16), 1, "VALID", convolution.columns),
    ((8, 7, 16), (1, 1, 32), 2, "SAME", convolution.columns),
    ((8, 9, 4), (5, 3, 16), (1, 2), [(1, 1), (0, 2)], convolution.columns),
    ((7, 9, 1), (3, 3, 8), 2, "SAME", convolution.columns),
    ((9, 8, 4), (5, 4, 8), (3, 2), "VALID", convolution.columns),
    ((14, 13, 1), (6, 4, 8), 2, "VALID", convolution.columns),  # becomes 3x2 of 4 channels
    ((9, 11, 8), (4, 6, 48), (2, 3), "SAME", convolution.columns),  # becomes 2x2 of 48 channels
    ((8, 9, 3), (4, 3, 16), (4, 1), "VALID", convolution.columns),  # becomes 1x3 of 12 channels
]
IDS = [f"{x}, {k}, stride {s}, {p}" for x, k, s, p, _ in CASES]


@pytest.fixture
def few_to_a_chunk(monkeypatch):
    """Small batches take what large ones do, and more than one chunk."""
    monkeypatch.setattr(convolution, "WINOGRAD_MIN_FLOPS", 0)
    monkeypatch.setattr(convolution, "CHUNK_BYTES", 40_000)


def arrays(image_shape, kernel_shape, batch=6):
    random = np.random.default_rng(0)
    x = random.standard_normal((batch, *image_shape)).astype(np.float32)
    kernel = random.standard_normal((*kernel_shape[:2], image_shape[-1], kernel_shape[-1])).astype(np.float32)
    return x, kernel


def value_and_gradients(conv, x, kernel, stride=1, padding="SAME"):
    """The convolution and its gradients of a sum with weights between 0.5 and 1.5, as precise as the arguments."""
    strides = (stride, stride) if isinstance(stride, int) else stride
    conv = functools.partial(conv, window_strides=strides, padding=padding, dimension_numbers=NHWC)

    @jax.jit
    def compute(x, kernel):
        y, gradients = jax.vjp(conv, x, kernel)
        weights = 1 + 0.5 * jnp.cos(jnp.arange(y.size, dtype=jnp.float32))
        return y, *gradients(weights.reshape(y.shape).astype(y.dtype))

    return jax.device_get(compute(x, kernel))


def assert_equal_to_rounding(x, kernel, *options):
    """Compares with float64, in units of the rounding of the largest sum of absolute terms.

    2 of them are allowed; XLA's own convolution differs from float64 by up to 1.4 here, this one by up to 1.2.
    """
    ours = value_and_gradients(convolution.conv_general_dilated, x, kernel, *options)
    with jax.enable_x64(True):
        x, kernel = np.float64(x), np.float64(kernel)
        exact = value_and_gradients(lax.conv_general_dilated, x, kernel, *options)
        sizes = value_and_gradients(lax.conv_general_dilated, np.abs(x), np.abs(kernel), *options)
    for value, right, size in zip(ours, exact, sizes, strict=True):
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, right, rtol=0, atol=2 * EPSILON * np.max(size))


@pytest.mark.parametrize(("image", "kernel", "stride", "padding", "formulation"), CASES, ids=IDS)
def test_values_and_both_gradients_are_those_of_xla(
    few_to_a_chunk, monkeypatch, image, kernel, stride, padding, formulation
):
    taken = []
    choose = convolution.choose
    monkeypatch.setattr(convolution, "choose", lambda *args: taken.append(choose(*args)) or taken[-1])
    assert_equal_to_rounding(*arrays(image, kernel), stride, padding)
    assert taken[0] == formulation


@pytest.mark.parametrize("batch", [1, 7, 12])
def test_how_images_are_cut_into_chunks_does_not_matter(monkeypatch, batch):
    """A prime number of images, too, which cannot be cut."""
    monkeypatch.setattr(convolution, "WINOGRAD_MIN_FLOPS", 0)
    x, kernel = arrays((6, 6, 16), (3, 3, 32), batch)
    monkeypatch.setattr(convolution, "CHUNK_BYTES", 100_000)
    assert_equal_to_rounding(x, kernel)


def test_copies_of_the_images_take_the_memory_of_a_few_chunks():
    """All at once they would take 544 MB."""
    conv = functools.partial(
        convolution.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC
    )

    @jax.jit
    def step(x, kernel, grad):
        y, gradients = jax.vjp(conv, x, kernel)
        return y, *gradients(grad)

    shapes = (256, 32, 32, 16), (3, 3, 16, 32), (256, 32, 32, 32)
    compiled = step.lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * 4e6


def test_bfloat16_is_rounded_once(few_to_a_chunk):
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in arrays((8, 7, 32), (3, 3, 16)))
    ours = value_and_gradients(convolution.conv_general_dilated, x, kernel)
    exact = value_and_gradients(convolution.conv_general_dilated, *map(jnp.float32, (x, kernel)))
    assert all(value.dtype == jnp.bfloat16 for value in ours)
    np.testing.assert_array_equal(ours[0], exact[0].astype(jnp.bfloat16))


@pytest.mark.slow
@pytest.mark.parametrize("case", [CASES[0], CASES[5], CASES[8]], ids=["winograd", "xla", "columns"])
def test_loops_and_vmap_compute_the_same(few_to_a_chunk, case):
    image, kernel, stride, padding, _ = case
    x, _ = arrays(image, kernel)
    kernels = np.random.default_rng(1).standard_normal((3, *kernel[:2], image[-1], kernel[-1])).astype(np.float32)

    def gradients(kernel):
        return value_and_gradients(convolution.conv_general_dilated, x, kernel, stride, padding)

    each = [gradients(kernel) for kernel in kernels]
    for together in (jax.jit(jax.vmap(gradients))(kernels), jax.jit(lambda k: lax.map(gradients, k))(kernels)):
        for i, alone in enumerate(each):
            for a, b in zip(together, alone, strict=True):
                np.testing.assert_allclose(a[i], b, rtol=0, atol=1e-6 * np.abs(b).max())  # some rounding


def test_gradients_of_gradients_are_those_of_xla(few_to_a_chunk):
    x, kernel = arrays((6, 6, 16), (3, 3, 32), batch=2)

    def hessian_times_kernel(conv):
        def loss(kernel):
            return (conv(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC) ** 3).mean()

        return jax.jit(jax.grad(lambda k: jnp.vdot(jax.grad(loss)(k), kernel)))(kernel)

    ours, right = map(hessian_times_kernel, (convolution.conv_general_dilated, lax.conv_general_dilated))
    np.testing.assert_allclose(ours, right, rtol=0, atol=1e-5 * np.abs(right).max())  # cubes of sums of 144 terms


def test_devices_that_share_the_images_exchange_only_the_gradient_of_the_kernel():
    script = """
import functools, jax, numpy as np, jax.numpy as jnp
from runtime import convolution
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
convolution.WINOGRAD_MIN_FLOPS, NHWC = 0, ("NHWC", "HWIO", "NHWC")
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
random = np.random.default_rng(0)
x, k = (random.standard_normal(shape).astype("float32") for shape in ((64, 9, 8, 16), (3, 3, 16, 32)))
def conv(x, k):
    return convolution.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=NHWC)
def step(x, k):
    y, gradients = jax.vjp(conv, x, k)
    return y, *gradients(y)
alone = jax.jit(step)(x, k)
shared, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
step = jax.jit(step, in_shardings=(shared, everywhere), out_shardings=(shared, shared, everywhere))
program = step.lower(x, k).compile()
for a, b in zip(program(x, k), alone):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max())
text = program.as_text()
assert "all-reduce" in text
for word in ("all-gather", "all-to-all", "collective-permute"):
    assert word not in text, word
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | flags)


@pytest.mark.parametrize(
    ("shapes", "options", "reason"),
    [
        (((2, 8, 8, 4), (3, 3, 4, 8)), {"rhs_dilation": (2, 2)}, "rhs_dilation (2, 2)"),
        (((2, 8, 8, 4), (3, 3, 4, 8)), {"lhs_dilation": (1, 2), "padding": [(1, 1), (1, 1)]}, "lhs_dilation (1, 2)"),
        (((2, 8, 8, 4), (3, 3, 1, 8)), {"feature_group_count": 4}, "feature_group_count 4"),
        (((2, 4, 8, 8), (8, 4, 3, 3)), {"dimension_numbers": None}, "layout"),
        (((2, 8, 8, 4), (3, 3, 4, 8)), {"padding": [(3, 0), (1, 1)]}, "padding ((3, 0), (1, 1)) of a kernel of (3, 3)"),
        (((2, 8, 4), (3, 4, 8)), {"dimension_numbers": ("NHC", "HIO", "NHC"), "window_strides": (1,)}, "1 spatial"),
        (((2, 8, 8, 4), (9, 9, 4, 8)), {"padding": "VALID"}, "a kernel of (9, 9) on images of (8, 8)"),
    ],
)
def test_what_is_not_covered_is_left_to_xla_and_said(caplog, shapes, options, reason):
    convolution._warn.cache_clear()
    x, kernel = (np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in shapes)
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": NHWC} | options
    with caplog.at_level(logging.WARNING):
        ours = [convolution.conv_general_dilated(x, kernel, **options) for _ in range(2)]
    np.testing.assert_array_equal(ours[0], lax.conv_general_dilated(x, kernel, **options))
    assert len(caplog.messages) == 1  # not for each of many layers
    assert reason in caplog.text
    assert "left to XLA, which is slow on CPUs" in caplog.text


def test_what_is_covered_is_not_spoken_of(caplog):
    value_and_gradients(convolution.conv_general_dilated, *arrays((8, 8, 3), (3, 3, 8)))
    assert not caplog.messages


def test_other_backends_get_xlas_convolution_and_nothing_else(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, kernel = arrays((8, 8, 32), (3, 3, 32))
    conv = functools.partial(convolution.conv_general_dilated, window_strides=(2, 2), padding="SAME")
    jaxpr = jax.make_jaxpr(functools.partial(conv, dimension_numbers=NHWC))(x, kernel)
    assert [eqn.primitive.name for eqn in jaxpr.eqns] == ["conv_general_dilated"]


class Convolutions(nn.Module):
    """A convolution made in `__call__`, one made in `setup`, one handed in, and one with a function of its own."""

    given: nn.Module
    own: nn.Module

    def setup(self):
        self.made = nn.Conv(4, (3, 3))

    @nn.compact
    def __call__(self, x):
        return self.own(self.given(self.made(nn.Conv(4, (3, 3))(x))))


def test_all_convolutions_of_a_model_are_these_but_for_those_that_have_a_function_of_their_own(monkeypatch):
    called = []

    def note(name, function):
        return lambda *args, **kwargs: called.append(name) or function(*args, **kwargs)

    monkeypatch.setattr(convolution, "conv_general_dilated", note("ours", convolution.conv_general_dilated))
    own = nn.Conv(4, (3, 3), conv_general_dilated=note("own", lax.conv_general_dilated))
    model = Convolutions(nn.Conv(4, (3, 3)), own)
    x = np.ones((1, 5, 5, 4), np.float32)
    variables = model.init(jax.random.key(0), x)
    assert called == ["own"]
    called.clear()
    ours = convolution.FastApply(model)(variables, x)
    assert called == ["ours"] * 3 + ["own"]
    called.clear()
    np.testing.assert_allclose(ours, model.apply(variables, x), atol=1e-6)  # four sums of 36 products, of about 1
    assert called == ["own"]  # nothing sticks to the model


def test_the_convolutions_of_equal_models_are_traced_once():
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def apply(apply_fn, variables, x):
        traced.append(apply_fn)
        return apply_fn(variables, x)

    x = jnp.ones((1, 5, 5, 4))
    for features in (4, 4, 5):
        conv = nn.Conv(features, (3, 3))
        apply(convolution.FastApply(conv), jax.jit(conv.init)(jax.random.key(0), x), x)
    assert [apply_fn.model.features for apply_fn in traced] == [4, 5]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "small_cnn", "resnet"])
def test_models_have_the_logits_and_gradients_that_they_have_with_xla(few_to_a_chunk, name):
    fields = {"batch_norm": True, "dropout": 0.0, "depth": 20, "width": 1, "zero_init_residual": False}
    images = np.random.default_rng(0).standard_normal((4, 12, 12, 3)).astype(np.float32)
    model = models.create_model(name, num_classes=10, dtype="float32", **fields)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)

    def run(apply_fn):
        def loss(params):
            logits, _ = apply_fn(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
            return (logits**2).mean(), logits

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    gradients, logits = run(convolution.FastApply(model))
    xla_gradients, xla_logits = run(model.apply)
    np.testing.assert_allclose(logits, xla_logits, rtol=0, atol=1e-4)  # a network amplifies rounding, deeper ones more
    for ours, right in zip(jax.tree.leaves(gradients), jax.tree.leaves(xla_gradients), strict=True):
        assert np.linalg.norm(ours - right) <= 1e-3 * max(np.linalg.norm(right), 1e-3)
