"""Bytes of a file from a disk that may be away for a while."""

from __future__ import annotations

import errno
import os
import time

# What network file systems report when their server is gone or has changed under an open file, and disks when a cable is loose.
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
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # seconds
MAX_BYTES = 1 << 28
IMAGE_EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}  # in lower case


def read_file(path: str, patience: float = 0.0) -> bytes:
    """Read a whole file.

    Args:
        patience: seconds during which errors that may pass are tried again, with pauses that double.

    Raises:
        OSError: it can't be read, or still can't after that time.
        ValueError: it is larger than ``MAX_BYTES``, or became another size while it was read.
    """
    deadline = time.monotonic() + patience
    pause = _FIRST_PAUSE
    while True:
        try:
            return _read_once(path)
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
        data = file.read(MAX_BYTES + 1)  # bounded: a pipe or a device has no size
    if len(data) != size:
        raise ValueError(f"it had {size:,} bytes, of which {len(data):,} were read: is it being written?")
    return data
