"""Where the time between the start of the process and its first training step goes."""

import os
import pathlib
import time


def _process_start() -> float:
    """When this process was started, on the clock of `time.monotonic`; where that is not known, now."""
    now = time.monotonic()
    try:  # Linux: the 22nd field, in ticks since the boot
        ticks = int(pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return now - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError):
        return now


_start = _process_start()
_marks: list[tuple[str, float]] = []
_is_over = _is_shown = _counts_imports = False


def show() -> None:
    """Prints the table once the first step is done; `main.py --v=1` calls this."""
    global _is_shown
    _is_shown = True


def count_imports() -> None:
    """Lets the first run's start begin with the process; `main.py` calls this, which starts for nothing else."""
    global _counts_imports
    _counts_imports = True


def begin() -> float:
    """When the start of a run began, on the clock of `time.monotonic`: now, or see `count_imports`."""
    global _counts_imports
    began = _start if _counts_imports else time.monotonic()
    _counts_imports = False
    return began


def mark(phase: str) -> None:
    """Notes that a phase has just ended. After `first_step` nothing is noted any more."""
    if not _is_over:
        _marks.append((phase, time.monotonic()))


def first_step() -> None:
    """Notes that a training step is done; the first one of the process ends the start."""
    global _is_over
    if _is_over:
        return
    mark("first step")
    _is_over = True
    if _is_shown:
        print(table(), flush=True)


def table() -> str:
    """For each phase the second, since the start of the process, at which it ended, and how long it took."""
    previous = _start
    lines = ["phase           ended at s  seconds"]
    for phase, now in _marks:
        lines.append(f"{phase:14} {now - _start:11.2f} {now - previous:8.2f}")
        previous = now
    return "\n".join(lines)
