"""Which rows of a data set a step has, and reading them: NumPy alone, for worker processes import it."""

from typing import Any

import numpy as np

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


def of_step(step: int, positions: np.ndarray, batch_size: int, round_keys: np.ndarray, num_examples: int) -> np.ndarray:
    """The training examples of a step, which are those of `permutation.example_indices`.

    Args:
        step: which.
        positions: in the batch, integers [n] below `batch_size`.
        batch_size: number of examples in a batch.
        round_keys: of every epoch from the first on, uint32 [epochs, ROUNDS]; see `permutation.round_keys`.
        num_examples: number of training examples.

    Returns:
        int64 [n], below `num_examples`.
    """
    epoch, position = np.divmod(step * batch_size + positions.astype(np.int64), num_examples)
    keys = round_keys[epoch]
    row = encrypt(position.astype(np.uint32), keys, num_examples)
    while (outside := row >= num_examples).any():
        row = np.where(outside, encrypt(row, keys, num_examples), row)
    return row.astype(np.int64)
