"""Processes of one host take turns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

HAS_TURNS = fcntl is not None


@contextlib.contextmanager
def turn(lock: Path) -> Iterator[None]:
    """Alone on this host, if the file system has locks.

    Args:
        lock: a file; it is made if it is not there.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            if fcntl is not None:
                fcntl.flock(stack.enter_context(open(lock, "ab")), fcntl.LOCK_EX)
        yield
