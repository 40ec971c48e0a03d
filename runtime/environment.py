"""What surrounds a run: versions, devices, command and commit, and TensorFlow kept at bay."""

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
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in devices],
        "command": sys.orig_argv[1:],  # without the path of Python
        "commit": _commit(),
    }


def write(workdir: pathlib.Path) -> None:
    """Writes `environment.json`."""
    (workdir / "environment.json").write_text(json.dumps(describe(), indent=2) + "\n")


def import_tensorflow() -> None:
    """Imports TensorFlow, which reads data sets, such that it disturbs nothing.

    It would reserve the memory of every accelerator that it sees, and greet with pages of hints.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # It would import Keras as well, which takes as long as all the rest of it, and which nothing here needs.
    hide_keras = "keras" not in sys.modules
    if hide_keras:
        sys.modules["keras"] = None  # type: ignore[assignment]  # what makes an import fail
    import tensorflow as tf

    if hide_keras:
        del sys.modules["keras"]
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)


def _processor() -> str:
    try:
        match = re.search(r"model name\s*:\s*(.+)", pathlib.Path("/proc/cpuinfo").read_text())
    except OSError:  # not Linux
        match = None
    return match[1] if match else platform.processor()


def _commit() -> str:
    """The commit of this code, with "+changes" where the working tree differs from it; empty outside a repository."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent.parent)]
    results = (":!benchmarks/results", ":!examples/*/*.json")  # which change no run
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run(
            [*git, "status", "--porcelain", "-uno", "--", ".", *results],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+changes" if status.stdout else "")
