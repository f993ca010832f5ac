"""The one exception whose message is meant for the user, and the one way to print foreign text."""

LONGEST = 2000  # characters of a message


class UserError(Exception):
    """A mistake in the settings, the data or the machine, not a bug.

    The message is one line: what was wrong, which value, what to do. The command line prints it
    as ``error: …`` and exits with code 1 and no traceback (see `sparsereg.commands.command_line`).
    """


def printable(text: object) -> str:
    """Text that may come from a file, in one line and without control characters: they are shown as
    escapes, so that no file moves the cursor, renames the terminal or forges a line of ours."""
    text = str(text)
    if len(text) > LONGEST:
        text = text[: LONGEST - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
