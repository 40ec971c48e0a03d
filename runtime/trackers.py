"""Live trackers: what a run writes to `metrics.jsonl` goes to Weights & Biases, MLflow or a function of your own, too.

A tracker is a function that takes the workdir and an iterator of lines, each a dict as `metrics.jsonl` has it. The
iterator waits for the next line and ends with the run:

    def to_console(workdir, lines):
        for line in lines:
            print(line)

Each tracker has a thread of its own and copies of the lines, so that training neither waits for it nor fails with it.
A run that continues from a checkpoint sends the lines after that checkpoint, which may have been sent before; they have
the same values.
"""

import collections
import contextlib
import importlib
import importlib.util
import itertools
import json
import os
import pathlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from runtime import hosts
from runtime.errors import UserError
from runtime.fields import flatten
from runtime.files import replace_file
from runtime.progress import say

Line = dict[str, Any]
Tracker = Callable[[pathlib.Path, Iterator[Line]], None]

PATIENCE = 60.0  # seconds that the end of a run waits for its trackers

# By workdir, where the lines of its run go; None is the end.
_followed: dict[pathlib.Path, list[queue.SimpleQueue[Line | None]]] = collections.defaultdict(list)


def to_wandb(workdir: pathlib.Path, lines: Iterator[Line]) -> None:
    """Sends lines, and at the end `curves.png`, to Weights & Biases; its own WANDB_... variables say where and how."""
    import wandb

    # By this file a run that continues is one run there, too.
    kept = workdir / "wandb_run.txt"
    with wandb.init(
        project=os.environ.get("WANDB_PROJECT", "polyak"),
        name=os.environ.get("WANDB_NAME", workdir.name),
        id=kept.read_text() if kept.exists() else None,
        resume="allow",
        dir=workdir,
        config=_config(workdir),
        # It shall not stand between the run and its console, nor fill it.
        settings=wandb.Settings(console="off", quiet=True),
    ) as run:
        replace_file(kept, run.id)
        run.define_metric("*", step_metric="step")
        for line in lines:
            run.log({"step": line["step"], **numbers(line)})
        if (workdir / "curves.png").exists():
            run.log({"curves": wandb.Image(str(workdir / "curves.png"))})


def to_mlflow(workdir: pathlib.Path, lines: Iterator[Line]) -> None:
    """Sends lines, and at the end `curves.png`, to MLflow; its own MLFLOW_... variables say where and how."""
    import mlflow

    kept = workdir / "mlflow_run.txt"  # as above
    known = kept.read_text() if kept.exists() else None
    with mlflow.start_run(run_id=known, run_name=workdir.name) as run:
        replace_file(kept, run.info.run_id)
        if not known:
            mlflow.log_params(flatten(_config(workdir)))
        for line in lines:
            mlflow.log_metrics(numbers(line), step=line["step"])
        if (workdir / "curves.png").exists():
            mlflow.log_artifact(str(workdir / "curves.png"))


# A new tracker is a function above and the name of its package here.
TRACKERS: dict[str, Tracker] = {
    "wandb": to_wandb,
    "mlflow": to_mlflow,
}


def numbers(line: Line) -> dict[str, float]:
    """The metrics of a line that are finite, as `train/loss` or `test/ema/accuracy`."""
    place = "/".join(line[key] for key in ("split", "curve") if key in line)
    return {f"{place}/{key}": v for key, v in line.items() if key != "step" and isinstance(v, int | float)}


def _config(workdir: pathlib.Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workdir / "config.json").read_text("utf-8"))
    return found


def find(name: str) -> Tracker:
    """The tracker of this name in `TRACKERS`, or the function MODULE:FUNCTION.

    Raises:
        UserError: there is no such function, or its package is not installed.
    """
    if name in TRACKERS:
        if not importlib.util.find_spec(name):
            raise UserError(f"--tracker={name} needs a package that is not installed: pip install {name}")
        return TRACKERS[name]
    module, _, function = name.partition(":")
    if not (module and function):
        raise UserError(f"--tracker={name}: must be one of {', '.join(TRACKERS)}, or MODULE:FUNCTION of your own")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise UserError(f"--tracker={name}: {module} cannot be imported: {error}") from error
    if not callable(found):
        raise UserError(f"--tracker={name}: {module} has no function {function!r}; it takes (workdir, lines)")
    tracker: Tracker = found
    return tracker


def queues(workdir: pathlib.Path) -> list[queue.SimpleQueue[Line | None]]:
    """Where to put the lines of the run in this workdir, for those who follow it."""
    return _followed.get(workdir.resolve(), [])


@contextlib.contextmanager
def following(workdir: pathlib.Path, trackers: Iterable[Tracker]) -> Iterator[None]:
    """While this is open, trackers get what is written to `metrics.jsonl`. Its end waits for them, but not for ever.

    Of several processes only the first has any.

    Args:
        workdir: of the run.
        trackers: functions as this module's docstring describes them. What they raise is printed.
    """
    lines = [(tracker, queue.SimpleQueue[Line | None]()) for tracker in trackers if hosts.first()]
    given_up = threading.Event()
    threads = [
        threading.Thread(target=_track, args=(workdir, *each, given_up), name=_name(each[0]), daemon=True)
        for each in lines
    ]
    followed = _followed[workdir.resolve()]
    followed += [waiting for _, waiting in lines]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for _, waiting in lines:
            followed.remove(waiting)
            waiting.put(None)
        until = time.monotonic() + PATIENCE
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                given_up.set()
                say(
                    f"Note: {thread.name} is not done {PATIENCE:.0f} s after the run; what it still has to send is lost"
                )


def _track(
    workdir: pathlib.Path, tracker: Tracker, waiting: queue.SimpleQueue[Line | None], given_up: threading.Event
) -> None:
    lines: Iterator[Line] = iter(waiting.get, None)  # which ends at the first None
    for first in lines:  # before the first line, there is no config.json
        try:
            tracker(workdir, itertools.chain([first], lines))
        except (Exception, SystemExit) as error:
            if not given_up.is_set():
                say(f"Note: {_name(tracker)} has failed ({type(error).__name__}: {error}); the run goes on without it")
        collections.deque(lines, maxlen=0)  # what is left


def _name(tracker: Tracker) -> str:
    return f"the tracker {getattr(tracker, '__name__', tracker)}"
