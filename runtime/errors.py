"""The one exception that means: the user can mend this. And what to install, where something is missing."""

import sys
import traceback
from types import TracebackType


class UserError(Exception):
    """A mistake in a config, a flag, a data folder or a workdir.

    The message says which field or file, what was found, what would be right, and, where there is one, the command
    to run. `main.py` prints it without a traceback.
    """


def missing_package(error: ImportError) -> str:
    """Which package is not installed, where it is imported, and what installs it, in one sentence."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen ")]
    importer = f", which {frames[-1].filename}, line {frames[-1].lineno}, imports" if frames else ""
    name = (error.name or str(error)).partition(".")[0]
    if name == "fcntl":
        return "this project runs on Linux and macOS; on Windows, run it in WSL (wsl --install)"
    return (
        f"{name!r}{importer}, is not installed: pip install -r requirements.txt installs what the project needs, "
        "and what a fork needs besides belongs there, too"
    )


def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints one message in place of the traceback of what the user can mend; see `sys.excepthook`."""
    if isinstance(error, ModuleNotFoundError | UserError):
        message = missing_package(error) if isinstance(error, ModuleNotFoundError) else error
        print(f"error: {message}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
