import numpy as np
import pytest

from runtime import caching, damaged, normalization
from runtime.image_files import find_folder_source
from runtime.normalization import Normalization
from runtime.sources import Images


@pytest.fixture
def photos(tmp_path):
    import PIL.Image

    image = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
    for i, pixels in enumerate(image):
        path = tmp_path / "photos" / ("train" if i < 16 else "test") / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels).save(path)
    order = [*range(0, 16, 2), *range(1, 16, 2)]  # by class
    return f"folder:{tmp_path / 'photos'}", Images(image[order], np.repeat([0, 1], 8))


def find(photos, monkeypatch):
    monkeypatch.setattr(damaged, "_known", {})
    return find_folder_source(photos, ("train", "test"), 0, False).load("train")


@pytest.mark.parametrize("most", [100, 5])
def test_images_on_disk_and_in_memory_are_normalised_alike_by_at_most_so_many(photos, monkeypatch, most):
    monkeypatch.setattr(normalization, "NUM_NORMALIZED", most)
    folder, in_memory = photos
    stored, expected = Normalization.from_images(find(folder, monkeypatch)), Normalization.from_images(in_memory)
    np.testing.assert_array_equal(stored.mean, expected.mean)
    np.testing.assert_array_equal(stored.std, expected.std)
    whole = in_memory.image.mean(axis=(0, 1, 2))
    assert np.allclose(stored.mean, whole, rtol=1e-6) == (most == 100)  # float32 of an exact mean; or of 5 of them


def test_what_normalises_images_on_disk_is_kept_until_one_of_them_changes(photos, monkeypatch, tmp_path):
    monkeypatch.setattr(caching, "_directory", None)
    caching.enable(tmp_path / "cache")
    folder, _ = photos
    first = Normalization.from_images(find(folder, monkeypatch))
    read, count = [], normalization._histograms
    monkeypatch.setattr(normalization, "_histograms", lambda *arguments: read.append(1) or count(*arguments))
    assert Normalization.from_images(find(folder, monkeypatch)).mean.tolist() == first.mean.tolist()
    assert not read
    (tmp_path / "photos" / "train" / "a" / "00.png").write_bytes(
        (tmp_path / "photos" / "train" / "b" / "01.png").read_bytes()
    )
    assert Normalization.from_images(find(folder, monkeypatch)).mean.tolist() != first.mean.tolist()
    assert read
