"""Trains every combination of the values of some fields, each with several seeds, and says which is best.

    python -m tools.sweep --config=configs/digits.py --workdir=runs/lr --seeds=5 --config.num_validation=180 \
        --grid optimizer.learning_rate=0.03,0.1,0.3 --grid averages.ema.half_life=1%,5%
    python -m tools.sweep --config=configs/digits.py --workdir=runs/digits --seeds=5 --config.duration="20 epochs"

Every run has a workdir of its own, such as runs/lr/learning_rate=0.1,half_life=5%/seed0. The same command continues
what was interrupted, and trains what is new after a longer --grid or with more --seeds. What cannot be trained is
reported and passed over; it is tried again the next time.

With --list it trains nothing and prints the command of every run, for a scheduler. The same command without --list then
reports.

It ends with status 0, 1 if a run failed, and 75 when it was told to stop and has saved, as main.py does.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import pathlib
import re
import shlex
import signal
import threading
import traceback
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import ml_collections
from absl import logging

from reporting import sweep as verdict
from runtime import interruption, progress
from runtime.errors import UserError
from runtime.files import local_path, replace_file
from tools import command_line

Configs = Mapping[str, ml_collections.ConfigDict]  # by workdir, relative to the folder of the sweep


def read_grid(grid: Sequence[str]) -> dict[str, list[str]]:
    """The values of each field, of arguments such as "model.hidden_sizes=(32,),(64, 64)".

    Raises:
        UserError: it is no grid.
    """
    fields: dict[str, list[str]] = {}
    for argument in grid:
        name, equals, text = argument.partition("=")
        values, depth = [""], 0
        for sign in text:
            depth += (sign in "([{") - (sign in ")]}")
            if sign == "," and depth == 0:
                values.append("")
            else:
                values[-1] += sign
        values = [value.strip() for value in values]
        if not equals or len(set(values)) < len(values):
            raise UserError(f"--grid {argument}: must be FIELD=VALUE,VALUE,..., each value once")
        if name in fields or name == "seed":
            raise UserError(
                f"--grid {name}: {'--seeds=N has seeds 0 to N - 1' if name == 'seed' else 'is given twice'}"
            )
        fields[name] = values
    return fields


def plan(fields: Mapping[str, Sequence[str]], seeds: int) -> list[dict[str, Any]]:
    """The runs, as `sweep.json` has them: all combinations in the order of the grid, each with all seeds."""
    last = collections.Counter(name.rpartition(".")[2] for name in fields)
    short = {name: end if last[end := name.rpartition(".")[2]] == 1 else name for name in fields}
    runs = []
    for combination in itertools.product(*fields.values()):
        values = dict(zip(fields, combination, strict=True))
        folder = ",".join(f"{short[name]}={_as_file_name(value)}" for name, value in values.items())
        if len(folder) > 200:  # file systems allow 255
            folder = f"{folder[:180]}-{hashlib.sha256(folder.encode()).hexdigest()[:16]}"
        runs += [
            {"workdir": str(pathlib.PurePosixPath(folder, f"seed{seed}")), "values": values, "seed": seed}
            for seed in range(seeds)
        ]
    return runs


def _as_file_name(value: str) -> str:
    """A value as a part of a name; no two values have the same. Of what people write, only blanks look different."""
    return urllib.parse.quote_plus(re.sub("%(?=[0-9A-Fa-f]{2})", "%25", value), safe="%(),=")


def check(folder: pathlib.Path, configs: Configs, judge: str = "test") -> tuple[Configs, dict[str, str]]:
    """Checks every config, and what its workdir holds, before anything is trained.

    Args:
        folder: of the sweep.
        configs: of its runs.
        judge: the images that are to choose between them, "validation" or "test".

    Returns:
        The configs of those that are to be trained or continued, and by workdir what is wrong with others.

    Raises:
        UserError: there are no validation images, and they are to judge.
    """
    import input_pipeline
    import settings
    import train
    from runtime import sharding

    waiting: dict[str, ml_collections.ConfigDict] = {}
    failed: dict[str, str] = {}
    judged: dict[str, bool] = {}  # by task: whether its data has images to choose by
    for workdir, config in configs.items():
        try:
            with progress.quietly():
                task = train.find_task(config.task)
                resolved = settings.prepare(config, task, folder / workdir, "refuse")
        except UserError as error:
            failed[workdir] = str(error).removeprefix(f"{settings.WRONG}\n")
            continue
        if task.create_data is input_pipeline.create_data:
            judged[config.task] = resolved.num_validation > 0
        elif config.task not in judged:
            data = settings.create_data(task, resolved, sharding.create_mesh())
            judged[config.task] = "validation" in data.eval
        if judge == "validation" and not judged[config.task]:
            raise UserError(
                "no validation images are set aside to choose by. Pass --config.num_validation=N, or --judge=test, "
                "which chooses on the images that are to judge"
            )
        if not _is_finished(folder / workdir, resolved.duration):
            waiting[workdir] = config
    return waiting, failed


def _is_finished(workdir: pathlib.Path, duration: int) -> bool:
    from runtime import stored

    metrics = workdir / "metrics.jsonl"
    for checkpoint in stored.saved_folders(workdir / "checkpoints")[-1:]:
        with contextlib.suppress(stored.DamagedError):
            record = stored.Stored.read(checkpoint, check_files=False).record
            known = record.writer.lengths["metrics.jsonl"]
            return record.step == duration and metrics.is_file() and metrics.stat().st_size >= known
    return False


def train_all(folder: pathlib.Path, configs: Configs, *, jobs: int = 1, done: int = 0) -> dict[str, str]:
    """Trains runs, or continues them. They share compiled programs where these are the same.

    Args:
        folder: of the sweep.
        configs: of the runs.
        jobs: number of processes; 1 for this one.
        done: number of other runs that are over, for the line of progress.

    Returns:
        By workdir, why others failed.

    Raises:
        Interrupted: the process was asked to stop, and everything is saved.
        UserError: a process of several has ended.
    """
    failed = {}
    line = progress.Progress(done + len(configs), "run")

    def over(workdir: str, problem: str, latest: str) -> None:
        nonlocal done
        done += 1
        if problem:
            failed[workdir] = problem
            progress.say(f"{workdir} failed: {problem}")
        line.show(done, f"{workdir}  {latest}", news=not problem)

    with contextlib.closing(line):
        line.at(done)
        if jobs == 1:
            _set_up()
            for workdir, config in configs.items():
                under_way = functools.partial(_show, line, done, workdir)
                over(workdir, *_train(folder / workdir, config, under_way))
            return failed
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(jobs, context, _start_job) as pool:
            running = {pool.submit(_train, folder / workdir, config): workdir for workdir, config in configs.items()}
            try:
                while running:
                    for future in concurrent.futures.wait(running, 0.2, concurrent.futures.FIRST_COMPLETED).done:
                        over(running.pop(future), *future.result())
                    if running and interruption.requested():
                        raise interruption.Interrupted
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid or 0, signal.SIGUSR1)  # Ctrl-C has reached them, too; again would mean now
                if not isinstance(error, BrokenProcessPool):
                    raise
                if interruption.requested():  # before it had anything to save
                    raise interruption.Interrupted from error
                raise UserError("a process of --jobs was killed. The same command continues, with fewer?") from error
    return failed


def _show(line: progress.Progress, done: int, workdir: str, text: str) -> None:
    line.show(done, f"{workdir}  {text}", news=False)


def _set_up() -> None:
    """Prepares a process for training."""
    from runtime import caching

    logging.set_verbosity(logging.WARNING)
    caching.check_chosen()
    try:
        caching.enable(command_line.CACHE_DIR)
    except UserError as error:
        progress.say(f"Note: nothing is kept for later runs. {error}")


def _start_job() -> None:
    """Prepares a process of several, which ends with the one that has started it."""
    interruption.listen()
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(interruption.STATUS)), daemon=True).start()
    _set_up()


def _train(
    workdir: pathlib.Path, config: ml_collections.ConfigDict, tell: Callable[[str], None] = lambda _: None
) -> tuple[str, str]:
    """Trains one run, and tells how it goes; returns why it failed, if it did, and the last that was told."""
    import train

    told = ""

    def note(text: str) -> None:
        nonlocal told
        told = text
        tell(text)

    if interruption.requested():
        raise interruption.Interrupted
    try:
        with progress.quietly(note):
            train.train_and_evaluate(config, workdir)
    except interruption.Interrupted:
        raise
    except (UserError, OSError) as error:
        return str(error), told
    except Exception:  # of a model that does not fit these values, or that has no room in the memory
        return traceback.format_exc(), told
    return "", told


def _describe(folder: pathlib.Path, sweep: Mapping[str, Any]) -> None:
    """Writes `sweep.json`, in which all runs remain that it has.

    Raises:
        UserError: the folder holds another sweep.
    """
    path = folder / "sweep.json"
    try:
        old = json.loads(path.read_text()) if path.exists() else {"runs": []}
        gone = [run["workdir"] for run in old["runs"] if run not in sweep["runs"]]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}). Restore the file, or use another --workdir.") from error
    differing = [
        f"{name}: {old[name]} before, {sweep[name]} now"
        for name in sweep
        if name != "runs" and name in old and old[name] != sweep[name] and (gone or name in ("config", "overrides"))
    ]
    if differing:
        raise UserError(
            "\n".join([f"{folder} holds another sweep:", *differing])
            + "\nValues and seeds can be added, and nothing taken away. Use another --workdir."
        )
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(sweep, indent=1) + "\n")


def run(arguments: argparse.Namespace, others: Sequence[str]) -> dict[str, str]:
    """Does what the arguments ask for; returns why runs failed, by workdir."""
    if arguments.jobs > 1:
        import jax

        jax.config.update("jax_platforms", "cpu")  # of this process, which leaves accelerators to the others
    folder = local_path(arguments.workdir, "--workdir")
    overrides, fields = command_line.overrides(others), read_grid(arguments.grid)
    if twice := overrides.keys() & {*fields, "seed"}:
        raise UserError(f"--config.{min(twice)}: the sweep sets it; leave it out, or leave it out of --grid")
    runs = plan(fields, arguments.seeds)
    flags = [f"--config={arguments.config}", *overrides.values()]
    commands, configs, failed = {}, {}, {}
    for run in runs:
        values = [f"--config.{name}={value}" for name, value in {**run["values"], "seed": run["seed"]}.items()]
        command = ["python", "main.py", flags[0], f"--workdir={folder / run['workdir']}", *flags[1:], *values]
        commands[run["workdir"]] = shlex.join(command)
        try:
            configs[run["workdir"]] = command_line.read_config([*flags, *values])
        except UserError as error:
            failed[run["workdir"]] = str(error)
    judge = arguments.judge if len(runs) > arguments.seeds else "test"  # there is nothing to choose
    waiting, refused = check(folder, configs, judge)
    failed |= refused
    if len(failed) == len(runs):
        raise UserError("\n".join(dict.fromkeys(failed.values())))
    sweep = {"config": arguments.config, "overrides": flags[1:], "fields": fields, "seeds": arguments.seeds}
    _describe(folder, {**sweep, "runs": runs})
    if arguments.list:
        progress.output("\n".join(command for workdir, command in commands.items() if workdir not in failed))
        return failed
    for workdir, problem in failed.items():
        progress.say(f"{workdir} is left out: {problem}")
    if waiting:
        failed |= train_all(folder, waiting, jobs=arguments.jobs, done=len(runs) - len(failed) - len(waiting))
    if failed:
        replace_file(
            folder / "failed.json", json.dumps({w: failed[w] for w in commands if w in failed}, indent=1) + "\n"
        )
    else:
        (folder / "failed.json").unlink(missing_ok=True)
    progress.say(verdict.write(folder, arguments.metric, judge))
    return failed


def main() -> None:
    """Trains and reports what the command line asks for."""
    parser = argparse.ArgumentParser(
        "python -m tools.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Any field of the config is set for all runs by --config.FIELD=VALUE.",
    )
    parser.add_argument("--config", required=True, help="file with the config")
    parser.add_argument("--workdir", required=True, help="folder of the sweep")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds: 0, 1, ...; default: %(default)s")
    parser.add_argument(
        "--grid", action="append", default=[], metavar="FIELD=VALUE,...", help="values of a field; may be repeated"
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of processes; default: %(default)s")
    parser.add_argument("--list", action="store_true", help="train nothing, and print the command of each run")
    parser.add_argument("--metric", default="", help="to choose by; default: that of the best checkpoint")
    parser.add_argument(
        "--judge", choices=("validation", "test"), default="validation", help="images to choose by; default: validation"
    )
    arguments, others = parser.parse_known_args()
    if min(arguments.seeds, arguments.jobs) < 1:
        parser.error("--seeds and --jobs must be at least 1")
    try:
        failed = run(arguments, others)
    except (UserError, OSError) as error:
        interruption.end(f"error: {error}", 1)
    except interruption.Interrupted:
        interruption.end(f"Stopped and saved. {interruption.how_to_continue()}", interruption.STATUS)
    if failed:
        interruption.end("\n".join(["These runs failed:", *(f"{w}: {why}" for w, why in failed.items())]), 1)


if __name__ == "__main__":
    interruption.listen()
    main()
