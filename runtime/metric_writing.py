"""Metrics of a run: `metrics.jsonl`, `timing.jsonl`, TensorBoard, and lines on the console."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import time
from collections.abc import Collection, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import jax
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from runtime import clocks, hosts, trackers
from runtime.dispatch import Sums
from runtime.errors import UserError
from runtime.progress import LOG_SECONDS, Progress, format_seconds, say

# The parts of a run's time, none of which counts what another does.
CLOCKS = ("train_seconds", "eval_seconds", "checkpoint_seconds", "compile_seconds", "startup_seconds")


@dataclasses.dataclass(frozen=True)
class Written:
    """How far a `MetricWriter` has got, from where another one can continue.

    Attributes:
        step: of the last line of progress.
        lengths: bytes of `metrics.jsonl` and `timing.jsonl`, by name.
        seconds: each of `CLOCKS`, by name.
    """

    step: int = 0
    lengths: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)


class _JsonLines:
    """A file of JSON objects, one a line, that is cut back to a length it once had."""

    def __init__(self, path: pathlib.Path, length: int) -> None:
        self._path = path
        self._file = path.open("ab")
        kept = path.read_bytes()[:length]
        self._file.truncate(kept.rfind(b"\n") + 1)  # of a file that has lost its end since, whole lines are kept

    def write(self, values: Mapping[str, Any]) -> None:
        # A file that was removed or moved away would take what nobody is to read.
        if not os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno())):
            raise UserError(f"{self._path} has been replaced by another file while the run was writing to it")
        self._file.write(json.dumps(values, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def length(self) -> int:
        """How much has been written, all of which is on the disk after this."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()


def read_metrics(path: pathlib.Path, length: int) -> list[tuple[int, str, str | None, dict[str, float | None]]]:
    """Step, curve, split and metrics of each line in the first bytes of the file, as many as `length`."""
    found = []
    for number, line in enumerate(path.read_bytes()[:length].splitlines() if length else (), 1):
        try:
            metrics = json.loads(line)
            step, curve, split = metrics.pop("step"), metrics.pop("curve"), metrics.pop("split", None)
            if not re.fullmatch(r"[\w-]+", curve):  # which names a folder
                raise ValueError(f"{curve!r} is no name of a curve")
            found.append((int(step), curve, split, {name: v if v is None else float(v) for name, v in metrics.items()}))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise UserError(
                f"{path}, line {number}, is damaged ({error}). Restore the file, or use another --workdir."
            ) from error
    return found


class _Board:
    """An event file for TensorBoard.

    With TensorBoard's own writer of records: `clu.metric_writers` would import TensorFlow, which takes longer than all
    else before the first step.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard wants "tfevents" in the name, and while it watches goes on only to names that come later.
        self._file = (folder / f"events.out.tfevents.{time.time_ns()}").open("wb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")

    def _write(self, **fields: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())
        self._records.flush()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(step=step, summary=Summary(value=values))

    def close(self) -> None:
        self._records.close()


class MetricWriter:
    """Writes the metrics of a run. A context manager: leaving it flushes and closes everything.

    `metrics.jsonl` holds one line per step and curve, and only what a repeated run would reproduce; `timing.jsonl` the
    clocks. TensorBoard shows each curve as a run of its own with the same tags, so that one chart shows all of them.
    """

    FILES = ("metrics.jsonl", "timing.jsonl")

    def __init__(
        self,
        workdir: str | pathlib.Path,
        num_steps: int,
        before: Written,
        metric: str,
        proportions: Collection[str],
    ) -> None:
        """Opens the files.

        Args:
            workdir: of the run.
            num_steps: of the whole training.
            before: what `record()` returned when the checkpoint was made that the run continues from; `Written()` for
                a new run. The files are cut back to what they were then.
            metric: the one to show while training goes on.
            proportions: metrics to show in %.

        Raises:
            UserError: `metrics.jsonl` is damaged.
        """
        self._workdir = pathlib.Path(workdir)
        before = before if hosts.first() else Written()  # the others begin with an empty folder
        self._num_steps = num_steps
        self._metric, self._in_percent = metric, metric in proportions
        lines = read_metrics(self._workdir / "metrics.jsonl", before.lengths.get("metrics.jsonl", 0))
        self._files = {name: _JsonLines(self._workdir / name, before.lengths.get(name, 0)) for name in self.FILES}
        self._followers = trackers.queues(self._workdir)
        self._seconds = {clock: before.seconds.get(clock, 0.0) for clock in CLOCKS}
        self._previous = before.step, self._seconds["train_seconds"]  # at the last line of progress
        self.scores: dict[str, dict[str, Any]] = {}  # of the last evaluation
        self._scored: tuple[int, str] | None = None  # its step and split
        self._curve_split: str | None = None
        self._latest: dict[str, Mapping[str, Any]] = {}
        self._evaluated = False  # since the last line of progress
        self._boards: dict[str, _Board] = {}
        # TensorBoard's files cannot be cut, and would show the steps after the checkpoint twice. They are made anew.
        for events in self._workdir.glob("tensorboard/*/events.out.tfevents.*"):
            events.unlink()
        for line in lines:
            self._show(*line)
        self._rejected = self._latest.get("train", {}).get("rejected_steps") or 0
        self._noted = -math.inf  # when it was last said that steps were rejected
        self.progress = Progress(num_steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.progress.close()
        for board in self._boards.values():
            board.close()
        for file in self._files.values():
            file.close()

    def record(self) -> Written:
        """What a checkpoint has to remember for another writer to continue from here. All of it is on the disk."""
        step, _ = self._previous
        return Written(step, {name: file.length() for name, file in self._files.items()}, dict(self._seconds))

    @contextlib.contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Adds the time within to one of `CLOCKS`, which go on over all starts of a run."""
        started = time.monotonic()
        yield
        self.add_time(name, started)

    def add_time(self, name: str, since: float) -> None:
        """Adds the time since then to one of `CLOCKS`, and what JAX compiled in it to "compile_seconds" instead.

        Args:
            name: of the clock.
            since: a time of `time.monotonic`.
        """
        compiling = clocks.compile_seconds(since)
        self._seconds["compile_seconds"] += compiling
        self._seconds[name] += max(0.0, time.monotonic() - since - compiling)

    def add_startup(self, called: float) -> None:
        """Adds the time since `train_and_evaluate` was called to "startup_seconds"; see `clocks.start_of_run`."""
        self.add_time("startup_seconds", clocks.start_of_run(called))

    def write_means(self, step: int, sums: Sums, *, rejected_steps: int) -> None:
        """Writes the training metrics, each sum divided by its count; null where every step was rejected.

        Says how many steps were rejected, if any were since it last said so: every half minute at most, and when they
        have become ten times as many.

        Args:
            step: steps done.
            sums: of the metrics since they were written last.
            rejected_steps: number of steps rejected so far.
        """
        found = jax.device_get(sums).items()
        means = {name: float(total) / float(count) if count else math.nan for name, (total, count) in found}
        is_time = rejected_steps >= 10 * self._rejected or time.monotonic() - self._noted > LOG_SECONDS
        if rejected_steps > self._rejected and is_time:
            steps = f"{rejected_steps} of {step} steps so far {'was' if rejected_steps == 1 else 'were'}"
            say(
                f"Note: {steps} rejected: the loss or the gradient was not finite; --debug_nans stops where one is made"
            )
            self._rejected, self._noted = rejected_steps, time.monotonic()
        self.write(step, "train", means | {"rejected_steps": rejected_steps})

    def write_scores(self, step: int, scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
        """Writes the metrics of an evaluation, by split and by name of the weights or of a difference."""
        for split, metrics in scores.items():
            for name, values in metrics.items():
                self.write(step, name, values, split=split)

    def write(self, step: int, curve: str, metrics: Mapping[str, float], split: str | None = None) -> None:
        """Writes the metrics of one curve at one step; what is not finite is written as null.

        Args:
            step: steps done.
            curve: "train", "raw", an average's name, or "NAME-raw" for a paired difference.
            metrics: values by name.
            split: which images were scored, "validation" or "test"; none on the curve of training. Where both occur,
                the curves come from the first, and the other stands in TensorBoard under a prefix.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        label = {"split": split} if split else {}
        line = {"step": step, "curve": curve, **label, **finite}
        self._files["metrics.jsonl"].write(line)
        for waiting in self._followers:
            waiting.put(dict(line))
        self._show(step, curve, split, finite)

    def _show(self, step: int, curve: str, split: str | None, metrics: Mapping[str, float | None]) -> None:
        """Passes metrics on to TensorBoard and to the line of progress."""
        self._curve_split = self._curve_split or split
        if split:
            if self._scored != (step, split):
                self._scored, self.scores = (step, split), {}
            self.scores[curve] = dict(metrics)
        prefix = f"{split}/"
        if split in (None, self._curve_split):
            self._latest[curve] = metrics
            self._evaluated |= split is not None
            prefix = ""
        if curve not in self._boards:
            self._boards[curve] = _Board(self._workdir / "tensorboard" / curve)
        scalars = {prefix + name: value for name, value in metrics.items() if value is not None}
        self._boards[curve].write(step, scalars)

    def write_progress(self, step: int) -> None:
        """Writes a line to `timing.jsonl`, and shows the latest scores of all weights."""
        previous_step, previous_seconds = self._previous
        self._previous = step, self._seconds["train_seconds"]
        steps_per_second = (step - previous_step) / max(1e-9, self._seconds["train_seconds"] - previous_seconds)
        self._files["timing.jsonl"].write({"step": step, "steps_per_second": steps_per_second, **self._seconds})
        rate = step / max(1e-9, self._seconds["train_seconds"])  # as the report has it
        self.progress.show(step, self._in_words(), rate=rate, news=self._evaluated or step == self._num_steps)
        self._evaluated = False

    def _in_words(self) -> str:
        """`ema 83.37% (+9.38)  raw 74.00%  train loss 1.4046`; the first fits on a terminal of 80 columns."""
        parts, called = [], "" if self._metric == "accuracy" else f"{self._metric} "
        for name in (*(name for name in self._latest if f"{name}-raw" in self._latest), "raw"):
            value = self._latest.get(name, {}).get(self._metric)
            apart = self._latest.get(f"{name}-raw", {}).get(self._metric)
            if value is not None:
                parts.append(f"{name} {called}" + (f"{value:.2%}" if self._in_percent else f"{value:.4g}"))
                if apart is not None:
                    parts[-1] += f" ({100 * apart:+.2f})" if self._in_percent else f" ({apart:+.2g})"
        train_loss = self._latest.get("train", {}).get("loss")
        return "  ".join([*parts, *([] if train_loss is None else [f"train loss {train_loss:.4g}"])])

    def say_times(self) -> None:
        """Prints how long each part of the run has taken."""
        train, evaluation, checkpoints, compiling, start = (format_seconds(self._seconds[clock]) for clock in CLOCKS)
        say(
            f"Training took {train}, evaluation {evaluation}, checkpoints {checkpoints}, compilation {compiling}, "
            f"the start {start}"
        )
