"""The error that data sets and loaders raise."""

from ppxcls.system.paths import printable


class DataError(Exception):
    """A list or an image file can't be used.

    The message names the file, in one printable line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
