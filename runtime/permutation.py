"""The order of the training images: a random permutation for each epoch, as a pure function of (key, step)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from runtime.rows import ROUNDS, Step, encrypt


def example_indices(key: jax.Array, step: jax.Array, *, batch_size: int, num_examples: int) -> jax.Array:
    """The training images of a step's batch, a pure function of (key, step).

    Example `i = step * batch_size + j` is position `i % num_examples` of the permutation of epoch `i // num_examples`.

    Args:
        key: typed key of all permutations.
        step: int32 scalar.
        batch_size: number of images in a batch; any.
        num_examples: number of training images, at most 2**31 - 1.

    Returns:
        int32 [batch_size], below `num_examples`.
    """
    # Python multiplies each power of two by the batch size and divides by num_examples, exactly; the device adds up
    # those that make up the step. So nothing passes 2**32 but the number of the epoch, which may wrap around.
    step = step.astype(jnp.uint32)
    epoch = position = jnp.uint32(0)  # of the first example of the batch
    for bit in range(31):
        epochs, rest = divmod(batch_size << bit, num_examples)
        has_bit = (step >> bit) & 1
        epoch, position = _carry(epoch + has_bit * jnp.uint32(epochs % 2**32), position + has_bit * rest, num_examples)
    j = jnp.arange(batch_size, dtype=jnp.uint32)
    epoch, position = _carry(epoch + j // num_examples, position + j % num_examples, num_examples)
    return permute(position, key, epoch, num_examples).astype(jnp.int32)


def _carry(epoch: jax.Array, position: jax.Array, num_examples: int) -> tuple[jax.Array, jax.Array]:
    """The same place, given with a position below `2 * num_examples`, with one below `num_examples`."""
    over = position >= num_examples
    return epoch + over.astype(epoch.dtype), jnp.where(over, position - num_examples, position)


def permute(position: jax.Array, key: jax.Array, epoch: jax.Array, num_examples: int) -> jax.Array:
    """The elements at some positions of the random permutations of `range(num_examples)`, one for each epoch.

    A Feistel network permutes the next larger power of two; what falls outside is sent through again until it is
    inside (Black & Rogaway 2002, cycle walking). Unlike `jax.random.permutation` it needs no array of the data set's
    size, nor a sort at the start of each epoch.

    Args:
        position: uint32 [n], below `num_examples`.
        key: typed key of all permutations.
        epoch: uint32 [n], which permutation to use for each position.
        num_examples: length of the permutations.

    Returns:
        uint32 [n].
    """
    keys = round_keys(key, epoch)

    def outside(x: jax.Array) -> jax.Array:
        return jnp.any(x >= num_examples)

    def send_again(x: jax.Array) -> jax.Array:
        return jnp.where(x >= num_examples, encrypt(x, keys, num_examples), x)

    return jax.lax.while_loop(outside, send_again, encrypt(position, keys, num_examples))


def round_keys(key: jax.Array, epoch: jax.Array) -> jax.Array:
    """What tells the permutations of some epochs apart: uint32 [n, ROUNDS], for uint32 [n]."""
    return jax.vmap(lambda e: jax.random.bits(jax.random.fold_in(key, e), (ROUNDS,), jnp.uint32))(epoch)


def find_step(key: jax.Array, batch_size: int, num_examples: int) -> Callable[[int], Step]:
    """A function that tells a host, which computes them with `rows.of_step`, what the rows of a step depend on.

    Args:
        key: typed key of all permutations.
        batch_size: number of examples in a batch.
        num_examples: number of training examples.
    """

    @functools.lru_cache(maxsize=1024)
    def keys_of(epoch: int) -> np.ndarray:
        return np.asarray(round_keys(key, jnp.uint32([epoch % 2**32])))[0]

    def find(number: int) -> Step:
        first, last = number * batch_size // num_examples, (number * batch_size + batch_size - 1) // num_examples
        return Step(number, first, np.stack([keys_of(epoch) for epoch in range(first, last + 1)]))

    return find
