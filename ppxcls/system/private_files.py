"""Small files of this user, which nobody else can write: what the user trusts, and the key of a job."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ppxcls.system.open_folder import OpenFolder

_MAX_BYTES = 1 << 16  # limit of a private file


def state_folder() -> Path | None:
    """Returns the folder of what this package remembers for a user; None if the user has no home.

    It is ``$XDG_STATE_HOME/ppxcls``, or else ``~/.local/state/ppxcls``.
    """
    base = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):  # also if it is not set
        home = os.path.expanduser("~")
        if not os.path.isabs(home):
            return None
        base = os.path.join(home, ".local", "state")
    return Path(base) / "ppxcls"


def create_private(folder: Path, name: str, data: bytes) -> bool:
    """Creates a file that only this user can read, with its folder. Another process may do the same.

    Args:
        folder: folder, which must be this user's; it is created with the folders above it.
        name: name of the file.
        data: content.

    Returns:
        True if the file was created; False if it exists.

    Raises:
        OSError: the file can't be created, or the folder belongs to somebody else, or others can write to it.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    with _opened(folder) as place:
        temporary_name = f".{name[:100]}.{os.urandom(8).hex()}"
        descriptor = place.open(temporary_name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _write(descriptor, data)
            return _publish(place, temporary_name, name)
        finally:
            with contextlib.suppress(FileNotFoundError):
                place.remove(temporary_name)


def _write(descriptor: int, data: bytes) -> None:
    with open(descriptor, "wb") as stream:
        stream.write(data)


def read_private(folder: Path, name: str) -> bytes | None:
    """Returns the content of a file; None if it can't be read, or if somebody else could have written it."""
    try:
        with (
            _opened(folder) as place,
            open(place.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as stream,
        ):
            _check_owner(os.fstat(stream.fileno()), name)
            return stream.read(_MAX_BYTES)
    except (OSError, ValueError):
        return None


def private_names(folder: Path) -> list[str]:
    """Returns the names in a folder; empty if it can't be read, or if it is not only this user's."""
    try:
        with _opened(folder) as place:
            return place.names()
    except OSError:
        return []


def _publish(place: OpenFolder, temporary_name: str, name: str) -> bool:
    """Gives a file its name, whole. Returns False if there is such a file already."""
    try:
        place.link(temporary_name, name)
    except FileExistsError:
        return False
    except (OSError, NotImplementedError):  # a file system without links
        _copy(place, temporary_name, name)
    return True


def _copy(place: OpenFolder, source_name: str, name: str) -> None:
    """Copies a file to a new name. A reader may see a part of it."""
    with (
        open(place.open(source_name, os.O_RDONLY), "rb") as source,
        open(place.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target,
    ):
        try:
            target.write(source.read())
            target.flush()
        except BaseException:  # a full disk
            with contextlib.suppress(OSError):
                place.remove(name)
            raise


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[OpenFolder]:
    with OpenFolder(folder, follows_link=False) as place:
        status = place.own_status()
        if status is not None:  # Windows has permissions of another kind
            _check_owner(status, str(folder))
        yield place


def _check_owner(status: os.stat_result, name: str) -> None:
    """Raises OSError if somebody else can write a file or a folder."""
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EINVAL, "it is neither a file nor a folder", name)
    if hasattr(os, "geteuid") and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
        raise OSError(errno.EPERM, "somebody else can write to it", name)
