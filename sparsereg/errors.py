"""The one exception whose message is meant for the user."""


class UserError(Exception):
    """A mistake in the settings, the data or the machine, not a bug.

    The message is one line: what was wrong, which value, what to do. The command line prints it
    as ``error: …`` and exits with code 1 and no traceback (see `sparsereg.commands.command_line`).
    """
