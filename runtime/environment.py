"""The surroundings of a run: versions, devices, command and commit."""

import contextlib
import hashlib
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from runtime import hosts, run_config
from runtime.errors import UserError
from runtime.fields import flatten
from runtime.files import replace_file
from runtime.progress import say
from runtime.sources import Images
from runtime.stream import Stream

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "clu",
    "ml_collections",
    "tensorflow-datasets",
    "numpy",
)


def describe() -> dict[str, Any]:
    """Everything about this process that its results may depend on, as plain values."""
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "packages": _versions(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "processes": hosts.count(),
        "backend": jax.default_backend(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "devices": [device.device_kind for device in devices],
        "command": sys.orig_argv[1:],  # without the path of Python
        "commit": _commit(),
    }


def check_processes(config: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Checks that all processes of a run have the same config, code, packages and data.

    Args:
        config: resolved.
        data: by split, trees of arrays, of which each device has all, or a `Stream`.

    Raises:
        UserError: they do not; names the first thing that differs.
    """
    if hosts.count() == 1:
        return
    root = pathlib.Path(__file__).parent.parent
    files = [pathlib.Path(str(getattr(module, "__file__", ""))) for module in [*sys.modules.values()]]
    code = {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_relative_to(root)
    }
    hosts.check_same(
        {f"config.{name}": value for name, value in flatten(json.loads(run_config.to_json(config))).items()}
        | {"Python": platform.python_version()}
        | _versions()
        | code
        | {f"the {split} data": _digest(of_split) for split, of_split in data.items()}
    )


def _digest(data: Any) -> str:
    """A hash of data; of a `Stream`, of what tells sets apart without reading all of it."""
    digest = hashlib.sha256()
    if isinstance(data, Stream):
        digest.update(data.images.label.tobytes() + getattr(data.images.image, "names", b""))
        data = data.rows(0, np.arange(data.batch_size))
    for leaf in jax.tree.leaves(data):
        if not hasattr(leaf, "dtype") or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        digest.update(np.asarray(leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf).tobytes())
    return digest.hexdigest()


def check_data(workdir: pathlib.Path, data: Any, *, accept: bool) -> None:
    """Checks that a run continues on the training data that it began with, by labels and names of files.

    Args:
        workdir: of the run, whose `environment.json` has what it began with.
        data: of training, with `images`; others are not compared.
        accept: whether they may differ.

    Raises:
        UserError: they differ.
    """
    images = getattr(data, "images", None)
    if not isinstance(images, Images):
        return
    found = hashlib.sha256(images.label.tobytes() + getattr(images.image, "names", b"")).hexdigest()
    path = workdir / "environment.json"
    before = _read(path)
    if before.get("labels", found) != found and not accept:
        raise UserError(
            f"{workdir} holds a run on other training data: labels, names of files or their order were others. Use "
            "another --workdir, restore the data, or pass --config_change=accept to continue on these"
        )
    replace_file(path, json.dumps(before | {"labels": found}, indent=2) + "\n")


def write(workdir: pathlib.Path, *, deterministic: bool, **more: Any) -> None:
    """Writes `environment.json`, with `more`, and says where results are not those of another run to the bit.

    Args:
        workdir: of the run.
        deterministic: whether GPUs were told to leave out what is not reproducible.
        **more: what else to keep.
    """
    path, found = workdir / "environment.json", describe() | more
    found["reproducible"] = deterministic or found["backend"] != "gpu"
    devices, version = found["devices"], found["packages"].get("jaxlib", "unknown")
    # What sums are rounded by.
    now = {"devices": f"{len(devices)} x {devices[0]}", "jaxlib": version, "XLA_FLAGS": found["xla_flags"] or "none"}
    before = _read(path)
    found |= {"began": {**now, **before.get("began", {})}, "labels": before.get("labels", "")}
    replace_file(path, json.dumps(found, indent=2) + "\n")
    for name, value in now.items():
        if (began := found["began"][name]) != value:
            say(f"Note: the run began with {name} {began} and continues with {value}, where sums are rounded otherwise")
    if not found["reproducible"]:
        say(
            "Note: this run is not reproducible to the bit, for on GPUs the order of some sums is left to chance; "
            "--config.deterministic=True fixes it"
        )


def _read(path: pathlib.Path) -> dict[str, Any]:
    """What was written before; nothing, if it cannot be read, for only notes depend on it."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    return {}


def _versions() -> dict[str, str]:
    """The versions of those of `PACKAGES` that are known: others are not installed, or under another name."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _processor() -> str:
    try:
        match = re.search(r"model name\s*:\s*(.+)", pathlib.Path("/proc/cpuinfo").read_text())
    except OSError:  # not Linux
        match = None
    return match[1] if match else platform.processor()


def _commit() -> str:
    """The commit of this code, with "+changes" where the working tree differs from it; empty where it is in none."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(pathlib.Path(__file__).parent.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    results = (":!benchmarks/results", ":!examples/*/*.json")  # which change no run
    try:
        git("ls-files", "--error-unmatch", __file__)  # none tells of what it does not have
        return git("rev-parse", "HEAD") + (
            "+changes" if git("status", "--porcelain", "-uno", "--", ".", *results) else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
