"""The error of this room; a module of its own because every module of the room raises it."""


class DataError(Exception):
    """A list or an image file can't be used; the message names the file."""
