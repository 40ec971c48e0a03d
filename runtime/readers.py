"""Rows of steps to come, read by threads or by worker processes: without JAX, which workers do not need."""

import collections
import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from runtime.errors import UserError

Rows = dict[str, np.ndarray]
Read = Callable[[Any, np.ndarray], Rows]  # (step, positions in its batch) -> arrays [positions, ...]
AHEAD = 4  # steps: two are with the device already, and images differ in the time that they take
# What asks a run to stop, as in `interruption`: it then saves, and needs what is read until it has.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def num_cores() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes of memory that this process may use."""
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # of a container, if there is a limit
        limit = min(limit, int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text()))
    return limit


@contextlib.contextmanager
def read_ahead(
    read: Read, steps: Iterable[Any], positions: np.ndarray, num_threads: int, num_workers: int = 0
) -> Iterator[Iterator[Rows]]:
    """Reads the rows of steps, `AHEAD` of them before they are asked for.

    Args:
        read: as `Read`; a pure function, pickled for worker processes.
        steps: what `read` takes for each, in the order in which they are to come.
        positions: of the batches, that this process needs.
        num_threads: to read with. One that decodes a large image lets others run; of small ones, they only disturb each
            other.
        num_workers: processes to read with, instead of threads, if it is not 0.

    Yields:
        The rows of each step. Leaving the context ends threads or processes.
    """
    # A step is shared by all of them: so the first comes soon, and little is in memory.
    parts = [part for part in np.array_split(positions, num_workers or num_threads) if len(part)]
    pool = _processes(read, len(parts)) if num_workers else _threads(num_threads)
    function = _read if num_workers else read

    def rows() -> Iterator[Rows]:
        coming: collections.deque[list[concurrent.futures.Future[Rows]]] = collections.deque()
        try:
            for step in steps:
                coming.append([pool.submit(function, step, part) for part in parts])
                if len(coming) > AHEAD:
                    yield _joined(coming.popleft())
            while coming:
                yield _joined(coming.popleft())
        except BrokenProcessPool as error:
            found = "a process that reads data was killed; with fewer data.workers each has more memory"
            raise UserError(found) from error

    try:
        yield rows()
    finally:
        pool.shutdown(cancel_futures=True)


def _joined(futures: list["concurrent.futures.Future[Rows]"]) -> Rows:
    parts = [future.result() for future in futures]
    return parts[0] if len(parts) == 1 else {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _threads(number: int) -> concurrent.futures.Executor:
    return concurrent.futures.ThreadPoolExecutor(number, "reader")


class _Process(multiprocessing.context.SpawnProcess):
    def terminate(self) -> None:
        """What a pool does to the others when one was killed, and waits for: they ignore SIGTERM."""
        self.kill()


class _Context(multiprocessing.context.SpawnContext):
    Process = _Process


def _processes(read: Read, number: int) -> concurrent.futures.Executor:
    # New processes would import what this one has started with, main.py and JAX; and they inherit what is blocked, so
    # that a signal to the whole group, such as that of a Ctrl-C, finds them ignoring it.
    main, before = sys.modules["__main__"], signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        context = _Context()
        # All of them wait until it is closed: a pool with an idle one would start the next later, out of here.
        closed, gate = context.Pipe(duplex=False)
        pool = concurrent.futures.ProcessPoolExecutor(number, context, _start, (read, closed))
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # multiprocessing has just unblocked two of them
        sys.modules["__main__"] = types.ModuleType("__main__")
        started = [pool.submit(os.getpid) for _ in range(number)]
        gate.close()
        for future in started:
            future.result()
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pool


_worker_read: Read  # of this process, if it is a worker


def _start(read: Read, gate: multiprocessing.connection.Connection) -> None:
    global _worker_read
    _worker_read = read
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError):
        gate.recv()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(0)


def _read(step: Any, positions: np.ndarray) -> Rows:
    return _worker_read(step, positions)
