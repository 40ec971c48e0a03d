"""Ends one of the two processes of a run at a random moment, and looks what becomes of both and of the run.

    python tests/chaos/hosts.py --runs=20 --out=benchmarks/results/chaos_hosts.json

With SIGTERM, both have to end at one step with status 75, and with SIGKILL the other one has to end, too. Then two
processes, one, or four continue the run. It has to end with the bits of a run that was left alone, or with four, whose
sums are rounded otherwise, with all its metrics. Moments are chosen from when the processes have found each other.
"""

import argparse
import json
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1])]
sys.path[:0] = [str(pathlib.Path(__file__).parents[2]), str(pathlib.Path(__file__).parents[1] / "promises")]

from chaos import compare  # noqa: E402
from processes import started, succeed  # noqa: E402

from runtime import environment, hosts, interruption  # noqa: E402

FIELDS = (
    "duration=120 steps",
    "log_every=17 steps",
    "eval_every=23 steps",
    "checkpoint_every=29 steps",
    "snapshot_every=53 steps",
    "model.hidden_sizes=(256, 256)",
    "optimizer.name=adamw",
    "steps_per_dispatch=5",
)
AFTER = {"two": (2, 1), "one": (1, 2), "four": (4, 1)}  # who continues: processes, and devices of each


def flags(workdir: pathlib.Path) -> list[str]:
    return [f"--workdir={workdir}", f"--cache_dir={workdir.parent / 'cache'}", *(f"--config.{f}" for f in FIELDS)]


def last_step(workdir: pathlib.Path) -> int:
    """Of its checkpoints; -1 if it has none."""
    return max((int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()), default=-1)


def end_one(workdir: pathlib.Path, signum: signal.Signals, whom: int, delay: float) -> dict[str, Any]:
    """Starts a run, sends the signal, and says how all ended."""
    with started(2, *flags(workdir)) as processes:
        while "2 processes train as one" not in processes.output():
            time.sleep(0.02)
        time.sleep(delay)
        alive = all(process.poll() is None for process in processes.all)
        processes.all[whom].send_signal(signum)
        sent = time.monotonic()
        ended = processes.wait()
    seconds, statuses = time.monotonic() - sent, [process.status for process in ended]
    said = "\n".join(process.errors for process in ended)
    over = statuses == [0, 0] or not alive
    if signum == signal.SIGTERM:
        assert statuses in ([interruption.STATUS] * 2, [0, 0]), f"{statuses}\n{said}"
        assert "Traceback" not in said, said
        steps = {line.split(" at step ")[1].split(".")[0] for line in said.splitlines() if "Stopped and saved" in line}
        assert len(steps) <= 1, said
        assert not steps or last_step(workdir) == int(*steps), said
    elif not over:
        assert statuses[whom] == -signum
        assert statuses[1 - whom] != 0, said
        assert seconds < 3 * hosts.HEARTBEAT, f"{seconds} s"
    return {"signal": signum.name, "process": whom, "delay": delay, "statuses": statuses, "seconds": seconds,
            "step": last_step(workdir), "over": over}  # fmt: skip


def torment(folder: pathlib.Path, reference: pathlib.Path, signum: signal.Signals, number: int, longest: float) -> Any:
    rng = random.Random(f"{signum}{number}")
    workdir, after = folder / f"{signum.name}{number}", list(AFTER)[number % len(AFTER)]
    try:
        found = end_one(workdir, signum, rng.randrange(2), rng.uniform(0, longest))
        num, devices = AFTER[after]
        output = succeed(num, *flags(workdir), devices=devices)
        assert found["step"] < 0 or f"Continuing {workdir} at step {found['step']}" in output, output
        if after == "four":
            ours, theirs = ((place / "metrics.jsonl").read_text().splitlines() for place in (workdir, reference))
            names = [{key: json.loads(line).get(key) for key in ("step", "curve")} for line in ours]
            assert names == [{key: json.loads(line).get(key) for key in ("step", "curve")} for line in theirs]
        else:
            compare(workdir, reference)
        shutil.rmtree(workdir)
        return found | {"continued by": f"{num} x {devices}"}
    except Exception as error:
        return f"{signum.name}, run {number}, kept in {workdir}: {type(error).__name__}: {error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="for each signal; default: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="at a time; default: %(default)s")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file for the result")
    args = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="hosts-"))
    succeed(2, *flags(folder / "warm"))  # which keeps the programs
    began = time.monotonic()
    succeed(2, *flags(folder / "reference"))
    longest = 1.2 * (time.monotonic() - began)
    found: dict[str, list[Any]] = {}
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with ThreadPoolExecutor(args.jobs) as pool:
            jobs = [pool.submit(torment, folder, folder / "reference", signum, n, longest) for n in range(args.runs)]
            found[signum.name] = [job.result() for job in jobs]
        good = [result for result in found[signum.name] if isinstance(result, dict)]
        print(*(result for result in found[signum.name] if isinstance(result, str)), sep="\n")
        print(
            f"{signum.name}: {len(good)} of {args.runs}; the slowest end took {max(g['seconds'] for g in good):.1f} s"
        )
    if args.out:
        args.out.write_text(
            json.dumps({"fields": FIELDS, **found, "environment": environment.describe()}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
