"""What a run leaves for the next one: compiled programs, and data sets decoded to arrays.

Compiled programs are code. So the folder is the user's alone, and one that belongs to somebody else, or that others can
write to, is refused. Arrays are stored as safetensors, which hold no code, under the hash of their content.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import stat
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy

from runtime.errors import UserError
from runtime.files import local_path, replace_file
from runtime.progress import say

_directory: pathlib.Path | None = None


def enable(directory: str | pathlib.Path) -> str:
    """Keeps compiled programs and decoded data sets in this folder, in this process from now on.

    A compilation cache that was chosen by JAX's own means, such as JAX_COMPILATION_CACHE_DIR, stays.

    Args:
        directory: created if it does not exist, for the user alone.

    Returns:
        Where what is kept, in words.

    Raises:
        UserError: it cannot be used, or others could change what is in it.
    """
    global _directory
    directory = local_path(directory, "--cache_dir").absolute()
    try:
        for folder in (directory, directory / "compiled", directory / "data"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_private(folder)
    except OSError as error:
        raise UserError(f"--cache_dir={directory} cannot be used: {error}. --cache_dir= does without") from error
    _directory = directory
    import jax  # here, for who only reads arrays needs none

    programs: str = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # made at run time
    if not programs:
        programs = str(directory / "compiled")
        jax.config.update("jax_compilation_cache_dir", programs)
        with contextlib.suppress(OSError, ImportError):  # of a folder that is full, or a later JAX
            _remove_torn(directory / "compiled")
        # Small programs count, too: there are many of them before the first step.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return f"Compiled programs are kept in {programs}, decoded data sets in {directory / 'data'}"


def enable_if_possible(directory: str | pathlib.Path) -> str:
    """`enable`, for a folder that nobody has asked for: does without one that cannot be used, and says so."""
    try:
        return enable(directory)
    except UserError as error:
        return f"Note: nothing is kept for later runs. {error}"


def check_chosen() -> None:
    """Checks the compilation cache that was chosen by JAX's own means, if there is one.

    Raises:
        UserError: others could change what is in it.
    """
    import jax

    programs: str = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # made at run time
    if programs and os.path.isdir(programs):
        _check_private(pathlib.Path(programs), "jax_compilation_cache_dir")


def _remove_torn(programs: pathlib.Path) -> None:
    """Removes compiled programs that are not whole: JAX would keep them, warn of them and compile them in every run.

    A process that was killed has left them, or one writes them now, which costs nothing but another compilation. Only
    what is newer than the last look is read.
    """
    from jax._src.compilation_cache import decompress_executable  # JAX chooses among several compressions

    looked = programs / "looked_through"
    since = looked.stat().st_mtime_ns - 10**9 if looked.exists() else 0  # a second, for file systems that round
    looked.touch()
    for entry in programs.glob("*-cache"):
        try:
            if entry.stat().st_mtime_ns >= since:
                decompress_executable(entry.read_bytes())
        except FileNotFoundError:  # another process has looked, too
            continue
        except Exception:  # each compression has errors of its own
            entry.unlink(missing_ok=True)


def _check_private(folder: pathlib.Path, name: str = "--cache_dir") -> None:
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(
            f"{name}: {folder} belongs to user {found.st_uid} and has mode {stat.S_IMODE(found.st_mode):o}; it "
            f"must be yours, {os.getuid()}, and writable by nobody else, for it holds compiled code. Remove it "
            f"(rm -r {folder}), or name another one"
        )


def _files(origin: pathlib.Path) -> list[pathlib.Path]:
    """The origin and, if it is a folder, all that is below it, through links; what is in a loop, once."""
    found, known = [origin], set()
    for parent, folders, names in os.walk(origin, followlinks=True):
        real = os.path.realpath(parent)
        if real in known:
            folders.clear()
        else:
            known.add(real)
            found += [pathlib.Path(parent, name) for name in [*folders, *names]]
    return found


def _identity(file: pathlib.Path) -> tuple[int, ...]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


class CachedArrays:
    """Arrays that are good as long as the files that they were made from, and the code that made them, are the same."""

    def __init__(self, name: str, origins: Sequence[pathlib.Path], modules: Sequence[str] = ()) -> None:
        """Looks at the files.

        Args:
            name: of what the arrays are.
            origins: the files that they are made from, and folders of such, through links too; told apart by name,
                size and the times of the last change of content and of status. The latter no program can set back: so
                a changed byte is seen even where size and date are as before, unless the clock is wrong or the file
                system keeps no such time. No content is read. Where one is missing, nothing is stored.
            modules: whose code makes the arrays; of a package the first file, which an installation writes anew.
        """
        self._name = name
        self.prefix = ""  # of the file's name; changes with the origins, and empty where nothing is kept
        if _directory is None or not re.fullmatch(r"\w+([:/].*)?", name):
            return
        specs = [spec for module in (*modules, __name__) if (spec := importlib.util.find_spec(module))]
        origins = [*origins, *(pathlib.Path(spec.origin) for spec in specs if spec.origin)]
        try:
            files = [file for origin in origins for file in _files(origin)]
            seen = [(str(file.absolute()), *_identity(file)) for file in sorted(files)]
        except OSError:  # somebody else is changing them
            return
        if all(origin.exists() for origin in origins):
            key = hashlib.sha256(json.dumps([name, seen]).encode()).hexdigest()
            self.prefix = f"{re.sub(r'[^a-z0-9_]', '_', name)}-{key[:16]}-"

    def read(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The arrays and the values stored with them; none if there are none, or none that are whole."""
        for path in self._stored():
            try:
                content = path.read_bytes()
                if hashlib.sha256(content).hexdigest() == path.stem.removeprefix(self.prefix):
                    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
                    return safetensors.numpy.load(content), json.loads(header["__metadata__"]["values"])
                reason = "damaged"
            except OSError as error:
                reason = f"not readable ({error})"
            say(f"Note: {path} is {reason} and will be made again")
        return None

    def write(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Stores arrays and JSON values for the next run, in the place of what is there."""
        if _directory is None or not self.prefix:
            return
        content = safetensors.numpy.save(dict(arrays), metadata={"values": json.dumps(dict(values))})
        path = _directory / "data" / f"{self.prefix}{hashlib.sha256(content).hexdigest()}.safetensors"
        try:
            replace_file(path, content, suffix=str(os.getpid()))
            for old in path.parent.glob(f"{self.prefix}*"):  # what a process that was killed has left, too
                if old != path:
                    old.unlink(missing_ok=True)
        except OSError as error:
            say(f"Note: {self._name} is not kept for later runs: {error}")

    def _stored(self) -> list[pathlib.Path]:
        if _directory is None or not self.prefix:
            return []
        return sorted((_directory / "data").glob(f"{self.prefix}*.safetensors"))
