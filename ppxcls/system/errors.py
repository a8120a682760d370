"""The base of all errors that a user can cause."""

from __future__ import annotations

from ppxcls.system.paths import one_line


class UserError(Exception):
    """An error that a user can cause.

    The message is one printable line of bounded length, because names and values in it come from files. So it
    can be shown everywhere, also in a notebook's traceback.

    Args:
        message: description of the problem.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))
