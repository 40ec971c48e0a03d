"""Finds the files of a data set that cannot be used, and remembers those that can for the next time."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from runtime.caching import CachedArrays
from runtime.progress import Progress, under_way
from runtime.readers import num_cores

SAVE_SECONDS = 10.0  # after which what has been found out is kept, for the case that the process is ended
_BLOCK = 128  # files that wait for a thread at a time; a million would need gigabytes
_MANY = 1000  # files, which take seconds

_known: dict[str, "Sizes"] = {}  # by folder: a run asks more than once, with or without a folder to keep it in


def fingerprint(path: bytes, size: int, mtime_ns: int) -> bytes:
    """8 bytes that are others for another file, and for one whose size or time of last change is another."""
    return hashlib.blake2b(b"%s\0%d %d" % (path, size, mtime_ns), digest_size=8).digest()


class Sizes:
    """The sizes of images that could be decoded, by the fingerprints of their files."""

    def __init__(self, fingerprints: np.ndarray, sizes: np.ndarray) -> None:
        """Sorts them.

        Args:
            fingerprints: uint64 [n].
            sizes: (height, width), int32 [n, 2].
        """
        self.fingerprints, first = np.unique(fingerprints, return_index=True)
        self.sizes = sizes[first]

    def find(self, fingerprints: np.ndarray) -> np.ndarray:
        """(height, width) for each of [k] fingerprints, int32 [k, 2]; 0 where it is unknown."""
        if not len(self.fingerprints):
            return np.zeros((len(fingerprints), 2), np.int32)
        place = np.searchsorted(self.fingerprints, fingerprints).clip(max=len(self.fingerprints) - 1)
        return np.where((self.fingerprints[place] == fingerprints)[:, np.newaxis], self.sizes[place], 0)

    def joined(self, fingerprints: np.ndarray, sizes: np.ndarray) -> "Sizes":
        """These and those of `sizes` that are not 0."""
        known = sizes[:, 0] > 0
        return Sizes(
            np.concatenate([self.fingerprints, fingerprints[known]]), np.concatenate([self.sizes, sizes[known]])
        )


def find_damaged(
    folder: str, files: np.ndarray, fingerprints: np.ndarray, measure: Callable[[str], tuple[int, int]]
) -> tuple[np.ndarray, dict[int, str]]:
    """Measures the image in each file, several at a time, but for those that an earlier call has measured.

    What has been measured is kept in this process, and for later ones by `runtime.caching`: also if this one is ended
    meanwhile, but for the last `SAVE_SECONDS`.

    Args:
        folder: of the data set, for which it is kept.
        files: paths from that folder, bytes [n], as `os.fsencode` writes them.
        fingerprints: of the files, uint64 [n]; see `fingerprint`.
        measure: returns (height, width) of the image in a file, or raises a ValueError that says why it cannot be used.

    Returns:
        (height, width) of each image, int32 [n, 2], 0 if it cannot be used; and why not, by its place in `files`.
    """
    name = f"folder:{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}"
    cache = CachedArrays(name, [], ("PIL", "runtime.decoding", "runtime.damaged"))
    if folder not in _known:
        kept = cache.read()
        _known[folder] = Sizes(**kept[0]) if kept else Sizes(np.zeros(0, np.uint64), np.zeros((0, 2), np.int32))
    sizes = _known[folder].find(fingerprints)
    unknown = np.flatnonzero(sizes[:, 0] == 0)
    reasons: dict[int, str] = {}

    def look_at(place: int) -> None:
        try:
            sizes[place] = measure(os.path.join(folder, os.fsdecode(files[place])))
        except ValueError as error:
            reasons[int(place)] = str(error)

    def keep() -> None:
        if len(reasons) < len(unknown):
            _known[folder] = _known[folder].joined(fingerprints[unknown], sizes[unknown])
            cache.write(vars(_known[folder]), {})

    many = len(unknown) >= _MANY
    what = f"Checking {len(unknown)} of {len(files)} images in {folder}"
    with under_way(what) if many else contextlib.nullcontext(), ThreadPoolExecutor(num_cores()) as pool:
        progress, kept_at = Progress(len(unknown), "image"), time.monotonic()
        try:
            for end in range(_BLOCK, len(unknown) + _BLOCK, _BLOCK):
                list(pool.map(look_at, unknown[end - _BLOCK : end]))
                if many:
                    progress.show(min(end, len(unknown)), "checked", news=False)
                if time.monotonic() - kept_at > SAVE_SECONDS:
                    keep()
                    kept_at = time.monotonic()
        finally:
            progress.close()
            keep()
    return sizes, dict(sorted(reasons.items()))
