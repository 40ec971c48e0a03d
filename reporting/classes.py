"""Class by class: what raw and averaged weights took the test examples of a run for."""

import base64
import dataclasses
import io
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from reporting.curves import Line, Panel
from reporting.pictures import styles
from reporting.runs import Group
from runtime.errors import UserError

MAX_ROWS = 20  # of a table
MAX_MATRIX = 12  # classes of which the matrix of confusions can be read
NUM_BINS = 10  # of confidence
MIN_IN_BIN = 5  # examples, of which a share is worth showing


@dataclasses.dataclass(frozen=True)
class Predictions:
    """`predictions.npz` of a run; see runtime/predictions.py.

    Attributes:
        label: classes [n].
        predicted: by name of the weights, classes [n].
        confidence: by name of the weights, [n].
        class_names: of all classes, at least.
        index: places [m] of the images below among the examples.
        image: uint8 [m, height, width, channels].
    """

    label: np.ndarray
    predicted: Mapping[str, np.ndarray]
    confidence: Mapping[str, np.ndarray]
    class_names: Sequence[str]
    index: np.ndarray
    image: np.ndarray

    @classmethod
    def read(cls, workdir: pathlib.Path) -> Self | None:
        """Reads those of a run; None if it has none.

        Raises:
            UserError: the file is damaged.
        """
        path = workdir / "predictions.npz"
        if not path.exists():
            return None
        try:
            with np.load(io.BytesIO(path.read_bytes())) as file:
                found = {name: file[name] for name in file.files}
            by_name: dict[str, dict[str, np.ndarray]] = {"predicted": {}, "confidence": {}}
            for name, values in found.items():
                weights, _, what = name.rpartition("/")
                if weights:
                    by_name[what][weights] = values
            number = 1 + max(int(x.max()) for x in (found["label"], *by_name["predicted"].values()))
            names = [*map(str, found["class_names"]), *map(str, range(len(found["class_names"]), number))]
            return cls(found["label"], **by_name, class_names=names, index=found["index"], image=found["image"])
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is damaged ({error}). Restore the file, or remove it.") from error

    def confusions(self, name: str) -> np.ndarray:
        """How often a class [rows] was taken for another [columns]."""
        number = len(self.class_names)
        return np.bincount(self.label * number + self.predicted[name], minlength=number**2).reshape(number, number)


@dataclasses.dataclass(frozen=True)
class Classes:
    """A section of a page: tables, pictures and examples; counts are sums over the runs of a group.

    Attributes:
        names: "raw" and the average that is compared with it.
        class_names: of the rows and columns of the matrices.
        matrices: by name, how often a class was taken for another; of few classes only.
        accuracies: a table, a row for each class.
        confusions: a table of the most frequent ones.
        reliability: a panel of accuracy over confidence.
        examples: images that one is right about and the other wrong: a title, and for each a PNG as a data URL, what it
            is, and what both took it for.
    """

    names: tuple[str, str]
    class_names: Sequence[str]
    matrices: Mapping[str, np.ndarray]
    accuracies: list[list[str]]
    confusions: list[list[str]]
    reliability: Panel
    examples: list[tuple[str, list[tuple[str, str]]]]

    @classmethod
    def of(cls, group: Group) -> Self | None:
        """That of a group's runs; None if they predict no classes or keep no average."""
        found = [Predictions.read(run.workdir) for run in group.runs]
        names, having = ("raw", group.main_curve), [each for each in found if each]
        if names[0] == names[1] or not having or any(name not in each.predicted for each in having for name in names):
            return None
        first = having[0]
        matrices = {name: np.sum([each.confusions(name) for each in having], axis=0) for name in names}
        return cls(
            names,
            first.class_names,
            matrices if len(first.class_names) <= MAX_MATRIX else {},
            _accuracies(matrices, first.class_names, len(having)),
            _confusions(matrices, first.class_names),
            Panel("accuracy over confidence, %", "", _bins(having, names), x="mean confidence, %"),
            _examples(first, names, " of the first seed" if len(having) > 1 else ""),
        )


def _accuracies(matrices: Mapping[str, np.ndarray], class_names: Sequence[str], num_runs: int) -> list[list[str]]:
    """Of each class the share that was recognised, in points; of many classes those that differ most."""
    (raw, averaged), counts = ((m.diagonal() for m in matrices.values()), matrices["raw"].sum(axis=1))
    before, after = (100 * right / np.maximum(1, counts) for right in (raw, averaged))
    order = np.arange(len(counts))[counts > 0]
    if len(order) > MAX_ROWS:
        order = order[np.argsort(-np.abs(after - before)[order], kind="stable")][:MAX_ROWS]
    _, name = matrices
    header = ["class", "examples" + (f" x {num_runs} seeds" if num_runs > 1 else ""), "raw", name, f"{name} - raw"]
    rows = [
        [class_names[k], f"{counts[k] // num_runs:,}", f"{x:.2f}%", f"{y:.2f}%", f"{y - x:+.2f}"]
        for k, x, y in zip(order, before[order], after[order], strict=True)
    ]
    return [header, *rows]


def _confusions(matrices: Mapping[str, np.ndarray], class_names: Sequence[str]) -> list[list[str]]:
    """The most frequent confusions of both."""
    wrong = np.sum([*matrices.values()], axis=0) * (1 - np.eye(len(class_names), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[: MAX_ROWS // 2]
    places = [np.unravel_index(place, wrong.shape) for place in order]
    rows = [
        [f"{class_names[true]} taken for {class_names[taken]}", *(f"{m[true, taken]:,}" for m in matrices.values())]
        for true, taken in places
        if wrong[true, taken]
    ]
    return [["confusion", *matrices], *rows] if rows else []


def _bins(found: Sequence[Predictions], names: Sequence[str]) -> list[Line]:
    """The accuracy of examples of similar confidence."""
    ends = np.array([0.0, 100.0])
    lines = [Line("ideal", {"color": "#808080", "linestyle": "--", "marker": ""}, ends, ends)]
    for name, look in styles(names).items():
        confidence = np.concatenate([each.confidence[name] for each in found])
        right = np.concatenate([each.predicted[name] == each.label for each in found])
        confidence, right = (values[np.isfinite(confidence)] for values in (confidence, right))  # of broken weights
        places = np.clip((confidence * NUM_BINS).astype(int), 0, NUM_BINS - 1)
        filled, counts = np.unique(places, return_counts=True)
        filled, counts = filled[counts >= MIN_IN_BIN], counts[counts >= MIN_IN_BIN]
        x, y = (100 * np.bincount(places, weights=w)[filled] / counts for w in (confidence, right))
        lines.append(Line(name, look, x, y))
    return lines


def _examples(found: Predictions, names: tuple[str, str], of: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Images that one is right about and the other wrong."""
    taken = {name: found.predicted[name][found.index] for name in names}
    label, kinds = found.label[found.index], []
    for right, wrong in (names[::-1], names):
        chosen = np.flatnonzero((taken[right] == label) & (taken[wrong] != label))
        number = np.sum((found.predicted[right] == found.label) & (found.predicted[wrong] != found.label))
        shown = [
            (_png(found.image[k]), f"{found.class_names[label[k]]}, {wrong}: {found.class_names[taken[wrong][k]]}")
            for k in chosen[:MAX_ROWS]
        ]
        if shown:
            kinds.append((f"{right} is right and {wrong} wrong about {number:,}{of}, such as", shown))
    return kinds


def _png(image: np.ndarray) -> str:
    """A picture uint8 [height, width, channels] as a data URL: grey, RGB or RGBA, or else its first channel."""
    from PIL import Image

    pixels = image if image.shape[-1] in (3, 4) else image[..., 0]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
