"""A temporary folder, also in a container whose disks are all read-only."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# S108: a private folder is created in it.
_SHARED_FOLDER = Path("/dev/shm")  # noqa: S108


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yields a folder that only this user can use. It is removed in the end.

    It is where ``TMPDIR`` says, else in the system's folder for temporary files, else in shared memory.

    Raises:
        OSError: there is no place for it.
    """
    try:
        parent = Path(tempfile.gettempdir())
    except FileNotFoundError:  # no folder can be written to
        parent = _SHARED_FOLDER
    try:
        folder = tempfile.TemporaryDirectory(prefix="ppxcls-", dir=parent)
    except OSError as error:
        number = error.errno or errno.EIO
        problem = f"no folder for temporary files ({os.strerror(number)}); set TMPDIR to one"
        raise OSError(number, problem, str(parent)) from None
    with folder as path:
        yield Path(path)
