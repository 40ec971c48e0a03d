"""From a config to plain numbers: every check of it, and every number derived from it.

Both happen once, after all overrides and before anything is loaded.
"""

import functools
import importlib
import inspect
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections

import input_pipeline
import models
import optimizers
from configs import default
from runtime import (
    averages,
    checkpointing,
    dispatch,
    durations,
    fields,
    files,
    freezing,
    run_config,
    run_folder,
    sharding,
    sources,
    stream,
    task_checks,
)
from runtime.errors import UserError
from runtime.progress import say
from runtime.rules import RULES, unused_fields
from train_state import Average, CustomTrainState

GROUPS = ("optimizer", "model", "loss", "data")  # of the config, whose fields others declare
WRONG = "the config is wrong; configs/default.py documents every field but those of a task or model of your own"


def _with_defaults(config: Mapping[str, Any], task: Any) -> dict[str, Any]:
    """The config as a dict, with the defaults of what its loss, its model and its averages leave out."""
    filled = {group: {} for group in GROUPS} | fields.with_tuples(ml_collections.ConfigDict(config).to_dict())
    for group, declared in declared_fields(filled, task).items():
        filled[group] = declared | filled[group]
    if not isinstance(filled.setdefault("averages", {}), dict):
        raise UserError(f"averages = {filled['averages']!r}: must be a dict of averages by their names")
    for name, average in filled["averages"].items():
        if not isinstance(average, dict):
            raise UserError(
                f"averages.{name} = {average!r}: must be a dict such as default.average('ema', decay=0.999)"
            )
        filled["averages"][name] = default.average("ema").to_dict() | average
    groups = filled["optimizer"].setdefault("groups", {})
    filled["optimizer"]["groups"] = {name: default.group("").to_dict() | group for name, group in groups.items()}
    return filled


def _defaults(config: Mapping[str, Any], task: Any) -> dict[str, Any]:
    """The default of every field that this config may have."""
    known = default.get_config().to_dict()
    known |= {group: declared | known[group] for group, declared in declared_fields(config, task).items()}
    known["averages"] = {name: default.average("ema").to_dict() for name in config["averages"]}
    known["optimizer"]["groups"] = {name: default.group("").to_dict() for name in config["optimizer"]["groups"]}
    return known


def declared_fields(config: Mapping[str, Any], task: Any) -> dict[str, dict[str, Any]]:
    """The fields of `config.loss`, `.data`, `.model` and `.optimizer` that what takes them declares, with defaults."""
    model = _model_of(config, task)
    optimizer = optimizers.OPTIMIZERS.get(config["optimizer"].get("name"))
    return {
        "loss": fields.declared(task.loss_fn),
        "data": fields.declared(task.create_data),
        "model": fields.declared(model, without=("parent", "name", "num_classes", "dtype")) if model else {},
        "optimizer": fields.declared(optimizer) if optimizer else {},
    }


def _declared_durations(task: Any) -> list[tuple[str, str]]:
    """The fields of `config.loss` and `config.data` whose default is a duration: they arrive in steps."""
    functions = {"loss": task.loss_fn, "data": task.create_data}
    return [(group, name) for group, takes in functions.items() for name in fields.declared_durations(takes)]


def count_train(task: Any, config: Mapping[str, Any]) -> int | None:
    """The number of training examples of a task, None if there are no epochs; raises a UserError without data."""
    return task_checks.count_train(task, config, has_own_data=task.create_data is not input_pipeline.create_data)


def has_own_model(task: Any) -> bool:
    """Whether a task makes its model otherwise than from `models.MODELS`."""
    return task.create_model is not models.create_classifier


def _model_of(config: Mapping[str, Any], task: Any) -> Callable[..., Any] | None:
    """What takes the fields of `config.model`: a class of `models.MODELS`, or what the task makes its model with."""
    return task.create_model if has_own_model(task) else models.MODELS.get(config["model"].get("name"))


def owners(config: Mapping[str, Any], task: Any) -> dict[str, tuple[str, list[str]]]:
    """By group of the config, what takes its fields, in words, and those that it takes; no model if there is none."""
    known, model = _defaults(config, task), f"model {config['model'].get('name')!r}"
    takers = {
        "model": (f"the model of task {config['task']!r}" if has_own_model(task) else model, _model_of(config, task)),
        "loss": (f"the loss of task {config['task']!r}", task.loss_fn),
    }
    return {
        group: (owner, [*fields.taken_by(taker, known[group])]) for group, (owner, taker) in takers.items() if taker
    }


def _rules(task: Any) -> dict[str, fields.Rule]:
    """The rule of each field: `RULES`, the models there are, and that what is declared as a duration is one."""
    rules = {f"{group}.{name}": fields.duration for group, name in _declared_durations(task)}
    return {**RULES, **rules} | ({} if has_own_model(task) else {"model.name": fields.one_of(models.MODELS)})


def _joint_problems(config: Mapping[str, Any], task: Any) -> Iterator[str]:
    """Fields that are right by themselves and wrong in view of others."""
    for name in config["averages"]:
        if name in ("raw", "train") or not re.fullmatch(r"[A-Za-z_]\w{0,99}", name, re.ASCII):  # it names a folder, too
            yield f"averages.{name}: the name must be letters, digits and _, and neither 'raw' nor 'train'"
    kept = [name for name, average in config["averages"].items() if average["kind"] != "none"]
    if config["best_curve"] not in ("", "raw", *kept):
        yield f"best_curve = {config['best_curve']!r}: must be empty or one of {', '.join(['raw', *kept])}"
    if config["best_metric"] not in ("", *task.metrics):
        known = ", ".join(map(repr, task.metrics))
        yield (
            f"best_metric = {config['best_metric']!r}: must be empty or one of {known}, the metrics of its train.Task; "
            "a score_fn may return it, but Task.metrics has no direction for it"
        )
    for kind in {average["kind"] for average in config["averages"].values()}:
        if missing := averages.fields_of(kind).difference(default.average("ema")):
            yield f"averaging.SCHEDULES[{kind!r}] takes {', '.join(missing)}, which configs/default.py does not have"
    for name in sorted(set(task_checks.needed(task, config["loss"])).difference(kept)):
        found = "kind = 'none'" if name in config["averages"] else "it is missing"
        yield f"averages.{name}: {found}, and the loss of task {config['task']!r} needs it, as config.loss is"
    defaults, values = fields.flatten(_defaults(config, task)), fields.flatten(config)
    for name, reason in _unused_fields(config, task):
        if name in values and values[name] != defaults[name]:
            yield f"{name} = {values[name]!r}: {reason}; leave it at its default, --config.{name}={defaults[name]}"
    if not has_own_model(task):
        try:
            models.create_model(num_classes=1, **config["model"])
        except UserError as error:
            yield str(error)
    if task.evaluate is None and config["evaluate_sets_every"]:
        yield f"evaluate_sets_every = {config['evaluate_sets_every']!r}: task {config['task']!r} evaluates no sets"
    schedule, warmup = config["optimizer"]["schedule"], config["optimizer"]["warmup"]
    if schedule == "one_cycle" and durations.parse(warmup).number == 0:
        yield f"optimizer.warmup = {warmup!r}: schedule 'one_cycle' rises during it; usual is \"30%\""


def _unused_fields(config: Mapping[str, Any], task: Any) -> Iterator[tuple[str, str]]:
    """The fields that other fields make meaningless, each with the reason."""
    for group, (owner, taken) in owners(config, task).items():
        for field in sorted(set(config[group]).difference(taken, ["name"])):
            yield f"{group}.{field}", f"{owner} has no such field"
    yield from unused_fields(config)


def prepare(
    config: Mapping[str, Any], task: Any, workdir: pathlib.Path, config_change: str
) -> ml_collections.FrozenConfigDict:
    """Checks the config, by itself, against the data set and against the run that the workdir holds.

    Args:
        config: see configs/default.py.
        task: the `train.Task` that it names.
        workdir: folder of the run; need not exist.
        config_change: "accept" lets all fields differ from the run's own config.

    Returns:
        The resolved config, see `resolve`.

    Raises:
        UserError: what is wrong, before any image is read and anything is compiled or written below `workdir`; of a
            data set that is not prepared yet, what depends on its size after its download.
    """
    for note in check(config, task):
        say(f"Note: {note}")
    num_devices = len(sharding.find_devices(deterministic=config.get("deterministic", False)))
    files.local_path(config["init_from"], "init_from")
    run_folder.check(workdir)
    checkpointing.check_run(workdir)
    old = run_config.read(workdir) if (workdir / "config.json").exists() else None
    resolved = resolve(config, task, num_train=count_train(task, config), num_devices=num_devices)
    if old:
        if resolved.chunked is None:
            resolved = completed(resolved, chunked=old.get("chunked"))
        values, defaults = (fields.flatten(made(config, task)) for made in (_with_defaults, _defaults))
        usual = [name for name in values if values[name] == defaults[name] and not name.startswith("averages.")]
        accept, needed = config_change == "accept", task_checks.needed(task, resolved["loss"])
        for change in run_config.check_same_run(old, resolved, workdir, needed=needed, usual=usual, accept=accept):
            say(f"Differs from the run's config: {change}")
    return resolved


def check(config: Mapping[str, Any], task: Any) -> list[str]:
    """Checks everything that can be checked without knowing the data set.

    Returns:
        What is set and has no effect, in words.

    Raises:
        UserError: names every wrong field, its value and what would be right. Fields that are wrong in view of others
            are reported once each is right by itself.
    """
    config = _with_defaults(config, task)
    problems = fields.problems(config, _defaults(config, task), _rules(task), owners(config, task))
    if problems := problems or [*_joint_problems(config, task)]:
        raise UserError("\n".join([WRONG, *problems]))
    return averages.overruled(config["averages"], default.average("ema").decay)


def resolve(
    config: Mapping[str, Any], task: Any, *, num_train: int | None, num_devices: int
) -> ml_collections.FrozenConfigDict:
    """The config in plain numbers, which is what training runs on and what `config.json` holds.

    Durations become numbers of steps: `duration` and those of `optimizer` and `loss` are rounded up, periods stay exact
    (int or Fraction), 0 for never. Averages are what `averages.resolve` returns, `best_curve` and `best_metric` have
    names, `metrics` are the task's, and `num_train` counts the data. The learning rate has its phases, see
    `optimizers.phases`. `chunked` says whether steps are dispatched in chunks; None if `dispatch.suits_chunks` is to
    say.

    Args:
        config: one that passed `check`.
        task: the `train.Task` that it names.
        num_train: training examples of the data set, those for validation included; None if there is no such number.
        num_devices: over which each batch is split.

    Raises:
        UserError: naming the fields that do not fit the data set or the devices.
    """
    resolved = _with_defaults(config, task)
    num_examples, batch_size = sources.count_examples(resolved, num_train), resolved["batch_size"]
    sharding.check_batch_size(batch_size, resolved["accumulate"], num_devices, num_examples)

    total = fields.to_steps(
        "duration", resolved["duration"], batch_size=batch_size, num_examples=num_examples, total=None
    )
    steps = functools.partial(fields.to_steps, batch_size=batch_size, num_examples=num_examples, total=total)
    resolved["duration"] = math.ceil(total)
    for name in durations.PERIODS:
        resolved[name] = steps(name, resolved[name])
    if task.evaluate:
        resolved["evaluate_sets_every"] = resolved["evaluate_sets_every"] or resolved["eval_every"]
    if not task.score_fn:  # then nothing else is evaluated
        resolved["eval_every"] = resolved["evaluate_sets_every"]
    for group, name in _declared_durations(task):
        resolved[group][name] = math.ceil(steps(f"{group}.{name}", resolved[group][name]))

    problems = []
    try:
        resolved["optimizer"] |= optimizers.phases(resolved["optimizer"], resolved["duration"], steps)
    except ValueError as error:
        problems.append(str(error))
    if resolved["profile"][0] >= resolved["duration"]:
        problems.append(f"profile = {resolved['profile']}: training ends at step {resolved['duration']}")

    kept, wrong = averages.resolve_all(resolved["averages"], steps, resolved["duration"])
    if problems := problems + wrong:
        raise UserError("\n".join(problems))
    resolved["averages"] = kept
    resolved["best_curve"] = resolved["best_curve"] or ("ema" if "ema" in kept else next(iter(kept), "raw"))
    resolved["best_metric"] = resolved["best_metric"] or next(iter(task.metrics))
    resolved["metrics"], resolved["num_train"] = dict(task.metrics), num_train
    resolved["chunked"] = resolved["steps_per_dispatch"] > 1 if resolved["steps_per_dispatch"] else None
    return ml_collections.FrozenConfigDict(resolved)


def completed(config: ml_collections.FrozenConfigDict, **found: Any) -> ml_collections.FrozenConfigDict:
    """A resolved config with what is known only once model and data are: `chunked` and `proportions`."""
    return ml_collections.FrozenConfigDict({**config.to_dict(), **found})


def next_due_step(config: ml_collections.FrozenConfigDict, step: int) -> int:
    """The first step after `step` at which something is due; of a resolved config."""
    profile = [end for end in config.profile if end > step]
    periods = [config[name] for name in durations.PERIODS if config[name]]
    return min(config.duration, *profile, *(durations.next_due(step, period) for period in periods))


def is_due(config: ml_collections.FrozenConfigDict, name: str, step: int) -> bool:
    """Whether what has the period `config[name]` is due at `step`; at the end of training everything is."""
    return bool(config[name]) and (step == config.duration or durations.is_due(step, config[name]))


def create_averages(config: Mapping[str, Any]) -> tuple[Average, ...]:
    """The averages of a resolved config."""
    frozen = freezing.paths(config["optimizer"]["groups"])
    return tuple(averages.create(name, average, frozen) for name, average in config["averages"].items())


def create_data(task: Any, config: Mapping[str, Any], mesh: Any) -> Any:
    """The task's data on the devices, with the fields of `config.data`; see `input_pipeline.Data`."""
    data = task.create_data(config, mesh, **fields.taken_by(task.create_data, config.get("data", {})))
    task_checks.check_data(data)
    put = functools.partial(sharding.put, shardings=sharding.replicated(mesh))
    train = data.train if isinstance(data.train, stream.Stream) else put(data.train)
    return data._replace(train=train, memory=put(data.memory))


def create_model(task: Any, config: Mapping[str, Any], example: tuple[Any, Any]) -> Any:
    """The task's model, with the fields of `config.model` that it takes."""
    model = task.create_model(example, **fields.taken_by(task.create_model, config["model"]))
    task_checks.check_model(model)
    return model


def check_state(state: CustomTrainState, groups: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks that averages and groups of parameters find in the state what they ask for, or raises a UserError."""
    for average in state.averages:
        field = f"averages.{average.name}.batch_stats"
        if average.batch_stats != "average" and not state.batch_stats:
            what = f"{field} = {average.batch_stats!r}: the model has no batch statistics"
            raise UserError(f'{what}; leave it at its default, --config.{field}="average"')
    found, names = jax.tree.leaves(optimizers.group_of(state.params, groups)), ", ".join(state.params)
    for name in sorted(set(groups).difference(found)):
        what = f"optimizer.groups.{name}.match = {groups[name]['match']!r}"
        raise UserError(f"{what}: matches no parameter that no group before it has; paths begin with {names}")


def with_fields(loss_fn: Callable[..., Any], config: Mapping[str, Any]) -> Callable[..., Any]:
    """A loss with its fields of `config.loss`, and with the length of training if its signature names `num_steps`."""
    length = {"num_steps": config["duration"]} if "num_steps" in inspect.signature(loss_fn).parameters else {}
    bound = functools.partial(loss_fn, **fields.taken_by(loss_fn, config["loss"]), **length)
    return functools.partial(dispatch.checked, freezing.freeze(bound, config["optimizer"]["groups"]))


def find_task(name: str, known: Mapping[str, Any], kind: type) -> Any:
    """The task that `config.task` names: one of `known`, or the `TASK` of a module such as `examples.dqn.train`.

    Args:
        name: `config.task`.
        known: the tasks that train.py itself has.
        kind: what a `TASK` must be.

    Raises:
        UserError: there is no such task.
    """
    if name in known:
        return known[name]
    forks = sorted(pathlib.Path(__file__).parent.glob("examples/*/train.py"))
    modules = [f"examples.{path.parent.name}.train" for path in forks if "TASK" in path.read_text()]
    if name not in modules:
        problem = fields.one_of([*known, *modules], ", or a new one in train.TASKS or examples/")(name)
        raise UserError(f"task = {name!r}: {problem}")
    task = getattr(importlib.import_module(name), "TASK", None)
    if not isinstance(task, kind):
        found = "has no TASK" if task is None else f"has a TASK that is a {type(task).__name__}"
        raise UserError(f"task = {name!r}: {name.replace('.', '/')}.py {found}; expected TASK = train.Task(...)")
    return task
