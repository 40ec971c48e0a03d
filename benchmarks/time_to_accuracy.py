"""How long from the start of the process to 99 % of the MNIST test images?

    python -m benchmarks.time_to_accuracy
    python -m benchmarks.time_to_accuracy --flax=CHECKOUT_OF_FLAX

Runs `main.py` as a command for each seed, and takes the time until the command has ended, with everything in it:
imports, data, evaluation, checkpoints, pictures. Compiled programs and the decoded data set are kept where main.py
always keeps them, so that the first run makes what the later ones find. Whether the target was reached is read from
the averaged weights' test accuracy at the end. The config fixes in advance how long it trains.

The other, if a checkout is given, is Flax's own example, `examples/mnist`, as it stands there. Its time ends with the
first line of its log that shows the target, rounded to 0.01 %; then it is stopped. Its runs come between the two halves
of ours.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from absl import app, flags, logging

from benchmarks import measure

_CONFIG = flags.DEFINE_string("config", "configs/mnist_fast.py", "Of our runs.")
_SEEDS = flags.DEFINE_integer("seeds", 10, "Number of our runs: seeds 0, 1, ...", lower_bound=1)
_TARGET = flags.DEFINE_float("target", 0.99, "Test accuracy to reach, a share.")
_FLAX = flags.DEFINE_string("flax", "", "Checkout of https://github.com/google/flax, whose example to run as well.")
_FLAX_RUNS = flags.DEFINE_integer("flax_runs", 2, "Number of runs of the example.", lower_bound=1)

ROOT = pathlib.Path(__file__).parents[1]


def run_ours(seed: int) -> dict[str, Any]:
    """One run of `main.py`."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "main.py", f"--config={_CONFIG.value}", f"--workdir={workdir}/run"]
        started = time.perf_counter()
        subprocess.run([*command, f"--config.seed={seed}"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        lines = [json.loads(line) for line in (pathlib.Path(workdir) / "run/metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if line["curve"] == "ema" and line["split"] == "test"]
    reached = [line["step"] for line in evaluations if line["accuracy"] >= _TARGET.value]
    accuracy = evaluations[-1]["accuracy"]
    return {
        "run": f"ours, seed {seed}",
        "seconds": seconds,
        "accuracy": accuracy,
        "reached": accuracy >= _TARGET.value,
        "length": f"{evaluations[-1]['step']} steps",
        "target first reached": f"step {reached[0]}" if reached else "-",
    }


def run_flax(number: int) -> dict[str, Any]:
    """One run of Flax's example, until it has logged the target."""
    command = [sys.executable, "main.py", "--config=configs/default.py"]
    folder = pathlib.Path(_FLAX.value) / "examples" / "mnist"
    log, epoch, accuracy, seconds = [], 0, 0.0, 0.0
    with tempfile.TemporaryDirectory() as workdir:
        started = time.perf_counter()
        command.append(f"--workdir={workdir}")
        with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
            for line in process.stderr or ():
                log.append(line)
                if match := re.search(r"epoch:\s*(\d+),.* test_accuracy: ([\d.]+)", line):
                    seconds = time.perf_counter() - started
                    epoch, accuracy = int(match[1]), float(match[2]) / 100
                    print(f"example, run {number}: epoch {epoch}, {accuracy:.2%}, {seconds:.0f} s", flush=True)
                    if accuracy >= _TARGET.value:
                        process.terminate()
                        break
    if not epoch:
        sys.exit(f"error: the example in {folder} logged no epoch:\n{''.join(log[-20:])}")
    reached = accuracy >= _TARGET.value
    return {
        "run": f"example, run {number}",
        "seconds": seconds,
        "accuracy": accuracy,
        "reached": reached,
        "length": f"{epoch} epochs",
        "target first reached": f"epoch {epoch}" if reached else "-",
    }


def main(argv: list[str]) -> None:
    """Runs ours and the example, and writes the result."""
    del argv
    logging.set_verbosity(logging.WARNING)
    middle = (_SEEDS.value + 1) // 2
    ours = [run_ours(seed) for seed in range(middle)]
    example = [run_flax(number) for number in range(_FLAX_RUNS.value)] if _FLAX.value else []
    ours += [run_ours(seed) for seed in range(middle, _SEEDS.value)]

    summary: dict[str, Any] = {"target": _TARGET.value, "config": _CONFIG.value}
    for name, runs in {"ours": ours, "example": example}.items():
        if runs:
            reached = sum(run["reached"] for run in runs)
            mean = float(np.mean([run["seconds"] for run in runs]))
            summary |= {f"{name}: mean seconds": mean, f"{name}: reached": f"{reached} of {len(runs)}"}
            print(f"{name}: {mean:.1f} s, the mean of {len(runs)}; {reached} reached {_TARGET.value:.2%}")
    if example:
        summary["example / ours"] = summary["example: mean seconds"] / summary["ours: mean seconds"]
        print(f"example / ours: {summary['example / ours']:.2f}")
    measure.write("time_to_accuracy", ours + example, summary=summary)


if __name__ == "__main__":
    app.run(main)
