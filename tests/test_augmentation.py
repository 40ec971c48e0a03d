import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

import augmentation
from augmentation import Augmentation

KEY = jax.random.key(0)
N = 2000
# Every pixel of every image is another number, and none is 0.
IMAGE = jnp.arange(1, N * 6 * 5 * 2 + 1, dtype=jnp.float32).reshape(N, 6, 5, 2)
TARGET = jax.nn.one_hot(jnp.arange(N) % 3, 3)
BATCH = {"image": IMAGE, "target": TARGET, "label": jnp.arange(N) % 3}
ALL = Augmentation(flip=True, crop_padding=2, cutout=3, erasing=0.5, mixup=1.0, cutmix=1.0)


def test_without_any_change_the_batch_is_what_it_was():
    after = Augmentation()(KEY, BATCH)
    assert after.keys() == BATCH.keys()
    assert all(after[name] is BATCH[name] for name in BATCH)


ELSEWHERE = (
    "rand_augment",
    "magnitude",
    "resized_crop",
)  # tests/runtime/test_rand_augment.py, tests/runtime/test_decoding.py
NAMES = [field.name for field in dataclasses.fields(Augmentation) if field.name not in ELSEWHERE]


@pytest.mark.parametrize("name", NAMES)
def test_every_change_is_a_function_of_the_key_alone(name):
    augment = Augmentation(**{name: getattr(ALL, name)})
    first, again, other = (jax.jit(augment)(key, BATCH)["image"] for key in (KEY, KEY, jax.random.key(1)))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first != IMAGE).any()


@pytest.mark.parametrize("blanks", [{"cutout": 3}, {"erasing": 1.0}])
def test_turning_one_change_on_leaves_the_others_as_they_are(blanks):
    two = Augmentation(flip=True, crop_padding=2)(KEY, BATCH)["image"]
    three = Augmentation(flip=True, crop_padding=2, **blanks)(KEY, BATCH)["image"]
    np.testing.assert_array_equal(three, jnp.where(three == 0, 0, two))
    # A square of 9 pixels of 30, less at the edges: (1 + 2 * 2/3 ...) as in the test of cutout; or 0.02 to 1/3.
    assert 0.1 < np.mean((three == 0) & (two != 0)) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("mixes", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}])
def test_how_examples_are_mixed_does_not_depend_on_the_other_changes(mixes):
    alone = Augmentation(**mixes)(KEY, BATCH)["target"]
    np.testing.assert_array_equal(
        dataclasses.replace(ALL, **{"mixup": 0.0, "cutmix": 0.0} | mixes)(KEY, BATCH)["target"], alone
    )


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


def rectangles(inside):
    """The first row and column and the height and width of the rectangles in masks [n, height, width]."""
    assert inside.any(axis=(1, 2)).all()
    rows, columns = inside.any(axis=2), inside.any(axis=1)
    np.testing.assert_array_equal(inside, rows[:, :, None] & columns[:, None, :])
    for side in (rows, columns):
        assert (np.abs(np.diff(np.pad(side, [(0, 0), (1, 1)]).astype(int))).sum(axis=1) == 2).all()  # without gaps
    return rows.argmax(axis=1), columns.argmax(axis=1), rows.sum(axis=1), columns.sum(axis=1)


def test_erasing_blanks_a_rectangle_of_the_papers_sizes_anywhere_with_the_given_probability():
    image = jnp.ones((N, 56, 64, 1))
    after = np.asarray(augmentation.erasing(KEY, image, 0.7))
    blank = after[..., 0] == 0
    erased = blank.any(axis=(1, 2))
    assert abs(erased.mean() - 0.7) < 4 * np.sqrt(0.7 * 0.3 / N)
    top, left, height, width = rectangles(blank[erased])

    def spread(x):
        """Whole numbers as reals that are uniform where they were."""
        return x + np.random.default_rng(0).uniform(-0.5, 0.5, len(x))

    # The few whose sides were cut have another shape: a ratio of 3.3 needs an area above 1 / 3.3 for that.
    sides = spread(height), spread(width)
    area, log_ratio = sides[0] * sides[1] / (56 * 64), np.log(sides[0] / sides[1])
    assert stats.kstest(area, stats.uniform(0.02, 1 / 3 - 0.02).cdf).pvalue > 0.01
    assert stats.kstest(log_ratio, stats.uniform(np.log(0.3), np.log(3.3 / 0.3)).cdf).pvalue > 0.01
    for first, size, whole in ((top, height, 56), (left, width, 64)):
        place = (first + np.random.default_rng(1).uniform(size=len(first))) / (whole - size + 1)
        assert stats.kstest(place, stats.uniform.cdf).pvalue > 0.01
    # A side is never longer than that of the image.
    flat = np.asarray(augmentation.erasing(KEY, jnp.ones((N, 6, 60, 1)), 1.0))[..., 0] == 0
    assert rectangles(flat)[2].max() == 6


def test_cutmix_pastes_a_rectangle_and_averages_targets_by_the_share_of_its_pixels():
    n, size = 4 * N, 40
    image = jnp.broadcast_to(jnp.arange(n, dtype=jnp.float32)[:, None, None, None], (n, size, size, 1))
    label = jnp.arange(n) % 4  # the next example, the last one's too, has another class
    after, target = map(np.asarray, augmentation.cutmix(KEY, image, jax.nn.one_hot(label, 4), 1.0))
    own = after[..., 0] == np.arange(n)[:, None, None]
    other = after[..., 0] == np.roll(np.arange(n), 1)[:, None, None]
    assert (own ^ other).all()
    share = own.mean(axis=(1, 2))
    np.testing.assert_allclose(target[np.arange(n), label], share, rtol=0, atol=1e-6)
    np.testing.assert_allclose(target.sum(axis=1), 1, rtol=0, atol=1e-6)
    pasted = ~own.all(axis=(1, 2))
    top, left, height, width = rectangles(~own[pasted])
    # Where nothing is cut off, both sides are those of the share that was drawn: 1 - w = U, its root has the density
    # 2 x, and the halves are whole pixels. A rectangle of half h lies inside with probability (size - 2 h + 1) / size.
    whole = (top > 0) & (left > 0) & (top + height < size) & (left + width < size)
    assert (height[whole] == width[whole]).all()
    half = np.arange(1, size // 2)
    # Both ends strictly inside: centres from h + 1 to size - h - 1.
    inside = np.maximum(size - 2 * half - 1, 0) / size
    expected = n * ((2 * (half + 1) / size) ** 2 - (2 * half / size) ** 2) * inside**2
    counts = np.bincount(height[whole] // 2, minlength=len(half) + 1)[1 : len(half) + 1]
    often = expected > 5
    assert (height[whole] % 2 == 0).all()
    assert stats.chisquare(counts[often], expected[often] * counts[often].sum() / expected[often].sum()).pvalue > 0.01
    assert abs(counts.sum() - expected.sum()) < 4 * np.sqrt(expected.sum())


def test_what_cutmix_pastes_has_the_shape_of_the_image_and_lies_anywhere():
    height, width = 24, 72
    image = jnp.broadcast_to(jnp.arange(N, dtype=jnp.float32)[:, None, None, None], (N, height, width, 1))
    after = np.asarray(augmentation.cutmix(KEY, image, TARGET, 1.0)[0])[..., 0]
    pasted = after != np.arange(N)[:, None, None]
    top, left, high, wide = rectangles(pasted[pasted.any(axis=(1, 2))])
    whole = (top > 0) & (left > 0) & (top + high < height) & (left + wide < width)
    assert whole.sum() > 200
    # Each side is a whole number of halves: less than the share of the image by below 2 pixels.
    assert np.abs(high / height - wide / width)[whole].max() < 2 / min(height, width)
    assert (pasted.mean(axis=0) > 0.1).all()  # also in the corners


def crops(image, min_area, seed=0):
    return np.asarray(jax.jit(augmentation.resized_crop)(jax.random.key(seed), image, min_area), np.float64)


def test_a_resized_crop_has_the_papers_area_ratio_and_place():
    """The levels of an image that are its rows or its columns tell where each crop came from."""
    height, width = 24, 32
    rows, columns = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    image = jnp.broadcast_to(jnp.asarray(np.stack([rows, columns], axis=-1), jnp.float32), (N, height, width, 2))
    after = crops(image, 0.2)
    # Between two inner pixels levels grow by the share that the crop has of that side.
    side = np.stack([np.diff(after[:, 11:13, 16, 0])[:, 0], np.diff(after[:, 12, 15:17, 1])[:, 0]])
    first = np.stack([after[:, 11:13, 16, 0].mean(axis=1) / 24, after[:, 12, 15:17, 1].mean(axis=1) / 32]) - side / 2
    assert (first > -1e-5).all()
    assert (first + side < 1 + 1e-5).all()  # nothing comes from outside of the image
    whole = (side < 1 - 1e-5).all(axis=0)  # what was cut has another area; it takes one above 3/4
    area, log_ratio = side[0] * side[1], np.log(side[1] / side[0])
    small = area < 0.74
    assert whole[small].all()
    assert stats.kstest(area[small], stats.uniform(0.2, 0.54).cdf).pvalue > 0.01
    assert abs(small.mean() - 0.54 / 0.8) < 4 * np.sqrt(0.25 / N)
    assert stats.kstest(log_ratio[small], stats.uniform(-np.log(4 / 3), 2 * np.log(4 / 3)).cdf).pvalue > 0.01
    for start, share in zip(first, side, strict=True):
        assert stats.kstest(start[small] / (1 - share[small]), stats.uniform.cdf).pvalue > 0.01


def test_a_resized_crop_interpolates_linearly_between_pixels():
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 12, 9, 2)), jnp.float32)
    rows, columns = np.meshgrid(np.arange(12.0), np.arange(9.0), indexing="ij")
    places = jnp.asarray(np.stack([rows, columns], axis=-1)[None], jnp.float32)
    for seed in range(3):
        where, found = crops(places, 0.1, seed)[0], crops(image, 0.1, seed)[0]
        # The edges of a crop, up to half a pixel from those of the image, repeat its outermost pixels.
        points = [where[..., 0].ravel(), where[..., 1].ravel()]
        for channel in range(2):
            expected = ndimage.map_coordinates(np.asarray(image, np.float64)[0, ..., channel], points, order=1)
            np.testing.assert_allclose(found[..., channel].ravel(), expected, atol=2e-5)  # float32, of up to 12 pixels
    np.testing.assert_allclose(crops(jnp.full((50, 8, 8, 1), 3.0), 0.05), 3.0, rtol=1e-6)  # no blanks


@pytest.mark.slow
def test_no_two_draws_for_an_image_are_correlated():
    """Flip, corners, places, sizes and shares of all changes under one key, each scaled to what it could have been."""
    n, height, width = 2000, 31, 40
    rows, columns = np.meshgrid(np.arange(height) + 1.0, np.arange(width) + 1.0, indexing="ij")
    image = jnp.broadcast_to(jnp.asarray(np.stack([rows, columns], axis=-1), jnp.float32), (n, height, width, 2))
    batch = {"image": image, "target": jax.nn.one_hot(jnp.arange(n) % 3, 3)}
    rest = np.random.default_rng(0).uniform(size=(2, n))  # makes whole numbers reals, which do not depend on sizes then

    def changed(**fields):
        after = jax.jit(Augmentation(**fields))(KEY, batch)
        return np.asarray(after["image"]), np.asarray(after["target"])[np.arange(n), np.arange(n) % 3]

    draws = {"flip": changed(flip=True)[0][:, 0, 0, 1] > 1}
    corner = changed(crop_padding=8)[0][:, 15, 20]
    draws |= {"crop, row": corner[:, 0], "crop, column": corner[:, 1]}
    cut = (changed(cutout=3)[0] == 0).all(axis=-1)
    draws |= {"cutout, row": cut.any(axis=2) @ np.arange(height) / cut.any(axis=2).sum(axis=1)}
    draws |= {"cutout, column": cut.any(axis=1) @ np.arange(width) / cut.any(axis=1).sum(axis=1)}
    is_erased = (changed(erasing=0.5)[0] == 0).any(axis=(1, 2, 3))
    draws |= {"whether erased": is_erased}
    top, left, high, wide = rectangles((changed(erasing=1.0)[0] == 0).all(axis=-1))
    draws |= {
        "erasing, row": (top + rest[0]) / (height - high + 1),
        "erasing, column": (left + rest[1]) / (width - wide + 1),
    }
    draws |= {"erasing, area": high * wide, "erasing, ratio": np.log(high / wide)}
    draws |= {"mixup": changed(mixup=0.5)[1]}
    after = np.asarray(jax.jit(augmentation.resized_crop)(KEY, image, 0.5), np.float64)
    centre, step = after[:, 15, 20], after[:, 16, 21] - after[:, 15, 20]
    first = (centre - 0.5 - step * np.array([15.5, 20.5])) / np.array([height, width]) / np.maximum(1 - step, 1e-9)
    draws |= {"resized crop, row": first[:, 0], "resized crop, column": first[:, 1]}
    draws |= {"resized crop, area": step.prod(axis=1), "resized crop, ratio": np.log(step[:, 1] / step[:, 0])}
    fits = step.prod(axis=1) < 0.74  # whatever its ratio; about half of them
    found = np.corrcoef([np.asarray(x, np.float64)[fits] for x in draws.values()])
    # An independent pair has a standard error of 1 / sqrt(number), 0.03 here; 4.5 of them for 120 pairs.
    names, far = [*draws], np.triu(np.abs(found) > 4.5 / np.sqrt(fits.sum()), 1)
    assert [(names[i], names[j], found[i, j]) for i, j in np.argwhere(far)] == []


COLOURS = jnp.asarray(np.random.default_rng(0).normal(size=(N, 4, 5, 3)), jnp.float32)
LUMA = np.array([0.299, 0.587, 0.114])


def test_colour_jitter_shifts_levels_and_scales_contrast_and_saturation_by_uniform_numbers():
    before = np.asarray(COLOURS, np.float64)
    after = np.asarray(augmentation.colour_jitter(KEY, COLOURS, 0.8, 0.4, 0.2), np.float64)
    grey, grey_after = before @ LUMA, after @ LUMA
    mean = grey.mean(axis=(1, 2))
    shift = grey_after.mean(axis=(1, 2)) - mean
    contrast = (grey_after[:, 0, 0] - mean - shift) / (grey[:, 0, 0] - mean)
    colour = (after[:, 0, 0, 0] - grey_after[:, 0, 0]) / (before[:, 0, 0, 0] - grey[:, 0, 0]) / contrast
    far = (np.abs(grey[:, 0, 0] - mean) > 0.1) & (np.abs(before[:, 0, 0, 0] - grey[:, 0, 0]) > 0.1)  # from rounding
    for found, middle, limit in ((shift, 0, 0.8), (contrast[far], 1, 0.4), (colour[far], 1, 0.2)):
        assert stats.kstest(found, stats.uniform(middle - limit, 2 * limit).cdf).pvalue > 0.01
    correlations = np.corrcoef([shift[far], contrast[far], colour[far]])[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 4 / np.sqrt(far.sum())
    # All of an image is changed by the same three numbers.
    moved = (mean + shift)[:, None, None] + contrast[:, None, None] * (grey - mean[:, None, None])
    expected = moved[..., None] + (contrast * colour)[:, None, None, None] * (before - grey[..., None])
    np.testing.assert_allclose(after[far], expected[far], atol=1e-4)  # float32 over differences of 0.1


def test_grey_takes_the_colour_with_the_given_probability():
    before, after = np.asarray(COLOURS), np.asarray(augmentation.grey(KEY, COLOURS, 0.3))
    colourless = (after == after[..., :1]).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(after[~colourless], before[~colourless])
    np.testing.assert_allclose(after[colourless][..., 0], before[colourless] @ LUMA, atol=1e-6)
    assert abs(colourless.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / N)


def test_what_grey_images_lack_is_not_changed():
    image = COLOURS[..., :1]
    np.testing.assert_array_equal(augmentation.colour_jitter(KEY, image, 0.0, 0.0, 0.9), image)
    np.testing.assert_array_equal(augmentation.grey(KEY, image, 1.0), image)
    assert (augmentation.colour_jitter(KEY, image, 0.0, 0.1, 0.0) != image).any()


@pytest.mark.slow
def test_with_mixup_and_cutmix_each_step_draws_one_of_the_two_with_equal_probability():
    batch = {"image": IMAGE[:6], "target": TARGET[:6]}
    mixup, cutmix, both = (
        jax.jit(Augmentation(**fields)) for fields in ({"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0})
    )
    num_steps, num_mixup = 100, 0
    for step in range(num_steps):
        key = jax.random.fold_in(KEY, step)
        by_mixup, by_cutmix, found = (augment(key, batch) for augment in (mixup, cutmix, both))
        is_mixup = np.allclose(found["image"], by_mixup["image"], rtol=1e-6, atol=0)  # another program's rounding
        for name, value in (by_mixup if is_mixup else by_cutmix).items():
            np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-7)
        num_mixup += is_mixup
    assert abs(num_mixup / num_steps - 0.5) < 4 * np.sqrt(0.25 / num_steps)


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
