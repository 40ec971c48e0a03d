import io
import math

import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy import stats

from runtime.decoding import central_crop, decode, measure, random_crop, whole

LOG_RATIO = math.log(4 / 3)
RNG = np.random.default_rng(0)
NOISE = Image.fromarray(RNG.integers(0, 256, (40, 60, 3), np.uint8))


def smooth(width, height):
    """Something like a photograph, which JPEG and resizing hardly change."""
    small = Image.fromarray(np.random.default_rng(1).integers(0, 256, (5, 6, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def pixels(file):
    image, _, _ = decode(str(file), whole, (1000, 1000))
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("min_area", [0.08, 0.5])
def test_random_crops_are_distributed_as_the_paper_says(min_area):
    """Uniform in area and logarithm of the ratio, given that it fits into a square: area <= exp(-|log ratio|)."""
    rng = np.random.default_rng(2)
    left, top, right, bottom = np.array(
        [random_crop(300, 300, rng=rng, min_area=min_area) for _ in range(5000)]
    ).T / 300  # fmt: skip
    wide, high = right - left, bottom - top

    def area_below(area):
        area, flat = np.clip(area, min_area, 1), 3 / 4  # from which on not all ratios fit
        steep = np.maximum(area, flat)
        found = 2 * LOG_RATIO * (np.minimum(area, flat) - min_area)
        return found + 2 * (steep - steep * np.log(steep) - flat + flat * np.log(flat))

    def ratio_below(log_ratio):
        one_side = 1 - np.exp(-np.abs(log_ratio)) - min_area * np.abs(log_ratio)
        return 1 - 3 / 4 - min_area * LOG_RATIO + np.sign(log_ratio) * one_side

    # A true distribution fails one of the eight tests with probability 1e-4 each, and the seed is fixed.
    for sample, below in ((wide * high, area_below), (np.log(wide / high), ratio_below)):
        end = {area_below: 1.0, ratio_below: LOG_RATIO}[below]
        assert stats.kstest(sample, lambda x, below=below, end=end: below(x) / below(end)).pvalue > 1e-4
    for place in (left / (1 - wide), top / (1 - high)):
        assert stats.kstest(place, "uniform").pvalue > 1e-4


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 50), (50, 1), (3, 2), (500, 375), (4000, 31)])
@pytest.mark.parametrize("aspect", [1.0, 2.0])
def test_crops_are_within_the_image_and_not_too_narrow(width, height, aspect):
    rng = np.random.default_rng(3)
    for _ in range(200):
        left, top, right, bottom = random_crop(width, height, rng=rng, min_area=0.08, aspect=aspect)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        # 1e-9: what float64 loses at an edge of 4000.
        assert abs(math.log((right - left) / (bottom - top) / aspect)) < LOG_RATIO + 1e-9


@pytest.mark.parametrize(
    ("size", "box"), [((10, 1000), (0, 500 - 20 / 3, 10, 500 + 20 / 3)), ((80, 6), (36, 0, 44, 6))]
)
def test_where_no_crop_fits_the_largest_one_in_the_centre_is_taken(size, box):
    rng = np.random.default_rng(4)
    np.testing.assert_allclose(random_crop(*size, rng=rng, min_area=0.9), box, rtol=1e-12)


def test_evaluation_sees_the_centre_as_after_a_resize_to_256_for_224():
    assert central_crop(512, 256, size=224) == (144, 16, 368, 240)
    np.testing.assert_allclose(central_crop(375, 500, size=224), (23.4375, 85.9375, 351.5625, 414.0625))
    assert central_crop(37, 37, size=32) == (2.5, 2.5, 34.5, 34.5)  # 32 * 256 / 224 is 36.6


def oriented(array, orientation):
    """The transformation of each value of Exif's tag, as its standard draws them."""
    return {
        1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x.swapaxes(0, 1), 2), 8: np.rot90,
    }[orientation](array)  # fmt: skip


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_camera_says(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = smooth(60, 40)
    image.save(tmp_path / f"plain.{kind}")
    image.save(file := tmp_path / f"turned.{kind}", exif=exif)
    expected = oriented(pixels(tmp_path / f"plain.{kind}"), orientation)
    np.testing.assert_array_equal(pixels(file), expected)
    assert measure(str(file)) == expected.shape[:2]

    # A JPEG at a quarter of its size is turned as well. Of 255, rounding in JPEG takes 2 on average, a wrong turn 60.
    reduced, _, size = decode(str(file), whole, (10, 10))
    assert size == expected.shape[1::-1]
    by_hand = Image.fromarray(expected).resize(reduced.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(reduced, int) - np.asarray(by_hand, int)).mean() < 4


def test_an_unknown_orientation_means_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 9
    NOISE.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), np.asarray(NOISE))


MODES = {
    "1": "png", "L": "png", "P": "gif", "RGB": "webp", "CMYK": "tif", "YCbCr": "tif", "LA": "png", "PA": "tif",
    "RGBA": "png",
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_images_of_every_mode_become_colours(tmp_path, mode):
    image = NOISE.convert(mode)
    file = tmp_path / f"a.{MODES[mode]}"
    image.save(file, lossless=True)
    with Image.open(file) as opened:  # another format may change the mode
        assert opened.mode == mode
    np.testing.assert_array_equal(pixels(file), np.asarray(image.convert("RGB")))


def test_the_colours_of_a_printers_jpeg_are_not_inverted(tmp_path):
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    ink.save(tmp_path / "a.jpg", quality=100)
    np.testing.assert_allclose(
        pixels(tmp_path / "a.jpg").astype(int), np.full((16, 16, 3), (255, 0, 0)), atol=3
    )  # JPEG rounds


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGBA", "png"), ("LA", "png"), ("PA", "tif"), ("P", "png"), ("RGB", "png")]
)
def test_what_is_transparent_is_put_on_white(tmp_path, mode, kind):
    black = Image.new("RGBA", (9, 5), (0, 0, 0, 0))
    black.putpixel((0, 0), (0, 0, 0, 255))
    options = {}
    if mode == "P":
        black, options = Image.new("P", (9, 5), 1), {"transparency": 1}
        black.putpalette([0, 0, 0, 10, 20, 30])
        black.putpixel((0, 0), 0)
    elif mode == "RGB":
        black, options = Image.new("RGB", (9, 5), (1, 2, 3)), {"transparency": (1, 2, 3)}
        black.putpixel((0, 0), (0, 0, 0))
    black.convert(mode).save(file := tmp_path / f"a.{kind}", **options)
    found = pixels(file)
    assert found[0, 0].tolist() == [0, 0, 0]
    assert (found.reshape(-1, 3)[1:] == 255).all()


@pytest.mark.parametrize("kind", ["gif", "webp", "tif", "png"])
def test_of_several_images_in_a_file_the_first_is_taken(tmp_path, kind):
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    first.save(file := tmp_path / f"a.{kind}", save_all=True, append_images=[second], lossless=True)
    with Image.open(file) as opened:
        assert opened.n_frames == 2
    np.testing.assert_array_equal(pixels(file), np.asarray(first))


@pytest.mark.parametrize(
    ("array", "kind", "mode"),
    [
        (np.arange(45, dtype=np.uint16).reshape(5, 9) + 4000, "png", "I;16"),
        (np.arange(45, dtype=np.int32).reshape(5, 9) + 4000, "tif", "I"),
        (np.arange(45, dtype=np.float32).reshape(5, 9) + 4000, "tif", "F"),
    ],
)
def test_more_than_8_bits_are_refused_with_the_range_that_was_found(tmp_path, array, kind, mode):
    Image.fromarray(array).save(file := tmp_path / f"a.{kind}")
    with pytest.raises(ValueError, match=rf"more than 8 bits \(mode {mode}\), from 4000(\.0)? to 4044(\.0)?; scale"):
        measure(str(file))


def encoded(**options):
    smooth(200, 150).save(stream := io.BytesIO(), **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "^it is empty$"),
        (b"no image", "^it is no image$"),
        (None, "^No such file or directory$"),
        (encoded(format="PNG")[:-200], "[Tt]runcated|broken"),
        *[(encoded(format="JPEG", progressive=progressive)[:-cut], "truncated") for progressive in (0, 1)
          for cut in (100, 1500)],
        (encoded(format="PNG")[:-500] + bytes(488) + encoded(format="PNG")[-12:], "truncated"),
    ],
)  # fmt: skip
def test_what_cannot_be_decoded_is_found_out_whether_it_is_reduced_or_not(tmp_path, content, reason):
    file = tmp_path / "a.jpg"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        measure(str(file))
    with pytest.raises(ValueError, match=reason):
        pixels(file)


@pytest.mark.parametrize(
    ("size", "factor"), [((32, 32), 8), ((33, 32), 4), ((128, 96), 2), ((128, 97), 1), ((256, 256), 1), ((999, 999), 1)]
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_large_photographs_are_decoded_at_a_fraction_that_keeps_the_crop_large_enough(
    tmp_path, size, factor, orientation
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    sides = (301, 263) if orientation < 5 else (263, 301)  # in the file
    smooth(*sides).save(file := tmp_path / "a.jpg", quality=95, exif=exif)
    box = (20.0, 4.0, 276.0, 260.0) if size != (128, 96) and size != (128, 97) else (20.0, 4.0, 276.0, 197.0)
    asked = []
    image, (left, top, right, bottom), turned = decode(str(file), lambda *sides: asked.append(sides) or box, size)
    assert asked == [(301, 263)]
    assert image.size == (math.ceil(301 / factor), math.ceil(263 / factor))
    assert (right - left, bottom - top) == ((box[2] - box[0]) / factor, (box[3] - box[1]) / factor)
    assert turned == (301, 263)
    # The same place of the image, within what JPEG rounds.
    with Image.open(file) as plain:
        by_hand = ImageOps.exif_transpose(plain).resize((16, 16), Image.Resampling.BILINEAR, box)
    found = image.resize((16, 16), Image.Resampling.BILINEAR, (left, top, right, bottom))
    np.testing.assert_allclose(np.asarray(found, int), np.asarray(by_hand, int), atol=4)


def test_the_commonest_photographs_keep_every_pixel(tmp_path):
    """500 x 375 pixels for 224 x 224: as plain Pillow reads them."""
    smooth(500, 375).save(file := tmp_path / "a.jpg")
    image, box, _ = decode(str(file), lambda width, height: central_crop(width, height, size=224), (224, 224))
    with Image.open(file) as plain:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(plain))
    assert box == central_crop(500, 375, size=224)
