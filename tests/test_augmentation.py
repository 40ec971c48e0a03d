import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import augmentation
from augmentation import Augmentation

KEY = jax.random.key(0)
N = 2000
# Every pixel of every image is another number, and none is 0.
IMAGE = jnp.arange(1, N * 6 * 5 * 2 + 1, dtype=jnp.float32).reshape(N, 6, 5, 2)
TARGET = jax.nn.one_hot(jnp.arange(N) % 3, 3)
BATCH = {"image": IMAGE, "target": TARGET, "label": jnp.arange(N) % 3}
ALL = Augmentation(flip=True, crop_padding=2, cutout=3, mixup=1.0)


def test_without_any_change_the_batch_is_what_it_was():
    after = Augmentation()(KEY, BATCH)
    assert after.keys() == BATCH.keys()
    assert all(after[name] is BATCH[name] for name in BATCH)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Augmentation)])
def test_every_change_is_a_function_of_the_key_alone(name):
    augment = Augmentation(**{name: getattr(ALL, name)})
    first, again, other = (jax.jit(augment)(key, BATCH)["image"] for key in (KEY, KEY, jax.random.key(1)))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first != IMAGE).any()


def test_turning_one_change_on_leaves_the_others_as_they_are():
    two = Augmentation(flip=True, crop_padding=2)(KEY, BATCH)["image"]
    three = Augmentation(flip=True, crop_padding=2, cutout=3)(KEY, BATCH)["image"]
    np.testing.assert_array_equal(three, jnp.where(three == 0, 0, two))
    # A square of 9 pixels of 30, less at the edges: (1 + 2 * 2/3 ...) as in the test of cutout.
    assert 0.1 < np.mean((three == 0) & (two != 0)) < 0.3


def test_a_flip_mirrors_left_to_right_with_probability_one_half():
    after = np.asarray(augmentation.flip(KEY, IMAGE))
    mirrored = (after == np.asarray(IMAGE)[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (after == np.asarray(IMAGE)).all(axis=(1, 2, 3))).all()
    assert abs(mirrored.mean() - 0.5) < 4 * np.sqrt(0.25 / N)


def test_a_crop_is_a_window_of_the_padded_image_anywhere_with_equal_probability():
    after = np.asarray(augmentation.crop(KEY, IMAGE, 2))
    padded = np.pad(IMAGE, [(0, 0), (2, 2), (2, 2), (0, 0)])
    counts = np.zeros((5, 5), int)
    for row, column in np.ndindex(5, 5):
        window = padded[:, row : row + 6, column : column + 5]
        counts[row, column] = (after == window).all(axis=(1, 2, 3)).sum()
    assert counts.sum() == N  # each image is exactly one of the windows
    # The key is fixed, so this either always passes or never does.
    assert stats.chisquare(counts.ravel()).pvalue > 0.01


@pytest.mark.parametrize("size", [2, 3])
def test_cutout_blanks_a_square_around_any_pixel_with_equal_probability(size):
    after = np.asarray(augmentation.cutout(KEY, IMAGE, size))
    blank = (after == 0).all(axis=-1)
    np.testing.assert_array_equal(after, np.where(blank[..., None], 0, IMAGE))
    squares = {}
    for row, column in np.ndindex(6, 5):
        square = np.zeros((6, 5), bool)
        first = row - size // 2, column - size // 2
        square[max(0, first[0]) : first[0] + size, max(0, first[1]) : first[1] + size] = True
        squares.setdefault(square.tobytes(), [square, 0])[1] += 1
    counts = [(blank == square).all(axis=(1, 2)).sum() for square, _ in squares.values()]
    assert sum(counts) == N
    expected = [N * number / 30 for _, number in squares.values()]
    assert stats.chisquare(counts, expected).pvalue > 0.01


def test_mixup_averages_image_and_target_with_the_same_beta_distributed_weight():
    image, target = augmentation.mixup(KEY, IMAGE, TARGET, 0.5)
    own = np.arange(N) % 3
    weight = np.asarray(target, np.float64)[np.arange(N), own]  # the next example has another class
    assert (weight >= 0.5).all()
    before = np.asarray(IMAGE, np.float64)
    mixed = weight[:, None, None, None] * before + (1 - weight[:, None, None, None]) * np.roll(before, 1, axis=0)
    np.testing.assert_allclose(image, mixed, rtol=1e-6)
    np.testing.assert_allclose(target.sum(axis=1), 1, rtol=1e-6)
    # The larger of w and 1 - w, w from Beta(0.5, 0.5).
    assert stats.kstest(weight, lambda w: 2 * stats.beta(0.5, 0.5).cdf(w) - 1).pvalue > 0.01


def test_augmentations_are_equal_by_value_so_that_nothing_compiles_twice():
    traces = []

    @jax.jit
    def trace(batch):
        traces.append(1)
        return batch.augmentation(KEY, {"image": batch.image, "target": TARGET})

    for _ in range(2):
        trace(_Data(IMAGE, Augmentation(flip=True)))
    assert len(traces) == 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Data:
    image: jax.Array
    augmentation: Augmentation = dataclasses.field(metadata={"static": True})
