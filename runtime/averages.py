"""Averages from the fields of `config.averages`."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

import averaging
from runtime import fields
from runtime.errors import UserError
from train_state import Average

# The fields of an average that every kind has.
SHARED_FIELDS = ("start", "every", "restart_every", "batch_stats")

# The rules of single fields.
RULES: Mapping[str, fields.Rule] = {
    "averages.*.kind": fields.one_of(("none", *averaging.SCHEDULES)),
    "averages.*.decay": fields.SHARE,  # also where a half-life overrules it
    "averages.*.half_life": fields.or_empty(fields.period),
    "averages.*.period": fields.period,
    "averages.*.duration": fields.period,
    "averages.*.start": fields.duration,
    "averages.*.every": fields.period,
    "averages.*.restart_every": fields.or_empty(fields.period),
    "averages.*.batch_stats": fields.one_of(("average", "copy", "recompute")),
}


def fields_of(kind: str) -> frozenset[str]:
    """The fields of an average that only some kinds have, and this kind does."""
    if kind == "none":
        return frozenset()
    taken = frozenset(inspect.signature(averaging.SCHEDULES[kind]).parameters)
    return taken | {"half_life"} if "decay" in taken else taken


def resolve(average: Mapping[str, Any], steps: Callable[[str, str], Fraction | int]) -> dict[str, Any]:
    """The fields of an average that count, in plain numbers.

    Durations round up to whole updates; `half_life` stays exact and sets `decay`, per update.

    Args:
        average: all fields of `configs.default.average`.
        steps: turns a duration, after the name of its field, into steps.
    """
    names = ("kind", *sorted(fields_of(average["kind"])), *SHARED_FIELDS)
    resolved = {name: average[name] for name in names}
    if resolved.get("half_life"):
        resolved["half_life"] = steps("half_life", resolved["half_life"])
        resolved["decay"] = averaging.half_life_to_decay(float(resolved["half_life"]))
    for name, value in resolved.items():
        if isinstance(value, str) and name not in ("kind", "batch_stats", "half_life"):
            resolved[name] = math.ceil(steps(name, value))
    return resolved


def create(name: str, average: Mapping[str, Any], frozen: str = "") -> Average:
    """The average of this name, from its resolved fields; `frozen` as in `Average`."""
    shared = {key: average[key] for key in SHARED_FIELDS}
    arguments = {key: average[key] for key in fields_of(average["kind"]) - {"half_life"}}
    if "decay" in arguments:  # meant per update, and taken per firing, as is a duration
        arguments["decay"] **= average["every"]
    if "duration" in arguments:
        arguments["duration"] = math.ceil(arguments["duration"] / average["every"])
    return Average(name, average["kind"], tuple(sorted(arguments.items())), **shared, frozen=frozen)


def check_step_sizes(average: Average, num_updates: int) -> None:
    """Evaluates an average's schedule at the first updates and at fewer and fewer of the later ones.

    Raises:
        ValueError: its arguments are out of range, or a step size is.
    """
    schedule = average.schedule
    updates = np.unique(np.geomspace(1, num_updates, 1000).round().astype(np.int64))
    for update, size in zip(updates, np.broadcast_to(schedule(updates), updates.shape), strict=True):
        if not 0 <= size <= 1:
            raise ValueError(f"step_size({update}) = {size:g}: must be in [0, 1]")


def resolve_all(
    configs: Mapping[str, Mapping[str, Any]], steps: Callable[[str, str], Fraction | int], num_steps: int
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The averages that are kept, resolved, by name; and what is wrong with others.

    Args:
        configs: `config.averages`.
        steps: see `resolve`.
        num_steps: the length of training.
    """
    kept, problems = {}, []
    for name, average in configs.items():
        if average["kind"] != "none":
            try:
                kept[name] = resolve(average, steps)
                check_step_sizes(create(name, kept[name]), num_steps)
            except (ValueError, UserError) as error:
                problems.append(f"averages.{name}.{error}")
    return kept, problems


def overruled(configs: Mapping[str, Mapping[str, Any]], usual: float) -> list[str]:
    """A sentence for each average whose decay is set, to another value than the usual one, and its half-life, too."""
    return [
        f"averages.{name}.decay = {average['decay']} is not used: half_life = {average['half_life']!r} sets it"
        for name, average in configs.items()
        if average["half_life"] and average["decay"] != usual
    ]


def unused_fields(configs: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """The fields of averages that their kind makes meaningless, each with the reason."""
    for name, average in configs.items():
        kind = average["kind"]
        if kind == "none":
            continue  # switched off, with whatever it had
        unused = set().union(*map(fields_of, averaging.SCHEDULES)) - fields_of(kind)
        for field in sorted(unused & average.keys()):
            yield f"averages.{name}.{field}", f"kind {kind!r} has no such field"
        if kind == "hard_update":
            yield f"averages.{name}.every", "kind 'hard_update' moves at its own period"
