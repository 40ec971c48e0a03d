"""Named streams of randomness: every random number of a run is a function of (seed, stream, step)."""

import zlib

import jax


def stream_key(rng: jax.Array, stream: str) -> jax.Array:
    """The key of a named stream of randomness. Streams are independent, and adding one does not change the others."""
    return jax.random.fold_in(rng, zlib.crc32(stream.encode()))


def step_key(rng: jax.Array, stream: str, step: jax.Array) -> jax.Array:
    """The key of a named stream at one step."""
    return jax.random.fold_in(stream_key(rng, stream), step)
