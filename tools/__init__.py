"""Commands on runs, each `python -m tools.NAME`."""

import argparse
import sys

from runtime import errors

sys.excepthook = errors.excepthook  # before a command imports any package


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """That of the arguments of `python -m tools.NAME`, whose help begins with its docstring."""
    return argparse.ArgumentParser(
        f"python -m tools.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
