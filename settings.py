"""From a config to plain numbers: every check of it, and every number derived from it.

Both happen once, after all overrides and before anything is loaded.
"""

import difflib
import functools
import inspect
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import ml_collections

import averaging
import input_pipeline
import models
import optimizers
from configs import default
from runtime import durations
from runtime.errors import UserError
from runtime.run_folder import replace_file
from train_state import Average

# The fields of an average that every kind has.
AVERAGE_FIELDS = ("start", "every", "restart_every", "batch_stats")
PERIODS = ("log_every", "eval_every", "checkpoint_every", "snapshot_every")
# Fields that may differ when a run is continued: they change what is kept or printed, not what is computed. That a
# longer `duration` may differ, too, is decided in `check_same_run`.
MAY_CHANGE = (
    "log_every",
    "snapshot_every",
    "steps_per_dispatch",
    "eval_batch_size",
    "keep_checkpoints",
    "best_",
    "profile",
    "averages.",
    "recompute_batches",
    "duration",
)

WRONG = "the config is wrong; configs/default.py documents every field"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, (Mapping, ml_collections.ConfigDict))
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _duration_problem(value: str) -> str:
    try:
        durations.parse(value)
    except ValueError as error:
        return str(error)
    return ""


def _period_problem(value: str) -> str:
    problem = _duration_problem(value)
    return problem or ("a period must be longer than 0" if durations.parse(value).number == 0 else "")


def _or_empty(problem: Callable[[str], str]) -> Callable[[str], str]:
    return lambda value: problem(value) if value else ""


def _needs(holds: Callable[[Any], bool], right: str) -> Callable[[Any], str]:
    return lambda value: "" if holds(value) else f"must be {right}"


def _one_of(names: Any) -> Callable[[Any], str]:
    def problem(value: str) -> str:
        if value in names:
            return ""
        close = difflib.get_close_matches(value, names, n=1)
        return f"must be one of {', '.join(map(repr, names))}" + (f"; did you mean {close[0]!r}?" if close else "")

    return problem


_POSITIVE_INT = _needs(lambda value: value >= 1, "at least 1")
_NOT_NEGATIVE = _needs(lambda value: 0 <= value < 2**127, "a finite number of at least 0")  # in float32
_SHARE = _needs(lambda value: 0 <= value < 1, "in [0, 1)")

# What is right for the value of a field; a problem is a sentence, none is "".
_RULES: Mapping[str, Callable[[Any], str]] = {
    "dataset": _needs(
        lambda value: (
            value in input_pipeline.SOURCES or bool(re.fullmatch(r"\w+(/[\w.-]*\w)?(:\d+\.\d+\.\d+)?", value, re.ASCII))
        ),
        "a name, as in 'mnist' or 'mnist:3.0.1'",
    ),
    "seed": _needs(lambda value: 0 <= value < 2**32, "in [0, 2**32)"),
    "num_validation": _NOT_NEGATIVE,
    "label_noise": _SHARE,
    "batch_size": _POSITIVE_INT,
    "eval_batch_size": _POSITIVE_INT,
    "accumulate": _POSITIVE_INT,
    "profile": _needs(
        lambda value: [type(v) for v in value] == [int, int] and (value == (0, 0) or 0 <= value[0] < value[1]),
        "two integers, (first, end) with first below end, or (0, 0)",
    ),
    **dict.fromkeys(("augment.crop_padding", "augment.cutout"), _needs(lambda v: 0 <= v <= 1000, "in [0, 1000]")),
    "augment.mixup": _NOT_NEGATIVE,
    "duration": lambda value: (
        _period_problem(value)
        or ("the length of training cannot be a percentage of itself" if durations.parse(value).unit == "%" else "")
    ),
    **dict.fromkeys(PERIODS, _period_problem),
    "snapshot_every": _or_empty(_period_problem),
    "keep_checkpoints": _POSITIVE_INT,
    "best_metric": _or_empty(_one_of(("accuracy", "loss"))),
    "max_rejected_steps": _POSITIVE_INT,
    "steps_per_dispatch": _NOT_NEGATIVE,
    "model.name": _one_of(models.MODELS),
    "model.dtype": _one_of(("float32", "bfloat16")),
    "model.hidden_sizes": _needs(
        lambda value: all(type(v) is int and 0 < v < 2**31 for v in value), "positive integers"
    ),
    "model.width": _POSITIVE_INT,
    "model.depth": _POSITIVE_INT,
    "model.patch": _POSITIVE_INT,
    "model.dropout": _SHARE,
    "loss.label_smoothing": _SHARE,
    "loss.l2_penalty": _NOT_NEGATIVE,
    "optimizer.name": _one_of(optimizers.OPTIMIZERS),
    "optimizer.learning_rate": _NOT_NEGATIVE,
    "optimizer.momentum": _SHARE,
    "optimizer.b1": _SHARE,
    "optimizer.b2": _SHARE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.clip_norm": _NOT_NEGATIVE,
    "optimizer.gradient_noise": _NOT_NEGATIVE,
    "optimizer.schedule": _one_of(optimizers.SCHEDULES),
    "optimizer.warmup": _duration_problem,
    "optimizer.decay": _period_problem,
    "averages.*.kind": _one_of(("none", *averaging.SCHEDULES)),
    "averages.*.decay": _SHARE,
    "averages.*.half_life": _or_empty(_period_problem),
    "averages.*.eta": _NOT_NEGATIVE,
    "averages.*.width": _needs(lambda value: 0 < value <= 12**-0.5, "above 0 and at most 0.2886, the running mean's"),
    "averages.*.gamma": _NOT_NEGATIVE,
    "averages.*.tau": _needs(lambda value: 0 < value <= 1, "in (0, 1]"),
    "averages.*.period": _period_problem,
    "averages.*.start": _duration_problem,
    "averages.*.every": _period_problem,
    "averages.*.restart_every": _or_empty(_period_problem),
    "averages.*.batch_stats": _one_of(("average", "copy", "recompute")),
    "recompute_batches": _POSITIVE_INT,
}


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as a dict, with the defaults of what its averages leave out."""
    filled = ml_collections.ConfigDict(config).to_dict()
    if not isinstance(filled.setdefault("averages", {}), dict):
        raise UserError(f"averages = {filled['averages']!r}: must be a dict of averages by their names")
    for name, average in filled["averages"].items():
        if not isinstance(average, dict):
            raise UserError(
                f"averages.{name} = {average!r}: must be a dict such as default.average('ema', decay=0.999)"
            )
        filled["averages"][name] = default.average("ema").to_dict() | average
    return filled


def _reference(config: Mapping[str, Any]) -> dict[str, Any]:
    """The default of every field that this config may have."""
    averages = {name: default.average("ema").to_dict() for name in config["averages"]}
    return {**default.get_config().to_dict(), "averages": averages}


def average_fields(kind: str) -> frozenset[str]:
    """The fields of an average that only some kinds have, and this kind does."""
    if kind == "none":
        return frozenset()
    fields = frozenset(inspect.signature(averaging.SCHEDULES[kind]).parameters)
    if missing := fields.difference(default.average("ema")):
        raise UserError(
            f"averaging.SCHEDULES[{kind!r}] takes {', '.join(missing)}, which configs/default.py does not have"
        )
    return fields | {"half_life"} if "decay" in fields else fields


def _problems(config: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with each field by itself, by its name."""
    defaults, values = flatten(_reference(config)), flatten(config)
    missing = sorted(defaults.keys() - values.keys())
    problems = {name: f"{name} is missing; its default is {defaults[name]!r}" for name in missing}
    for name, value in values.items():
        if name not in defaults:
            close = difflib.get_close_matches(name, defaults, n=1)
            problems[name] = f"{name} is unknown" + (f"; did you mean {close[0]}?" if close else "")
        elif type(value) is not type(defaults[name]):
            expected = type(defaults[name]).__name__
            found = f"{name} = {value!r} is a {type(value).__name__}"
            problems[name] = f"{found}; must be a {expected} such as {defaults[name]!r}"
        else:
            parts = name.split(".")
            rule = _RULES.get(f"averages.*.{parts[-1]}" if parts[0] == "averages" else name)
            if rule and (problem := rule(value)):
                problems[name] = f"{name} = {value!r}: {problem}"
    return problems


def _repaired(config: Any, reference: Mapping[str, Any], wrong: Mapping[str, str], prefix: str = "") -> dict[str, Any]:
    """The fields of the reference, with the config's values where these are not wrong."""
    return {
        key: _repaired(config.get(key) if isinstance(config, dict) else None, default, wrong, f"{prefix}{key}.")
        if isinstance(default, Mapping)
        else (default if f"{prefix}{key}" in wrong else config[key])
        for key, default in reference.items()
    }


def _joint_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Fields that are right by themselves and wrong in view of others."""
    for name in config["averages"]:
        if name in ("raw", "train") or not re.fullmatch(r"[A-Za-z_]\w{0,99}", name, re.ASCII):  # it names a folder, too
            yield f"averages.{name}: the name must be letters, digits and _, and neither 'raw' nor 'train'"
    kept = [name for name, average in config["averages"].items() if average["kind"] != "none"]
    if config["best_curve"] not in ("", "raw", *kept):
        yield f"best_curve = {config['best_curve']!r}: must be empty or one of {', '.join(['raw', *kept])}"
    defaults, values = flatten(_reference(config)), flatten(config)
    for name, reason in _unused_fields(config):
        if values[name] != defaults[name]:
            yield f"{name} = {values[name]!r}: {reason}; leave it at its default, --config.{name}={defaults[name]}"
    try:
        models.create_model(num_classes=1, **config["model"])
    except ValueError as error:
        yield f"model.{error}"
    optimizer = config["optimizer"]
    if optimizer["schedule"] == "one_cycle" and durations.parse(optimizer["warmup"]).number == 0:
        yield f"optimizer.warmup = {optimizer['warmup']!r}: schedule 'one_cycle' rises during it; usual is \"30%\""


def _unused_fields(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The fields that other fields make meaningless, each with the reason."""
    model, optimizer = config["model"]["name"], config["optimizer"]["name"]
    for field in sorted(set(config["model"]) - models.model_fields(model) - {"name"}):
        yield f"model.{field}", f"model {model!r} has no such field"
    for field in sorted(set().union(*map(optimizers.optimizer_fields, optimizers.OPTIMIZERS))):
        if field not in optimizers.optimizer_fields(optimizer):
            yield f"optimizer.{field}", f"optimizer {optimizer!r} has no such field"
    if optimizer == "sgd" and config["optimizer"]["momentum"] == 0:
        yield "optimizer.nesterov", "there is no momentum"
    if config["optimizer"]["schedule"] != "wsd":
        yield "optimizer.decay", f"schedule {config['optimizer']['schedule']!r} has no such field"
    if not config["init_from"]:
        yield "init_weights", "init_from is empty"
    for name, average in config["averages"].items():
        kind = average["kind"]
        unused = set().union(*map(average_fields, averaging.SCHEDULES)) - average_fields(kind)
        if kind == "none":
            continue  # switched off, with whatever it had
        for field in sorted(unused):
            yield f"averages.{name}.{field}", f"kind {kind!r} has no such field"
        if kind == "hard_update":
            yield f"averages.{name}.every", "kind 'hard_update' moves at its own period"
    kept = (average for average in config["averages"].values() if average["kind"] != "none")
    if all(average["batch_stats"] != "recompute" for average in kept):
        yield "recompute_batches", "no average has batch_stats = 'recompute'"


def check(config: Mapping[str, Any]) -> list[str]:
    """Checks everything that can be checked without knowing the data set.

    Returns:
        What is set and has no effect, in words, for the log.

    Raises:
        UserError: naming every wrong field, what it holds and what would be right.
    """
    config = _with_defaults(config)
    found = _problems(config)
    # Of a field that is wrong by itself, nothing is said in view of others.
    problems = [*found.values(), *_joint_problems(_repaired(config, _reference(config), found))]
    if problems:
        raise UserError("\n".join([WRONG, *problems]))
    unused = default.average("ema").decay
    return [
        f"averages.{name}.decay = {average['decay']} is not used: half_life = {average['half_life']!r} sets it"
        for name, average in config["averages"].items()
        if average["half_life"] and average["decay"] != unused
    ]


def resolve(config: Mapping[str, Any], *, num_train: int, num_devices: int) -> ml_collections.FrozenConfigDict:
    """The config in plain numbers, which is what training runs on and what `config.json` holds.

    Durations become numbers of steps: `duration` and those of `optimizer` are rounded up, periods stay exact (int or
    Fraction), 0 for never. Averages are what `resolve_average` returns, `best_curve` has a name. The learning rate has
    three phases: `optimizer.warmup`, `.stable` and `.decay`, of which only the warm-up counts where it is constant.
    `chunked` says whether steps are dispatched in chunks; none if that is for `dispatch.suits_chunks` to say.

    Args:
        config: one that passed `check`.
        num_train: training images of the data set, validation images included.
        num_devices: over which each batch is split.

    Raises:
        UserError: naming the fields that do not fit the data set or the devices.
    """
    resolved = _with_defaults(config)
    num_examples = num_train - resolved["num_validation"]
    batch_size = resolved["batch_size"]
    if num_examples < 1:
        raise UserError(
            f"num_validation = {resolved['num_validation']}: must be below the {num_train} training images "
            f"of {resolved['dataset']}"
        )
    if batch_size > num_examples:
        raise UserError(
            f"batch_size = {batch_size}: must be at most {num_examples}, the number of training images "
            f"of {resolved['dataset']}"
        )
    num_parts = num_devices * resolved["accumulate"]
    if batch_size % num_parts:
        nearest = min(max(1, round(batch_size / num_parts)), num_examples // num_parts) * num_parts
        what = "the number of devices" + (" times accumulate" if resolved["accumulate"] > 1 else "")
        hint = f"the nearest is {nearest}" if nearest else f"{resolved['dataset']} has only {num_examples} images"
        raise UserError(f"batch_size = {batch_size}: must be a multiple of {num_parts}, {what}; {hint}")

    total = to_steps("duration", resolved["duration"], batch_size=batch_size, num_examples=num_examples, total=None)
    steps = functools.partial(to_steps, batch_size=batch_size, num_examples=num_examples, total=total)
    resolved["duration"] = math.ceil(total)
    for name in PERIODS:
        resolved[name] = steps(name, resolved[name])

    problems = []
    optimizer = resolved["optimizer"]
    optimizer |= {name: math.ceil(steps(f"optimizer.{name}", optimizer[name])) for name in ("warmup", "decay")}
    rest = resolved["duration"] - optimizer["warmup"]
    match optimizer["schedule"]:
        case "constant":
            optimizer |= {"stable": 0, "decay": 0}  # not the present end of training, so that it can be put off
        case "wsd":
            optimizer |= {"stable": rest - optimizer["decay"]}
        case _:
            optimizer |= {"stable": 0, "decay": rest}
    if min(rest, optimizer["stable"]) < 0 or (optimizer["schedule"] != "constant" and optimizer["decay"] == 0):
        names = ("warmup", "decay") if optimizer["schedule"] == "wsd" else ("warmup",)
        phases = " and ".join(f"optimizer.{name} = {config['optimizer'][name]!r}" for name in names)
        problems.append(f"{phases}: too long for the training of {resolved['duration']} steps")
    if resolved["profile"][0] >= resolved["duration"]:
        problems.append(f"profile = {resolved['profile']}: training ends at step {resolved['duration']}")

    averages = {}
    for name, average in resolved["averages"].items():
        if average["kind"] != "none":
            try:
                averages[name] = resolve_average(average, steps)
                create_average(name, averages[name]).schedule  # noqa: B018  # which checks its numbers
            except (ValueError, UserError) as error:
                problems.append(f"averages.{name}.{error}")
    if problems:
        raise UserError("\n".join(problems))
    resolved["averages"] = averages
    first = "ema" if "ema" in averages else next(iter(averages), "raw")
    resolved["best_curve"] = resolved["best_curve"] or first
    resolved["chunked"] = resolved["steps_per_dispatch"] > 1 if resolved["steps_per_dispatch"] else None
    return ml_collections.FrozenConfigDict(resolved)


def with_chunked(config: ml_collections.FrozenConfigDict, chunked: bool) -> ml_collections.FrozenConfigDict:
    """A resolved config that says whether steps are dispatched in chunks."""
    return ml_collections.FrozenConfigDict({**config.to_dict(), "chunked": chunked})


def to_steps(
    name: str, text: str, *, batch_size: int, num_examples: int, total: Fraction | int | None
) -> Fraction | int:
    """A duration in steps, exactly; 0 for an empty one. See `durations.Duration.to_steps`.

    Raises:
        UserError: it is longer than can be counted.
    """
    if not text:
        return 0
    exact = durations.parse(text).to_steps(batch_size=batch_size, num_examples=num_examples, total=total)
    if exact >= 2**31:  # steps and updates are counted in int32
        raise UserError(f"{name} = {text!r}: is {float(exact):g} steps; must be below 2**31 steps")
    return exact.numerator if exact.denominator == 1 else exact


def resolve_average(average: Mapping[str, Any], steps: Callable[[str, str], Fraction | int]) -> dict[str, Any]:
    """The fields of an average that count, in plain numbers.

    Durations round up to whole updates; `half_life` stays exact and sets `decay`, per update.

    Args:
        average: all fields of `configs.default.average`.
        steps: turns a duration, after the name of its field, into steps.
    """
    names = ("kind", *sorted(average_fields(average["kind"])), *AVERAGE_FIELDS)
    resolved = {name: average[name] for name in names}
    if resolved.get("half_life"):
        resolved["half_life"] = steps("half_life", resolved["half_life"])
        resolved["decay"] = averaging.half_life_to_decay(float(resolved["half_life"]))
    for name, value in resolved.items():
        if isinstance(value, str) and name not in ("kind", "batch_stats", "half_life"):
            resolved[name] = math.ceil(steps(name, value))
    return resolved


def describe(config: ml_collections.FrozenConfigDict) -> str:
    """The resolved numbers that a reader of the config cannot see, in one line."""
    parts = [f"{config.duration} steps"]
    parts += [f"{name.replace('_', ' ')} {float(config[name]):g} steps" for name in PERIODS if config[name]]
    phases = [f"{config.optimizer[name]} {name}" for name in ("warmup", "stable", "decay") if config.optimizer[name]]
    if phases:
        parts.append(f"learning rate {' + '.join(phases)} steps")
    parts.append("dispatched in chunks" if config.chunked else "dispatched one by one")
    return ", ".join(parts)


def next_due_step(config: ml_collections.FrozenConfigDict, step: int) -> int:
    """The first step after `step` at which something is due; of a resolved config."""
    profile = [end for end in config.profile if end > step]
    periods = [config[name] for name in PERIODS if config[name]]
    return min(config.duration, *profile, *(durations.next_due(step, period) for period in periods))


def is_due(config: ml_collections.FrozenConfigDict, name: str, step: int) -> bool:
    """Whether what has the period `config[name]` is due at `step`; at the end of training everything is."""
    return bool(config[name]) and (step == config.duration or durations.is_due(step, config[name]))


def create_average(name: str, average: Mapping[str, Any]) -> Average:
    """The average of this name, from its resolved fields."""
    shared = {key: average[key] for key in AVERAGE_FIELDS}
    arguments = {key: average[key] for key in average_fields(average["kind"]) - {"half_life"}}
    if "decay" in arguments:  # meant per update, and taken per firing
        arguments["decay"] **= average["every"]
    return Average(name, average["kind"], tuple(sorted(arguments.items())), **shared)


def to_json(config: ml_collections.FrozenConfigDict) -> str:
    """A resolved config as JSON; fractions of steps become strings such as "1875/2"."""
    return json.dumps(config.to_dict(), indent=2, default=str) + "\n"


def read(workdir: pathlib.Path) -> ml_collections.FrozenConfigDict:
    """The resolved config of a run, from its `config.json`.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        config = json.loads((workdir / "config.json").read_text())
        for group in (config, *config["averages"].values()):
            for name in {*PERIODS, "half_life"} & group.keys():
                group[name] = Fraction(group[name]) if isinstance(group[name], str) and group[name] else group[name]
        config = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
        config["model"]["hidden_sizes"] = tuple(config["model"]["hidden_sizes"])
        # What is looked up by its name leads nowhere else, whoever wrote the file.
        for name, value in (("dataset", config["dataset"]), ("model.name", config["model"]["name"])):
            if problem := _RULES[name](value):
                raise ValueError(f"{name} = {value!r}: {problem}")
        if type(config["duration"]) is not int:
            raise TypeError(f"duration = {config['duration']!r}")
        return ml_collections.FrozenConfigDict(config)
    except OSError as error:
        raise UserError(
            f"{workdir} holds no run: {error.strerror}: config.json. main.py --workdir=... makes one"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise UserError(
            f"{workdir / 'config.json'} is damaged ({error}). Restore the file, or use another --workdir."
        ) from error


def write(config: ml_collections.FrozenConfigDict, workdir: pathlib.Path) -> None:
    """Writes `config.json`."""
    replace_file(workdir / "config.json", to_json(config))


def check_same_run(old: str, new: str, workdir: str, *, accept: bool = False) -> list[str]:
    """Checks that a run made with one resolved config may be continued with another.

    Args:
        old: `to_json` of the config that the run was started with.
        new: the same of the present config.
        workdir: for the message.
        accept: whether everything may differ.

    Returns:
        What differs, in words, for the log.

    Raises:
        UserError: naming the fields that differ and may not, and always if those differ that a run starts from.
    """
    before, now = flatten(json.loads(old)), flatten(json.loads(new))
    for name in ("init_from", "init_weights"):
        if before.get(name) != now.get(name):
            raise UserError(
                f"{workdir} holds a run with {name} = {before.get(name)!r}, not {now.get(name)!r}: where it started "
                "from cannot be changed. Use another --workdir."
            )
    differing = {
        name: f"{name}: {before.get(name, 'absent')} before, {now.get(name, 'absent')} now"
        for name in [*before, *(name for name in now if name not in before)]
        if before.get(name) != now.get(name)
    }
    refused = [text for name, text in differing.items() if not name.startswith(MAY_CHANGE)]
    was = before.get("duration", 0)
    if now["duration"] < was:
        refused.append(differing["duration"])
    if refused and not accept:
        if now["duration"] > was:
            refused.append("(Fields given in % change with the duration; in steps or epochs they do not.)")
        raise UserError(
            f"{workdir} holds a run of another config:\n" + "\n".join(refused) + "\nUse another --workdir, repeat the "
            "run's own config, or pass --config_change=accept to continue the run with this one."
        )
    return list(differing.values())
