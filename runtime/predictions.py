"""What each test example was taken for at the end of a run: `predictions.npz`, which pages are made of."""

import io
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.files import replace_file
from runtime.sources import Images
from runtime.stream import like

NUM_IMAGES = 12  # of each kind, of which one set of weights is right and the other wrong


def write(workdir: pathlib.Path, scores: Mapping[str, Mapping[str, Any]], data: Any) -> None:
    """Writes `predictions.npz`; nothing for a task that predicts no classes of images.

    It has `label` [n]; `NAME/predicted` and `NAME/confidence` [n] for each set of weights; `class_names`; and the first
    images that an average gets right and the raw weights wrong, or the other way round: `index` [m], their places, and
    `image` [m, height, width, channels], uint8.

    Args:
        workdir: of the run.
        scores: by name of the weights; see `evaluation.score`.
        data: what was scored, with its `images`; see `input_pipeline.EvalData`.
    """
    # A task of one's own may evaluate anything.
    images = getattr(data, "images", None)
    if not isinstance(images, Images) or not {"predicted", "confidence"} <= scores["raw"].keys():
        return
    label, class_names = images.label, getattr(like(data), "class_names", ())
    if (
        images.image.dtype != np.uint8
        or label.ndim != 1
        or not np.issubdtype(label.dtype, np.integer)
        or label.min(initial=0) < 0
    ):
        return
    arrays: dict[str, Any] = {"label": label, "class_names": np.array(class_names, dtype=np.str_)}
    places: list[int] = []
    right = {name: values["predicted"] == label for name, values in scores.items()}
    for name, values in scores.items():
        arrays[f"{name}/predicted"] = values["predicted"]
        arrays[f"{name}/confidence"] = values["confidence"].astype(np.float32)
        for one, other in ((name, "raw"), ("raw", name)):
            places += [int(index) for index in np.flatnonzero(right[one] & ~right[other])[:NUM_IMAGES]]
    index = np.unique(np.array(places, int))
    file = io.BytesIO()
    np.savez_compressed(file, index=index, image=images.read(index), **arrays)
    replace_file(workdir / "predictions.npz", file.getvalue())
