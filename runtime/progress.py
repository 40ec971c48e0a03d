"""What a run says while it runs: one live line on a terminal, a few calm ones in a log; of many runs, one for all."""

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

LOG_SECONDS = 30.0  # between lines of a log, unless there is something new to say

_done: set[str] = set()
_tell: Callable[[str], None] | None = None  # see `quietly`


def say(text: str) -> None:
    """Prints a line, above the live one if there is one. Everything that a run prints goes through here."""
    if _tell is None:
        _print(text)


def _print(text: str) -> None:
    with contextlib.suppress(OSError):  # a console that is full is no reason to stop, nor to end with a failure
        output(text)


def output(text: str) -> None:
    """Prints what a command was asked for. Who stops reading has read enough; signs that a console lacks are escaped.

    Raises:
        OSError: it cannot be written.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        with tqdm.external_write_mode(file=sys.stdout):
            print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        # What could not be written would be tried again at the end of the process, which would fail for it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


@contextlib.contextmanager
def quietly(tell: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Keeps a run off the console, for one of many.

    Args:
        tell: takes what the run is doing, or how far it has come and its latest scores, in place of its live line.
    """
    global _tell
    before, _tell = _tell, tell
    try:
        yield
    finally:
        _tell = before


def silence() -> None:
    """Says nothing from now on, in a process beside the one that does."""
    global _tell
    _tell = lambda _: None  # noqa: E731


@contextlib.contextmanager
def under_way(what: str) -> Iterator[None]:
    """Says that something has begun, and when it is done, how long it took."""
    (_tell or say)(f"{what} ...")
    started = time.monotonic()
    yield
    say(f"{what}: done in {time.monotonic() - started:.1f} s")


@contextlib.contextmanager
def first_time(what: str) -> Iterator[None]:
    """`under_way`, for what takes long when a process does it for the first time: compiling."""
    with contextlib.nullcontext() if what in _done else under_way(what):
        yield
    _done.add(what)


class Progress:
    """How far training has come. It begins with the first step that is done, so that compiling counts for no rate."""

    def __init__(self, num_steps: int, unit: str = "step") -> None:
        """Shows nothing yet.

        Args:
            num_steps: of the whole training.
            unit: what is counted.
        """
        self._num_steps, self._unit = num_steps, unit
        self._tell = _tell
        self._live = bool(sys.stdout and sys.stdout.isatty())  # there may be none
        self._bar: tqdm | None = None
        self._text = ""
        self._started = self._printed = 0.0

    def at(self, step: int) -> None:
        """Moves the live line on.

        Args:
            step: steps done.
        """
        if self._tell:
            self._tell(f"{step / self._num_steps:.0%}  {self._text}")
            return
        with contextlib.suppress(OSError):  # a console that is gone is no reason to stop
            if self._bar is None:
                # The time left is that of the clock on the wall, evaluations and all; the rate is not.
                done, left = "{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} ", "[{remaining} left{postfix}] {desc}"
                is_narrow = self._live and _columns() < 80
                self._bar = tqdm(
                    initial=step,
                    total=self._num_steps,
                    bar_format="{percentage:3.0f}% {remaining} left  {desc}" if is_narrow else done + left,
                    dynamic_ncols=True,
                    file=sys.stdout,
                    disable=not self._live,
                )
                self._started = self._printed = time.monotonic()
                self._first = step
            self._bar.update(step - self._bar.n)

    def show(self, step: int, text: str, *, rate: float = 0.0, news: bool) -> None:
        """Shows how things are: in a log, if there is news or it has been silent for long.

        Args:
            step: steps done.
            text: what there is to say, apart from how far training has come.
            rate: steps per second of training time; 0 if there is nothing to say of it.
            news: whether something has come out since the last time, or training is over.
        """
        self._text = text
        self.at(step)
        if self._tell:
            return
        now = time.monotonic()
        speed = f"{rate:.0f} steps/s" if rate >= 100 else f"{rate:.3g} steps/s"
        if self._live and self._bar is not None:
            if rate:
                self._bar.set_postfix_str(speed, refresh=False)
            if len(text) > _columns() - 60:  # of names, beginning and end tell them apart
                text = re.sub(r"([\w-]{5})[\w-]{3,}([\w-]{5})", r"\1..\2", text)
            self._bar.set_description_str(text)
        elif news or now - self._printed > LOG_SECONDS:
            self._printed = now
            share = f"{self._unit} {step}/{self._num_steps} ({step / self._num_steps:.0%})"
            parts = [share, *([speed] if rate else [])]
            if step > self._first:
                seconds = (self._num_steps - step) * (now - self._started) / (step - self._first)
                parts.append(f"{format_seconds(seconds)} left")
            _print("  ".join([*parts, text]))

    def close(self) -> None:
        """Ends the live line."""
        with contextlib.suppress(OSError):
            if self._bar is not None:
                self._bar.close()


def _columns() -> int:
    """The width of the terminal; 80 if it does not say."""
    with contextlib.suppress(OSError):
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    return 80


def format_seconds(seconds: float) -> str:
    """4.06 as "4.1 s", 61.5 as "1:02", 3661 as "1:01:01"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
