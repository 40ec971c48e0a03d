"""A policy, and a reward model that sees less of the image."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from models import MLP
from runtime.errors import UserError


class PolicyAndReward(nn.Module):
    num_classes: int
    hidden_sizes: tuple[int, ...]
    block: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps images to log-probabilities [batch, classes]: of the policy, and that each class is right."""
        blurred = nn.avg_pool(images, (self.block, self.block), strides=(self.block, self.block))
        policy = MLP(self.num_classes, self.hidden_sizes, jnp.float32, name="policy")(images, train)
        reward = MLP(self.num_classes, self.hidden_sizes, jnp.float32, name="reward")(blurred, train)
        return nn.log_softmax(policy), nn.log_softmax(reward)


def create_model(
    example: tuple[Any, Any], *, hidden_sizes: tuple[int, ...] = (256,), block: int = 7
) -> PolicyAndReward:
    """Both networks; the reward model sees only the means of blocks of so many pixels.

    Raises:
        UserError: the image has no whole number of such blocks.
    """
    height, width = example[0].shape[1:3]
    if block < 1 or height % block or width % block:
        raise UserError(f"model.block = {block}: must divide the {height} x {width} of the images")
    return PolicyAndReward(example[1].shape[-1], hidden_sizes, block)
