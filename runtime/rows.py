"""Which rows of a data set a step has, and reading them: NumPy alone, for worker processes import it."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from runtime.sources import Images

ROUNDS = 8  # of the network; even, so that halves of unequal width have changed places back at the end


def encrypt(x: Any, round_keys: Any, num_examples: int) -> Any:
    """One pass through the network of `permutation.permute`; the same lines for NumPy and JAX.

    Args:
        x: uint32 [n], below the next larger power of two of `num_examples`.
        round_keys: uint32 [n, ROUNDS].
        num_examples: length of the permutation.

    Returns:
        uint32 [n], below the same power of two.
    """
    # Narrower networks are measurably not uniform.
    num_bits = max(8, (num_examples - 1).bit_length())
    left_bits, right_bits = num_bits - num_bits // 2, num_bits // 2
    for r in range(ROUNDS):
        left, right = x >> right_bits, x & ((1 << right_bits) - 1)
        left = left ^ (_mix(right ^ round_keys[:, r]) & ((1 << left_bits) - 1))
        x = (right << left_bits) | left
        left_bits, right_bits = right_bits, left_bits
    return x


def _mix(x: Any) -> Any:
    """The finaliser of MurmurHash3 (Appleby): every bit of the uint32 input moves every bit of the output."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


class Step(NamedTuple):
    """What tells the rows of a training step; see `permutation.find_step`.

    Attributes:
        number: of the step.
        epoch: of its first example.
        round_keys: of this epoch and those after it that the batch has a part in, uint32 [epochs, ROUNDS].
    """

    number: int
    epoch: int
    round_keys: np.ndarray


def of_step(step: Step, positions: np.ndarray, batch_size: int, num_examples: int) -> np.ndarray:
    """The training examples of a step, which are those of `permutation.example_indices`.

    Args:
        step: which.
        positions: in the batch, integers [n] below `batch_size`.
        batch_size: number of examples in a batch.
        num_examples: number of training examples.

    Returns:
        int64 [n], below `num_examples`.
    """
    epoch, position = np.divmod(step.number * batch_size + positions.astype(np.int64), num_examples)
    keys = step.round_keys[epoch - step.epoch]
    row = encrypt(position.astype(np.uint32), keys, num_examples)
    while (outside := row >= num_examples).any():
        row = np.where(outside, encrypt(row, keys, num_examples), row)
    return row.astype(np.int64)


@dataclasses.dataclass(frozen=True)
class TrainRows:
    """The training examples of each step; see `readers.Read`.

    Attributes:
        images: all of them.
        batch_size: number of examples in a batch.
        seed: of the run, on which the views of images depend.
        min_area: see `Images.read`.
    """

    images: Images
    batch_size: int
    seed: int
    min_area: float = 1.0

    def __call__(self, step: Step, positions: np.ndarray) -> dict[str, np.ndarray]:
        """`image` and `label` of the examples at these positions in the batch of a step."""
        rows = of_step(step, positions, self.batch_size, len(self.images))
        numbers = step.number * self.batch_size + positions.astype(np.uint64)
        keys = np.stack([np.full_like(numbers, self.seed), numbers], axis=1)
        return {"image": self.images.read(rows, keys, self.min_area), "label": self.images.label[rows]}


@dataclasses.dataclass(frozen=True)
class EvalRows:
    """The examples of each batch of evaluation, and `mask`, False for the padding after the last of them."""

    images: Images
    batch_size: int

    def __call__(self, index: int, positions: np.ndarray) -> dict[str, np.ndarray]:
        """`image`, `label` and `mask` of the examples at these positions in a batch."""
        rows = index * self.batch_size + positions
        mask = rows < len(self.images)
        image, label = self.images.image, self.images.label
        arrays = {
            "image": np.zeros((len(rows), *image.shape[1:]), np.uint8),
            "label": np.zeros((len(rows), *label.shape[1:]), label.dtype),
            "mask": mask,
        }
        if mask.any():
            arrays["image"][mask], arrays["label"][mask] = self.images.read(rows[mask]), label[rows[mask]]
        return arrays
