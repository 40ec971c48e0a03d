"""Many training steps per dispatch: how a program of one step is repeated until something is due."""

import collections
import contextlib
import dataclasses
import hashlib
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from runtime import hosts, interruption, stream
from runtime.errors import UserError
from runtime.profiling import Profiler
from runtime.progress import first_time
from runtime.trees import shapes

# Each metric as a sum and the count it is divided by in the end. Sums add up over steps; means would not.
Sums = dict[str, tuple[ArrayLike, ArrayLike]]
# (state, data) -> (state, metrics) after one more step
Program = Callable[[Any, Any], tuple[Any, Sums]]
# What a line of metrics.jsonl has besides metrics.
RESERVED = ("step", "curve", "split", "rejected_steps")

# A dispatch cannot be interrupted, so it is to last no longer than a user or a preemption notice is willing to wait.
MAX_SECONDS = 5.0


def counted_if(ok: jax.Array, metrics: Sums, values: Mapping[str, jax.Array]) -> Sums:
    """The metrics of a step, or 0 of 0 for each where `ok` is False.

    Args:
        ok: bool scalar.
        metrics: of the loss. Counts are integers, or numbers where they are sums of weights.
        values: scalars to count once, by name.

    Raises:
        UserError: a metric of the loss is no pair of scalars, or has one of these names or a reserved one.
    """
    if taken := metrics.keys() & {*values, *RESERVED}:
        raise UserError(f"the loss returns a metric {min(taken)!r}, a name that is taken: give it another")
    for name, pair in metrics.items():
        if not isinstance(pair, tuple) or len(pair) != 2 or any(map(jnp.ndim, pair)):
            raise UserError(f"the loss returns the metric {name} = {shapes(pair)}; expected two scalars, (sum, count)")

    def counted(total: ArrayLike, count: ArrayLike) -> tuple[jax.Array, jax.Array]:
        dtype = jnp.float32 if jnp.issubdtype(jnp.result_type(count), jnp.floating) else jnp.int32
        return jnp.where(ok, total, 0).astype(jnp.float32), jnp.where(ok, count, 0).astype(dtype)

    return {name: counted(*pair) for name, pair in (metrics | {name: (x, 1) for name, x in values.items()}).items()}


def checked(loss_fn: Callable[..., Any], params: Any, state: Any, batch: Any) -> Any:
    """What a loss returns; see `train.LossFn`.

    Raises:
        UserError: it is not (objective, (metrics, updates)) with a scalar and two dicts, or updates what is no field.
    """
    returned = loss_fn(params, state, batch)
    expected = "expected objective, (metrics, updates)"
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise UserError(f"the loss returns {shapes(returned)}; {expected}")
    objective, aux = returned
    if not hasattr(objective, "ndim") or objective.ndim:
        raise UserError(f"the loss returns the objective {shapes(objective)}; expected a scalar: objective.mean()")
    if not isinstance(aux, tuple) or len(aux) != 2 or not isinstance(aux[0], Mapping):
        raise UserError(f"the loss returns {shapes(aux)} beside the objective; {expected}, metrics in a dict")
    known = [field.name for field in dataclasses.fields(state)]
    found = aux[1]
    if not isinstance(found, Mapping) or (found := sorted(found.keys() - known)):
        raise UserError(
            f"the loss returns the updates {found if isinstance(found, list) else shapes(found)}; expected a dict of "
            f"fields of the state, such as {{'batch_stats': ...}}, or {{}}; the state has {', '.join(known)}"
        )
    return returned


def next_batch(data: Any, state: Any) -> tuple[Any, Any]:
    """The batch of a step and the memory after it, of the same shapes as before it."""
    returned = data.batch(state)
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise UserError(
            f"batch(state) returns {shapes(returned)}; expected (batch, memory), where there is none: "
            "batch, state.memory"
        )
    before, after = shapes(state.memory), shapes(returned[1])
    if before != after:
        raise UserError(f"batch(state) returns the memory {after}; expected it as it was before: {before}")
    return returned


@contextlib.contextmanager
def noted(config: Mapping[str, Any], has_own_model: bool) -> Iterator[None]:
    """Adds a sentence to the traceback of an error in a user's own code, which shows when it is first traced."""
    try:
        yield
    except Exception as error:
        asked = f"Do task {config['task']!r} and model {config['model']['name']!r} fit each other?"
        error.add_note(f"The functions of task {config['task']!r} were being traced." if has_own_model else asked)
        raise


def zero_sums(program: Program, state: Any, data: Any) -> Sums:
    """Metric sums over no steps, for the metrics that this program gives, laid out as `state.step` is."""
    _, metrics = jax.eval_shape(program, state, stream.like(data))
    return jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype, device=state.step.sharding), metrics)


def suits_chunks(program: Program, state: Any, data: Any, known: bool | None = None) -> bool:
    """Whether steps run faster when the device repeats them than when the host dispatches one after another.

    Everywhere but on CPUs where a gradient with respect to a convolution's kernel is left to XLA, as it is for what
    `convolution.py` does not cover: inside of loops it has no fast routine, and steps are 4 to 12 times slower.
    `python -m benchmarks.dispatch` measures it; so far on CPUs only.

    Args:
        program: of one step.
        state: what it takes.
        data: what it takes. Of a `Stream` a program gets one step at a time.
        known: what was asked for, or found before; None for neither.
    """
    if isinstance(data, stream.Stream) or known is not None:
        return bool(known) and not isinstance(data, stream.Stream)
    # XLA's convolution is that gradient where the batch, which is summed over, takes the place of the channels.
    gradient = r"lhs_spec=\((?!0,)"
    return jax.default_backend() != "cpu" or not re.search(gradient, str(jax.make_jaxpr(program)(state, data)))


class Dispatcher:
    """Advances training by any number of steps, and adds up their metrics.

    In chunks, the device repeats the step itself, as often as it is told at run time: one dispatch, during which
    nothing is fetched, and one compilation whatever the number of steps. How steps are cut into chunks changes no bit
    of the result. Dispatching them singly does change the last bits.

    A context manager: leaving it ends a profiler's trace that is under way, and the reading of a stream.
    """

    def __init__(
        self,
        program: Program,
        chunked: bool,
        max_steps: int = 0,
        profile: tuple[int, int] = (0, 0),
        workdir: pathlib.Path = pathlib.Path(),
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Compiles nothing yet.

        Args:
            program: of one step.
            chunked: whether to dispatch chunks instead of single steps.
            max_steps: of a chunk; 0 for as many as are done in about `MAX_SECONDS`, which no number exceeds.
            profile: the first step to trace and the one after the last; (0, 0) for no trace.
            workdir: the trace goes to `profile` in this folder.
            progress: called after each dispatch with the number of steps done.
        """

        def step(state: Any, sums: Sums, data: Any) -> tuple[Any, Sums]:
            state, metrics = program(state, data)
            return state, jax.tree.map(jnp.add, sums, metrics)

        def chunk(state: Any, sums: Sums, data: Any, num_steps: jax.Array) -> tuple[Any, Sums]:
            return jax.lax.fori_loop(0, num_steps, lambda _, carry: step(carry[0], carry[1], data), (state, sums))

        def single(state: Any, sums: Sums, data: Any, num_steps: jax.Array) -> tuple[Any, Sums]:
            del num_steps
            return step(state, sums, data)

        # Where a chunk gives a NaN, JAX would name the loop instead of the operation.
        self.chunked = chunked and not jax.config.jax_debug_nans  # type: ignore[attr-defined]  # made at run time
        self._advance = chunk if self.chunked else single
        self._program: Callable[..., tuple[Any, Sums]] | None = None
        self._open = contextlib.ExitStack()
        self._coming, self._position = iter(()), -1  # the data of steps, and of which the next are
        self._progress = progress
        self._profiler = Profiler(workdir / "profile", profile)
        self._max_steps = max_steps if self.chunked and max_steps else 2**31 - 1
        # Steps to take before waiting for the device. How long one takes is not known yet, and measured as it goes.
        self._next = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._profiler.stop()
        self._open.close()

    def compiled_for(self, state: Any, sums: Sums) -> Callable[..., tuple[Any, Sums]]:
        """The jitted function of (state, sums, data, num_steps), whose results lie as the first state and sums do."""
        if self._program is None:
            shardings = jax.tree.map(lambda x: x.sharding, (state, sums))
            self._program = jax.jit(self._advance, donate_argnums=0, out_shardings=shardings)
        return self._program

    def __call__(self, state: Any, sums: Any, data: Any, step: int, end: int) -> tuple[Any, Any, int]:
        """Takes the steps from `step` to `end`, without the latter; returns when they are done.

        Args:
            state: after `step` steps; overwritten (donated).
            sums: of the metrics so far.
            data: the training data, or a `Stream` of them.
            step: number of the first step.
            end: the number after the last one.

        Returns:
            State, sums, and the number of steps done: `end`, unless the process has been asked to stop.
        """
        is_new = self._program is None
        program = self.compiled_for(state, sums)
        if is_new and hosts.count() > 1:  # of which each would wait for ever in what another does not do
            text = program.lower(state, sums, stream.like(data), np.int32(1)).as_text()  # type: ignore[attr-defined]
            hosts.check_same({"the program of a step": hashlib.sha256(text.encode()).hexdigest()})
        self._profiler.at(step)
        while step < end:
            num_steps = min(self._next, end - step)
            started, before = time.perf_counter(), collections.deque([(), ()])
            with first_time("Compiling the training step"):
                for number in range(step, step + num_steps, num_steps if self.chunked else 1):
                    with jax.profiler.StepTraceAnnotation("train", step_num=number):
                        state, sums = program(state, sums, self._data_of(data, number), np.int32(num_steps))
                        if hosts.count() > 1:  # where programs that wait for others must not overtake each other
                            jax.block_until_ready(sums)
                        elif isinstance(data, stream.Stream):  # of which many batches would fill the memory
                            before.append(sums)
                            jax.block_until_ready(before.popleft())
                jax.block_until_ready((state, sums))
            seconds = hosts.largest(time.perf_counter() - started)
            step += num_steps
            self._progress(step)
            self._next = max(1, min(self._max_steps, int(num_steps * MAX_SECONDS / seconds)))
            if interruption.requested():
                break
        return state, sums, step

    def _data_of(self, data: Any, step: int) -> Any:
        """What a program gets for a step: from a stream that is read ahead as long as one follows the other."""
        if not isinstance(data, stream.Stream):
            return data
        if step != self._position:
            self._open.close()
            self._coming = self._open.enter_context(data.ahead(range(step, max(data.num_steps, step + 1))))
        self._position = step + 1
        return next(self._coming)
