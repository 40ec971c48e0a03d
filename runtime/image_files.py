"""A folder of image files as a data set: images stay in their files and are decoded when they are asked for."""

import collections
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from runtime import decoding
from runtime.damaged import find_damaged, fingerprint
from runtime.errors import UserError
from runtime.files import local_path
from runtime.progress import say
from runtime.sources import SPLITS, Images, Source

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")  # in any case
_SHOWN = 20  # damaged files


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images in files, decoded when they are asked for: like an array uint8 [n, height, width, 3].

    It is small and can be pickled, for other processes to read from, too.

    Attributes:
        folder: that the files are in.
        files: their paths from there, bytes [n], as `os.fsencode` writes them.
        height: of each image.
        width: of each image.
        resized: whether they are cropped and resized to that; otherwise it is the size of the images in the files.
        mark: of all files of the set, with their sizes and times of last change.
    """

    folder: str
    files: np.ndarray
    height: int
    width: int
    resized: bool
    mark: bytes = b""

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __len__(self) -> int:
        return len(self.files)

    @property
    def names(self) -> bytes:
        """The paths of the files, which are the same wherever the folder is."""
        return self.files.tobytes()

    @property
    def identity(self) -> str:
        """A name that other images do not have, nor these once their files have changed."""
        view = f"{self.shape} {self.resized}"
        parts = (self.mark, os.fsencode(self.folder), view.encode(), self.files.tobytes())
        return hashlib.sha256(b"\0".join(parts)).hexdigest()

    @property
    def has_views(self) -> bool:
        """Whether random crops differ from what evaluation sees."""
        return self.resized

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(number, height, width, 3)."""
        return len(self), self.height, self.width, 3

    def take(self, indices: np.ndarray) -> "ImageFiles":
        """The images at `indices`, in that order."""
        return dataclasses.replace(self, files=self.files[indices])

    def read(self, rows: np.ndarray, keys: np.ndarray | None = None, min_area: float = 1.0) -> np.ndarray:
        """Decodes images.

        Args:
            rows: which ones, integers [k].
            keys: of the random numbers for each of them, uint64 [k, 2]. A crop is a function of the size of the image
                and of its key alone: `decoding.random_crop`. None: crops as for evaluation, `decoding.central_crop`;
                images that are not resized are taken whole.
            min_area: least area of a random crop, as a share of that of the image; 1: crops as for evaluation.

        Returns:
            uint8 [k, height, width, 3].

        Raises:
            UserError: a file cannot be read.
        """
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for i, row in enumerate(rows):
            file = os.path.join(self.folder, os.fsdecode(self.files[row]))
            try:
                if self.resized:
                    images[i] = decoding.view(file, self.shape[1:], None if keys is None else keys[i], min_area)
                else:
                    image, _, _ = decoding.decode(file, decoding.whole, (self.width, self.height))
                    pixels = np.asarray(image.convert("RGB"))
                    if pixels.shape != self.shape[1:]:  # one of 1x1 would be spread over all
                        raise ValueError(f"it has become {pixels.shape}, from {self.shape[1:]}")
                    images[i] = pixels
            except ValueError as error:
                again = "It could be before training: restore it, and give the same command again"
                raise UserError(f"{file} cannot be read: {error}. {again}") from error
        return images


@dataclasses.dataclass(frozen=True)
class _Found:
    """What the folder of a split holds.

    Attributes:
        folder: its path.
        files: the images of its classes, bytes [n]: their paths from the folder of the data set.
        fingerprints: of these files, uint64 [n]; see `damaged.fingerprint`.
        classes: sorted names of the folders that have images.
        counts: images of each class, of which those of the first class come first.
        misplaced: number of images in no folder of a class.
        notes: on what else it holds.
    """

    folder: str
    files: np.ndarray
    fingerprints: np.ndarray
    classes: list[str]
    counts: list[int]
    misplaced: int
    notes: list[str]


def find_folder_source(dataset: str, splits: tuple[str, str], image_size: int, skip_damaged: bool) -> Source:
    """The images in the files FOLDER/SPLIT/CLASS/*, each of which is decoded once to see that it can be.

    The classes are the sorted names of the first split's folders that have images. Images in folders further below are
    of the same class, as in torchvision's ImageFolder. Links are followed. Names that begin with a dot are left out.

    Args:
        dataset: "folder:" and the path of the folder.
        splits: the names of the two folders in it to train and to test on.
        image_size: side of the square images that are made of them, in pixels; 0: they stay as they are, of one size.
        skip_damaged: whether to leave out files that cannot be used.

    Raises:
        UserError: there are no such folders, one has no images or a class that is not trained, some images cannot be
            used, or they differ in size.
    """
    root = _find_root(dataset, splits)
    train, test = (_scan(root, name) for name in splits)
    if problem := _missing(train, test):
        raise UserError(f"dataset = {dataset!r}: {problem}")
    files = np.concatenate([train.files, test.files])
    fingerprints = np.concatenate([train.fingerprints, test.fingerprints])
    sizes, reasons = find_damaged(root, files, fingerprints, decoding.measure)
    usable = sizes[:, 0] > 0
    rows = dict(zip(SPLITS, np.split(np.arange(len(files)), [len(train.files)]), strict=True))
    kept = {split: of_split[usable[of_split]] for split, of_split in rows.items()}
    if reasons and not (skip_damaged and all(map(len, kept.values()))):
        raise UserError(f"dataset = {dataset!r}: {_damaged(root, files, reasons)}")
    height, width = (image_size, image_size) if image_size else _one_size(dataset, root, files[usable], sizes[usable])
    mark = hashlib.sha256(fingerprints.tobytes()).digest()
    images = ImageFiles(root, files, height, width, resized=image_size > 0, mark=mark)
    number = {name: label for label, name in enumerate(train.classes)}
    label = np.array([number[name] for name in train.classes + test.classes], np.int32)
    label = np.repeat(label, train.counts + test.counts)
    notes = {"train": train.notes, "test": test.notes}
    if len(train.classes) == 1:
        notes["train"].append(f"Note: {train.folder} has one class only, {train.classes[0]}")
    for split in SPLITS:
        if len(skipped := rows[split][~usable[rows[split]]]):
            each = [f"{os.fsdecode(files[place])} ({reasons[place]})" for place in skipped[:3]]
            notes[split].append(
                f"Note: {len(skipped)} of {len(rows[split])} {split} images cannot be used and are left out: "
                + ", ".join([*each, *["..."] * (len(skipped) > 3)])
            )

    def load(split: str) -> Images:
        for note in notes[split]:
            say(note)
        return Images(images.take(kept[split]), label[kept[split]])

    return Source(
        dataset, (height, width, 3), len(train.classes), len(kept["train"]), load, class_names=tuple(train.classes)
    )


def _find_root(dataset: str, splits: tuple[str, str]) -> str:
    """The absolute path of the folder, in which there are folders of both splits; raises a UserError otherwise."""
    if not (named := dataset.removeprefix("folder:")):
        raise UserError(f"dataset = {dataset!r}: must name a folder, as in 'folder:photos'")
    path = local_path(named, "dataset").absolute()
    right = " and ".join(os.path.join(path, split, "CLASS") for split in splits)
    if not path.is_dir():
        found = "is no folder" if path.exists() else "does not exist"
        raise UserError(f"dataset = {dataset!r}: {path} {found}; expected one with images in {right}")
    if any("[" in split for split in splits):
        raise UserError(
            f"splits = {splits}: only TFDS cuts slices; a folder has its images to train and to test in two folders. "
            "config.num_validation sets training images aside"
        )
    root = str(path)
    folders = [entry.name for entry in _visible(root) if _is_folder(entry)]
    if missing := [split for split in splits if split not in folders]:
        others = [name for name in folders if name not in splits]
        example = (splits[0], *others, "val")[:2] if missing == [splits[1]] else ("train", "val")
        raise UserError(
            f"dataset = {dataset!r}: {root} has no folder {' and no folder '.join(missing)}; it has "
            f"{_names(folders) or 'no folders'}. Images belong in {right}, of each class about a tenth in the second. "
            f'Folders of other names are chosen like this: --config.splits="{example}"'
        )
    if os.path.samefile(*(os.path.join(root, split) for split in splits)):
        raise UserError(f"splits = {splits}: both are the same folder, and what is trained on tests nothing")
    return root


def _visible(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted by name, but for names that begin with a dot."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}. chmod -R u+rX {folder} may help") from error


def _identity(folder: str | pathlib.Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _walk(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[os.DirEntry[str]]:
    """What is in a folder and below, but for folders; through links, unless they lead back to one `above`."""
    if (identity := _identity(folder)) in above:
        return
    for entry in _visible(folder):
        if _is_folder(entry):
            yield from _walk(entry.path, above | {identity})
        else:
            yield entry


def _scan(root: str, name: str) -> _Found:
    """Looks what there is in the folder of a split, without opening a file."""
    folder, start = os.path.join(root, name), len(os.path.join(root, ""))
    files: list[bytes] = []
    marks = bytearray()  # their fingerprints
    classes, counts = [], []
    empty: list[str] = []
    left_out: list[str] = []
    misplaced: list[str] = []
    above = frozenset(_identity(parent) for parent in (pathlib.Path(folder), *pathlib.Path(folder).parents))
    for entry in _visible(folder):
        if not _is_folder(entry):
            (misplaced if _is_image(entry) else left_out).append(entry.path)
            continue
        try:
            entry.name.encode()  # it gets into reports and exports
        except UnicodeEncodeError as error:
            raise UserError(f"{entry.path!r}: the name of a class must be UTF-8") from error
        before = len(files)
        for file in _walk(entry.path, above):
            if not _is_image(file):
                left_out.append(file.path)
                continue
            files.append(path := os.fsencode(file.path[start:]))
            try:
                found = file.stat()
                marks += fingerprint(path, found.st_size, found.st_mtime_ns)
            except OSError:  # such as that of a link to nowhere; opening it will say which
                marks += fingerprint(path, 0, 0)
        if len(files) > before:
            classes.append(entry.name)
            counts.append(len(files) - before)
        else:
            empty.append(entry.name)
    notes = []
    if left_out:
        kinds = collections.Counter(os.path.splitext(path)[1].lower() or "without an ending" for path in left_out)
        each = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
        notes.append(f"Note: in {folder}, files are left out as no images ({each}), such as {left_out[0]}")
    if misplaced:
        notes.append(
            f"Note: in {folder}, images in no folder of a class are left out ({len(misplaced)}), such as {misplaced[0]}"
        )
    if empty:
        notes.append(f"Note: in {folder}, folders without images count as no classes: {_names(empty)}")
    fingerprints = np.frombuffer(bytes(marks), np.uint64)
    return _Found(folder, np.array(files, np.bytes_), fingerprints, classes, counts, len(misplaced), notes)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # of a link that leads to itself, or where others may not look
        return False


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Whether it is one by its name; a pipe, or a link to one, is none, for to open it is to wait."""
    if not entry.name.lower().endswith(SUFFIXES):
        return False
    # A link to nowhere counts: opening it will say so.
    return os.path.isfile(entry.path) or (entry.is_symlink() and not os.path.exists(entry.path))


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + f", ... ({len(names)})" * (len(names) > 12)


def _missing(train: _Found, test: _Found) -> str:
    """What the splits lack to train on and to test, with what would be right; "" if they lack nothing."""
    for found in (train, test):
        if not found.classes:
            misplaced = f" but {found.misplaced} in no folder of a class" if found.misplaced else ""
            right = os.path.join(found.folder, "CLASS", "*.jpg")
            return f"{found.folder} has no images{misplaced}; expected {right}, or files of {', '.join(SUFFIXES[1:])}"
    known = set(train.classes)
    if strange := [name for name in test.classes if name not in known]:
        return (
            f"{test.folder} has classes that {train.folder} does not have: {_names(strange)}; those to train are "
            f"{_names(train.classes)}. Add images of the others there, or remove them from the test"
        )
    return ""


def _damaged(root: str, files: np.ndarray, reasons: Mapping[int, str]) -> str:
    """How many files are damaged, which, what is wrong with each, and the remedies."""
    lines = [f"{os.path.join(root, os.fsdecode(files[place]))}: {reason}" for place, reason in reasons.items()]
    more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    remedy = "Repair or remove them; or train without them: --config.skip_damaged=True"
    return "\n".join([f"{len(lines)} of {len(files)} images cannot be used:", *lines[:_SHOWN], *more, remedy])


def _one_size(dataset: str, root: str, files: np.ndarray, sizes: np.ndarray) -> tuple[int, int]:
    """(height, width) of all images; raises a UserError if they differ."""
    kinds, first, counts = np.unique(sizes, axis=0, return_index=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    height, width = (int(side) for side in kinds[order[0]])
    if len(kinds) == 1:
        return height, width
    each = [f"{counts[kind]} of {kinds[kind][0]}x{kinds[kind][1]}" for kind in order[:5]]
    for i in range(2):
        each[i] += f" such as {os.path.join(root, os.fsdecode(files[first[order[i]]]))}"
    more = f", and of {len(kinds) - 5} other sizes" if len(kinds) > 5 else ""
    side = min(height, width, 224)
    raise UserError(
        f"dataset = {dataset!r}: images of different sizes, height x width: {', '.join(each)}{more}. "
        f"--config.image_size={side} makes all of them {side}x{side}"
    )
