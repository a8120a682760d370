"""Small files of this user, which nobody else can write: what the user trusts, and the key of a job."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

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
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(place.path(temporary_name), flags, 0o600, dir_fd=place.descriptor)
        try:
            _write(descriptor, data)
            return place.publish(temporary_name, name)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(place.path(temporary_name), dir_fd=place.descriptor)


def _write(descriptor: int, data: bytes) -> None:
    with open(descriptor, "wb") as stream:
        stream.write(data)


def read_private(folder: Path, name: str) -> bytes | None:
    """Returns the content of a file; None if it can't be read, or if somebody else could have written it."""
    try:
        with _opened(folder) as place:
            flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            with open(os.open(place.path(name), flags, dir_fd=place.descriptor), "rb") as stream:
                _check_owner(os.fstat(stream.fileno()), name)
                return stream.read(_MAX_BYTES)
    except (OSError, ValueError):
        return None


def private_names(folder: Path) -> list[str]:
    """Returns the names in a folder; empty if it can't be read, or if it is not only this user's."""
    try:
        with _opened(folder) as place:
            return os.listdir(place.folder if place.descriptor is None else place.descriptor)
    except OSError:
        return []


class _Place:
    """A folder that is open, so that it can't be replaced between two calls.

    Args:
        folder: folder.
        descriptor: its descriptor; None if the system has none for folders.
    """

    def __init__(self, folder: Path, descriptor: int | None) -> None:
        self.folder = folder
        self.descriptor = descriptor

    def path(self, name: str) -> str:
        """Returns the path of a file for calls that take the descriptor too."""
        return str(self.folder / name) if self.descriptor is None else name

    def publish(self, temporary_name: str, name: str) -> bool:
        """Gives a file its name, whole. Returns False if there is such a file already."""
        old_path, new_path = self.path(temporary_name), self.path(name)
        try:
            os.link(old_path, new_path, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        except FileExistsError:
            return False
        except (OSError, NotImplementedError):  # a file system without links
            self._copy(old_path, new_path)
        return True

    def _copy(self, old_path: str, new_path: str) -> None:
        """Copies a file to a new name. A reader may see a part of it."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with (
            open(os.open(old_path, os.O_RDONLY, dir_fd=self.descriptor), "rb") as source,
            open(os.open(new_path, flags, 0o600, dir_fd=self.descriptor), "wb") as target,
        ):
            try:
                target.write(source.read())
                target.flush()
            except BaseException:  # a full disk
                with contextlib.suppress(OSError):
                    os.unlink(new_path, dir_fd=self.descriptor)
                raise


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[_Place]:
    # Windows has permissions of another kind.
    if os.open not in os.supports_dir_fd or not hasattr(os, "O_DIRECTORY"):
        yield _Place(folder, None)
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | getattr(os, "O_NOFOLLOW", 0))
    try:
        _check_owner(os.fstat(descriptor), str(folder))
        yield _Place(folder, descriptor)
    finally:
        os.close(descriptor)


def _check_owner(status: os.stat_result, name: str) -> None:
    """Raises OSError if somebody else can write a file or a folder."""
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EINVAL, "it is neither a file nor a folder", name)
    if hasattr(os, "geteuid") and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
        raise OSError(errno.EPERM, "somebody else can write to it", name)
