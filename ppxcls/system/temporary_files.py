"""The temporary files of whole files: names that nobody can guess, locks that show a living writer."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import socket
import stat
import time
from typing import BinaryIO

from ppxcls.system.open_folder import OpenFolder

try:
    import fcntl
except ImportError:  # Windows has no such locks; what killed processes leave stays there
    fcntl = None  # type: ignore[assignment]

_MAX_STEM_BYTES = 100
_MAX_ATTEMPTS = 100
_LOCK_PAUSES, _LOCK_PAUSE_SECONDS = 50, 0.002  # a sweep holds the lock of a file for less than this
BUSY_ERRORS = (errno.EAGAIN, errno.EACCES)  # of a lock that another process holds
_ABANDONED_SECONDS = 86_400.0  # age at which a temporary file of another computer is a leftover
# A short name of this computer, in the names of temporary files. Locks of other computers may be invisible.
_HOST = hashlib.sha256(socket.gethostname().encode(errors="replace")).hexdigest()[:8]
_RANDOM_PART = r"\.(?P<host>[0-9a-f]{8})-[0-9a-f]{16}\.new"


class UnsafeFileError(OSError):
    """A name in a folder belongs to something that must not be written, such as a link out of the folder."""


def _stem(name: str) -> str:
    """Returns the beginning of the temporary names of a file. Some file systems allow 143 bytes a name."""
    encoded_name = os.fsencode(name)
    if len(encoded_name) > _MAX_STEM_BYTES:
        return f".{hashlib.sha256(encoded_name).hexdigest()[:32]}"
    return f".{name}"


def temporary_name(name: str) -> str:
    """Returns a name that nobody can guess, for a file that gets another name when it is complete."""
    return f"{_stem(name)}.{_HOST}-{secrets.token_hex(8)}.new"


def earlier_mode(folder: OpenFolder, name: str) -> int | None:
    """Returns the permissions of this user's file that is replaced; None if there is no such file.

    Raises:
        OSError: the name belongs to a folder, a pipe or a device.
    """
    status = folder.status(name)
    if status is None or stat.S_ISLNK(status.st_mode):
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "expected a file or nothing, found a folder", name)
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeFileError(
            errno.EINVAL, f"expected a file or nothing, found {kind_in_words(status)}", name
        )
    is_own = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
    return stat.S_IMODE(status.st_mode) & 0o777 if is_own else None


def kind_in_words(status: os.stat_result) -> str:
    """Returns what a name belongs to that is no regular file, in words."""
    kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder"))
    return next((words for is_kind, words in kinds if is_kind(status.st_mode)), "a device")


def new_temporary_file(folder: OpenFolder, name: str, mode_of_earlier: int | None) -> BinaryIO:
    """Opens a new file and locks it, so that other processes see that its writer is alive.

    Args:
        folder: folder of the file.
        name: name of the file.
        mode_of_earlier: permissions of the file that it replaces; None for none.

    Raises:
        OSError: the file can't be opened.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    mode = 0o666 if mode_of_earlier is None else mode_of_earlier | stat.S_IRUSR | stat.S_IWUSR
    for _ in range(_MAX_ATTEMPTS):
        descriptor = folder.open(name, flags, mode)
        _lock(descriptor)
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)  # another process has removed it as a leftover before it was locked
    else:
        raise OSError(errno.EAGAIN, "another process removes the temporary file again and again", name)
    return open(descriptor, "wb")


def _lock(descriptor: int) -> None:
    """Locks a new file, if the file system has locks. Another process may hold it to remove a leftover."""
    for _ in range(_LOCK_PAUSES if fcntl else 0):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in BUSY_ERRORS:
                return
        else:
            return
        time.sleep(_LOCK_PAUSE_SECONDS)


def remove_leftovers(folder: OpenFolder, name: str | None = None) -> None:
    """Removes what killed processes of this user have left in a folder while they wrote whole files.

    A file stays if its writer may be alive. The lock of a writer on another computer may not be visible here,
    so such a file must be old.

    Args:
        folder: folder to search.
        name: final name of the files; None for all names.
    """
    if fcntl is None:
        return
    stem = r"\..+" if name is None else re.escape(_stem(name))
    pattern = re.compile(stem + _RANDOM_PART, re.DOTALL)
    for leftover in folder.names():
        if (match := pattern.fullmatch(leftover)) is None:
            continue
        with contextlib.suppress(OSError):
            _remove_leftover(folder, leftover, is_of_this_host=match["host"] == _HOST)


def _remove_leftover(folder: OpenFolder, name: str, *, is_of_this_host: bool) -> None:
    descriptor = folder.open(name, os.O_RDWR | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        is_old = is_of_this_host or time.time() - status.st_mtime > _ABANDONED_SECONDS
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and is_old:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder.remove(name)
    finally:
        os.close(descriptor)
