"""Processes on several hosts that train as one; the only file that knows `jax.distributed`.

They exchange values through JAX's coordination service, which process 0 runs, and not through the devices: so one that
does not come can be named, and none waits for ever. Whatever ends one of them ends all, with the same message and
status.
"""

import contextlib
import functools
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from runtime.errors import UserError
from runtime.progress import say, silence

T = TypeVar("T")

ARRIVAL = 300  # seconds in which all have to be started
PATIENCE = 3600  # seconds that anything may take, such as to download a data set, or an evaluation
HEARTBEAT = 30  # seconds without a sign of life after which JAX ends the others

# By JAX's name for it: what a launcher sets for each process, all of it; the first says how many there are.
LAUNCHERS = {
    "slurm": ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_STEP_NODELIST"),
    "ompi": (
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_MCA_orte_hnp_uri",
    ),
    "gketpu": ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID"),
    "k8s": ("JOB_COMPLETION_INDEX", "KUBERNETES_SERVICE_HOST"),
}

_index, _count, _meetings = 0, 1, 0
_met = time.monotonic()  # when all have met last
_awaited: int | None = None  # who has not come yet
_client: Any = None
_asking = threading.Lock()


def index() -> int:
    """The number of this process."""
    return _index


def count() -> int:
    """How many processes train together."""
    return _count


def first() -> bool:
    """Whether this is the one that prints, and writes all files but arrays."""
    return _index == 0


def detect(environment: Mapping[str, str]) -> str | None:
    """The launcher that has started this process together with others, as JAX calls it; None if there is none.

    Args:
        environment: its variables. Those that a job sets for its shell, or for one process, are not enough.
    """
    for name, variables in LAUNCHERS.items():
        if all(variable in environment for variable in variables):
            size = environment[variables[0]]
            slices = int(environment.get("MEGASCALE_NUM_SLICES", 1))
            alone = {"gketpu": len(size.split(",")) * slices == 1, "k8s": False}.get(name, size == "1")
            return None if alone else name
    return None


def start(distributed: str, given: Mapping[str, Any]) -> None:
    """Joins the processes of this run, if it has several. To be called before JAX looks for devices.

    Args:
        distributed: "auto" for those of a launcher, if there is one; or "off".
        given: the flags `coordinator`, `num_processes` and `process_id`, all of them or none.

    Raises:
        UserError: the flags are not complete, or the processes do not find each other.
    """
    global _index, _count, _client, _met
    missing = [name for name, value in given.items() if value is None]
    launcher = detect(os.environ) if distributed == "auto" else None
    if len(missing) == len(given):
        if not launcher:
            return
    elif missing or distributed == "off":
        wrong = f"--{missing[0]} is missing" if missing else "--distributed=off asks for the contrary"
        raise UserError(f"{wrong}: several processes are started with --{', --'.join(given)}, the last one from 0 on")
    elif not 0 <= given["process_id"] < given["num_processes"]:
        raise UserError(f"--process_id={given['process_id']}: must be in 0 .. {given['num_processes'] - 1}")
    else:
        _check_address(given["coordinator"], here=given["process_id"] == 0)
    import jax  # here, so that what only prints does without
    from jax._src import distributed as state  # whose client has no public name

    # It would take SIGTERM from `interruption`, whose notices all processes get from one another.
    jax.config.update("jax_enable_preemption_service", False)
    join = functools.partial(
        jax.distributed.initialize,
        given["coordinator"],
        given["num_processes"],
        given["process_id"],
        cluster_detection_method=launcher if launcher and missing else "deactivate",
        initialization_timeout=2 * ARRIVAL,  # at whose end JAX would end the process with a stack trace
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=HEARTBEAT,
    )
    try:
        ThreadPoolExecutor(1).submit(join).result(ARRIVAL)
    except (RuntimeError, ValueError, TimeoutError) as error:
        told = ", ".join(LAUNCHERS[launcher] if launcher and missing else (f"--{n}={x}" for n, x in given.items()))
        reason = str(error).strip().partition("\n")[0] or f"not all have come within {ARRIVAL} s"
        raise UserError(
            f"the processes of this run do not find each other: {reason}. Do all of them run, do they say the same "
            f"({told}), and is the coordinator's port open and free? Without others, one runs with --distributed=off"
        ) from error
    _index, _count, _client = state.global_state.process_id, state.global_state.num_processes, state.global_state.client
    _met = time.monotonic()
    by = f", started by {launcher}; --distributed=off keeps them apart" if missing else ""
    if not first():
        silence()
    if _count > 1:
        say(f"{_count} processes train as one{by}")


def _check_address(address: str, *, here: bool) -> None:
    """Checks the coordinator's address before JAX does, which would crash."""
    _, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) >= 2**16:
        raise UserError(f"--coordinator={address}: must be HOST:PORT, such as node0:54321")
    try:
        if here:
            socket.create_server(("", int(port))).close()
    except OSError as error:
        raise UserError(
            f"--coordinator={address}: its port cannot be used ({error}). Use another, the same for all processes, of "
            "which only one is --process_id=0"
        ) from error


def told() -> tuple[str, int] | None:
    """The message and the status with which another process says that all are to end; None if none does."""
    with _asking, contextlib.suppress(Exception):  # there is none, or JAX is about to end us itself
        found: tuple[str, int] = pickle.loads(_client.key_value_try_get_bytes("end"))
        return found
    return None


def stalled() -> str:
    """What keeps this process from going on, if it has waited for longer than anything should take."""
    if time.monotonic() - _met < PATIENCE:
        return ""
    missing = "another process or a device" if _awaited is None else f"process {_awaited}"
    return f"Nothing has gone on for {PATIENCE} s: {missing} is stuck."


def gather(value: T) -> list[T]:
    """What each process calls this with, by its number: all of them have to, the same number of times.

    Also the sign that the run goes on; see `stalled`.
    """
    global _meetings, _met, _awaited
    if _count == 1:
        return [value]
    _meetings += 1
    _client.key_value_set_bytes(f"{_meetings}/{_index}", pickle.dumps(value))
    found = []
    for _awaited in range(_count):  # for longer than `stalled` has patience, in milliseconds
        found.append(pickle.loads(_client.blocking_key_value_get_bytes(f"{_meetings}/{_awaited}", 2000 * PATIENCE)))
    # That all have come here means that all have what was exchanged before.
    _client.key_value_delete(f"{_meetings - 1}/{_index}")
    _met, _awaited = time.monotonic(), None
    return found


def largest(value: float) -> float:
    """The largest of what the processes have."""
    return max(gather(value))


def decided(decide: Callable[[], T]) -> T:
    """What the first process finds, which alone looks."""
    return gather(decide() if first() else None)[0]  # type: ignore[return-value]


def check_same(found: Mapping[str, Any]) -> None:
    """Checks that all processes are about to do the same.

    Args:
        found: what has to be equal, in the order in which to look for a difference, by what it is called.

    Raises:
        UserError: two of them differ; names the first thing in which they do.
    """
    one, *others = gather(dict(found))
    for number, other in enumerate(others, 1):
        for name in [*one, *(other.keys() - one.keys())]:
            if (here := one.get(name)) != (there := other.get(name)):
                raise UserError(
                    f"the processes of a run must do the same, and {name} is {here} in process 0, {there} in process "
                    f"{number}: start all of them with the same code, packages, data, --config and flags"
                )


def tell(message: str, status: int) -> None:
    """Has all other processes end with this message and status, unless they are told to already."""
    if _count > 1:
        with contextlib.suppress(Exception):  # of which one comes first
            _client.key_value_set_bytes("end", pickle.dumps((f"process {_index}: {message}", status)))
        _leave()


def part() -> None:
    """Parts from the other processes at the end of a run, when all have come to it."""
    if _count > 1:
        gather(None)
        _leave()


def _leave() -> None:
    """Waits until all others leave, too, for without the first one JAX would take them for lost."""
    import jax

    global _client
    with _asking:  # for the end of Python must not find a thread in the client
        _client = None
    with contextlib.suppress(Exception):  # that some are gone already
        jax.distributed.shutdown()
