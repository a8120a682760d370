"""Locks a file, so that the processes of one host run a block one after another."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


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
    """
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            try:
                fcntl.flock(
                    stack.enter_context(open(lock, "ab")), fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB)
                )
            except BlockingIOError:
                raise LockedError(str(lock)) from None
            except OSError:  # the file can't be created, or the file system has no locks
                pass
        yield


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[bool]:
    """Runs a block while no other process runs one for the same folder. No file remains in the folder.

    Yields:
        False if the file system has no locks of folders, so that other processes are not excluded.

    Raises:
        LockedError: another process has the lock.
    """
    if fcntl is None:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _try_lock(descriptor, folder)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, folder: Path) -> bool:
    """Locks an open folder; returns False if the file system can't."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockedError(str(folder)) from None
    except OSError:  # for example NFS, which locks only files that are open for writing
        return False
    return True
