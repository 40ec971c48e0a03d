"""The config of a run: `config.json`, and whether a run may continue with another config."""

import json
import pathlib
import re
from collections.abc import Collection, Mapping
from fractions import Fraction
from typing import Any

import ml_collections

from runtime.durations import PERIODS
from runtime.errors import UserError
from runtime.fields import flatten, with_tuples
from runtime.files import replace_file

# Fields that may differ when a run is continued: they change what is kept or printed, not what is computed. Whether a
# longer `duration` may differ is decided in `check_same_run`. "NAME." stands for all fields of a group.
MAY_CHANGE = (
    "log_every",
    "snapshot_every",
    "steps_per_dispatch",
    "eval_batch_size",
    "keep_checkpoints",
    "best_metric",
    "best_curve",
    "metrics.",
    "profile",
    "averages.",
    "recompute_batches",
    "duration",
    "data.mode",
    "data.workers",
)

# What follows from the task, the data and the device: some of it comes to be known only while a run starts, and older
# runs have not stored all of it.
DERIVED = ("metrics.", "proportions", "chunked", "num_train")


def to_json(config: Mapping[str, Any]) -> str:
    """A resolved config as JSON; fractions of steps become strings such as "1875/2"."""
    return json.dumps(ml_collections.ConfigDict(config).to_dict(), indent=2, default=str) + "\n"


def write(config: ml_collections.FrozenConfigDict, workdir: pathlib.Path) -> None:
    """Writes `config.json`."""
    replace_file(workdir / "config.json", to_json(config))


def read(workdir: pathlib.Path) -> ml_collections.FrozenConfigDict:
    """The resolved config of a run, from its `config.json`.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        config = with_tuples(json.loads((workdir / "config.json").read_text()))
        for group in (config, *config["averages"].values()):
            for name in {*PERIODS, "half_life"} & group.keys():
                group[name] = Fraction(group[name]) if isinstance(group[name], str) and group[name] else group[name]
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


def check_same_run(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    workdir: pathlib.Path,
    *,
    needed: Collection[str] = (),
    usual: Collection[str] = (),
    accept: bool = False,
) -> list[str]:
    """Checks that a run made with one resolved config may be continued with another.

    Args:
        old: the config that the run was started with.
        new: the present config.
        workdir: for the message.
        needed: the averages that the loss uses, which may not differ either.
        usual: fields that have their default now: a run from before there was such a field had what it stands for.
        accept: whether everything may differ.

    Returns:
        What differs, in words, for the log.

    Raises:
        UserError: naming the fields that differ and may not, and always if those differ that a run starts from.
    """
    before, now = (flatten(json.loads(to_json(config))) for config in (old, new))
    for name in ("init_from", "init_weights", "init_skip"):
        if before.get(name) != now.get(name) and (name in before or name not in usual):
            raise UserError(
                f"{workdir} holds a run with {name} = {before.get(name)!r}, not {now.get(name)!r}: where it started "
                "from cannot be changed. Use another --workdir."
            )
    both = before.keys() & now.keys()
    differing = {
        name: f"{name}: {_plain(before.get(name, 'absent'))} before, {_plain(now.get(name, 'absent'))} now"
        # The data and the duration first, for others may follow from them.
        for name in dict.fromkeys(["num_train", "duration", *before, *now])
        if before.get(name) != now.get(name)
        and (name in both or not _is_among(DERIVED, name))
        and (name in before or name not in usual)
    }
    if "num_train" in differing:
        differing["num_train"] = (
            f"the data set has {before['num_train']} training examples before, {now['num_train']} now, "
            "and what is given in epochs or in % follows from their number"
        )
    fixed = tuple(f"averages.{name}." for name in needed)
    refused = [name for name in differing if not _is_among(MAY_CHANGE, name) or name.startswith(fixed)]
    if (refused or now["duration"] < before.get("duration", 0)) and not accept:
        refused = [differing[name] for name in differing if name in {"duration", *refused}]
        if len(refused) > 1 and "duration" in differing:
            refused.append("(Fields given in % follow from the duration; in steps or epochs they do not.)")
        raise UserError(
            f"{workdir} holds a run of another config:\n" + "\n".join(refused) + "\nUse another --workdir, repeat the "
            f"run's own config, --config={workdir}/config.json, or pass --config_change=accept to use this one for it."
        )
    return list(differing.values())


def _is_among(fields: Collection[str], name: str) -> bool:
    """Whether a field is one of these, or in one of the groups "NAME." among them."""
    return name in fields or any(field.endswith(".") and name.startswith(field) for field in fields)


def _plain(value: Any) -> str:
    """A value of `config.json`, with a fraction of steps such as "4505/2" as 2252.5."""
    is_fraction = isinstance(value, str) and re.fullmatch("[0-9]+/[0-9]+", value)
    return f"{float(Fraction(value)):.7g}" if is_fraction else str(value)
