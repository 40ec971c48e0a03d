"""Traces of a few training steps, for TensorBoard and Perfetto."""

import pathlib

import jax

from runtime.progress import say


class Profiler:
    """Traces the steps that `config.profile` asks for."""

    def __init__(self, folder: pathlib.Path, steps: tuple[int, int]) -> None:
        """Traces nothing yet.

        Args:
            folder: where traces go.
            steps: the first one, and the one after the last; (0, 0) for none.
        """
        self._folder = folder
        self._first, self._end = steps
        self._running = False
        self._previous: int | None = None

    def at(self, step: int) -> None:
        """Starts or ends the trace where `step`, the number of steps done, is one or the other."""
        if step == self._first < self._end:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._running = True
        elif step >= self._end:
            self.stop()
        if self._previous is None and step > self._first < self._end:
            say(f"Steps {self._first} .. {self._end} are not traced: the run continues at step {step}")
        self._previous = step

    def stop(self) -> None:
        """Ends a trace that is under way."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            say(f"Trace of steps {self._first} .. {self._end}: {self._folder}")
