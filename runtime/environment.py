"""The surroundings of a run: versions, devices, command and commit."""

import contextlib
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
from importlib import metadata
from typing import Any

import jax

from runtime.files import replace_file
from runtime.progress import say

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
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in devices],
        "command": sys.orig_argv[1:],  # without the path of Python
        "commit": _commit(),
    }


def write(workdir: pathlib.Path, **more: Any) -> None:
    """Writes `environment.json`, with `more`, and says where results are not those of another run to the bit."""
    path, found = workdir / "environment.json", describe() | more
    before = _read(path)
    found["began_on"] = before.get("began_on") or before.get("devices") or found["devices"]
    replace_file(path, json.dumps(found, indent=2) + "\n")
    if found["began_on"] != found["devices"]:
        began, now = (f"{len(kinds)} x {kinds[0]}" for kinds in (found["began_on"], found["devices"]))
        say(f"Note: the run began on {began} and continues on {now}, where sums are rounded otherwise")
    if found["backend"] == "gpu":
        say("Note: on GPUs, convolutions are not reproducible to the bit, nor is a run that was interrupted")


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
