"""Class by class: what raw and averaged weights took the test examples of a run for."""

import base64
import dataclasses
import functools
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
    class_names: list[str]
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
            predicted, confidence = (
                {name.removesuffix(f"/{what}"): x for name, x in found.items() if name.endswith(f"/{what}")}
                for what in ("predicted", "confidence")
            )
            number = 1 + max(int(x.max()) for x in (found["label"], *predicted.values()))
            names = [*map(str, found["class_names"]), *map(str, range(len(found["class_names"]), number))]
            return cls(found["label"], predicted, confidence, names, found["index"], found["image"])
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is damaged ({error}). Restore the file, or remove it.") from error

    def confusions(self, name: str) -> np.ndarray:
        """How often a class [rows] was taken for another [columns]."""
        number = len(self.class_names)
        return np.bincount(self.label * number + self.predicted[name], minlength=number**2).reshape(number, number)


@dataclasses.dataclass(frozen=True)
class Classes:
    """A section of a page on what raw weights and an average took the test examples of a group's runs for.

    Attributes:
        found: the predictions of each run.
        names: "raw" and the average that is compared with it.
    """

    found: Sequence[Predictions]
    names: tuple[str, str]

    @classmethod
    def of(cls, group: Group) -> Self | None:
        """That of a group's runs; None if they predict no classes or keep no average."""
        found = [each for run in group.runs if (each := Predictions.read(run.workdir))]
        names = ("raw", group.main_curve)
        known = names[1] != "raw" and all(each.predicted.keys() >= {*names} for each in found)
        return cls(found, names) if found and known else None

    @property
    def class_names(self) -> np.ndarray:
        """Of all classes."""
        return np.array(self.found[0].class_names)

    @functools.cached_property
    def counts(self) -> dict[str, np.ndarray]:
        """How often a class [rows] was taken for another [columns], summed over the runs, by name of the weights."""
        return {name: np.sum([each.confusions(name) for each in self.found], axis=0) for name in self.names}

    @property
    def matrices(self) -> dict[str, np.ndarray]:
        """The counts, if there are so few classes that a picture of them can be read."""
        return self.counts if len(self.class_names) <= MAX_MATRIX else {}

    @property
    def accuracies(self) -> list[list[str]]:
        """A table of the share of each class that was recognised; of many classes those that differ most."""
        examples, seeds = self.counts["raw"].sum(axis=1), len(self.found)
        before, after = (100 * matrix.diagonal() / np.maximum(1, examples) for matrix in self.counts.values())
        order = np.flatnonzero(examples)
        if len(order) > MAX_ROWS:
            order = order[np.argsort(-np.abs(after - before)[order], kind="stable")][:MAX_ROWS]
        many = f" x {seeds} seeds" if seeds > 1 else ""
        rows = [
            [self.class_names[k], f"{examples[k] // seeds:,}", f"{x:.2f}%", f"{y:.2f}%", f"{y - x:+.2f}"]
            for k, x, y in zip(order, before[order], after[order], strict=True)
        ]
        return [["class", f"examples{many}", *self.names, f"{self.names[1]} - raw"], *rows]

    @property
    def confusions(self) -> list[list[str]]:
        """A table of the most frequent confusions of both; empty if there is none."""
        wrong = sum(self.counts.values()) * (1 - np.eye(len(self.class_names), dtype=int))
        order = np.argsort(-wrong, axis=None, kind="stable")[: MAX_ROWS // 2]
        rows = [
            [f"{self.class_names[true]} taken for {self.class_names[taken]}"]
            + [f"{matrix[true, taken]:,}" for matrix in self.counts.values()]
            for true, taken in zip(*np.unravel_index(order, wrong.shape), strict=True)
            if wrong[true, taken]
        ]
        return [["confusion", *self.names], *rows] if rows else []

    @property
    def reliability(self) -> Panel:
        """The accuracy of examples of similar confidence."""
        ends = np.array([0.0, 100.0])
        lines = [Line("ideal", {"color": "#808080", "linestyle": "--", "marker": ""}, ends, ends)]
        for name, look in styles(self.names).items():
            confidence = np.concatenate([each.confidence[name] for each in self.found])
            right = np.concatenate([each.predicted[name] == each.label for each in self.found])
            confidence, right = (values[np.isfinite(confidence)] for values in (confidence, right))  # of broken weights
            places = np.clip((confidence * NUM_BINS).astype(int), 0, NUM_BINS - 1)
            filled, counts = np.unique(places, return_counts=True)
            filled, counts = filled[counts >= MIN_IN_BIN], counts[counts >= MIN_IN_BIN]
            x, y = (100 * np.bincount(places, weights=w)[filled] / counts for w in (confidence, right))
            lines.append(Line(name, look, x, y))
        return Panel("accuracy over confidence, %", "", lines, x="mean confidence, %")

    @property
    def examples(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Images that one is right and the other wrong about: a title, and for each a PNG as a data URL and words."""
        first, kinds = self.found[0], []
        for right, wrong in (self.names[::-1], self.names):
            chosen = (first.predicted[right] == first.label) & (first.predicted[wrong] != first.label)
            shown = [
                (
                    _png(image),
                    f"{self.class_names[first.label[k]]}, {wrong}: {self.class_names[first.predicted[wrong][k]]}",
                )
                for k, image in zip(first.index, first.image, strict=True)
                if chosen[k]
            ]
            if shown:
                of = " of the first seed" if len(self.found) > 1 else ""
                kinds.append(
                    (f"{right} is right and {wrong} wrong about {chosen.sum():,}{of}, such as", shown[:MAX_ROWS])
                )
        return kinds


def _png(image: np.ndarray) -> str:
    """A picture uint8 [height, width, channels] as a data URL: grey, RGB or RGBA, or else its first channel."""
    from PIL import Image

    pixels = image if image.shape[-1] in (3, 4) else image[..., 0]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
