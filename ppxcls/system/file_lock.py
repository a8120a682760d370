"""Locks a file or a folder, so that the processes of one host run a block one after another."""

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
from ppxcls.system.logs import logger, warn_once
from ppxcls.system.own_folders import user_name
from ppxcls.system.temporary_files import BUSY_ERRORS, UnsafeFileError, kind_in_words

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.005, 0.2
_SILENT_SECONDS = 5.0  # time of waiting without a word
_MAX_FOLDER_SECONDS = 30.0


class LockedError(UserError):
    """Another process has the lock, or another user has the lock file.

    Args:
        lock: lock file or folder.
        owner: user that the lock file belongs to; None if another process has the lock.
    """

    def __init__(self, lock: Path, owner: str | None = None) -> None:
        self.owner = owner
        super().__init__(f"{lock} belongs to {owner}" if owner else f"{lock}: another process has the lock")


@contextlib.contextmanager
def locked(
    lock: Path, *, waits: bool = True, max_seconds: float = math.inf, is_kept: bool = True
) -> Iterator[None]:
    """Runs a block while no other process of this host runs it, if the file system has locks.

    Only this user can open the lock file, so that no other user can hold it.

    Args:
        lock: lock file; it is created if it does not exist.
        waits: True to wait for other processes; False to raise an error instead.
        max_seconds: longest time to wait in seconds. After a few seconds, a line tells what is waited for.
            After this time, the block runs without the lock, because a process that hangs may hold it. So a
            limit is for blocks that do no harm if two processes run them at once.
        is_kept: False to remove the lock file after the block.

    Raises:
        LockedError: another process has the lock or another user has the lock file, and ``waits`` is False.
        UnsafeFileError: the lock file is a link, or no regular file.
    """
    descriptor = _open_locked(lock, waits=waits, max_seconds=max_seconds) if fcntl is not None else None
    if descriptor is None:
        yield
        return
    try:
        yield
    finally:
        if not is_kept and _is_file_of(lock, descriptor):
            with contextlib.suppress(OSError):
                lock.unlink()
        os.close(descriptor)


@contextlib.contextmanager
def locked_folder(folder: Path, *, waits: bool = False) -> Iterator[bool]:
    """Runs a block while no other process of this host runs one for the same folder. No file remains.

    Args:
        folder: folder that exists.
        waits: True to wait for other processes, up to half a minute. After this time the block runs without
            the lock, because anybody who can read the folder can hold it. False to raise an error instead.

    Yields:
        False if other processes are not excluded, for example because the file system has no locks.

    Raises:
        LockedError: another process has the lock, and ``waits`` is False.
        OSError: the folder can't be opened.
    """
    if fcntl is None:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _lock(descriptor, folder, waits=waits, max_seconds=_MAX_FOLDER_SECONDS)
    finally:
        os.close(descriptor)


def _open_locked(lock: Path, *, waits: bool, max_seconds: float) -> int | None:
    """Opens and locks a lock file; returns None if it can't be opened."""
    while True:
        descriptor = _open(lock, waits=waits)
        if descriptor is None:
            return None
        try:
            has_lock = _lock(descriptor, lock, waits=waits, max_seconds=max_seconds)
            if not has_lock or _is_file_of(lock, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the last holder has removed the file, so it excludes nobody


def _is_file_of(lock: Path, descriptor: int) -> bool:
    """True if an open file still has its name."""
    try:
        return os.path.samestat(os.lstat(lock), os.fstat(descriptor))
    except OSError:
        return False


def _open(lock: Path, *, waits: bool) -> int | None:
    """Opens a lock file; returns None if it can't be opened.

    Raises:
        LockedError: it belongs to another user, and ``waits`` is False.
        UnsafeFileError: it is a link, or no regular file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(lock, flags, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnsafeFileError(errno.ELOOP, "expected a lock file, found a link", str(lock)) from None
        owner = _other_owner(lock) if error.errno in (errno.EACCES, errno.EPERM) else None
        if owner and not waits:
            raise LockedError(lock, owner) from None
        if owner:
            warn_once(f"{lock} belongs to {owner}, so this process does not wait for others")
        return None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UnsafeFileError(errno.EINVAL, f"expected a lock file, found {kind_in_words(status)}", str(lock))
    if status.st_uid == os.getuid() and status.st_mode & 0o077:  # an older version created it
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, 0o600)
    return descriptor


def _other_owner(lock: Path) -> str | None:
    """Returns the user that a file belongs to; None if it is this user, or if there is no such file."""
    try:
        number = os.lstat(lock).st_uid
    except OSError:
        return None
    return None if number == os.geteuid() else user_name(number)


def _lock(descriptor: int, lock: Path, *, waits: bool, max_seconds: float) -> bool:
    """Locks an open file or folder; returns False if it is used without the lock."""
    start = time.monotonic()
    pause = _FIRST_PAUSE_SECONDS
    is_silent = True
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in BUSY_ERRORS:  # for example NFS, which does not lock folders
                return False
        else:
            return True
        if not waits:
            raise LockedError(lock)
        seconds = time.monotonic() - start
        if seconds > max_seconds:
            logger.warning(f"{lock}: {_holder(descriptor)} holds it for {seconds:.0f} s; not waiting longer")
            return False
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
