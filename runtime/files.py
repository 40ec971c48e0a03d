"""Files that are whole or absent, and folders whose names other libraries would take for patterns."""

import contextlib
import glob
import pathlib
import tempfile
from collections.abc import Iterator

from runtime.errors import UserError


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
