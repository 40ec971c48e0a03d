"""What a run leaves for the next one: compiled programs, and data sets decoded to arrays.

Compiled programs are code. So the folder belongs to the user alone, and one that somebody else could have written to is
refused. Arrays are stored as safetensors, which hold no code, under the hash of their content.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import stat
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from errors import UserError

_directory: pathlib.Path | None = None


def default_directory() -> pathlib.Path:
    """The folder for this project in the user's cache directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(cache).expanduser() / "flax-polyak-template"


def enable(directory: str | pathlib.Path) -> None:
    """Keeps compiled programs and decoded data sets in this folder, in this process from now on.

    A compilation cache that was chosen by JAX's own means, such as JAX_COMPILATION_CACHE_DIR, stays.

    Args:
        directory: created if it does not exist, for the user alone.

    Raises:
        UserError: it cannot be used, or others could change what is in it.
    """
    global _directory
    directory = pathlib.Path(directory).expanduser().absolute()
    try:
        for folder in (directory, directory / "compiled", directory / "data"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_private(folder)
    except OSError as error:
        raise UserError(f"--cache_dir={directory} cannot be used: {error}. --cache_dir= does without") from error
    _directory = directory
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # made at run time
        jax.config.update("jax_compilation_cache_dir", str(directory / "compiled"))
        # Small programs count, too: there are many of them before the first step.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _check_private(folder: pathlib.Path) -> None:
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(
            f"--cache_dir: {folder} belongs to user {found.st_uid} and has mode {stat.S_IMODE(found.st_mode):o}; it "
            f"must be yours, {os.getuid()}, and writable by nobody else, for it holds compiled code. "
            f"chmod 700 {folder}, another --cache_dir, or --cache_dir= for none"
        )


@dataclasses.dataclass(frozen=True)
class CachedArrays:
    """Arrays that were made from files, and that are good as long as these files are what they were.

    Attributes:
        name: of what they are, for the name of the file.
        origin: the folder that they were made from.
    """

    name: str
    origin: pathlib.Path

    def read(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The arrays and the values stored with them; none if there are none, or none that are whole."""
        for path in self._stored():
            if hashlib.sha256(path.read_bytes()).hexdigest() == path.stem.rpartition("-")[2]:
                with safetensors.safe_open(path, "numpy") as file:
                    return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["values"])  # noqa: SIM118
            print(f"Note: {path} is damaged and will be made again", flush=True)
        return None

    def write(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Stores arrays and JSON values for the next run, in the place of what is there."""
        if _directory is None:
            return
        content = safetensors.numpy.save(dict(arrays), metadata={"values": json.dumps(dict(values))})
        path = _directory / "data" / f"{self._prefix()}-{hashlib.sha256(content).hexdigest()}.safetensors"
        partial = path.with_suffix(f".{os.getpid()}")
        try:
            partial.write_bytes(content)
            for old in self._stored():
                old.unlink(missing_ok=True)
            partial.replace(path)
        except OSError as error:
            print(f"Note: {self.name} is not cached: {error}", flush=True)
            partial.unlink(missing_ok=True)

    def _stored(self) -> list[pathlib.Path]:
        if _directory is None or not self.origin.is_dir():
            return []
        return sorted((_directory / "data").glob(f"{self._prefix()}-*.safetensors"))

    def _prefix(self) -> str:
        """Says what the origin's files are without reading them: names, sizes and times of change."""
        files = [
            (str(path.relative_to(self.origin)), path.stat().st_size, path.stat().st_mtime_ns)
            for path in sorted(self.origin.rglob("*"))
            if path.is_file()
        ]
        key = hashlib.sha256(json.dumps([self.name, str(self.origin), files]).encode()).hexdigest()
        return f"{re.sub(r'[^a-z0-9_]', '_', self.name)}-{key[:16]}"
