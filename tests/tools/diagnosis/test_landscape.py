"""tools.diagnosis.landscape, against cases whose answer is known in closed form."""

import math
import types

import jax
import numpy as np
import pytest

from tools.diagnosis import landscape
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


@pytest.mark.parametrize("hill", [0.0, 3.0])
def test_a_barrier_is_looked_for_between_the_ends_however_high_the_loss_is_beyond(hill):
    """`x**2`, which rises most beyond the ends, with or without a narrow hill between, plus a number per image."""
    shares = np.linspace(-1, 2, 13)
    subject = types.SimpleNamespace(
        statistics={"": lambda variables: variables},
        images={"test": None},
        scores=lambda point, split: {
            "loss": np.arange(5) + point["x"] ** 2 + 4 * hill * np.exp(-64 * (point["x"] - 0.5) ** 2)
        },
    )
    [curve] = landscape.line(subject, {"x": np.float64(0)}, {"x": np.float64(1)}, shares)
    expected = (0.5, 4 * hill - 0.25) if hill else (0.0, 0.0)  # at 2 it is 2 above the straight line
    # At the ends `exp` is 1e-7 of the hill.
    assert (curve["barrier_at"], curve["barrier"][0]) == pytest.approx(expected, abs=1e-5)


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
