"""Flags of programs that take a config."""

import itertools
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from runtime import fields
from runtime.errors import UserError
from runtime.files import local_path
from tools import stored_config

# Where compiled programs and decoded data sets are kept for later runs, unless a flag says otherwise.
CACHE_DIR = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "flax-polyak-template")


def parse(argv: list[str]) -> list[str]:
    """Parses flags as absl does, and ends the process with one message on all that is wrong with those of the config.

    Args:
        argv: the command line, of a program that has defined a flag `config` for a config file.

    Returns:
        The program's name and the arguments that are no flags.
    """
    try:
        # absl would show INFO by default, and the libraries that log through it would drown what the run itself prints.
        return _parse([argv[0], "--verbosity=-1", *argv[1:]], flags.FLAGS)
    except UserError as error:
        sys.exit(f"error: {error}")


def read_config(arguments: Sequence[str]) -> ml_collections.ConfigDict:
    """The config that `main.py` would get from these arguments: `--config=FILE`, and overrides.

    Raises:
        UserError: says all that is wrong with them.
    """
    values, argv = flags.FlagValues(), ["", *arguments]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    _parse(argv, values)
    config: ml_collections.ConfigDict = values["config"].value
    return config


def overrides(arguments: Sequence[str]) -> dict[str, str]:
    """The overrides among these arguments, `--config.FIELD=VALUE` by the name of the field.

    Raises:
        UserError: there are other arguments.
    """
    found = [*_overrides(["", *arguments])]
    if unknown := [part for part in arguments if not any(part in flag for flag, _, _ in found)]:
        raise UserError(f"unknown argument {unknown[0]!r}; fields of the config are set by --config.FIELD=VALUE")
    return {name: "=".join(flag) for flag, name, _ in found}


def _parse(argv: Sequence[str], values: flags.FlagValues) -> list[str]:
    """Parses flags into `values`, of which one is `config`; raises a UserError on all that is wrong with the config."""
    argv = [argv[0], *_with_config_path(argv[1:])]
    values["config"].parser = _ConfigParser(values["config"].parser, argv)
    try:
        positional: list[str] = values(argv)
        config = values["config"].value
        getattr(config, "lock", None)  # reading any attribute reports a file that could not be read
        if not isinstance(config, ml_collections.ConfigDict):
            raise UserError("the get_config() of the file that --config names must return an ml_collections.ConfigDict")
        return positional
    except OSError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"the file that --config names cannot be read: {reason}") from error
    except SyntaxError as error:
        raise UserError(f"the file that --config names is no Python: {error}") from error
    except (flags.Error, AttributeError, KeyError) as error:
        if "has no attribute 'get_config'" in str(error):
            raise UserError("the file that --config names has no get_config(), as configs/digits.py has") from error
        if "ml_collections" not in traceback.extract_tb(error.__traceback__)[-1].filename and not isinstance(
            error, flags.Error
        ):
            raise  # a mistake in the config file's own code
        if "must have a value other than None" in str(error):
            given = {re.split("[=.]", arg.lstrip("-"))[0] for arg in argv}
            missing = [name for name in ("config", "workdir", "name") if name in values and name not in given]
            raise UserError(f"--{' and --'.join(missing)} must be given; --help shows how it is used") from error
        problems = _wrong_overrides(argv) or [str(error).strip().splitlines()[-1]]
        raise UserError("\n".join(problems)) from error


def _with_config_path(arguments: Sequence[str]) -> list[str]:
    """The arguments with the whole path of the config file, and of a run's `config.json` what reads it."""
    changed = list(arguments)
    for index, argument in enumerate(arguments):
        flag, equals, path = argument.partition("=")
        if flag in ("-config", "--config") and (equals or index + 1 < len(arguments)):
            path = str(local_path(path if equals else arguments[index + 1], "--config"))
            path = f"{stored_config.__file__}:{path}" if path.endswith(".json") else path
            changed[index : index + 1 + (not equals)] = [f"{flag}={path}"] if equals else [flag, path]
    return changed


class _ConfigParser(flags.ArgumentParser):
    """Reads a config, and gives it the fields that are overridden and that only loss, data or model declare."""

    def __init__(self, parser: flags.ArgumentParser, argv: Sequence[str]) -> None:
        self._parser, self._argv = parser, argv

    def parse(self, argument: str) -> Any:
        config = self._parser.parse(argument)
        if isinstance(config, ml_collections.ConfigDict):
            self._add_declared(config)
        return config

    def flag_type(self) -> str:
        return str(self._parser.flag_type())

    def _add_declared(self, config: ml_collections.ConfigDict) -> None:
        values = {name: value for _, name, value in _overrides(self._argv)}
        known = fields.flatten(config)
        missing = {name for name in values if name.partition(".")[0] in ("loss", "data", "model")} - known.keys()
        if missing:  # otherwise there is no need to wait for JAX
            for group, declared in _declared(config, self._argv).items():
                with config.unlocked():
                    config[group].update({name: x for name, x in declared.items() if f"{group}.{name}" in missing})


def _declared(config: ml_collections.ConfigDict, argv: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The fields that loss, data and model declare."""
    import settings
    import train

    chosen = _chosen(config, argv)
    return settings.declared_fields(chosen, train.find_task(chosen["task"]))


def _chosen(config: ml_collections.ConfigDict, argv: Sequence[str]) -> dict[str, Any]:
    """A config with the task and the model that the command line may name in the place of its own."""
    values, chosen = {name: value for _, name, value in _overrides(argv)}, config.to_dict()
    chosen["task"] = values.get("task", config.task)
    chosen["model"]["name"] = values.get("model.name", config.model.name)
    return chosen


def _overrides(argv: Sequence[str]) -> Iterator[tuple[list[str], str, str]]:
    """The overrides of a command line: each as it was given, its field and its value."""
    for arg, following in itertools.pairwise([*argv[1:], "--"]):
        flag = [arg] if "=" in arg or following.startswith("-") else [arg, following]
        if override := re.match(r"--?(?:no)?config\.([^=]*)=?(.*)", "=".join(flag), re.DOTALL):
            yield flag, override[1], override[2]


def _wrong_overrides(argv: Sequence[str]) -> list[str]:
    """The problems with each override of the config, and with the config that the others make."""
    import settings
    import train

    command = [*argv[:1]]
    for arg, following in itertools.pairwise([*argv[1:], "--"]):
        if re.match(r"--?config(=|$)", arg):
            command += [arg] if "=" in arg else [arg, following]
    overrides = [*_overrides(argv)]

    def config_with(*overrides: list[str]) -> ml_collections.ConfigDict:
        values, some = flags.FlagValues(), [*command, *itertools.chain(*overrides)]
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=some)
        values["config"].parser = _ConfigParser(values["config"].parser, argv)
        values(some)
        config: ml_collections.ConfigDict = values["config"].value
        return config

    try:
        config, right, problems = config_with(), [], []
    except (flags.Error, TypeError, AttributeError):  # then it is no override that is wrong
        return []
    known, chosen = fields.flatten(_declared(config, argv)) | fields.flatten(config), _chosen(config, argv)
    for flag, name, value in overrides:
        group, _, _ = name.rpartition(".")
        if name in known:
            try:
                config_with(flag)
                right.append(flag)
            except flags.Error:
                default = known[name]
                problems.append(f"{name} = {value!r}: must be of type {type(default).__name__}, such as {default!r}")
        elif group.startswith("averages.") and not any(field.startswith(f"{group}.") for field in known):
            hint = f"an average is added in a config file: config.{group} = default.average(...)"
            problems.append(f"{name} is unknown; {hint}")
        else:
            owners = settings.owners(chosen, train.find_task(chosen["task"]))
            problems.append(fields.unknown(name, known, owners))
    if problems:
        try:
            config = config_with(*right)
            settings.check(config, train.find_task(config.task))
        except UserError as error:
            problems += [line for line in str(error).splitlines() if line != settings.WRONG]
        problems.insert(0, settings.WRONG)
    return problems
