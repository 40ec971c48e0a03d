"""Data that stay where they are, and of which each batch is read when its turn comes.

A `Stream` stands where otherwise data on the device stand. What gets data serves both through the functions here.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from runtime.errors import UserError
from runtime.progress import say
from runtime.readers import AHEAD, Read, Rows, read_ahead
from runtime.sharding import memory
from runtime.sources import Images

# Batches of evaluation that wait on the devices while one set of weights after another is laid out on all of them.
GROUP_BYTES = 2**26


@dataclasses.dataclass(frozen=True)
class Stream:
    """Batches that are read from disk or from the host's memory: what `data.batch` gets, for one step at a time.

    Each process reads what its own devices need and nothing else. What a step gets depends on the step only, not on
    those before it nor on who reads.

    Attributes:
        images: all of them, for what needs more than batches.
        read: the rows of a step, or of a batch of evaluation, by their positions in the batch; see `readers.Read`.
        create: makes of these, as arrays [batch, ...] on the devices, what has a `batch(state)`; of evaluation, a
            `batch(0)`.
        batch_size: over all devices.
        num_steps: there are; of evaluation, batches.
        sharding: of a batch.
        find_step: what `read` gets for the number of a step, where that is not the number.
        num_threads: that read; see `readers.read_ahead`.
        num_workers: processes that read instead.
    """

    images: Images
    read: Read
    create: Callable[..., Any]
    batch_size: int
    num_steps: int
    sharding: jax.sharding.NamedSharding
    find_step: Callable[[int], Any] = int
    num_threads: int = 1
    num_workers: int = 0

    def at(self, step: int) -> Any:
        """What a step gets."""
        return self._on_devices(self.rows(step, self._positions()))

    def rows(self, step: int, positions: np.ndarray) -> Rows:
        """The rows at some positions in the batch of a step, on the host."""
        return self.read(self.find_step(step), positions)

    def like(self) -> Any:
        """What every step gets, without its values."""

        def whole(x: np.ndarray) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self.batch_size, *x.shape[1:]), x.dtype, sharding=self.sharding)

        return self.create(**jax.tree.map(whole, self.rows(0, np.arange(1))))

    @contextlib.contextmanager
    def ahead(self, steps: Sequence[int]) -> Iterator[Iterator[Any]]:
        """What some steps get, read ahead; see `readers.read_ahead`."""
        num_workers = self.num_workers if len(steps) > AHEAD else 0  # it takes a second to start them
        found = map(self.find_step, steps)
        with read_ahead(self.read, found, self._positions(), self.num_threads, num_workers) as rows:
            yield map(self._on_devices, rows)

    def _positions(self) -> np.ndarray:
        """Those in a batch that devices of this process hold, in ascending order."""
        parts = self.sharding.addressable_devices_indices_map((self.batch_size,)).values()
        return np.unique(np.concatenate([np.arange(self.batch_size)[part] for part in parts]))

    def _on_devices(self, rows: Rows) -> Any:
        positions = self._positions()

        def one(x: np.ndarray) -> jax.Array:
            def part(index: Any) -> np.ndarray:
                first, end, _ = index[0].indices(self.batch_size)
                return x[np.searchsorted(positions, first) : np.searchsorted(positions, end)]

            return jax.make_array_from_callback((self.batch_size, *x.shape[1:]), self.sharding, part)

        return self.create(**jax.tree.map(one, rows))


def like(data: Any) -> Any:
    """What a step gets of data that are a stream or on the devices, possibly without its values."""
    return data.like() if isinstance(data, Stream) else data


def at(data: Any, step: int) -> Any:
    """What a step gets: of a stream its rows, otherwise all of the data."""
    return data.at(step) if isinstance(data, Stream) else data


@contextlib.contextmanager
def ahead(data: Any, steps: Sequence[int]) -> Iterator[Iterator[Any]]:
    """What some steps get, one after another; of data on the devices without end."""
    if isinstance(data, Stream):
        with data.ahead(steps) as parts:
            yield parts
    else:
        yield itertools.repeat(data)


@contextlib.contextmanager
def groups(data: Any) -> Iterator[Iterator[list[tuple[Any, int]]]]:
    """Evaluation data in groups of batches that are on the devices at the same time.

    Args:
        data: of evaluation: a stream, or what has `num_batches`, all of which is one group.

    Yields:
        The groups: of each batch what has it, and its index there.
    """
    if not isinstance(data, Stream):
        yield iter([[(data, index) for index in range(data.num_batches)]])
        return
    with data.ahead(range(data.num_steps)) as parts:
        batches = iter(parts)

        def grouped() -> Iterator[list[tuple[Any, int]]]:
            for first in batches:
                number = GROUP_BYTES // sum(x.nbytes for x in jax.tree.leaves(first))
                yield [(part, 0) for part in [first, *itertools.islice(batches, max(0, number - 1))]]

        yield grouped()


def is_streamed(mode: str, parts: list[Images], crops: bool) -> bool:
    """Whether these images are read as they are needed, which is said.

    Args:
        mode: "device"; "stream"; or "auto": a stream if they take more than a quarter of a device's memory, or are
            cropped.
        parts: training and evaluation images.
        crops: whether training images are cropped at random as they are read.

    Raises:
        UserError: there is no such mode, or what is to be read each time anew is to lie on the devices.
    """
    if mode not in ("auto", "device", "stream"):
        raise UserError(f"data.mode = {mode!r}: must be 'auto', 'device' or 'stream'")
    size, limit = sum(math.prod(part.image.shape) + part.label.nbytes for part in parts), memory()
    if mode == "device" and crops:
        raise UserError(
            "data.mode = 'device': random crops are cut out of image files as these are read; use 'stream', or "
            "--config.augment.resized_crop=1 for the centre of each image"
        )
    streamed = mode == "stream" or (mode == "auto" and (crops or size > limit / 4))
    reason = " for random crops" if streamed and crops else ""
    where = f"read as they are needed{reason}" if streamed else "copied to each device"
    say(f"Images: {size / 1e6:,.1f} MB, {where}; a device has {limit / 1e9:,.1f} GB of memory")
    return streamed
