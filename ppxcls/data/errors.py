"""The error that data sets and loaders raise."""


class DataError(Exception):
    """A list or an image file can't be used; the message names the file."""
