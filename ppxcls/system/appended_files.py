"""Opens files of a run to append to them, such as its log, never through a link that leads out."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from ppxcls.system.atomic_files import named_errors, read_regular, write_bytes
from ppxcls.system.open_folder import OpenFolder
from ppxcls.system.temporary_files import UnsafeFileError, earlier_mode, kind_in_words

_MAX_APPENDED_BYTES = 1 << 32  # largest file with two names that is copied before lines are appended


def append_descriptor(file: Path) -> int:
    """Opens a file of a run to append to it, such as a log; returns the descriptor.

    A link is followed only to a file in the same folder. A file with a second name, such as in a copy of the
    folder that was made with hard links, is copied first, so that the other name keeps its content.

    Raises:
        UnsafeFileError: the name is a link out of the folder, or no regular file, or somebody else's file in
            a folder such as ``/tmp``.
        OSError: the file can't be opened.
    """
    return _own_descriptor(file, os.O_APPEND)


def change_descriptor(file: Path) -> int:
    """Opens a file to change it, as ``append_descriptor``, at its beginning.

    Raises:
        UnsafeFileError, OSError: as ``append_descriptor``.
    """
    return _own_descriptor(file, 0)


def _own_descriptor(file: Path, extra_flags: int) -> int:
    place = _link_target(file) if file.is_symlink() else file
    with named_errors(file, place.name), OpenFolder(place.parent) as folder:
        descriptor = _open(folder, place.name, extra_flags)
        status = os.fstat(descriptor)
        if (problem := _append_problem(status, place)) is not None:
            os.close(descriptor)
            raise UnsafeFileError(errno.EINVAL, problem, str(file))
    if status.st_nlink <= 1:
        return descriptor
    os.close(descriptor)
    write_bytes(place, read_regular(place, _MAX_APPENDED_BYTES))
    with named_errors(file, place.name), OpenFolder(place.parent) as folder:
        return _open(folder, place.name, extra_flags)


def _open(folder: OpenFolder, name: str, extra_flags: int) -> int:
    earlier_mode(folder, name)  # opening a device can have effects
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | extra_flags
    return folder.open(name, flags)


def _append_problem(status: os.stat_result, file: Path) -> str | None:
    """Returns why an open file must not be appended to; None if it may be."""
    if not stat.S_ISREG(status.st_mode):
        return f"expected a file, found {kind_in_words(status)}"
    if hasattr(os, "geteuid"):
        folder_status = os.stat(file.parent)
        # Without the sticky bit, everybody could exchange the file anyway.
        is_shared = folder_status.st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH | stat.S_ISVTX
        if is_shared and status.st_uid not in (os.geteuid(), folder_status.st_uid):
            return "the file of another user, in a folder such as /tmp to which everybody can write"
    return None


def _link_target(link: Path) -> Path:
    """Returns the file in the same folder to which a link leads. Raises UnsafeFileError if it leads out."""
    target = Path(os.path.realpath(link))
    if Path(os.path.realpath(link.parent)) not in target.parents:
        raise UnsafeFileError(errno.ELOOP, "a link out of its folder; remove it", str(link))
    return target


def make_own_folder(folder: Path) -> None:
    """Creates a subfolder for files of this package, unless it exists. A link of this name is refused.

    Raises:
        UnsafeFileError: the name is a link out of the folder that contains it.
        OSError: the folder can't be created.
    """
    refuse_link_out(folder)
    folder.mkdir(parents=True, exist_ok=True)


def refuse_link_out(place: Path) -> None:
    """Refuses a link that leads out of the folder that contains it.

    Raises:
        UnsafeFileError: the place is such a link.
    """
    if place.is_symlink():
        _link_target(place)
