"""Processes of one host take turns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


class TakenError(Exception):
    """Another process has the turn."""


HAS_TURNS = fcntl is not None


@contextlib.contextmanager
def turn(lock: Path, waits: bool = True) -> Iterator[None]:
    """Alone on this host, if the file system has locks.

    Args:
        lock: a file; it is made if it is not there.
        waits: for others.

    Raises:
        TakenError: another process has the turn, and this one does not wait.
    """
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            try:
                fcntl.flock(
                    stack.enter_context(open(lock, "ab")), fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB)
                )
            except BlockingIOError:
                raise TakenError(str(lock)) from None
            except OSError:  # no place for the file, or no locks
                pass
        yield
