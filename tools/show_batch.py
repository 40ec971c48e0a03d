"""A picture of the first training batch: its images as they are, and below each what augmentation makes of it.

    python -m tools.show_batch --config=configs/cifar10.py --out=runs/batch.png
    python -m tools.show_batch --config=configs/cifar10.py --config.augment.cutout=12 --config.augment.mixup=1.0

Any field of the config can be overridden, as in the second line.
"""

import dataclasses
import pathlib
import sys
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import app, flags, logging
from matplotlib.figure import Figure
from ml_collections import config_flags

from augmentation import Augmentation
from input_pipeline import TrainData
from runtime import caching, stream
from runtime.errors import UserError
from runtime.files import local_path
from runtime.progress import say
from tools import command_line, finished

_CONFIG = config_flags.DEFINE_config_file("config", help_string="File with the config.")
_OUT = flags.DEFINE_string("out", "runs/batch.png", "The picture.")
COLUMNS, PAIRS_OF_ROWS = 12, 2


def draw(config: ml_collections.ConfigDict, path: pathlib.Path) -> None:
    """Draws the first images of the first batch, each above what it becomes, with what it is to be taken for.

    Args:
        config: see configs/default.py.
        path: of the picture.

    Raises:
        UserError: a config or data set that cannot be used.
    """
    experiment = finished.create_experiment(config)
    train_data = experiment.train_data
    augmented = plain = stream.at(train_data, 0)
    if not isinstance(augmented, TrainData):
        raise UserError(f"task = {config.task!r}: its batches are no images, which this tool draws")
    if isinstance(train_data, stream.Stream):  # random crops are made where files are read
        read: Any = train_data.read
        plain = dataclasses.replace(train_data, read=dataclasses.replace(read, min_area=1.0)).at(0)
    plain = dataclasses.replace(plain, augmentation=Augmentation())
    batches = [jax.device_get(data.batch(experiment.state)[0]) for data in (plain, augmented)]
    mean, std = (np.asarray(x) for x in (plain.normalization.mean, plain.normalization.std))

    figure = Figure(figsize=(COLUMNS, 2.6 * PAIRS_OF_ROWS), layout="constrained")
    rows = figure.subplots(2 * PAIRS_OF_ROWS, COLUMNS, squeeze=False)
    for index in range(COLUMNS * PAIRS_OF_ROWS):
        pair, column = divmod(index, COLUMNS)
        for below, batch in enumerate(batches):
            axes = rows[2 * pair + below, column]
            axes.axis("off")
            if index < len(batch["label"]):
                pixels = np.clip((batch["image"][index] * std + mean) / 255, 0, 1)
                # As grey, RGB or RGBA; of any other number of channels, the first.
                axes.imshow(pixels if pixels.shape[-1] in (1, 3, 4) else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
                target = batch["target"][index]
                classes = np.flatnonzero(target)[np.argsort(-target[np.flatnonzero(target)])]
                names = plain.class_names or [str(label) for label in range(plain.num_classes)]
                parts = [f"{target[label]:.0%} {names[label]}" for label in classes]
                title = names[classes[0]] if len(classes) == 1 else ", ".join(parts)
                axes.set_title(title, fontsize=8)
    channels = plain.image.shape[-1]
    shown = "" if channels in (1, 3, 4) else f" (the first of {channels} channels)"
    title = f"{config.dataset}: training images as they are, and below each after augmentation{shown}"
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main(argv: list[str]) -> None:
    """Draws the picture that the flags ask for."""
    if len(argv) > 1:
        sys.exit(f"error: unknown argument {argv[1]!r}; flags are written --name=value")
    logging.set_verbosity(logging.WARNING)
    try:
        caching.enable_if_possible(command_line.CACHE_DIR)
        draw(_CONFIG.value, local_path(_OUT.value, "--out"))
    except (UserError, OSError, ValueError) as error:  # the last is Matplotlib's, of a format that it does not know
        sys.exit(f"error: {error}")
    say(_OUT.value)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=command_line.parse)
