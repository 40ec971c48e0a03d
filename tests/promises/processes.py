"""The processes of one run, all on this machine, as several hosts would have them."""

import contextlib
import dataclasses
import os
import pathlib
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence

from conftest import ROOT, command

LIMIT = 240  # seconds in which everything ends; alone they take 20


@dataclasses.dataclass(frozen=True)
class Ended:
    status: int
    output: str
    errors: str


def flags(num: int, index: int, port: int) -> list[str]:
    return [f"--coordinator=localhost:{port}", f"--num_processes={num}", f"--process_id={index}"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


class Processes:
    """Those of a run while they run; see `started`."""

    def __init__(self, commands: Sequence[Sequence[str]], folder: pathlib.Path, environments: Sequence[dict[str, str]]):
        self.files = [(folder / f"{index}.out", folder / f"{index}.err") for index in range(len(commands))]
        self.all = []
        for arguments, environment, (out, err) in zip(commands, environments, self.files, strict=True):
            with out.open("w") as stdout, err.open("w") as stderr:
                self.all.append(subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=stdout, stderr=stderr))

    def output(self, index: int = 0) -> str:
        return self.files[index][0].read_text()

    def wait(self) -> list[Ended]:
        statuses = [process.wait(LIMIT) for process in self.all]
        return [
            Ended(status, *(f.read_text() for f in pair)) for status, pair in zip(statuses, self.files, strict=True)
        ]


@contextlib.contextmanager
def started(
    num: int,
    *arguments: str,
    devices: int = 1,
    config: str = "configs/digits.py",
    each: Callable[[int], Sequence[str]] = lambda _: (),
    environment: Callable[[int], dict[str, str]] = lambda _: {},
    program: Callable[[Sequence[str]], list[str]] | None = None,
    joined: bool = True,
) -> Iterator[Processes]:
    """Starts main.py, or a program that takes the same flags, `num` times; what still runs in the end is killed.

    Args:
        num: of processes.
        *arguments: for all of them.
        devices: that each has.
        config: file.
        each: arguments for one of them.
        environment: variables for one of them.
        program: the command that the arguments belong to.
        joined: whether flags say that they belong together.
    """
    port = free_port()
    line = program or (lambda flags: command(*flags, config=config))
    commands = [line([*arguments, *each(index), *(flags(num, index, port) if joined else ())]) for index in range(num)]
    visible = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        processes = Processes(
            commands, pathlib.Path(folder), [os.environ | visible | environment(index) for index in range(num)]
        )
        try:
            yield processes
        finally:
            for process in processes.all:
                process.kill()
                process.wait()


def run(num: int, *arguments: str, **options) -> list[Ended]:
    """Lets them end by themselves."""
    with started(num, *arguments, **options) as processes:
        return processes.wait()


def succeed(num: int, *arguments: str, **options) -> str:
    """Lets them end well; returns what the first one has printed."""
    ended = run(num, *arguments, **options)
    assert [process.status for process in ended] == [0] * num, ended
    return ended[0].output
