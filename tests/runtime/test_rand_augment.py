import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from sklearn.datasets import load_sample_image

from augmentation import Augmentation
from runtime import rand_augment
from runtime.rand_augment import OPERATIONS

FILL = (10, 200, 90)
PHOTO = load_sample_image("flower.jpg")[150:247, 250:371]  # 97 x 121 pixels: the centre is one
IMAGES = {"colour": PHOTO, "grey": np.asarray(Image.fromarray(PHOTO).convert("L"))[..., None]}
UNDIRECTED = ("identity", "posterize", "solarize", "autocontrast", "equalize")


def operated(image, name, strength):
    fill = jnp.asarray(FILL[: image.shape[-1]], jnp.uint8)
    return np.asarray(_operate(jnp.asarray(image), OPERATIONS.index(name), jnp.float32(strength), fill))


_operate = jax.jit(rand_augment._operate)


def with_pillow(image, name, strength):
    height, width = image.shape[:2]
    factor, cos, sin = 1 + 0.9 * strength, np.cos(np.radians(30) * strength), np.sin(np.radians(30) * strength)
    x, y = width / 2, height / 2
    pillow = Image.fromarray(image.squeeze())
    maps = {
        "identity": (1, 0, 0, 0, 1, 0),
        "shear_x": (1, 0.3 * strength, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * strength, 1, 0),
        "translate_x": (1, 0, 0.45 * width * strength, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 0.45 * height * strength),
        "rotate": (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y),
    }
    if name in maps:
        fill = FILL if image.shape[-1] == 3 else FILL[0]
        after = pillow.transform(pillow.size, Image.Transform.AFFINE, maps[name], fillcolor=fill)
    elif name in ("brightness", "contrast", "color", "sharpness"):
        after = getattr(ImageEnhance, name.capitalize())(pillow).enhance(factor)
    elif name == "posterize":
        after = ImageOps.posterize(pillow, 8 - round(4 * abs(strength)))
    elif name == "solarize":
        after = ImageOps.solarize(pillow, 256 - round(256 * abs(strength)))
    else:
        after = getattr(ImageOps, name)(pillow)
    return np.asarray(after).reshape(image.shape), np.reshape(maps.get(name, maps["identity"]), (2, 3))


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pillows(name, kind):
    image = IMAGES[kind]
    for strength in (-0.9, 0.4, 1.0):
        after, (expected, matrix) = operated(image, name, strength), with_pillow(image, name, strength)
        # Which of two pixels is the nearest is rounding where a centre comes to lie on the border of both.
        y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
        source = np.einsum("ij,jhw->ihw", matrix, np.stack([x, y, np.ones_like(x)]))
        clear = (np.abs(source - np.round(source)) > 0.01).all(axis=0)  # Pillow has 16 bits for fractions
        assert clear.mean() > 0.9
        # Levels are rounded down: where the exact one is whole, the last bit of a float makes a difference of one.
        whole = name in ("brightness", "contrast", "color", "sharpness", "autocontrast")
        difference = after[clear].astype(int) - expected[clear]
        assert np.abs(difference).max() <= whole
        assert (difference != 0).mean() < 0.05
        changes_nothing = name == "identity" or (name, kind) == ("color", "grey")
        assert (after == image).all() == changes_nothing or name == "autocontrast"


def test_a_rotation_is_counterclockwise_around_the_centre_as_pillows():
    expected = np.asarray(Image.fromarray(PHOTO).rotate(27, fillcolor=FILL))
    assert (operated(PHOTO, "rotate", 0.9) == expected).mean() > 0.999  # but for centres on a border


def test_what_has_one_level_only_is_left_by_autocontrast_and_equalize():
    image = np.full((9, 7, 3), 77, np.uint8)
    for name in ("autocontrast", "equalize"):
        np.testing.assert_array_equal(operated(image, name, 0.9), image)
    dark = PHOTO // 4 + 30
    for name in ("autocontrast", "equalize"):
        assert np.ptp(operated(dark, name, 0.9)) == 255 > np.ptp(dark)


SMALL = np.random.default_rng(0).integers(40, 200, (16, 20, 3)).astype(np.uint8)


@functools.partial(jax.jit, static_argnums=(0, 1))
def drawn(num_images, num_operations):
    """So many copies of an image, each changed by so many operations at magnitude 9."""
    images, fill = jnp.broadcast_to(SMALL, (num_images, *SMALL.shape)), jnp.asarray(FILL, jnp.uint8)
    return rand_augment.rand_augment(jax.random.key(0), images, num_operations, 9, fill)


def outcomes(image):
    """What one operation at magnitude 9 makes of an image, with the probability of each."""
    found = collections.Counter()
    for name, sign in itertools.product(OPERATIONS, (-1, 1)):
        found[operated(image, name, 0.9 * sign).tobytes()] += 1 / 28
    return found


def test_operations_and_directions_are_drawn_uniformly_for_each_image():
    n = 1000
    counts = collections.Counter(image.tobytes() for image in np.asarray(drawn(n, 1)))
    expected = outcomes(SMALL)
    assert len(expected) == 2 * len(OPERATIONS) - len(UNDIRECTED)
    assert counts.keys() <= expected.keys()
    assert stats.chisquare([counts[image] for image in expected], [n * p for p in expected.values()]).pvalue > 0.01


def test_a_second_operation_is_drawn_independently_and_applied_to_what_the_first_has_made():
    n = 1000
    found, expected = {image.tobytes() for image in np.asarray(drawn(n, 2))}, collections.Counter()
    for first, p in outcomes(SMALL).items():
        for image, q in outcomes(np.frombuffer(first, np.uint8).reshape(SMALL.shape)).items():
            expected[image] += p * q
    assert found <= expected.keys()
    # Of n draws with these probabilities, so many differ.
    probabilities = np.array([*expected.values()])
    distinct = np.sum(1 - (1 - probabilities) ** n)
    assert abs(len(found) - distinct) < 4 * np.sqrt(distinct)


def test_rand_augment_fills_with_the_mean_colour_and_has_its_own_stream():
    batch = jnp.broadcast_to(PHOTO, (64, *PHOTO.shape))
    mean = jnp.array([10.4, 199.6, 90.0])
    pixels = jax.jit(Augmentation.pixels, static_argnums=0)
    augment = Augmentation(rand_augment=1, magnitude=9)
    after = np.asarray(pixels(augment, jax.random.key(0), batch, mean))
    blank = (after == np.array(FILL)).all(axis=-1).mean(axis=(1, 2))
    # Half of a translation by 0.405, of rotations and shears less.
    assert 4 <= np.sum(blank > 0.1) <= 5 / 14 * 64 + 4 * np.sqrt(64 * 5 / 14 * 9 / 14)
    with_others = pixels(Augmentation(rand_augment=1, flip=True, erasing=1.0), jax.random.key(0), batch, mean)
    np.testing.assert_array_equal(after, with_others)
    assert (after != pixels(augment, jax.random.key(1), batch, mean)).any()
    assert Augmentation(flip=True).pixels(jax.random.key(0), batch, mean) is batch
