"""Many training steps per dispatch: how a program of one step is repeated until something is due."""

import re
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from runtime import interruption, startup
from runtime.progress import first_time

# A dispatch cannot be interrupted, so it is to last no longer than a user or a preemption notice is willing to wait.
MAX_SECONDS = 5.0

# (state, sums, data) -> (state, sums) after one more step
Step = Callable[[Any, Any, Any], tuple[Any, Any]]


def suits_chunks(step: Step, *args: Any) -> bool:
    """Whether steps run faster when the device repeats them than when the host dispatches one after another.

    Everywhere but on CPUs where a gradient with respect to a convolution's kernel is left to XLA (`convolution.py` does
    not, `nn.Conv` alone does): inside of loops it has no fast routine, and steps are 4 to 12 times slower.
    `python -m benchmarks.dispatch` measures it; so far on CPUs only.

    Args:
        step: the program of one step.
        *args: what it takes.
    """
    # XLA's convolution is that gradient where the batch, which is summed over, takes the place of the channels.
    gradient = r"lhs_spec=\((?!0,)"
    return jax.default_backend() != "cpu" or not re.search(gradient, str(jax.make_jaxpr(step)(*args)))


class Dispatcher:
    """Advances training by any number of steps.

    In chunks, the device repeats the step itself, as often as it is told at run time: one dispatch, during which
    nothing is fetched, and one compilation whatever the number of steps. How steps are cut into chunks changes no bit
    of the result. That they are dispatched singly does change the last bits.
    """

    def __init__(
        self,
        step: Step,
        *,
        chunked: bool,
        max_steps: int,
        sharding: jax.sharding.Sharding,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Compiles nothing yet.

        Args:
            step: the program of one step.
            chunked: whether to dispatch chunks instead of single steps.
            max_steps: of a chunk; 0 for as many as are done in about `MAX_SECONDS`, which no number exceeds.
            sharding: of state and sums.
            progress: told after each dispatch how many steps are done.
        """

        def chunk(state: Any, sums: Any, data: Any, num_steps: jax.Array) -> tuple[Any, Any]:
            return jax.lax.fori_loop(0, num_steps, lambda _, carry: step(carry[0], carry[1], data), (state, sums))

        def single(state: Any, sums: Any, data: Any, num_steps: jax.Array) -> tuple[Any, Any]:
            del num_steps
            return step(state, sums, data)

        self.chunked = chunked
        self._progress = progress
        self._program = jax.jit(chunk if chunked else single, donate_argnums=(0, 1), out_shardings=sharding)
        self._max_steps = max_steps if chunked and max_steps else 2**31 - 1
        # Steps to take before waiting for the device. How long one takes is not known yet, and measured as it goes;
        # several hosts would have to agree on it.
        self._next = 1

    def __call__(self, state: Any, sums: Any, data: Any, step: int, end: int) -> tuple[Any, Any, int]:
        """Takes the steps from `step` to `end`, without the latter; returns when they are done.

        Args:
            state: after `step` steps; overwritten (donated).
            sums: of the metrics so far; overwritten, too.
            data: the training data.
            step: number of the first step.
            end: the number after the last one.

        Returns:
            State, sums, and the number of steps done: `end`, unless the process has been asked to stop.
        """
        while step < end:
            num_steps = min(self._next, end - step)
            started = time.perf_counter()
            with first_time("Compiling the training step"):
                for number in range(step, step + num_steps, num_steps if self.chunked else 1):
                    with jax.profiler.StepTraceAnnotation("train", step_num=number):
                        state, sums = self._program(state, sums, data, np.int32(num_steps))
                jax.block_until_ready((state, sums))
            seconds = time.perf_counter() - started
            startup.first_step()
            step += num_steps
            self._progress(step)
            self._next = max(1, min(self._max_steps, int(num_steps * MAX_SECONDS / seconds)))
            if interruption.requested(range(step - num_steps + 1, step + 1)):
                break
        return state, sums, step
