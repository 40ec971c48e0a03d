"""Calls in several processes, which end with the one that started them and hear of the signals that it gets."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from runtime import interruption, progress
from runtime.errors import UserError


def call(
    function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], num_processes: int, set_up: Callable[[], None]
) -> Iterator[Any]:
    """Calls a function, as often as there are arguments, in several processes at a time.

    Args:
        function: of a module; once its process is asked to stop, it raises `Interrupted` as soon as it has saved.
        arguments: for each call; they and the results are pickled.
        num_processes: at a time.
        set_up: called once in each process.

    Yields:
        The results, each as soon as it is there.

    Raises:
        Interrupted: this process was asked to stop, and the others have saved what they had.
        UserError: one of the others has been killed.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_processes, context, _start, (set_up,)) as pool:
        # Processes inherit what is blocked, and listen in `_start`: Ctrl-C reaches them while they are imported, too.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        running = {pool.submit(function, *given) for given in arguments}
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            while running:
                if interruption.requested():
                    raise interruption.Interrupted
                done, running = concurrent.futures.wait(running, 0.2, concurrent.futures.FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            if interruption.requested():  # so soon that there was nothing to save
                raise interruption.Interrupted from error
            raise UserError("one of several processes was killed; with fewer, each has more memory") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children() if running else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid or 0, signal.SIGUSR1)  # Ctrl-C has reached it, too, and a second one means now


def _start(set_up: Callable[[], None]) -> None:
    interruption.listen()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with progress.quietly():
        set_up()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
    os._exit(interruption.STATUS)
