"""Checks of single fields of a config: each rule gives the problem with a value in words, or an empty string."""

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from fractions import Fraction
from typing import Any

import ml_collections

from runtime import durations
from runtime.errors import UserError

Rule = Callable[[Any], str]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, (Mapping, ml_collections.ConfigDict))
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def with_tuples(value: Any) -> Any:
    """A nested config with tuples where JSON has left lists."""
    if isinstance(value, dict):
        return {name: with_tuples(item) for name, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def duration(value: str) -> str:
    """Requires a duration such as "10 epochs"."""
    try:
        durations.parse(value)
    except ValueError as error:
        return str(error)
    return ""


def period(value: str) -> str:
    """Requires a duration longer than 0."""
    problem = duration(value)
    return problem or ("a period must be longer than 0" if durations.parse(value).number == 0 else "")


def length(value: str) -> str:
    """Requires the length of training."""
    problem = period(value)
    is_share = not problem and durations.parse(value).unit == "%"
    return problem or ("the length of training cannot be a percentage of itself" if is_share else "")


def regular_expression(value: str) -> str:
    """Requires a regular expression that may become a part of another one."""
    try:
        for alone_and_as_part in (value, f"(?:{value})"):
            re.compile(alone_and_as_part)
    except re.error as error:
        return f"is no regular expression: {error}"
    return "must not refer to its own groups" if re.search(r"\\[1-9]|\(\?P", value) else ""


def or_empty(rule: Rule) -> Rule:
    """Allows an empty string, too."""
    return lambda value: rule(value) if value else ""


def needs(holds: Callable[[Any], bool], right: str) -> Rule:
    """Requires that `holds` is true; `right` completes "must be ..."."""
    return lambda value: "" if holds(value) else f"must be {right}"


def one_of(names: Any, which: str = "") -> Rule:
    """Requires one of these names; `which` says more of them."""

    def problem(value: str) -> str:
        if value in names:
            return ""
        close = difflib.get_close_matches(value, names, n=1)
        nearest = f"; did you mean {close[0]!r}?" if close else ""
        return f"must be one of {', '.join(map(repr, names))}{which}{nearest}"

    return problem


def declared(function: Callable[..., Any], without: Collection[str] = ()) -> dict[str, Any]:
    """The parameters of a function that have a default which a config can hold, with these defaults.

    Args:
        function: or a class.
        without: parameters to leave out.
    """
    parameters = inspect.signature(function).parameters.items()
    kinds = (bool, int, float, str, tuple)
    return {name: p.default for name, p in parameters if isinstance(p.default, kinds) and name not in without}


def declared_durations(function: Callable[..., Any]) -> list[str]:
    """The parameters of a function whose default is a duration: such a field arrives as a number of steps."""
    return [name for name, value in declared(function).items() if isinstance(value, str) and not duration(value)]


def taken_by(function: Callable[..., Any], group: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a group that a function takes: those that its signature names, or all if it has `**kwargs`."""
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in group.items() if takes_all or name in parameters}


POSITIVE_INT = needs(lambda value: value >= 1, "at least 1")
NOT_NEGATIVE = needs(lambda value: 0 <= value < 2**127, "a finite number of at least 0")  # in float32
SHARE = needs(lambda value: 0 <= value < 1, "in [0, 1)")


def unknown(name: str, known: Collection[str], owners: Mapping[str, tuple[str, Collection[str]]]) -> str:
    """That there is no such field, with the nearest one, or else with what the owner of its group has.

    Args:
        name: of the field.
        known: those that there are.
        owners: by group, what takes its fields, in words, and those that it takes.
    """
    group, _, field = name.partition(".")
    owner, taken = owners.get(group, ("", ()))
    if not owner:
        close = difflib.get_close_matches(name, known, n=1)
        return f"{name} is unknown" + (f"; did you mean {close[0]}?" if close else "")
    # Without the group, which alone would make any two fields look alike.
    if close := difflib.get_close_matches(field, taken, n=1):
        return f"{name} is unknown; did you mean {group}.{close[0]}?"
    return f"{name} is unknown; {owner} has {', '.join(taken) or 'no fields'}"


def problems(
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    rules: Mapping[str, Rule],
    owners: Mapping[str, tuple[str, Collection[str]]],
) -> list[str]:
    """The problems with each field by itself, in words.

    Args:
        config: nested.
        defaults: the default of every field that it may have, nested.
        rules: by name, with "averages.*.FIELD" for the fields of all averages, and of groups likewise.
        owners: see `unknown`.
    """
    known, values = flatten(defaults), flatten(config)
    found = [f"{name} is missing; its default is {known[name]!r}" for name in sorted(known.keys() - values.keys())]
    for name, value in values.items():
        if name not in known:
            found.append(unknown(name, known, owners))
        elif type(value) is not type(known[name]):
            expected = type(known[name]).__name__
            found.append(
                f"{name} = {value!r} is of type {type(value).__name__}; must be of type {expected}, "
                f"such as {known[name]!r}"
            )
        else:
            parts = name.split(".")
            named = parts[0] == "averages" or parts[:2] == ["optimizer", "groups"]  # the part before last is a name
            rule = rules.get(".".join([*parts[:-2], "*", parts[-1]]) if named else name)
            if rule and (problem := rule(value)):
                found.append(f"{name} = {value!r}: {problem}")
    return found


def to_steps(
    name: str, text: str, *, batch_size: int, num_examples: int | None, total: Fraction | int | None
) -> Fraction | int:
    """A duration in steps, exactly; 0 for an empty one. See `durations.Duration.to_steps`.

    Raises:
        UserError: it is longer than can be counted, or in epochs where there are none.
    """
    if not text:
        return 0
    try:
        exact = durations.parse(text).to_steps(batch_size=batch_size, num_examples=num_examples, total=total)
    except ValueError as error:
        raise UserError(f"{name} = {text!r}: {error}") from error
    if exact >= 2**31:  # steps and updates are counted in int32
        raise UserError(f"{name} = {text!r}: is {float(exact):g} steps; must be below 2**31 steps")
    return exact.numerator if exact.denominator == 1 else exact
