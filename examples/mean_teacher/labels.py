"""Images of which few keep their labels, in batches with a labelled part and with two views of every image."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

import input_pipeline
from input_pipeline import TrainData
from runtime.errors import UserError
from runtime.permutation import example_indices
from runtime.sources import Images
from streams import stream_key
from train_state import CustomTrainState


class FewLabels(struct.PyTreeNode):
    """The training data: images, and which of them have a label.

    Attributes:
        data: all images; the labels of those that have none are -1.
        labelled: the rows of the others, int32 [number of labels].
        num_labelled: labelled images in a batch.
    """

    data: TrainData
    labelled: jax.Array
    num_labelled: int = struct.field(pytree_node=False)

    @property
    def images(self) -> Images:
        """All images, on the host; a run continues only on the same ones with the same labels."""
        return self.data.images

    def batch(self, state: CustomTrainState) -> tuple[dict[str, jax.Array], Any]:
        """The batch of `state.step`, a pure function of the seed and of it: labelled images first, then any images.

        Either part goes through its images in random order, epoch by epoch, as `TrainData` does.

        Returns:
            `image` and `teacher_image`, float32 [batch, height, width, channels], which are two augmentations of the
            same images; and `label`, int32 [labelled], and `target`, float32 [labelled, classes], of the first part
            alone. The state's memory goes with it, as it is.
        """

        def draw(name: str, size: int, num_examples: int) -> jax.Array:
            return example_indices(stream_key(state.rng, name), state.step, batch_size=size, num_examples=num_examples)

        data, num = self.data, self.num_labelled
        first = self.labelled[draw("labelled", num, len(self.labelled))]
        rows = jnp.concatenate([first, draw("unlabelled", data.batch_size - num, len(data.label))])
        drawn = data.replace(image=data.image[rows], label=data.label[rows], streamed=True)
        student, memory = drawn.batch(state)
        teacher, _ = drawn.batch(state.replace(rng=stream_key(state.rng, "teacher")))
        batch = {"image": student["image"], "teacher_image": teacher["image"]}
        return batch | {"label": student["label"][:num], "target": student["target"][:num]}, memory


def choose(label: np.ndarray, num_classes: int, per_class: int, seed: int) -> np.ndarray:
    """The rows that keep their labels, `per_class` of each class, drawn from the seed; more contain the fewer."""
    order = np.random.default_rng([seed, 2]).permutation(len(label))  # splits.py has the streams 0 and 1
    rows = [order[label[order] == one][:per_class] for one in range(num_classes)]
    return np.sort(np.concatenate(rows)).astype(np.int32)


def keep_labels(config: Any, train: TrainData, per_class: int, field: str) -> tuple[np.ndarray, TrainData]:
    """The rows that keep their labels, see `choose`, and the images with -1 for the labels of all others.

    Args:
        config: resolved.
        train: all images with their labels.
        per_class: images of each class that keep their label.
        field: of `config.data`, by which that was given.

    Raises:
        UserError: labels are no classes, a class has too few images, or images would be mixed.
    """
    label, num_classes = np.asarray(train.label), train.num_classes
    if label.ndim > 1:
        raise UserError(f"dataset = {config.dataset!r}: labels are numbers; task {config.task!r} needs classes")
    fewest = np.bincount(label, minlength=num_classes).min()
    if not 0 < per_class <= fewest:
        raise UserError(f"data.{field} = {per_class}: must be 1 to {fewest}, the images of a class")
    for name in ("mixup", "cutmix"):
        if config.augment[name]:
            raise UserError(f"augment.{name} = {config.augment[name]}: it mixes the parts of a batch; set it to 0")
    rows = choose(label, num_classes, per_class, config.seed)
    kept = np.full_like(label, -1)
    kept[rows] = label[rows]
    return rows, train.replace(label=jnp.asarray(kept))


def create_data(
    config: Any, mesh: jax.sharding.Mesh, *, labels_per_class: int = 10, labelled_share: float = 0.5
) -> input_pipeline.Data:
    """The images that `config.dataset` names, few of them with a label; evaluation has all labels.

    Args:
        config: resolved.
        mesh: the devices.
        labels_per_class: images of each class that keep their label.
        labelled_share: of a batch, its labelled part.

    Raises:
        UserError: the parts of a batch cannot be split, and see `keep_labels`.
    """
    if not 0 <= config.loss.threshold <= 1:
        raise UserError(f"loss.threshold = {config.loss.threshold}: must be a probability, or 0 for none")
    data = input_pipeline.create_data(config, mesh, mode="device")
    train: TrainData = data.train
    num, parts = round(config.batch_size * labelled_share), mesh.size * config.accumulate
    if not 0 < num <= config.batch_size or num % parts:
        raise UserError(
            f"data.labelled_share = {labelled_share}: is {num} images of a batch of {config.batch_size}; must be more "
            f"than 0, no more than the batch, and a multiple of {parts}, the number of devices times accumulate"
        )
    rows, train = keep_labels(config, train, labels_per_class, "labels_per_class")
    return data._replace(train=FewLabels(train, jnp.asarray(rows), num))
