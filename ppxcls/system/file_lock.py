"""Locks a file, so that the processes of one host run a block one after another."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ppxcls.system.appended_files import append_descriptor
from ppxcls.system.temporary_files import UnsafeFileError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


_MAX_WAIT_SECONDS, _PAUSE_SECONDS = 30.0, 0.05


class LockedError(Exception):
    """Another process has the lock."""


@contextlib.contextmanager
def locked(lock: Path, *, waits: bool = True) -> Iterator[None]:
    """Runs a block while no other process of this host runs it, if the file system has locks.

    Args:
        lock: lock file; it is created if it does not exist.
        waits: True to wait for other processes; False to raise an error instead.

    Raises:
        LockedError: another process has the lock, and ``waits`` is False.
        UnsafeFileError: the lock file is a link out of its folder, or no regular file.
    """
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            try:
                fcntl.flock(
                    stack.enter_context(open(append_descriptor(lock), "ab")),
                    fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB),
                )
            except BlockingIOError:
                raise LockedError(str(lock)) from None
            except UnsafeFileError:
                raise
            except OSError:  # the file can't be created, or the file system has no locks
                pass
        yield


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Runs a block while no other process of this host runs one for this folder, without a lock file.

    After half a minute the block runs without the lock, because anybody who can read the folder can hold it.

    Args:
        folder: folder that exists.

    Raises:
        OSError: the folder can't be opened.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + _MAX_WAIT_SECONDS
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_PAUSE_SECONDS)
            except OSError:  # the file system has no locks
                break
        yield
    finally:
        os.close(descriptor)
