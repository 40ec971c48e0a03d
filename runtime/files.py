"""Paths that users give, and files that are whole or absent."""

import os
import pathlib
import re

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
