"""Reads files, and retries if a disk does not answer for a while."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

# Errors that may be temporary: a network file system can't reach its server, or a disk has a loose cable.
_TEMPORARY_ERRORS = {
    getattr(errno, name)
    for name in (
        "EIO",
        "ESTALE",
        "ETIMEDOUT",
        "ENOTCONN",
        "ECONNRESET",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENETDOWN",
        "EREMOTEIO",
        "EAGAIN",
    )
    if hasattr(errno, name)
}
T = TypeVar("T")
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.1, 10.0  # seconds
MAX_IMAGE_FILE_BYTES = 1 << 28


def read_file(path: str, patience: float = 0.0) -> bytes:
    """Reads a whole file.

    Args:
        path: path of the file.
        patience: seconds to retry after errors that may be temporary. The pauses between attempts double.

    Raises:
        OSError: the file can't be read, or still can't after ``patience`` seconds.
        ValueError: the file is larger than ``MAX_IMAGE_FILE_BYTES``, or its size changed while it was read.
    """
    return read_with_retries(lambda: _read_once(path), path, patience)


def read_with_retries(read: Callable[[], T], path: str, patience: float) -> T:
    """Calls ``read`` again if its error may be temporary.

    Args:
        read: function that reads the file; its last error is raised.
        path: path of the file, for the error message.
        patience: seconds to retry. The pauses between attempts double.

    Raises:
        OSError: the error is not temporary, or still occurs after ``patience`` seconds.
    """
    deadline = time.monotonic() + patience
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return read()
        except OSError as error:
            if error.errno not in _TEMPORARY_ERRORS:
                raise
            if time.monotonic() + pause > deadline:
                retry_note = f", tried again for {patience:g} s" if patience else ""
                raise OSError(error.errno, f"{error.strerror}{retry_note}", path) from None
        time.sleep(pause)
        pause = min(2 * pause, _MAX_PAUSE_SECONDS)


def _read_once(path: str) -> bytes:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_IMAGE_FILE_BYTES:
            raise ValueError(f"{size:,} bytes; an image file may have {MAX_IMAGE_FILE_BYTES:,}")
        data = file.read(MAX_IMAGE_FILE_BYTES + 1)  # limited, because a pipe or a device has no size
    if len(data) != size:
        raise ValueError(
            f"expected {size:,} bytes, read {len(data):,}; another program may be writing the file"
        )
    return data
