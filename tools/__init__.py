"""Commands on runs, each `python -m tools.NAME`."""

import sys

from runtime import errors

sys.excepthook = errors.excepthook  # before a command imports any package
