"""Locks a file, so that the processes of one host run a block one after another."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from ppxcls.system.errors import UserError
from ppxcls.system.logs import logger

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.005, 0.2
_SILENT_SECONDS = 5.0  # time of waiting without a word
_BUSY_ERRORS = (errno.EAGAIN, errno.EACCES)


class LockedError(UserError):
    """Another process has the lock."""


@contextlib.contextmanager
def locked(lock: Path, *, waits: bool = True, max_seconds: float = math.inf) -> Iterator[None]:
    """Runs a block while no other process of this host runs it, if the file system has locks.

    Only this user can open the lock file, so that no other user can hold it. A link or a pipe under its name
    is not opened.

    Args:
        lock: lock file; it is created if it does not exist.
        waits: True to wait for other processes; False to raise an error instead.
        max_seconds: longest time to wait in seconds. After a few seconds, a line tells what is waited for.
            After this time, the block runs without the lock, because a process that hangs may hold it. So a
            limit is for blocks that do no harm if two processes run them at once.

    Raises:
        LockedError: another process has the lock, and ``waits`` is False.
    """
    descriptor = _open(lock) if fcntl is not None else None
    if descriptor is None:
        yield
        return
    try:
        _lock(descriptor, lock, waits=waits, max_seconds=max_seconds)
        yield
    finally:
        os.close(descriptor)


def _open(lock: Path) -> int | None:
    """Opens a lock file; returns None if it can't be opened, or is not a regular file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(lock, flags, 0o600)
    except OSError:
        return None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        return None
    if status.st_uid == os.getuid() and status.st_mode & 0o077:  # an older version created it
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, 0o600)
    return descriptor


def _lock(descriptor: int, lock: Path, *, waits: bool, max_seconds: float) -> None:
    start = time.monotonic()
    pause = _FIRST_PAUSE_SECONDS
    is_silent = True
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _BUSY_ERRORS:  # the file system has no locks
                return
        else:
            return
        if not waits:
            raise LockedError(str(lock))
        seconds = time.monotonic() - start
        if seconds > max_seconds:
            logger.warning(f"{lock}: {_holder(descriptor)} holds it for {seconds:.0f} s; not waiting longer")
            return
        if is_silent and seconds > _SILENT_SECONDS:
            is_silent = False
            logger.warning(f"waiting for {_holder(descriptor)}, which holds {lock}")
        time.sleep(pause)
        pause = min(2 * pause, _MAX_PAUSE_SECONDS)


def _holder(descriptor: int) -> str:
    """Returns the process that holds a lock, in words."""
    inode = os.fstat(descriptor).st_ino
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/locks").read_text(encoding="ascii", errors="replace").splitlines():
            words = line.split()  # such as 1: FLOCK ADVISORY WRITE 1234 08:01:5678 0 EOF
            if len(words) > 5 and words[1] == "FLOCK" and words[5].endswith(f":{inode}"):
                name = Path(f"/proc/{int(words[4])}/comm").read_text(encoding="utf-8", errors="replace")
                return f"process {words[4]} ({name.strip()})"
    return "another process"
