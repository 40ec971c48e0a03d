"""Images as a contextual bandit: few have labels, some for the policy and some for the reward model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

import input_pipeline
from examples.mean_teacher.labels import choose, keep_labels
from input_pipeline import TrainData
from runtime.errors import UserError
from runtime.permutation import example_indices
from runtime.sources import Images
from streams import stream_key
from train_state import CustomTrainState


class Bandit(struct.PyTreeNode):
    """The training data.

    Attributes:
        data: all images; the labels of those that have none are -1.
        policy: the rows whose labels the policy learns from, int32 [number of labels].
        reward: those of the reward model, which are others.
    """

    data: TrainData
    policy: jax.Array
    reward: jax.Array

    @property
    def images(self) -> Images:
        """All images, on the host; a run continues only on the same ones with the same labels."""
        return self.data.images

    def batch(self, state: CustomTrainState) -> tuple[dict[str, jax.Array], Any]:
        """The batch of `state.step`, a pure function of the seed and of it.

        Returns:
            `image`, float32 [batch, height, width, channels], and `label`, int32 [batch]: a half for the policy, then
            one for the reward model. No longer `is_supervised`: any images, most of which have no label. Each kind
            comes in random order, epoch by epoch, as in `TrainData`. The state's memory goes with it, as it is.
        """

        def draw(name: str, size: int, num_examples: int) -> jax.Array:
            return example_indices(stream_key(state.rng, name), state.step, batch_size=size, num_examples=num_examples)

        data, half = self.data, self.data.batch_size // 2
        few = [rows[draw(name, half, len(rows))] for name, rows in (("policy", self.policy), ("reward", self.reward))]
        any_rows = draw("unlabelled", data.batch_size, len(data.label))
        rows = jnp.where(is_supervised(state), jnp.concatenate(few), any_rows)
        drawn, memory = data.replace(image=data.image[rows], label=data.label[rows], streamed=True).batch(state)
        return {"image": drawn["image"], "label": drawn["label"]}, memory


def is_supervised(state: CustomTrainState) -> jax.Array:
    """Whether the next step learns from labels, as do the updates after which the average `start` stands still."""
    [start] = (average.start for average in state.averages if average.name == "start")
    return state.step - state.rejected["total"] < start


def create_data(
    config: Any, mesh: jax.sharding.Mesh, *, policy_labels: int = 10, reward_labels: int = 30
) -> input_pipeline.Data:
    """The images that `config.dataset` names, few of them with a label; evaluation has all labels.

    Args:
        config: resolved.
        mesh: the devices.
        policy_labels: images of each class that teach the policy.
        reward_labels: other images of each class, that teach the reward model.

    Raises:
        UserError: there is nothing to learn from, the batch cannot be halved, and see `keep_labels`.
    """
    if min(policy_labels, reward_labels) < 1:
        raise UserError(
            f"data.policy_labels = {policy_labels}, data.reward_labels = {reward_labels}: both must be 1 or more"
        )
    if config.batch_size % (2 * config.accumulate):
        raise UserError(
            f"batch_size = {config.batch_size}: its halves have labels for policy and reward; must be a multiple of "
            f"{2 * config.accumulate}, twice accumulate"
        )
    data = input_pipeline.create_data(config, mesh, mode="device")
    field, number = "policy_labels + data.reward_labels", policy_labels + reward_labels
    both, masked = keep_labels(config, data.train, number, field)
    policy = choose(np.asarray(data.train.label), data.train.num_classes, policy_labels, config.seed)
    return data._replace(train=Bandit(masked, jnp.asarray(policy), jnp.asarray(np.setdiff1d(both, policy))))
