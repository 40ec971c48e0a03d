import os
import threading

import numpy as np
import pytest

from runtime import caching, damaged
from runtime.damaged import find_damaged, fingerprint

NAMES = np.array([f"{number}.png".encode() for number in range(300)])
MARKS = np.arange(300, dtype=np.uint64) * 2**55  # as far apart as fingerprints are


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "_directory", None)
    caching.enable(tmp_path / "cache")
    new_process(monkeypatch)
    return tmp_path / "cache" / "data"


def new_process(monkeypatch):
    """Forgets what this one remembers."""
    monkeypatch.setattr(damaged, "_known", {})


class Measure:
    """Of image N the size is (N + 1, 2 N + 1), unless it is one of those that are damaged."""

    def __init__(self, *spoilt, interrupt=None):
        self.spoilt, self.interrupt, self.seen = spoilt, interrupt, []

    def __call__(self, file):
        number = int(os.path.basename(file).partition(".")[0])
        self.seen.append(number)
        if number == self.interrupt:
            raise KeyboardInterrupt
        if number in self.spoilt:
            raise ValueError(f"{number} is damaged")
        return number + 1, 2 * number + 1


def check(sizes, without=()):
    expected = np.stack([np.arange(len(sizes)) + 1, 2 * np.arange(len(sizes)) + 1], axis=1)
    expected[list(without)] = 0
    np.testing.assert_array_equal(sizes, expected)


def test_all_damaged_files_are_found_and_the_others_measured():
    sizes, reasons = find_damaged("/photos", NAMES, MARKS, Measure(250, 3, 40))
    check(sizes, [250, 3, 40])
    assert list(reasons.items()) == [(3, "3 is damaged"), (40, "40 is damaged"), (250, "250 is damaged")]


def test_what_passed_is_not_decoded_again_unless_it_is_new_or_changed(monkeypatch):
    find_damaged("/photos", NAMES[:200], MARKS[:200], Measure(7))
    # At last all but the damaged one are known, which is looked at again, for it may have been repaired.
    for expected in ([7, 11, *range(200, 300)], [11]):
        new_process(monkeypatch)
        marks = MARKS.copy()
        marks[11] += 1
        order = np.random.default_rng(0).permutation(300)
        _, reasons = find_damaged("/photos", NAMES[order], marks[order], measure := Measure(11))
        assert sorted(measure.seen) == expected
        assert list(reasons.values()) == ["11 is damaged"]
    sizes, _ = find_damaged("/photos", NAMES, MARKS, measure := Measure())
    check(sizes)
    assert measure.seen == []


def test_one_process_asks_once_without_a_folder_for_later_ones_too(monkeypatch):
    monkeypatch.setattr(caching, "_directory", None)
    for expected in (300, 0):
        sizes, _ = find_damaged("/photos", NAMES, MARKS, measure := Measure())
        check(sizes)
        assert len(measure.seen) == expected


def test_another_folder_has_other_images():
    find_damaged("/photos", NAMES, MARKS, Measure())
    find_damaged("/pictures", NAMES, MARKS, measure := Measure())
    assert len(measure.seen) == 300


def test_an_interrupted_check_goes_on_where_it_was(monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        find_damaged("/photos", NAMES, MARKS, first := Measure(interrupt=200))
    new_process(monkeypatch)
    find_damaged("/photos", NAMES, MARKS, second := Measure())
    assert len(second.seen) <= 300 - 128  # a block that was done
    assert sorted({*first.seen, *second.seen}) == list(range(300))


def test_what_is_known_is_kept_every_few_seconds(monkeypatch, cache):
    monkeypatch.setattr(damaged, "SAVE_SECONDS", 0.0)
    kept = []

    def measure(file):
        kept.append(sum(path.stat().st_size for path in cache.iterdir()))
        return 1, 1

    find_damaged("/photos", NAMES, MARKS, measure)
    assert kept[0] == 0
    assert kept[-1] > 256 * 16  # two blocks of 128


@pytest.mark.skipif(os.cpu_count() == 1, reason="one core decodes one file at a time")
def test_files_are_decoded_at_the_same_time():
    both = threading.Barrier(2, timeout=60)

    def measure(file):
        both.wait()
        return 1, 1

    assert not find_damaged("/photos", NAMES[:2], MARKS[:2], measure)[1]


def test_a_cache_is_one_file_of_16_bytes_for_each_image(cache):
    find_damaged("/photos", NAMES, MARKS, Measure())
    find_damaged("/photos", NAMES[:9], MARKS[:9] + np.uint64(1), Measure())
    [path] = cache.iterdir()
    assert 309 * 16 <= path.stat().st_size < 309 * 16 + 500


def test_fingerprints_differ_for_every_name_size_and_time():
    marks = {fingerprint(path, size, time) for path in (b"a", b"a1", b"a 1") for size in (1, 11) for time in (1, 11)}
    assert len(marks) == 12
    assert {len(mark) for mark in marks} == {8}


def test_large_sets_say_what_is_done(capsys):
    names = np.array([f"{number}.png".encode() for number in range(1000)])
    marks = np.arange(1000, dtype=np.uint64)
    find_damaged("/photos", names[:999], marks[:999], Measure())
    assert capsys.readouterr().out == ""
    find_damaged("/pictures", names, marks, Measure())
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "Checking 1000 of 1000 images in /pictures ..."
    assert out[-1].startswith("Checking 1000 of 1000 images in /pictures: done in ")
