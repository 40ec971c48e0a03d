"""Signals that ask a run to stop: SIGTERM and SIGUSR1 or SIGUSR2, which schedulers send before they kill, Ctrl-C, and
SIGHUP of a terminal that is closed.

The first one lets training finish what the device is doing, save, and end with `STATUS`; a second SIGTERM or Ctrl-C
ends the process at once. While there is nothing to save, before training and in a process that does not train, so does
the first signal.
"""

import contextlib
import multiprocessing
import os
import shlex
import signal
import socket
import sys
import threading
import time
import traceback
from typing import NoReturn

from runtime import hosts

# What a process ends with when its own command continues the run: EX_TEMPFAIL of sysexits.h, "try again later".
STATUS = 75

_INSISTENT = (signal.SIGTERM, signal.SIGINT)  # a second one means now; a closing terminal sends SIGHUP twice by itself
_SIGNALS = (*_INSISTENT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_requested = threading.Event()
_ending = threading.Lock()
_is_training = False


class Interrupted(Exception):  # noqa: N818  # no error, as KeyboardInterrupt is none
    """Training was asked to stop, and everything is saved."""


def listen() -> None:
    """Has a thread of its own receive the signals from now on; to be called by the main thread.

    Python runs signal handlers between two of its own instructions, so a compilation or a dispatch would put them off
    for seconds. What it writes to a socket when a signal arrives is not put off.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    for signum in _SIGNALS:
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # as nohup wants it
            signal.signal(signum, lambda *_: None)  # instead of a KeyboardInterrupt in the middle of anything
    signal.set_wakeup_fd(sender.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_receive, args=(receiver,), daemon=True).start()


def follow_others() -> None:
    """Has a thread end this process when another one of the run has ended, or when it has got stuck."""

    def follow() -> None:
        while True:
            time.sleep(0.5)
            if told := hosts.told():
                end(*told)
            if stalled := hosts.stalled():
                end(f"{stalled} {how_to_continue()}", STATUS)

    if hosts.count() > 1:
        threading.Thread(target=follow, daemon=True).start()


def _receive(receiver: socket.socket) -> None:
    insisted = False
    while True:
        signum = signal.Signals(receiver.recv(1)[0])
        if signum not in _SIGNALS:
            continue
        if insisted and signum in _INSISTENT:
            end(f"{signum.name} again: stopped at once. {how_to_continue()}", 128 + signum)  # as shells report it
        if not _is_training:
            end(f"{signum.name}: stopped, with nothing to save. {how_to_continue()}", STATUS)
        insisted |= signum in _INSISTENT
        if not _requested.is_set():
            _requested.set()
            _tell(f"{signum.name}: saving and stopping; a second SIGTERM or Ctrl-C stops at once")


def _tell(message: str) -> None:
    """Prints a line on the standard error, below the live line of progress if that is a terminal."""
    if multiprocessing.parent_process():  # which got the same signal, and tells it
        return
    # What Ctrl-C ends, too, is often the program that reads the output.
    with contextlib.suppress(OSError):
        print(f"\n{message}" if sys.stderr.isatty() else message, file=sys.stderr, flush=True)


def end(message: str, status: int) -> NoReturn:
    """Ends the process at once, whatever its threads are doing, with a message on the standard error.

    So do the other processes of the run, with the same message. Without what libraries do at the end of a process: some
    wait minutes for what has failed, and some crash.
    """
    _ending.acquire()  # and never released: whatever else would end the process is of no interest any more
    _tell(message)
    hosts.tell(message, status)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    for process in multiprocessing.active_children():  # such as one that is only starting, and would miss what it needs
        process.kill()
    os._exit(status)


def end_others(error: Exception) -> None:
    """Ends all processes of a run after an error in one of them that nobody expected; in a single one, does nothing."""
    if hosts.count() > 1:
        with _ending:  # while another thread ends this one, what it waits for fails
            traceback.print_exception(error)
        if isinstance(error, RuntimeError):  # of the devices, maybe because another process has died
            time.sleep(1.5 * hosts.HEARTBEAT)  # in which JAX would end this one
        end(f"error: {type(error).__name__}: {error}", 1)


def how_to_continue() -> str:
    """The command of this process, in words."""
    return f"To continue: {shlex.join(sys.orig_argv)}"


def requested() -> bool:
    """Whether training is to stop; of several processes, whether any of them is asked to, and all have to call it.

    From the first call on, a signal waits for the next one.
    """
    global _is_training
    _is_training = True
    return bool(hosts.largest(_requested.is_set()))
