"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake in a config, a flag, a data folder or a workdir.

    The message says which field or file, what was found, what would be right, and, where there is one, the command
    to run. `main.py` prints it without a traceback.
    """
