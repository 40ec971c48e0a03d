"""The methods of tools.diagnose, each against a case whose answer is known in closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats

import averaging
import models
from runtime import convolution, intervals
from tools.diagnosis import curvature, landscape, spectrum
from tools.diagnosis.landscape import Plane

EPSILON = np.finfo(np.float32).eps


def random_tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"Dense_0": {"kernel": (7, 5), "bias": (5,)}, "Dense_1": {"kernel": (5, 3)}}
    return jax.tree.map(
        lambda shape: (scale * rng.standard_normal(shape)).astype(np.float32),
        shapes,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


# ---- Lines ----------------------------------------------------------------------------------------------------------


def test_the_ends_of_a_line_are_the_weights_themselves_to_the_last_bit():
    """Of whatever size: the ends are compared with what the run says of them."""
    start, end = random_tree(0, 1e4), random_tree(1, 1e-4)
    for a, b in ((start, end), (end, start)):
        jax.tree.map(np.testing.assert_array_equal, landscape.interpolate(a, b, 0.0), a)
        jax.tree.map(np.testing.assert_array_equal, landscape.interpolate(a, b, 1.0), b)


@pytest.mark.parametrize("share", [-1.0, 0.3, 2.0])
def test_a_point_of_the_line_lies_where_its_share_says(share):
    start, end = random_tree(0), random_tree(1)

    def check(a, b, found):
        a, b = np.float64(a), np.float64(b)
        # Three roundings of numbers that are at most this large.
        size = np.abs(a) + np.abs(share) * (np.abs(a) + np.abs(b))
        assert np.all(np.abs(found - (a + share * (b - a))) <= 2 * EPSILON * size)

    jax.tree.map(check, start, end, landscape.interpolate(start, end, share))
    for share in (-1.0, 1 / 3, 2.0):  # a line from weights to themselves stays there
        jax.tree.map(np.testing.assert_array_equal, landscape.interpolate(start, start, share), start)


def test_the_mean_of_trees_is_that_of_their_leaves():
    trees = [random_tree(seed) for seed in range(3)]
    jax.tree.map(
        # Sums of three numbers of float32, each rounded once.
        lambda found, *leaves: np.testing.assert_allclose(found, np.mean(np.float64(leaves), axis=0), atol=1e-6),
        landscape.mean(trees),
        *trees,
    )
    jax.tree.map(np.testing.assert_array_equal, landscape.mean(trees[:1]), trees[0])


SHARES = np.linspace(-1, 2, 25)  # exact in binary


def test_a_loss_that_is_straight_along_the_line_has_no_excess():
    np.testing.assert_array_equal(landscape.excess(SHARES, 2.0 - 4.0 * SHARES), 0)  # all of it exact in binary


def test_a_convex_loss_never_lies_above_the_straight_line_between_the_ends():
    """Of the parabola `(x - m)**2` the excess is `x**2 - x`, wherever its minimum is: below 0 inside of the ends."""
    for minimum in (-3.0, 0.25, 5.0):
        found = landscape.excess(SHARES, (SHARES - minimum) ** 2)
        np.testing.assert_array_equal(found, SHARES**2 - SHARES)  # all of it exact in binary
        assert found[(SHARES >= 0) & (SHARES <= 1)].max() == 0


def test_the_barrier_of_the_double_well_is_its_hill():
    """`(x**2 - 1)**2` from one minimum, -1, to the other, 1: 0 at both and 1 between them."""
    shares = np.linspace(0, 1, 17)
    found = landscape.excess(shares, ((2 * shares - 1) ** 2 - 1) ** 2)
    assert found.max() == 1
    assert shares[found.argmax()] == 0.5


def test_each_image_has_an_excess_of_its_own_whose_mean_is_that_of_the_mean_loss():
    losses = np.random.default_rng(0).exponential(size=(len(SHARES), 6, 2))
    found = landscape.excess(SHARES, losses)
    assert found.shape == losses.shape
    for image in np.ndindex(6, 2):
        np.testing.assert_array_equal(found[:, *image], landscape.excess(SHARES, losses[:, *image]))
    # Sums of 12 numbers of size 1 in float64.
    np.testing.assert_allclose(found.mean(axis=(1, 2)), landscape.excess(SHARES, losses.mean(axis=(1, 2))), atol=1e-14)


# ---- Planes ---------------------------------------------------------------------------------------------------------


def test_the_corners_of_a_plane_lie_in_it_and_can_be_read_off_it():
    corners = [random_tree(seed) for seed in range(3)]
    plane = Plane.through(*corners)
    flat = [np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(tree)]) for tree in corners]
    # Orthonormal up to float64.
    np.testing.assert_allclose(plane.axes @ plane.axes.T, np.eye(2), atol=1e-14)
    places = [plane.project(tree) for tree in corners]
    assert places[0] == (0, 0, 0)
    assert places[1][0] > 0
    assert places[1][1] == pytest.approx(0, abs=1e-14)
    assert places[2][1] > 0
    for tree, (x, y, height) in zip(corners, places, strict=True):
        assert height == pytest.approx(0, abs=1e-13)
        # `at` rounds to float32, whose spacing at weights below 4 is at most 2.4e-7.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2.4e-7), plane.at(x, y), tree)
    for i, j in ((0, 1), (0, 2), (1, 2)):  # distances in the plane are those of the weights
        assert math.dist(places[i], places[j]) == pytest.approx(np.linalg.norm(flat[i] - flat[j]), rel=1e-14)


def test_a_known_triangle_and_a_known_distance_from_its_plane():
    """Corners 3 and 4 away from the first one, at a right angle; then one that leans over it."""

    def tree(a, b, c):
        return {"params": {"bias": np.array([a, b], np.float32), "scale": np.array([[c]], np.float32)}}

    plane = Plane.through(tree(1, 1, 1), tree(4, 1, 1), tree(1, 5, 1))
    assert plane.project(tree(4, 1, 1)) == (3, 0, 0)
    assert plane.project(tree(1, 5, 1)) == (0, 4, 0)
    assert plane.project(tree(0, 3, -4)) == (-1, 2, 5)
    jax.tree.map(np.testing.assert_array_equal, plane.at(3, 4), tree(4, 5, 1))
    assert {leaf.dtype for leaf in jax.tree.leaves(plane.at(3, 4))} == {np.dtype(np.float32)}
    leaning = Plane.through(tree(0, 0, 0), tree(2, 0, 0), tree(3, 0, 4))
    assert leaning.project(tree(3, 0, 4)) == (3, 4, 0)
    assert leaning.project(tree(1, -7, 2)) == (1, 2, 7)


def test_three_points_on_a_line_are_no_plane():
    start, end = random_tree(0, 100.0), random_tree(1, 100.0)
    middle = landscape.interpolate(start, end, 0.3)  # as near to the line as float32 comes
    for corners in ((start, end, middle), (start, middle, end), (start, start, end), (start, end, start)):
        with pytest.raises(ValueError, match="on one line"):
            Plane.through(*corners)
    aside = jax.tree.map(lambda leaf: leaf + np.float32(0.1), middle)
    Plane.through(start, end, aside)


# ---- Curvature ------------------------------------------------------------------------------------------------------


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
    np.testing.assert_allclose(found, hessian @ vectors[0], rtol=0, atol=20 * EPSILON * np.abs(found).max())


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

    def loss_through(conv):
        layer = conv(32, **options)
        return layer, lambda params, images: jnp.mean(jnp.tanh(layer.apply({"params": params}, images)) ** 2)

    with jax.enable_x64(True):
        (ours, loss), (_, flaxs) = map(loss_through, (models.Conv, nn.Conv))
        shapes = jax.eval_shape(ours.init, jax.random.key(0), images)["params"]
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


# ---- Spectra --------------------------------------------------------------------------------------------------------


def angles(num_frequencies):
    return np.linspace(0, np.pi, num_frequencies)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("num_frequencies", [9, 500])
def test_the_transfer_function_of_an_ema_has_its_closed_form(decay, num_frequencies):
    """Shorter and longer than the kernel, of which after 4000 updates less than 1e-17 is left at the start."""
    found = spectrum.transfer(averaging.kernel(averaging.soft_update(1 - decay), 4000), num_frequencies)
    expected = np.abs((1 - decay) / (1 - decay * np.exp(-1j * angles(num_frequencies))))
    np.testing.assert_allclose(found, expected, atol=1e-13)


@pytest.mark.parametrize("number", [1, 8, 37, 64])
def test_the_transfer_function_of_a_running_mean_is_dirichlets_kernel(number):
    found = spectrum.transfer(averaging.kernel(averaging.running_mean(), number), 33)
    half = angles(33)[1:] / 2
    expected = np.abs(np.sin(number * half) / (number * np.sin(half)))
    np.testing.assert_allclose(found, np.append(1.0, expected), atol=1e-14)


def test_an_average_that_copies_keeps_every_oscillation_whole():
    found = spectrum.transfer(averaging.kernel(averaging.soft_update(1.0), 100), 17)
    np.testing.assert_allclose(found, 1, atol=1e-15)


def test_the_transfer_function_of_any_kernel_is_its_fourier_sum():
    kernel = np.random.default_rng(0).dirichlet(np.ones(50))
    found = spectrum.transfer(kernel, 13)
    ages = np.arange(50)[::-1]
    np.testing.assert_allclose(found, np.abs(np.exp(-1j * np.outer(angles(13), ages)) @ kernel), atol=1e-14)


def test_the_power_of_white_noise_sums_to_its_variance():
    """Less what the straight line of each piece takes, which is known: the leverage of each of its steps."""
    num_steps, num_weights, variance = 300, 400, 4.0
    noise = np.random.default_rng(0).normal(0, math.sqrt(variance), (num_steps, num_weights))
    frequencies, power = spectrum.power(noise)
    length = 100
    assert power.shape == (length // 2 + 1, num_weights)
    np.testing.assert_allclose(frequencies, np.arange(51) / length, atol=1e-15)
    time = np.arange(length) - (length - 1) / 2
    leverage = 1 / length + time**2 / np.sum(time**2)
    weight = np.sin(np.pi * np.arange(length) / length) ** 4  # of the window, squared
    expected = variance * np.average(1 - leverage, weights=weight)
    sums = power.sum(axis=0) / length
    error = sums.std(ddof=1) / math.sqrt(num_weights)
    assert error < 0.01 * variance
    assert abs(sums.mean() - expected) < 4 * error  # one time in 16,000 beyond it
    # And it is white: as much power at every frequency but those that the line and the ends take from.
    middle = power.mean(axis=1)[3:-1]
    # Five half-overlapping pieces are worth at least three.
    np.testing.assert_allclose(middle, 2 * variance, rtol=4 / math.sqrt(3 * num_weights))


@pytest.mark.parametrize("period", [2.5, 10, 50])
def test_an_oscillation_appears_at_its_frequency_with_half_its_amplitude_squared(period):
    amplitude, num_steps = 3.0, 3000
    length = num_steps // 3
    phases = np.linspace(0, 1, 4)
    steps = np.arange(num_steps)[:, None]
    trend = 5 - 0.01 * steps
    frequencies, power = spectrum.power(amplitude * np.sin(2 * np.pi * steps / period + phases) + trend)
    peak = round(length / period)
    np.testing.assert_array_equal(power.argmax(axis=0), peak)
    assert frequencies[peak] == pytest.approx(1 / period, rel=1e-15)
    # Of a sine of k periods, a straight line takes up to a share 6 / (pi k)**2, and gives it back elsewhere.
    taken = 6 / (np.pi * peak) ** 2
    np.testing.assert_allclose(power.sum(axis=0) / length, amplitude**2 / 2, rtol=taken)
    near = power[peak - 1 : peak + 2].sum(axis=0) / length  # the window spreads it over its neighbours
    np.testing.assert_allclose(near, amplitude**2 / 2, rtol=taken)


def test_a_straight_line_oscillates_nowhere():
    slopes = np.array([0.0, 1.0, -30.0])
    _, power = spectrum.power(7.0 + np.arange(300)[:, None] * slopes)
    assert power.max() < 1e-20 * 9000**2  # rounding of numbers of up to 9000, squared


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_an_average_of_white_noise_keeps_what_its_transfer_function_says(decay):
    """The recursion as averaging.py states it, which is long past its beginning, as its kernel has to be the same."""
    num_steps, num_weights, before, schedule = 1200, 100, 300, averaging.ema(decay)
    noise = np.random.default_rng(0).standard_normal((before + num_steps, num_weights))
    averaged = np.zeros_like(noise)
    for t, params in enumerate(noise[1:], 1):
        averaged[t] = averaged[t - 1] + float(schedule(t)) * (params - averaged[t - 1])
    _, raw = spectrum.power(noise[before:])
    frequencies, left = spectrum.power(averaged[before:])
    kept = spectrum.transfer(averaging.kernel(schedule, before + num_steps - 1), len(frequencies))
    measured = left.sum(axis=1) / raw.sum(axis=1)
    # The window mixes neighbouring frequencies. What the straight lines take is below the third; from there on the
    # function changes so little from one to the next that 2 % are enough.
    np.testing.assert_allclose(measured[3:], kept[3:] ** 2, rtol=0.02)
    # Errors of several frequencies cancel in part.
    assert left[3:].sum() == pytest.approx(kept[3:] ** 2 @ raw[3:].sum(axis=1), rel=0.01)


def test_a_ratio_is_that_of_the_sums_and_its_interval_that_of_the_theory():
    part, whole = np.array([1.0, 2.0, 3.0, 6.0]), np.array([2.0, 2.0, 4.0, 4.0])
    ratio, low, high = spectrum.ratio_interval(part, whole)
    assert ratio == 1.0
    # Without each of the four: 11/10, 10/10, 9/8, 6/8.
    without = np.array([1.1, 1.0, 1.125, 0.75])
    error = math.sqrt(3 / 4 * np.sum((without - without.mean()) ** 2))
    assert (low, high) == (pytest.approx(1 - 1.96 * error, abs=1e-15), pytest.approx(1 + 1.96 * error, abs=1e-15))
    assert spectrum.ratio_interval(0.25 * whole, whole) == pytest.approx((0.25, 0.25, 0.25), abs=1e-15)


def test_the_interval_of_a_ratio_covers_it_as_often_as_it_says():
    """Of 256 weights whose powers are of very different size, as those of a network are."""
    rng, num_trials, covered = np.random.default_rng(0), 1000, 0
    for _ in range(num_trials):
        whole = rng.lognormal(sigma=1.0, size=256)
        part = 0.2 * whole * rng.lognormal(-0.125, 0.5, size=256)  # its factor has a mean of 1
        _, low, high = spectrum.ratio_interval(part, whole)
        covered += low < 0.2 < high
    least, most = stats.binom.interval(0.999, num_trials, 0.95)
    assert least <= covered <= most
