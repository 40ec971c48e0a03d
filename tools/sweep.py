r"""Trains every combination of the values of some fields, each with several seeds, and says which is best.

    python -m tools.sweep --config=configs/digits.py --workdir=runs/lr --seeds=5 --config.num_validation=100 \
        --grid optimizer.learning_rate=0.03,0.1,0.3 --grid averages.ema.half_life=1%,5%
    python -m tools.sweep --config=configs/digits.py --workdir=runs/digits --seeds=5 --config.duration="20 epochs"

Each run has a workdir of its own, such as `runs/lr/learning_rate=0.1,half_life=5%/seed0`. The same command continues
what was interrupted, and with more values or seeds it adds their runs. A run that fails is reported and passed over,
and the same command tries it again. --config.FIELD=VALUE sets a field for all runs.

With --list it prints the command of each run, and writes nothing; the same command without --list then reports.
The status at the end is 0, or 1 if a run has failed, or 75 after a signal to stop, when everything is saved.
"""

import argparse
import collections
import contextlib
import itertools
import json
import pathlib
import re
import shlex
import traceback
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
from absl import logging

import tools
from reporting import sweep
from runtime import interruption, progress
from runtime.errors import UserError
from runtime.files import local_path, replace_file
from tools import command_line

Configs = Mapping[str, ml_collections.ConfigDict]  # by workdir, below the folder of the sweep


def read_grid(grid: Sequence[str]) -> dict[str, list[str]]:
    """The values of each field, of arguments such as "model.hidden_sizes=(32,),(64,64)"; or a UserError."""
    fields: dict[str, list[str]] = {}
    for argument in grid:
        name, _, text = argument.partition("=")
        values = [value.strip() for value in re.split(r",(?![^([{]*[)\]}])", text)]  # at commas outside of brackets
        if "=" not in argument or len(set(values)) < len(values) or name in (*fields, "seed"):
            must = "must be FIELD=VALUE,VALUE,..., each field and value once; seeds are --seeds=N"
            raise UserError(f"--grid {argument}: {must}")
        fields[name] = values
    return fields


def plan(fields: Mapping[str, Sequence[str]], seeds: int) -> list[dict[str, Any]]:
    """The runs, as `sweep.json` has them: the combinations in the order of the grid, each with the seeds 0, 1, ..."""
    ends = collections.Counter(name.rpartition(".")[2] for name in fields)
    runs = []
    for combination in itertools.product(*fields.values()):
        values = dict(zip(fields, combination, strict=True))
        parts = {name if ends[end := name.rpartition(".")[2]] > 1 else end: value for name, value in values.items()}
        folder = ",".join(f"{name}={_as_file_name(value)}" for name, value in parts.items())
        workdirs = [str(pathlib.PurePosixPath(folder, f"seed{seed}")) for seed in range(seeds)]
        runs += [{"workdir": workdir, "values": values, "seed": seed} for seed, workdir in enumerate(workdirs)]
    return runs


def _as_file_name(value: str) -> str:
    """A value as a part of a name, other for each value; of usual ones only blanks look otherwise, as `+`."""
    return urllib.parse.quote_plus(re.sub("%(?=[0-9A-Fa-f]{2})", "%25", value), safe="%(),=")


def check(
    folder: pathlib.Path, configs: Configs, judge: str = "test", metric: str = ""
) -> tuple[Configs, dict[str, str]]:
    """The configs of runs that are not finished; and of those that cannot be trained, why. Compiles nothing.

    Args:
        folder: of the sweep.
        configs: of all runs.
        judge: the images that are to choose between them, "validation" or "test".
        metric: that is to choose; empty: that of their configs.

    Raises:
        UserError: two runs are the same, there are no validation images, or not one metric to choose by.
    """
    import input_pipeline
    import settings
    import train
    from runtime import sharding, stored

    waiting, failed = {}, {}
    known: dict[str, str] = {}
    choosing, judged = set(), set()
    for workdir, config in configs.items():
        if (other := known.setdefault(config.to_json_best_effort(sort_keys=True), workdir)) != workdir:
            raise UserError(f"--grid: {other} and {workdir} are the same run; give each value once")
        try:
            with progress.quietly():
                task = train.find_task(config.task)
                resolved = settings.prepare(config, task, folder / workdir, "refuse")
        except UserError as error:
            failed[workdir] = str(error).removeprefix(f"{settings.WRONG}\n")
            continue
        choosing.add(metric or resolved.best_metric)
        if len(choosing) > 1 or not choosing <= task.metrics.keys():
            must = f"must be one, of {', '.join(task.metrics)}, by which to choose"
            raise UserError(f"--metric={' or '.join(sorted(choosing))}: {must}")
        if judge == "validation" and (kind := (config.task, resolved.num_validation)) not in judged:
            is_own = task.create_data is not input_pipeline.create_data
            splits = settings.create_data(task, resolved, sharding.create_mesh()).eval if is_own else ()
            if not ("validation" in splits if is_own else resolved.num_validation):
                raise UserError(
                    "no examples are set aside for validation, to choose by. Set --config.num_validation=N, or pass "
                    "--judge=test, which chooses on the images that are to judge"
                )
            judged.add(kind)
        if not stored.is_finished(folder / workdir, resolved.duration):
            waiting[workdir] = config
    return waiting, failed


def train_all(folder: pathlib.Path, configs: Configs, *, jobs: int = 1, done: int = 0) -> dict[str, str]:
    """Trains runs or continues them; returns why some failed, or raises `Interrupted` once everything is saved.

    Args:
        folder: of the sweep.
        configs: of the runs, which share compiled programs where these are the same.
        jobs: number of processes; 1 for this one.
        done: number of other runs that are over, for the line that shows how far the sweep is.
    """
    from runtime import workers

    failed, line = {}, progress.Progress(done + len(configs), "run")
    with contextlib.closing(line):
        line.at(done)
        if jobs > 1:
            results = workers.call(_train, [(folder, *item) for item in configs.items()], jobs, _set_up)
        else:
            _set_up()
            results = (_train(folder, *item, lambda x: line.show(done, x, news=False)) for item in configs.items())
        for workdir, problem, told in results:
            done += 1
            if problem:
                failed[workdir] = problem
            line.show(done, f"{workdir}  failed: {problem.splitlines()[-1]}" if problem else told, news=True)
    return failed


def _set_up() -> None:
    """Prepares a process for training."""
    from runtime import caching

    logging.set_verbosity(logging.WARNING)
    caching.check_chosen()
    progress.say(caching.enable_if_possible(command_line.CACHE_DIR))


def _train(
    folder: pathlib.Path, workdir: str, config: ml_collections.ConfigDict, tell: Callable[[str], None] = lambda _: None
) -> tuple[str, str, str]:
    """Trains a run; returns its workdir, why it failed or nothing, and the last that it told."""
    import train

    told = workdir

    def note(text: str) -> None:
        nonlocal told
        told = f"{workdir}  {text}"
        tell(told)

    if interruption.requested():
        raise interruption.Interrupted
    try:
        with progress.quietly(note):
            train.train_and_evaluate(config, folder / workdir)
    except interruption.Interrupted:
        raise
    except (UserError, OSError) as error:
        return workdir, str(error), told
    except Exception:  # such as that of a model that does not fit these values, or the memory
        return workdir, traceback.format_exc(), told
    return workdir, "", told


def _describe(folder: pathlib.Path, found: Mapping[str, Any]) -> None:
    """Writes `sweep.json`; raises a UserError if it would lack runs that the folder's own has."""
    path = folder / "sweep.json"
    try:
        old = json.loads(path.read_text()) if path.exists() else found
        names = [name for name in ("config", "overrides", "fields", "seeds") if old[name] != found[name]]
        grown = all(run in found["runs"] for run in old["runs"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}). Restore it, or use another --workdir.") from error
    if not grown or {"config", "overrides"} & {*names}:
        differing = [f"{name}: {old[name]} before, {found[name]} now" for name in names]
        may = "Values and seeds may be added, and nothing else may change. Use another --workdir."
        raise UserError("\n".join([f"{folder} holds another sweep:", *differing, may]))
    replace_file(path, json.dumps(found, indent=1) + "\n")


def run(arguments: argparse.Namespace, others: Sequence[str]) -> dict[str, str]:
    """Does what the command line asks for; returns why runs failed, by workdir."""
    folder = local_path(arguments.workdir, "--workdir")
    overrides, fields = command_line.overrides(others), read_grid(arguments.grid)
    if twice := sorted(overrides.keys() & {*fields, "seed"}):
        raise UserError(f"--config.{twice[0]}: --{'seeds' if twice[0] == 'seed' else 'grid'} sets it; leave it out")
    import jax  # here, as nobody needs to wait for it who has mistyped something

    import settings
    from runtime import run_folder

    if arguments.jobs > 1:
        jax.config.update("jax_platforms", "cpu")  # of this process, which leaves an accelerator to the others
    config, common = f"--config={arguments.config}", list(overrides.values())
    runs, commands, configs, failed = plan(fields, arguments.seeds), {}, {}, {}
    for one in runs:
        workdir = one["workdir"]
        values = [f"--config.{name}={value}" for name, value in (one["values"] | {"seed": one["seed"]}).items()]
        commands[workdir] = ["python", "main.py", config, f"--workdir={folder / workdir}", *common, *values]
        try:
            configs[workdir] = command_line.read_config([config, *common, *values])
        except UserError as error:
            failed[workdir] = str(error).removeprefix(f"{settings.WRONG}\n")
    judge = arguments.judge if len(runs) > arguments.seeds else "test"  # one combination leaves nothing to choose
    waiting, wrong = check(folder, configs, judge, arguments.metric)
    failed |= wrong
    if len(failed) == len(runs):
        raise UserError("\n".join(dict.fromkeys(failed.values())))
    if (folder / "config.json").exists() or (folder / "metrics.jsonl").exists():
        raise UserError(f"{folder} holds a run. Use another --workdir for a sweep.")
    if arguments.list:
        progress.output("\n".join(shlex.join(commands[workdir]) for workdir in commands if workdir not in failed))
        return failed
    about = {"config": arguments.config, "overrides": sorted(common), "fields": fields, "seeds": arguments.seeds}
    about |= {"judge": judge, "metric": arguments.metric, "runs": runs}
    with run_folder.hold(folder):
        _describe(folder, about)
        for workdir, reason in failed.items():
            progress.say(f"Left out: {workdir}: {reason}")
        if waiting:
            done = len(runs) - len(failed) - len(waiting)
            failed |= train_all(folder, waiting, jobs=arguments.jobs, done=done)
        failed = {workdir: failed[workdir] for workdir in commands if workdir in failed}
        replace_file(folder / "failed.json", json.dumps(failed, indent=1) + "\n")
        progress.output(sweep.write(folder))
    return failed


def main() -> None:
    """Trains and reports what the command line asks for."""
    parser = tools.parser("sweep", __doc__)
    parser.add_argument("--config", required=True, help="file with the config")
    parser.add_argument("--workdir", required=True, help="folder of the sweep")
    grid_help = "values of a field; may be repeated"
    parser.add_argument("--grid", action="append", default=[], metavar="FIELD=VALUE,...", help=grid_help)
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds: 0, 1, ...; default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes; default: %(default)s")
    parser.add_argument("--list", action="store_true", help="train nothing, print the command of each run")
    parser.add_argument("--metric", default="", help="that chooses; default: the one that picks the best checkpoint")
    parser.add_argument("--judge", choices=("validation", "test"), default="validation", help="images that choose")
    arguments, others = parser.parse_known_args()
    if min(arguments.seeds, arguments.jobs) < 1:
        parser.error("--seeds and --jobs must be at least 1")
    try:
        if failed := run(arguments, others):
            interruption.end("\n".join(f"Failed: {workdir}: {reason}" for workdir, reason in failed.items()), 1)
    except (UserError, OSError) as error:
        interruption.end(f"error: {error}", 1)
    except interruption.Interrupted:
        interruption.end(f"Stopped and saved. {interruption.how_to_continue()}", interruption.STATUS)


if __name__ == "__main__":
    interruption.listen()
    main()
