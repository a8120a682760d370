"""Reads files from disks that may fail to answer for a while."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

# Errors of network file systems without their server, and of disks with a loose cable. They may pass.
_PASSING = {
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
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # seconds
MAX_BYTES = 1 << 28


def read_file(path: str, patience: float = 0.0) -> bytes:
    """Read a whole file.

    Args:
        path: of the file.
        patience: seconds to retry after errors that may pass, with pauses that double.

    Raises:
        OSError: it can't be read, or still not after that time.
        ValueError: it is larger than ``MAX_BYTES``, or its size changed while it was read.
    """
    return patiently(lambda: _read_once(path), path, patience)


def patiently(read: Callable[[], T], path: str, patience: float) -> T:
    """Read again and again, if the errors are such as may pass.

    Args:
        read: reads; what it raises is raised in the end.
        path: of the file, for the error.
        patience: seconds, with pauses that double.
    """
    deadline = time.monotonic() + patience
    pause = _FIRST_PAUSE
    while True:
        try:
            return read()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            if time.monotonic() + pause > deadline:
                waited = f", tried again for {patience:g} s" if patience else ""
                raise OSError(error.errno, f"{error.strerror}{waited}", path) from None
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _read_once(path: str) -> bytes:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise ValueError(f"{size:,} bytes; an image file may have {MAX_BYTES:,}")
        data = file.read(MAX_BYTES + 1)  # limited, because a pipe or a device has no size
    if len(data) != size:
        raise ValueError(
            f"expected {size:,} bytes, read {len(data):,}; another program may be writing the file"
        )
    return data
