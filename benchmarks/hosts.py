"""What do split averages cost a step, and what does it cost several processes to agree?

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m benchmarks.hosts

A step of an MLP with four averages is timed on eight devices with averages that are split and averages that each has
whole, in turns. Then two and four processes on this machine exchange a number many times, as they do after a dispatch.
"""

import socket
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
from absl import app, flags

from benchmarks import measure
from benchmarks.dispatch import create_call
from configs import default, digits
from runtime import dispatch, hosts, sharding
from tools import finished

_NAMES = ("coordinator", "num_processes", "process_id")
_PROCESS = flags.DEFINE_list("process", [], f"Of one that only exchanges: {', '.join(_NAMES)}.")

EXCHANGES = 500


def measure_split() -> tuple[dict[str, Any], dict[str, list[float]]]:
    """A row of the table, and all that was timed for it."""
    config = digits.get_config()
    config.batch_size, config.model.hidden_sizes = 256, (1024, 1024)
    config.averages = {f"ema{i}": default.average("ema", decay=0.99) for i in range(4)}
    calls = {}
    for way, smallest in (("split", sharding.MIN_SPLIT_BYTES), ("whole", 2**60)):
        sharding.MIN_SPLIT_BYTES = smallest
        calls[way] = create_call(finished.create_experiment(config), chunked=True)
    seconds = measure.interleaved(calls, flags.FLAGS.rounds)
    row = {"what": "step, split / whole averages", "devices": jax.device_count()}
    row |= {f"{name} ms": 1e3 * measure.summary(values)["median"] for name, values in seconds.items()}
    return row | measure.paired_ratio(seconds["split"], seconds["whole"]), seconds


def exchange() -> float:
    """The median seconds of an exchange."""
    times = []
    for _ in range(EXCHANGES):
        started = time.perf_counter()
        hosts.largest(started)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure_exchange(num: int) -> dict[str, Any]:
    """A row of the table, of `num` processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    commands = [
        [sys.executable, "-m", "benchmarks.hosts", f"--process={address},{num},{index}"] for index in range(num)
    ]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    seconds = max(float(process.communicate(timeout=300)[0].splitlines()[-1]) for process in processes)
    # Two after each dispatch: how long it took, and whether to stop.
    share = 2 * seconds / dispatch.MAX_SECONDS
    return {"what": "exchange", "processes": num, "ms": 1e3 * seconds, "share of a long dispatch": share}


def main(argv: list[str]) -> None:
    """Measures and writes the result; or exchanges, in one of several processes."""
    del argv
    if _PROCESS.value:
        address, num, index = _PROCESS.value
        hosts.start("auto", dict(zip(_NAMES, (address, int(num), int(index)), strict=True)))
        print(exchange(), flush=True)
        hosts.part()
        return
    row, seconds = measure_split()
    exchanges = [*map(measure_exchange, (2, 4))]
    print(*exchanges, sep="\n", flush=True)
    measure.write("hosts", [row], exchanges=exchanges, seconds=seconds)


if __name__ == "__main__":
    app.run(main)
