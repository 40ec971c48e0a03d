"""The config of a run as one writes it, from its `config.json`: `--config=RUN/config.json` runs the same again.

`config_flags` reads it like any other config file, so that every field can be overridden.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from configs import default
from runtime import run_config
from runtime.errors import UserError
from runtime.fields import flatten


def get_config(path: str) -> ml_collections.ConfigDict:
    """The config of which `settings.resolve` makes what is in this file.

    Args:
        path: of the `config.json` in a workdir.

    Raises:
        UserError: it is no such file, or damaged.
    """
    file = pathlib.Path(path)
    if file.name != "config.json":
        raise UserError(f"--config={path}: must be a Python file, or the config.json in the workdir of a run")
    resolved = run_config.read(file.parent)
    config = default.get_config()
    known = {name: value for name, value in flatten(config).items() if not name.startswith("averages.")}
    config.update_from_flattened_dict(_written(flatten(resolved), known))
    for group in ("loss", "data", "model", "optimizer"):  # with the fields that only these declare
        known_there = {*config[group], "stable"}  # the last follows from other fields
        own = {name: value for name, value in resolved.get(group, {}).items() if name not in known_there}
        if own:
            config[group].update(_written(own, _declared(resolved)[group]))
    if config.optimizer.schedule != "wsd":  # of the others it is what the warm-up leaves
        config.optimizer.decay = default.get_config().optimizer.decay
    groups = resolved.optimizer.get("groups", {})
    config.optimizer.groups = {name: default.group(**fields) for name, fields in groups.items()}
    config.averages = {name: _average(fields) for name, fields in resolved.averages.items()}
    return config


def _declared(resolved: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    import settings  # here, for most runs need not wait for JAX yet
    import train

    return settings.declared_fields(resolved, train.find_task(resolved["task"]))


def _average(fields: Mapping[str, Any]) -> ml_collections.ConfigDict:
    known = default.average(fields["kind"])
    average = _written(fields, known)
    if average.get("half_life"):  # which sets it
        average["decay"] = known.decay
    return default.average(**average)


def _written(resolved: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the resolved fields that a config has, with the durations as strings."""

    def write(value: Any, written: Any) -> Any:
        if isinstance(written, str) and not isinstance(value, str):
            return f"{value} steps" if value or written else ""  # never
        return value

    return {name: write(resolved[name], written) for name, written in defaults.items() if name in resolved}
