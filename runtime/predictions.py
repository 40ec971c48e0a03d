"""What each test example was taken for at the end of a run: `predictions.npz`, which pages are made of."""

import io
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.files import replace_file

NUM_IMAGES = 12  # of each kind, of which one set of weights is right and the other wrong


def write(workdir: pathlib.Path, scores: Mapping[str, Mapping[str, Any]], data: Any) -> None:
    """Writes `predictions.npz`; nothing for a task that predicts no classes of images.

    It has `label` [n]; `NAME/predicted` and `NAME/confidence` [n] for each set of weights; `class_names`; and the first
    images that an average gets right and the raw weights wrong, or the other way round: `index` [m], their places, and
    `image` [m, height, width, channels], uint8.

    Args:
        workdir: of the run.
        scores: by name of the weights; see `evaluation.score`.
        data: what was scored; see `input_pipeline.EvalData`.
    """
    # A task of one's own may evaluate anything.
    label, all_images = (np.asarray(getattr(data, name, ())) for name in ("label", "image"))
    are_classes = label.ndim == 1 and np.issubdtype(label.dtype, np.integer) and label.min(initial=0) >= 0
    are_images = all_images.ndim == 4 and all_images.dtype == np.uint8
    if not (are_classes and are_images and {"predicted", "confidence"} <= scores["raw"].keys()):
        return
    mask = np.asarray(data.mask)
    label = label[mask]
    arrays: dict[str, Any] = {"label": label, "class_names": np.array(getattr(data, "class_names", ()), dtype=np.str_)}
    places: list[int] = []
    right = {name: values["predicted"] == label for name, values in scores.items()}
    for name, values in scores.items():
        arrays[f"{name}/predicted"] = values["predicted"]
        arrays[f"{name}/confidence"] = values["confidence"].astype(np.float32)
        for one, other in ((name, "raw"), ("raw", name)):
            places += [int(index) for index in np.flatnonzero(right[one] & ~right[other])[:NUM_IMAGES]]
    index = np.unique(np.array(places, int))
    image = all_images[np.flatnonzero(mask)[index]]
    file = io.BytesIO()
    np.savez_compressed(file, index=index, image=image, **arrays)
    replace_file(workdir / "predictions.npz", file.getvalue())
