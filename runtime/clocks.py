"""When the process started, and how long JAX has been compiling, which is neither training nor evaluation."""

import os
import pathlib
import time
from typing import Any

import jax

_main_started: float | None = None
_compiled: list[tuple[float, float]] = []  # of each program and stage when it was done, and how long it took


def _process_start() -> float:
    """When this process was started, on the clock of `time.monotonic`; now, where that is not known."""
    now = time.monotonic()
    try:  # Linux: the 22nd field, in ticks since the boot
        ticks = int(pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return now - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError):
        return now


def count_imports() -> None:
    """Makes the start of the next run include the start of the process; `main.py` calls this."""
    global _main_started
    _main_started = _process_start()


def start_of_run(called: float) -> float:
    """When the start of a run began: when `train_and_evaluate` was called, or see `count_imports`."""
    global _main_started
    began, _main_started = _main_started or called, None
    return began


def compile_seconds(since: float) -> float:
    """The seconds that this process has spent tracing and compiling since a time of `time.monotonic`."""
    return sum(duration for end, duration in _compiled if end > since)


def _note(event: str, duration_secs: float, **_: Any) -> None:
    if event.startswith("/jax/core/compile/"):
        _compiled.append((time.monotonic(), duration_secs))


jax.monitoring.register_event_duration_secs_listener(_note)
