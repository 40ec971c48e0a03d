"""How good generated images are, as numbers and as a picture.

    python -m examples.samples runs/gan    # draws what raw and averaged weights make of the same noise

The Frechet distance is one in the features of classifier.py. It is no FID: only with itself can it be compared.
"""

import importlib
import io
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from examples import classifier
from examples.distances import covered, frechet_distance
from runtime.errors import UserError
from runtime.files import local_path, replace_file
from runtime.score_metrics import Sets
from streams import stream_key
from tools.finished import FinishedRun
from train import Experiment

NUM_NEIGHBOURS = 2000  # images to look for neighbours in
METRICS: dict[str, Literal["higher", "lower"]] = {"frechet": "lower", "precision": "higher", "recall": "higher"}
Sample = Callable[[Experiment, Any, jax.Array, int], jax.Array]  # (experiment, variables, key, number) -> images


def judge(experiment: Experiment, split: str, samples: Mapping[str, jax.Array]) -> Sets:
    """The metrics of sets of images, with items for their intervals, against the real ones of a split."""
    data, features = experiment.eval_data[split], classifier.features(experiment.train_data, experiment.workdir)
    real = features(data.normalization(data.image))[np.asarray(data.mask)]
    found = {}
    for name, images in samples.items():
        made = features(jnp.clip(jnp.round(127.5 * images + 127.5), 0, 255) / 127.5 - 1)  # as files would hold them
        near, few = made[:NUM_NEIGHBOURS], real[:NUM_NEIGHBOURS]
        shares = {"precision": covered(near, few), "recall": covered(few, near)}
        found[name] = {"frechet": frechet_distance(made, real)} | {m: (x.mean(), x) for m, x in shares.items()}
    return found


def evaluate(experiment: Experiment, weights: Mapping[str, Any], split: str, *, sample: Sample) -> Sets:
    """`Task.evaluate` of what is sampled: all weights get the same noise, another seed gets other noise."""
    key, num = stream_key(jax.random.key(experiment.config.seed), "samples"), experiment.config.data.num_samples
    return judge(experiment, split, {name: sample(experiment, w, key, num) for name, w in weights.items()})


def draw_run(workdir: pathlib.Path, path: pathlib.Path) -> None:
    """A picture of twelve samples of each of a run's latest weights, a row each, from the same noise."""
    run = FinishedRun.read(workdir)
    stored, sample = run.stored[-1], importlib.import_module(run.config.task).sample
    figure = Figure(figsize=(5, 0.62 * len(stored.names)), layout="constrained")
    for axis, name in zip(np.ravel(figure.subplots(len(stored.names))), stored.names, strict=True):
        images = sample(run.experiment, run.weights(stored, name), jax.random.key(0), 12)
        axis.imshow(np.clip(np.concatenate(images, axis=1) / 2 + 0.5, 0, 1), cmap="gray", vmin=0, vmax=1)
        axis.set_title(name, loc="left", fontsize=9.5)
        axis.set_axis_off()
    figure.savefig(buffer := io.BytesIO(), dpi=144, format="png")
    replace_file(path, buffer.getvalue())


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    try:
        draw_run(local_path(sys.argv[1]), local_path(sys.argv[1]) / "samples.png")
    except UserError as error:
        sys.exit(f"error: {error}")
