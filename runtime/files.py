"""Paths that users give, files that are whole or absent, and names that other libraries would take for patterns."""

import contextlib
import glob
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

from runtime.errors import UserError


def local_path(path: str | os.PathLike[str], option: str = "") -> pathlib.Path:
    """The path that a user means, with `~` expanded: most shells leave it to us in `--option=~/x`.

    Args:
        path: of a file or folder.
        option: by which it was given, such as "--workdir", for the message.

    Raises:
        UserError: it is a URL, its `~` is nobody's, or it cannot be written in UTF-8, as in a report.
    """
    text = os.fspath(path)
    given = f"{option}={text}" if option else text
    if re.match("[a-z][a-z0-9+.-]*:/" + "/" * isinstance(path, str), text, re.IGNORECASE):  # pathlib joins two slashes
        raise UserError(f"{given} cannot be used: it is a URL; must be a path on this machine")
    try:
        text.encode()
        return pathlib.Path(text).expanduser()
    except UnicodeEncodeError as error:
        raise UserError(f"{option or 'path'}={text!r} cannot be used: its name must be UTF-8") from error
    except RuntimeError as error:
        raise UserError(f"{given} cannot be used: {error}") from error


def replace_file(path: pathlib.Path, content: str | bytes, suffix: str = "partial") -> None:
    """Writes a file in one move, so that a process killed at this moment leaves the old one or the new one.

    Args:
        path: of the file.
        content: of the file; text is encoded as UTF-8.
        suffix: of the file beside it that is written first, in the place of one that a killed process has left. Where
            several processes may write the same file, each needs another one.
    """
    partial = path.with_name(f"{path.name}.{suffix}")
    partial.unlink(missing_ok=True)  # which could be a link
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def has_wildcards(folder: pathlib.Path) -> bool:
    """Whether the absolute path of a folder has one of the characters that stand for others in patterns: `*`, `?`, `[`.

    Orbax and TFDS look for their files with the whole path as the pattern: below `lr=[0.1]` they find none, and below
    `lr*` also those of others.
    """
    return glob.escape(str(folder.absolute())) != str(folder.absolute())


@contextlib.contextmanager
def without_wildcards(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to an existing folder that `has_wildcards` says no to.

    Args:
        folder: any.

    Yields:
        The folder's own path, or where that has such characters, a temporary link to it.

    Raises:
        UserError: temporary files are in such a folder, too.
    """
    if not has_wildcards(folder):
        yield folder.absolute()
        return
    with tempfile.TemporaryDirectory() as place:
        if has_wildcards(pathlib.Path(place)):
            raise UserError(
                f"{folder} and the folder of temporary files, {place}, both have one of *, ? and [ in their names; "
                "TMPDIR=/tmp or another --workdir helps."
            )
        link = pathlib.Path(place, "link")
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link
