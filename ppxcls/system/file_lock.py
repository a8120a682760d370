"""Locks a file, so that the processes of one host run a block one after another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ppxcls.system.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


class LockedError(UserError):
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
