"""The error that data sets and loaders raise."""

from ppxcls.system.errors import UserError


class DataError(UserError):
    """A list or an image file can't be used.

    The message names the file.
    """
