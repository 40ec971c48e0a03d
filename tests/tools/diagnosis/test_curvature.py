"""tools.diagnosis.curvature, against cases whose answer is known in closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from runtime import convolution, intervals
from tools.diagnosis import curvature


def softmax_regression(classes=3, features=4, images=20):
    """Its parameters, a loss with a weight for each image, and its Hessian in the order of `ravel_pytree`."""
    rng = np.random.default_rng(0)
    x, label = rng.standard_normal((images, features)), rng.integers(classes, size=images)
    params = {"bias": rng.standard_normal(classes), "kernel": rng.standard_normal((features, classes))}
    weights = rng.uniform(0.5, 1.5, images)

    def loss(params, x, label, weights):
        log_p = jax.nn.log_softmax(x @ params["kernel"] + params["bias"])
        return -jnp.mean(weights * jnp.take_along_axis(log_p, label[:, None], axis=1)[:, 0])

    logits = x @ params["kernel"] + params["bias"]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    of_logits = np.einsum("ni,ij->nij", p, np.eye(classes)) - np.einsum("ni,nj->nij", p, p)
    inputs = np.hstack([np.ones((images, 1)), x])  # the bias comes first
    hessian = np.einsum("n,nij,na,nb->aibj", weights / images, of_logits, inputs, inputs)
    size = classes * (features + 1)
    return loss, params, (x, label, weights), hessian.reshape(size, size)


def test_a_hessian_product_is_that_of_softmax_regression():
    """Whose Hessian is the mean of `(diag(p) - p p^T) (x) (x x^T)`."""
    loss, params, args, hessian = softmax_regression()
    vectors = np.random.default_rng(1).standard_normal((5, len(hessian)))
    with jax.enable_x64(True):
        found = [curvature.hessian_product(loss, params, vector, *args) for vector in vectors]
    np.testing.assert_allclose(found, vectors @ hessian, rtol=0, atol=1e-14)  # sums of 20 numbers below 1 in float64
    single = jax.tree.map(np.float32, params)
    x, label, weights = args
    found = curvature.hessian_product(
        loss, single, vectors[0].astype(np.float32), np.float32(x), label.astype(np.int32), np.float32(weights)
    )
    assert found.dtype == np.float32
    # About as many roundings as a sum of 20 images has terms, relative to the largest of the products.
    np.testing.assert_allclose(
        found, hessian @ vectors[0], rtol=0, atol=20 * np.finfo(np.float32).eps * np.abs(found).max()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "formulation"),
    [
        ({"kernel_size": (3, 3)}, "winograd"),
        ({"kernel_size": (5, 5)}, "xla"),
        ({"kernel_size": (5, 5), "strides": 2, "padding": "VALID"}, "columns"),
    ],
    ids=["winograd", "xla", "columns"],
)
def test_a_hessian_product_through_the_projects_convolutions_is_that_through_flaxs(monkeypatch, options, formulation):
    monkeypatch.setattr(convolution, "WINOGRAD_MIN_FLOPS", 0)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 6, 6, 16))

    layer = nn.Conv(32, **options)

    def loss_through(apply_fn):
        return lambda params, images: jnp.mean(jnp.tanh(apply_fn({"params": params}, images)) ** 2)

    with jax.enable_x64(True):
        loss, flaxs = map(loss_through, (convolution.FastApply(layer), layer.apply))
        shapes = jax.eval_shape(layer.init, jax.random.key(0), images)["params"]
        params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape) / 10, shapes)
        vector = rng.standard_normal(sum(leaf.size for leaf in jax.tree.leaves(params)))
        kernel = params["kernel"]
        strides = (options.get("strides", 1),) * 2
        assert convolution.choose(images, kernel, strides).__name__ == formulation
        found = curvature.hessian_product(loss, params, vector, images)
        expected = curvature.hessian_product(flaxs, params, vector, images)
    assert np.abs(expected).max() > 1e-3
    # Sums of up to 400 products in float64, twice: some 1e-14 of the largest.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def symmetric(size, seed, scale=1.0):
    a = np.random.default_rng(seed).standard_normal((size, size))
    return scale * (a + a.T) / math.sqrt(8 * size)


def measure(hessians, number=3, num_probes=4):
    return curvature.measure(
        lambda vector, batch: hessians[batch] @ vector,
        hessians.shape[1],
        num_batches=len(hessians),
        number=number,
        num_probes=num_probes,
    )


def test_of_a_diagonal_hessian_everything_is_known():
    """Batches `b` of a quadratic whose Hessian is `(1 + b / 10) * diag(...)`."""
    values = np.array([-9.0, 0.5, 7.0, 1.0, 4.0, -2.0, 0.0, 3.0, 2.0, 1.5])
    factors = 1 + np.arange(8) / 10
    found = measure(factors[:, None, None] * np.diag(values))
    first = factors[:4].mean()
    # With as many vectors as parameters, Lanczos is exact but for rounding.
    np.testing.assert_allclose(found.eigenvalues, first * np.array([7.0, 4.0, 3.0]), rtol=1e-12)  # not the -9
    assert found.residuals.max() < 1e-12
    np.testing.assert_allclose(found.elsewhere, np.outer(factors[4:], [7.0, 4.0, 3.0]), rtol=1e-12)
    np.testing.assert_allclose(found.traces, factors * values.sum(), rtol=1e-12)  # of every sign vector the same


def test_of_a_large_hessian_each_value_is_as_near_to_an_eigenvalue_as_its_residual_says():
    """Too large for an exact answer, as every network's is: the largest of many that lie close together."""
    hessians = np.stack([symmetric(300, seed) for seed in range(4)])
    found = measure(hessians)
    exact = np.linalg.eigvalsh(hessians[:2].mean(axis=0))[::-1]
    assert np.all(np.diff(found.eigenvalues) < 0)
    for value, residual, right in zip(found.eigenvalues, found.residuals, exact, strict=False):
        assert np.abs(exact - value).min() <= residual + 1e-14
        assert residual <= 0.011 * value  # the tolerance asked for is a hundredth
        # The error of an eigenvalue is of second order: below the residual's square over the gap, and so below it.
        assert value == pytest.approx(right, abs=residual)


def test_along_the_same_directions_other_batches_curve_as_their_hessians_say():
    hessians = np.stack([symmetric(10, seed) for seed in range(6)])  # so small that Lanczos' method is exact
    found = measure(hessians)
    _, vectors = np.linalg.eigh(hessians[:3].mean(axis=0))
    expected = [[v @ hessian @ v for v in vectors.T[:-4:-1]] for hessian in hessians[3:]]
    np.testing.assert_allclose(found.elsewhere, expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_on_other_images_the_curvature_is_at_most_their_largest_eigenvalue_and_less_than_on_those_it_was_chosen_for(
    seed,
):
    """The first is a theorem of any symmetric matrices (Rayleigh). The second holds on average where batches differ."""
    shared = np.diag(np.r_[3.0, 2.0, np.zeros(38)])
    chosen_for, others = [], []
    for trial in range(20):
        hessians = np.stack([shared + symmetric(40, (seed, trial, batch), 2.0) for batch in range(8)])
        found = measure(hessians)
        others.append(found.elsewhere[:, 0].mean())
        chosen_for.append(found.eigenvalues[0])
        assert others[-1] <= np.linalg.eigvalsh(hessians[4:].mean(axis=0))[-1]
    assert intervals.mean_interval(np.subtract(chosen_for, others))[1] > 0  # its 95 % interval lies above 0


def test_the_interval_of_the_trace_covers_it_and_is_as_wide_as_the_theory_says():
    """One probe is off by `sqrt(2)` times the norm of what lies off the diagonal, the mean of four by half of it."""
    hessian = symmetric(40, 0) + np.diag(np.linspace(0, 1, 40))
    num_batches, num_probes = 400, 4
    traces = measure(np.broadcast_to(hessian, (num_batches, 40, 40)), num_probes=num_probes).traces
    mean, low, high = intervals.mean_interval(traces)
    assert low < np.trace(hessian) < high
    off = hessian - np.diag(np.diag(hessian))
    expected = math.sqrt(2) * np.linalg.norm(off) / math.sqrt(num_probes)
    # The standard deviation of n values is known to 1 / sqrt(2 n), for normal ones; 4 of these.
    assert traces.std(ddof=1) == pytest.approx(expected, rel=4 / math.sqrt(2 * num_batches))
    assert abs(mean - np.trace(hessian)) < 4 * expected / math.sqrt(num_batches)


def test_two_points_are_measured_on_equal_terms():
    """The same vectors at every call: without it the difference of two traces would be that of their probes."""
    hessians = np.stack([symmetric(30, seed) for seed in range(6)])
    found, again, more = measure(hessians), measure(hessians), measure(hessians + np.eye(30))
    for name in ("eigenvalues", "residuals", "elsewhere", "traces"):
        np.testing.assert_array_equal(getattr(found, name), getattr(again, name))
    np.testing.assert_allclose(more.traces - found.traces, 30, rtol=1e-12)  # z @ z is 30 for every vector of signs
