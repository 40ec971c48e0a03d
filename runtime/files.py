"""Files that are whole or absent."""

import pathlib


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
