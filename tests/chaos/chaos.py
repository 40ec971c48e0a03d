"""Kills runs at random moments, again and again, and compares what becomes of them with a run that was left alone.

    python tests/chaos/chaos.py                                                   # 100 runs of the digits
    python tests/chaos/chaos.py --config=configs/cifar10_small.py --runs=5 --phase=saving \
        --override=duration="20 steps" --override=checkpoint_every="5 steps"

Each run is killed (SIGKILL) once to three times; between two starts it may get a SIGTERM as well, or have the newest of
several checkpoints, or the end of its metrics, damaged. Then it is started once more and has to end with the same bits
as the run that was left alone. A kill counts only if the process was alive. Prints the seed, what went wrong if
anything did, and where the kills landed.
"""

import argparse
import collections
import contextlib
import dataclasses
import itertools
import json
import math
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(pathlib.Path(__file__).parent)]

import jax  # noqa: E402
import numpy as np  # noqa: E402
import orbax.checkpoint as ocp  # noqa: E402
import victim  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

from runtime import environment, interruption  # noqa: E402

SMALL = (  # logging, evaluating and saving never coincide before the end
    "duration=500 steps",
    "log_every=17 steps",
    "eval_every=23 steps",
    "checkpoint_every=29 steps",
    "snapshot_every=53 steps",
    "model.hidden_sizes=(64,)",
    "label_noise=0.2",
    "optimizer.name=adamw",
    "optimizer.learning_rate=0.01",
    "optimizer.gradient_noise=0.01",
    "steps_per_dispatch=5",
)
PHASES = (*victim.PHASES, "saving")  # the last while a checkpoint is written in the background, whatever else goes on
PATIENCE = 600  # seconds that a run may take


@dataclasses.dataclass
class Workdir:
    """A run that is started, killed and damaged."""

    folder: pathlib.Path
    flags: tuple[str, ...]
    said: list[str] = dataclasses.field(default_factory=list)  # by all its processes

    def command(self) -> list[str]:
        """What starts it or lets it go on."""
        notes = self.folder.with_suffix(".notes")
        notes.write_bytes(bytes(victim.SIZE))
        script = str(pathlib.Path(__file__).with_name("victim.py"))
        return [sys.executable, script, str(notes), f"--workdir={self.folder}", *self.flags]

    @contextlib.contextmanager
    def process(self):
        """One start, which is over at the end of the context."""
        with (
            self.folder.with_suffix(".log").open("w+") as log,
            subprocess.Popen(self.command(), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT) as process,
        ):
            try:
                yield process
                process.wait(PATIENCE)
            finally:
                process.kill()
                process.wait()
                log.seek(0)
                self.said.append(log.read())

    def signal(self, signum: signal.Signals, phase: str, delay: float) -> tuple[str, bool] | None:
        """Starts it and sends a signal some time after it first was in this phase, or while it was `saving`.

        Returns:
            What it was doing when it died; none if it was over before.
        """
        notes = self.folder.with_suffix(".notes")
        with self.process() as process:
            deadline = time.monotonic() + PATIENCE
            while process.poll() is None and time.monotonic() < deadline:
                found, is_saving = victim.read(notes)
                if is_saving if phase == "saving" else found == phase:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(delay)
                    process.send_signal(signum)  # to nobody if it is over
                    break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.001)
        if signum == signal.SIGKILL:
            return victim.read(notes) if process.returncode == -signum else None
        expected = (interruption.STATUS, 0)
        assert process.returncode in expected, f"{signum.name}: status {process.returncode}\n{self.said[-1]}"
        return None

    def finish(self) -> None:
        """Starts it a last time and lets it end."""
        with self.process() as process:
            pass
        assert process.returncode == 0, f"status {process.returncode}\n{self.said[-1]}"

    def checkpoints(self) -> list[pathlib.Path]:
        """Those that are complete, the newest last."""
        folders = [path for path in (self.folder / "checkpoints").glob("*") if path.name.isdigit()]
        return sorted(folders, key=lambda path: int(path.name))


def damage(path: pathlib.Path, rng: random.Random) -> str:
    """Damages a file, and says how."""
    content = path.read_bytes()
    kind = rng.choice(["truncate", "flip", "delete"]) if content else "delete"
    if kind == "delete":
        path.unlink()
    elif kind == "truncate":
        path.write_bytes(content[: rng.randrange(len(content))])
    else:
        position, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
        path.write_bytes(content[:position] + bytes([content[position] ^ bit]) + content[position + 1 :])
    return kind


def leaves(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays in a checkpoint."""
    handler, trees = ocp.PyTreeCheckpointHandler(), {}
    with ocp.Checkpointer(handler) as checkpointer:
        for item in (folder / "state", folder / "sums"):
            # Not onto devices, which may be others by now.
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(item).tree)
            trees[item.name] = checkpointer.restore(item, args=ocp.args.PyTreeRestore(restore_args=as_numpy))

    def as_numbers(x):
        return np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    return {jax.tree_util.keystr(path): as_numbers(x) for path, x in jax.tree_util.tree_leaves_with_path(trees)}


def compare(run: pathlib.Path, reference: pathlib.Path) -> None:
    """Asserts that two workdirs are of the same run, but for the clocks."""
    for name in ("metrics.jsonl", "config.json", "averages.json"):
        assert (run / name).read_bytes() == (reference / name).read_bytes(), name
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
    for before, after in itertools.pairwise(times):
        assert before["step"] < after["step"], times
        assert before["train_seconds"] < after["train_seconds"], times
        assert all(before[clock] <= after[clock] for clock in before if clock.endswith("_seconds")), times
        rate = (after["step"] - before["step"]) / (after["train_seconds"] - before["train_seconds"])
        assert math.isclose(after["steps_per_second"], rate, rel_tol=1e-6), times
    ours, theirs = (sorted(path.name for path in (place / "snapshots").glob("*")) for place in (run, reference))
    assert ours == theirs
    last = max((reference / "checkpoints").iterdir(), key=lambda path: int(path.name)).name
    records = [json.loads((place / "checkpoints" / last / "record/metadata").read_text()) for place in (run, reference)]
    assert {**records[0], "writer": None} == {**records[1], "writer": None}
    ours, theirs = (leaves(place / "checkpoints" / last) for place in (run, reference))
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name].dtype == expected.dtype, name
        np.testing.assert_array_equal(ours[name], expected, name)
    for curve in {line["curve"] for line in metrics}:
        events = EventAccumulator(str(run / "tensorboard" / curve)).Reload()
        for tag in events.Tags()["scalars"]:
            expected_steps = [line["step"] for line in metrics if line["curve"] == curve and line.get(tag) is not None]
            assert [event.step for event in events.Scalars(tag)] == expected_steps, (curve, tag)


def torment(workdir: Workdir, reference: pathlib.Path, seed: str, phases: Sequence[str]) -> list[tuple[str, bool]]:
    """Kills a run one to three times, damages it perhaps, lets it end, and compares.

    Args:
        workdir: of the run, not started yet.
        reference: workdir of the run that was left alone.
        seed: of everything random.
        phases: where to kill it, the first time in the first of them.

    Returns:
        Where the kills landed.
    """
    rng = random.Random(seed)
    landed: list[tuple[str, bool]] = []
    for phase in itertools.islice(itertools.cycle(phases), rng.choice([1, 1, 1, 2, 2, 3])):
        delay = rng.choice([0, rng.uniform(0, 0.03), rng.uniform(0, 0.3)])  # what most phases last, or longer
        for attempt in range(20):
            if found := workdir.signal(signal.SIGKILL, phase, delay / 2**attempt):
                landed.append(found)
                break
            shutil.rmtree(workdir.folder)  # it ended before that, so once more and earlier
        else:
            raise AssertionError(f"no kill landed in {phase!r}")
        if rng.random() < 0.2:
            workdir.signal(rng.choice([signal.SIGTERM, signal.SIGINT]), "train", rng.uniform(0, 0.1))
        what = rng.random()
        if what < 0.2 and len(workdir.checkpoints()) > 1:
            newest = workdir.checkpoints()[-1]
            file = rng.choice([path for path in sorted(newest.rglob("*")) if path.is_file()])
            damage(file, rng)
            with workdir.process() as process:
                process.wait(PATIENCE)
            assert process.returncode == 0, workdir.said[-1]
            assert f"{newest} is damaged" in workdir.said[-1], f"{file} was damaged\n{workdir.said[-1]}"
        elif what < 0.4 and workdir.checkpoints():
            with (workdir.folder / "metrics.jsonl").open("ab") as file:
                file.write(b'{"step": 12, "curve": "tra')  # a torn line
    workdir.finish()
    compare(workdir.folder, reference)
    shutil.rmtree(workdir.folder)
    return landed


def table(landed: list[tuple[str, bool]]) -> str:
    """Where kills landed, and how many of them while a checkpoint was being written in the background."""
    counts = collections.Counter(phase for phase, _ in landed)
    saving = collections.Counter(phase for phase, is_saving in landed if is_saving)
    rows = [f"{phase:10} {counts[phase]:5} {saving[phase]:6}" for phase in victim.PHASES]
    return "\n".join(["phase      kills saving", *rows, f"{'all':10} {len(landed):5} {saving.total():6}"])


def chaos(
    folder: pathlib.Path,
    num_runs: int,
    seed: int,
    config: str,
    overrides: Sequence[str],
    phases: Sequence[str] = PHASES,
) -> tuple[list[tuple[str, bool]], list[str]]:
    """Torments runs, two at a time.

    Returns:
        Where the kills landed, and for each run that went wrong what did.
    """
    flags = (f"--config={config}", f"--cache_dir={folder / 'cache'}", *(f"--config.{field}" for field in overrides))
    folder.mkdir(parents=True, exist_ok=True)
    reference = Workdir(folder / "reference", flags)
    reference.finish()

    def run(number: int) -> list[tuple[str, bool]] | str:
        workdir = Workdir(folder / f"run{number}", flags)
        try:
            start = number % len(phases)
            return torment(workdir, reference.folder, f"{seed}-{number}", [*phases[start:], *phases[:start]])
        except Exception as error:
            return f"run {number} of seed {seed}, kept in {workdir.folder}: {type(error).__name__}: {error}"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(run, range(num_runs)))
    landed = [found for result in results if not isinstance(result, str) for found in result]
    return landed, [result for result in results if isinstance(result, str)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time, which is printed")
    parser.add_argument("--config", default=None, help="default: configs/digits.py, made smaller")
    parser.add_argument("--override", action="append", default=[], help="FIELD=VALUE of the config; may be repeated")
    parser.add_argument("--phase", choices=PHASES, action="append", help="where to kill; default: anywhere")
    parser.add_argument("--folder", type=pathlib.Path, help="for the runs; default: a temporary one")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file for the result")
    args = parser.parse_args()
    seed = random.randrange(2**32) if args.seed is None else args.seed
    folder = args.folder or pathlib.Path(tempfile.mkdtemp(prefix="chaos-"))
    overrides = (*(() if args.config else SMALL), *args.override)
    print(f"--seed={seed}, {args.runs} runs in {folder}", flush=True)
    started = time.monotonic()
    landed, failed = chaos(folder, args.runs, seed, args.config or "configs/digits.py", overrides, args.phase or PHASES)
    print(*failed, table(landed), sep="\n\n")
    survived = args.runs - len(failed)
    print(f"\n{survived} of {args.runs} runs ended bit for bit as if they had been left alone; ", end="")
    print(f"{len(landed)} kills in {time.monotonic() - started:.0f} s")
    if args.out:
        counts = collections.Counter(f"{phase}{', saving' if is_saving else ''}" for phase, is_saving in landed)
        result = {"seed": seed, "config": args.config or "configs/digits.py", "overrides": overrides}
        result |= {
            "runs": args.runs,
            "survived": survived,
            "kills": len(landed),
            "landed": dict(sorted(counts.items())),
        }
        result |= {"environment": environment.describe()}
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    if not failed and not args.folder:
        shutil.rmtree(folder)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
