"""What an accelerator gives: rates, the price of an average, starts, whether results repeat, and time to an accuracy.

    python -m benchmarks.accelerator                                 # on one GPU
    python -m benchmarks.accelerator --dataset=arrays:cifar10.npz    # where there is no TensorFlow
    python -m benchmarks.accelerator --parts=rates,average           # some of it

Each part is one or more processes, since two of them cannot share the memory of an accelerator, and is printed and
stored as soon as it is done:

    rates          `benchmarks.peers` by type and batch size
    average        `benchmarks.average_cost`: milliseconds of one average, and over those of moving its bytes
    repeated       `main.py` for `--duration`, with and without `deterministic`: a run; again, with the first one's
                   compiled programs; again, compiled anew; killed half way and continued. `same`: whether
                   `metrics.jsonl` is the first one's to the byte. `first step`: seconds from the start of the process
                   until the first step was done
    accuracy       `main.py` on `--fast_config` with several seeds: the averaged weights' accuracy, the seconds of
                   training, and those from the start of the process to its end
"""

import argparse
import hashlib
import json
import multiprocessing
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import measure
from benchmarks.start import FIRST_STEP, ROOT


def run(module: str, name: str, *arguments: str) -> list[dict[str, Any]]:
    """The rows that a benchmark writes under this name."""
    command = [sys.executable, "-m", f"benchmarks.{module}", f"--name={name}", *arguments]
    subprocess.run(command, cwd=ROOT, check=True)
    rows: list[dict[str, Any]] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["rows"]
    return rows


def train(
    arguments: Sequence[str], workdir: pathlib.Path, cache_dir: pathlib.Path, kill_after: int = 0
) -> dict[str, Any]:
    """Runs `main.py` as a command.

    Args:
        arguments: its flags but for the folders.
        workdir: of the run.
        cache_dir: of its compiled programs.
        kill_after: number of lines of `metrics.jsonl` after which it is killed, and started again; 0: never.

    Returns:
        Seconds of the process (the last one), until its first step was done, and of training in all; the digest of
        `metrics.jsonl`, the accuracy of the first average at the end, and the number of steps.
    """
    metrics = workdir / "metrics.jsonl"
    command = [sys.executable, "main.py", f"--workdir={workdir}", f"--cache_dir={cache_dir}", *arguments]
    if kill_after:
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as victim:
            while not metrics.exists() or metrics.read_bytes().count(b"\n") < kill_after:
                if victim.poll() is not None:
                    sys.exit(f"error: {' '.join(command)} ended before it was killed")
                time.sleep(0.02)
            victim.kill()
    started, first, output = time.perf_counter(), 0.0, []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            output.append(line)
            if line.startswith(FIRST_STEP):
                first = time.perf_counter() - started
    seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} failed:\n{''.join(output[-20:])}")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    averaged = [line for line in lines if line["curve"] not in ("train", "raw") and "accuracy" in line]
    timing = json.loads((workdir / "timing.jsonl").read_text().splitlines()[-1])
    return {
        "seconds": seconds,
        "first step": first,
        "train seconds": timing["train_seconds"],
        "accuracy": averaged[-1]["accuracy"] if averaged else None,
        "steps": lines[-1]["step"],
        "digest": hashlib.sha256(metrics.read_bytes()).hexdigest()[:10],
    }


def rates(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the part `rates`."""
    found = []
    for dtype, batch_size in (("bfloat16", 128), ("bfloat16", 512), ("bfloat16", 2048), ("float32", 512)):
        ways = "eager,compiled,CUDA graph" if batch_size == 512 else "eager,CUDA graph"
        flags = ["--rounds=6", f"--steps={args.steps}", f"--torch={ways}"]
        fields = [f"--config.batch_size={batch_size}", f"--config.model.dtype={dtype}"]
        rows = run(
            "peers", f"{args.name}_{dtype}_{batch_size}", *flags, f"--config={args.config}", *dataset(args), *fields
        )
        found += [{"type": dtype, "batch": batch_size, **row} for row in rows]
    return found


def average(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the part `average`."""
    return run("average_cost", f"{args.name}_average_cost")


def repeated(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the part `repeated`."""
    rows = []
    for deterministic in (False, True):
        flags = [f"--config={args.config}", *dataset(args), f"--config.deterministic={deterministic}"]
        flags += [f"--config.duration={args.duration}", "--config.log_every=10%", "--config.eval_every=50%"]
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            runs = {
                "a run": train(flags, path / "first", path / "cache"),
                "again, compiled programs kept": train(flags, path / "again", path / "cache"),
                "again, compiled anew": train(flags, path / "anew", path / "other"),
                "killed and continued": train(flags, path / "killed", path / "cache", kill_after=6),
            }
        digest = runs["a run"]["digest"]
        for what, one in runs.items():
            rate = one["steps"] / one["train seconds"]
            row = {"deterministic": deterministic, "what": what, "same": one["digest"] == digest, "steps/s": rate}
            rows.append({**row, "first step": one["first step"], "seconds": one["seconds"], "digest": one["digest"]})
    return rows


def accuracy(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the part `accuracy`."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            flags = [f"--config={args.fast_config}", *dataset(args), f"--config.seed={seed}"]
            one = train(flags, pathlib.Path(folder, f"seed{seed}"), pathlib.Path(folder, "cache"))
            rows.append({"seed": seed} | {key: one[key] for key in ("accuracy", "train seconds", "seconds", "steps")})
    return rows


def dataset(args: argparse.Namespace) -> list[str]:
    """The flag for another data set than the config's."""
    return [f"--config.dataset={args.dataset}"] if args.dataset else []


PARTS = {"rates": rates, "average": average, "repeated": repeated, "accuracy": accuracy}


def main() -> None:
    """Measures the parts that are asked for, and writes each as it is done."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.accelerator", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", default="accelerator", help="of the results, of which there is one for each part")
    parser.add_argument("--parts", default=",".join(PARTS), help="separated by commas")
    parser.add_argument("--config", default="configs/cifar10.py", help="of rates and repeated")
    parser.add_argument("--fast_config", default="configs/cifar10_fast.py", help="of accuracy")
    parser.add_argument("--dataset", default="", help="if not the configs'")
    parser.add_argument("--steps", type=int, default=30, help="of a turn of rates")
    parser.add_argument("--duration", default="400 steps", help="of repeated")
    parser.add_argument("--seeds", type=int, default=5, help="of accuracy")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if unknown := {*parts} - {*PARTS}:
        parser.error(f"--parts={args.parts}: {min(unknown)!r} is none of {', '.join(PARTS)}")
    about = {"arguments": vars(args)}
    for part in parts:
        # In a process of its own: what describes the device takes its memory, which the next part needs.
        written = (f"{args.name}_{part}", PARTS[part](args))
        writing = multiprocessing.get_context("spawn").Process(target=measure.write, args=written, kwargs=about)
        writing.start()
        writing.join()
        if writing.exitcode:
            sys.exit(writing.exitcode)


if __name__ == "__main__":
    main()
