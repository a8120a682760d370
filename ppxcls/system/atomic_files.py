"""Reads whole files up to a limit, and writes files whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

from ppxcls.system.open_folder import OpenFolder
from ppxcls.system.temporary_files import (
    UnsafeFileError,
    earlier_mode,
    new_temporary_file,
    remove_leftovers,
    temporary_name,
)

# A full disk, a full quota, a file that is too large, a failure of the disk, a file system that is read-only.
_WRITE_ERRORS = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG, errno.EIO, errno.EROFS)


@contextlib.contextmanager
def whole_file(
    file: Path, *, durable: bool = False, sweeps: bool = True, mode: int | None = None
) -> Iterator[BinaryIO]:
    """Opens a file that appears under its name when the block ends, and never if the block raises.

    This is for names that the package chooses, such as a result in a run's folder. A link of this name is
    replaced, and its target stays. Whoever else writes a file of this name, one of them is there whole in the
    end.

    Until then the file has a name that nobody can guess. What a killed process has left under such a name is
    removed by the next write of the same name.

    Args:
        file: final name.
        durable: True to write the data and the names in the folder to the disk before the file appears.
        sweeps: False to leave the files of killed processes. Listing the folder would take too long if
            thousands of files are written to it.
        mode: permissions; None for those of the file that is replaced, or those that the umask leaves.

    Raises:
        OSError: the file can't be written, or the name belongs to a folder, a pipe or a device. The error has
            the final name. Other errors of the block are not changed.
    """
    temporary = temporary_name(file.name)
    other_names = temporary, str(file.parent / temporary), file.name, str(file.parent)
    with named_errors(file, *other_names), OpenFolder(file.parent) as folder:
        replaced_mode = earlier_mode(folder, file.name)
        mode = replaced_mode if mode is None else mode
        if sweeps:
            remove_leftovers(folder, file.name)
        stream = new_temporary_file(folder, temporary, mode)
        try:
            with stream:
                yield stream
                stream.flush()
                if mode is not None and hasattr(os, "fchmod"):
                    with contextlib.suppress(OSError):  # a file system without permissions
                        os.fchmod(stream.fileno(), mode)
                if durable:
                    os.fsync(stream.fileno())
                    folder.sync()
                _check_unchanged(folder, temporary, stream)
                # While it is locked, no other process removes it. Windows and some network file systems
                # rename no open file.
                is_renamed = folder.can_replace(temporary, file.name)
            if not is_renamed:
                folder.replace(temporary, file.name)
        except BaseException:  # also Ctrl-C: only a killed process leaves the temporary file
            with contextlib.suppress(OSError):
                folder.remove(temporary)
            raise
        if durable:
            folder.sync()


def _check_unchanged(folder: OpenFolder, name: str, stream: BinaryIO) -> None:
    """Raises UnsafeFileError if another user has exchanged the temporary file."""
    status = folder.status(name)
    if status is None or not os.path.samestat(status, os.fstat(stream.fileno())):
        raise UnsafeFileError(errno.EAGAIN, "the file was exchanged while it was written", name)


@contextlib.contextmanager
def whole_output(file: Path) -> Iterator[BinaryIO]:
    """Opens a file that a user has named, such as with ``--output``; otherwise as ``whole_file``.

    A pipe or a device, such as ``/dev/stdout``, is written directly. If the name is a link to a file, that
    file is replaced.

    Raises:
        OSError: the file can't be written. The error has the name.
    """
    if is_special(file):
        # Appended, because standard output may be a regular file with other lines.
        with named_errors(file), open(file, "ab") as stream:
            yield stream
        return
    with whole_file(Path(os.path.realpath(file)) if file.is_symlink() else file) as stream:
        yield stream


@contextlib.contextmanager
def whole_text_file(file: Path) -> Iterator[TextIO]:
    """Opens a text file in UTF-8 that a user has named, as ``whole_output``.

    Raises:
        OSError: the file can't be written. The error has the name.
    """
    with whole_output(file) as stream:
        text_stream = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        yield text_stream
        text_stream.flush()
        text_stream.detach()  # otherwise it would close the file, which is not complete yet


@contextlib.contextmanager
def named_errors(file: Path, *other_names: str | Path) -> Iterator[None]:
    """Adds the name of a file to the errors of writing it. The system's errors of writing have no name.

    Other errors without a name are not changed. The block may also read from a store, whose connection can
    fail.

    Args:
        file: name to add.
        other_names: other names of the file, which are replaced in errors.
    """
    try:
        yield
    except OSError as error:
        is_nameless = error.errno in _WRITE_ERRORS and error.filename is None
        if not is_nameless and error.filename not in map(str, other_names):
            raise
        kind = UnsafeFileError if isinstance(error, UnsafeFileError) else OSError
        raise kind(error.errno, error.strerror, str(file)) from error


def check_own_names(folder: Path, names: Iterable[str]) -> None:
    """Checks before a long work that its results can be written under their names in a folder.

    Raises:
        OSError: a name belongs to a folder, a pipe or a device.
    """
    for name in sorted(names):
        with named_errors(folder / name, name), OpenFolder(folder) as open_folder:
            earlier_mode(open_folder, name)


def new_file(file: Path) -> BinaryIO:
    """Opens a new file for writing, under a fixed name. A file or a link of this name is removed first.

    Raises:
        OSError: the file can't be written, or the name belongs to a folder.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with named_errors(file, file.name), OpenFolder(file.parent) as folder:
        if folder.status(file.name) is not None:
            folder.remove(file.name)
        return open(folder.open(file.name, flags), "wb")


def is_special(file: Path) -> bool:
    """True if a name exists and is no regular file, or if it is the system's name of an open file.

    Replacing a device or a pipe would remove it. So would replacing ``/dev/stdout``, which is a link of the
    system even if standard output goes to a regular file.
    """
    try:
        if file.is_symlink():
            folder = os.path.realpath(file.parent)
            if folder == "/dev" or folder.startswith("/proc/"):
                return True
        return not stat.S_ISREG(os.stat(file).st_mode)
    except OSError:
        return False


def read_regular(file: str | Path, max_bytes: int, *, follows_links: bool = True) -> bytes:
    """Reads a whole regular file.

    A pipe or a device, which could block or never end, is refused before it is opened.

    Args:
        file: file to read. A link to a regular file is allowed.
        max_bytes: largest size in bytes.
        follows_links: False to refuse a link.

    Raises:
        OSError: the file can't be read.
        ValueError: it is not a regular file, or it is too large. The message does not contain the name.
    """
    check_regular(os.stat(file), max_bytes)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if not follows_links:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    with open(os.open(file, flags), "rb") as stream:
        # Checked again, because the file may have been replaced.
        status = os.fstat(stream.fileno())
        check_regular(status, max_bytes)
        return stream.read(status.st_size)  # with a size, because Python allocates that much memory


def read_inside(file: Path, folders: Sequence[Path], max_bytes: int) -> bytes:
    """Reads a whole regular file, if it lies in one of some folders after its links are resolved.

    Args:
        file: file to read.
        folders: folders that may contain the file. They may be links themselves.
        max_bytes: largest size in bytes.

    Raises:
        OSError: the file can't be read.
        ValueError: it is outside of the folders, not a regular file, or too large. The message does not
            contain the name.
    """
    place = os.path.realpath(file)
    if not is_inside(place, folders):
        raise ValueError("it is outside of its folder, or a link that leads out of it")
    return read_regular(place, max_bytes, follows_links=False)


def is_inside(file: str | Path, folders: Sequence[Path]) -> bool:
    """True if a file lies in one of some folders, after all links are resolved."""
    try:
        place = Path(os.path.realpath(file))
    except ValueError:  # a NUL in the name
        return False
    return any(Path(os.path.realpath(folder)) in place.parents for folder in folders)


def open_regular(file: Path) -> BinaryIO:
    """Opens a regular file for unbuffered reading. A pipe or a device is refused.

    Raises:
        OSError: the file can't be read, or it is not a regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    stream = open(os.open(file, flags), "rb", buffering=0)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "it is not a regular file", str(file))
    return stream


def reason_of(error: Exception) -> str:
    """Returns the reason why a file can't be used, without its path.

    It is the system's message, or else the error's own.
    """
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


def check_regular(status: os.stat_result, max_bytes: int) -> None:
    """Checks that a file can be read whole.

    Raises:
        ValueError: it is not a regular file, or it is too large. The message does not contain the name.
    """
    if stat.S_ISDIR(status.st_mode):
        raise ValueError("it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > max_bytes:
        raise ValueError(f"{status.st_size:,} bytes; the limit is {max_bytes:,}")


def write_bytes(file: Path, data: bytes, *, sweeps: bool = True) -> None:
    """Writes a file, whole or not at all, as ``whole_file``.

    Args:
        file: final name.
        data: content.
        sweeps: False to leave the files of killed processes; see ``whole_file``.

    Raises:
        OSError: the file can't be written.
    """
    with whole_file(file, sweeps=sweeps) as stream:
        stream.write(data)


def write_text(file: Path, text: str) -> None:
    """Writes a text as UTF-8, whole or not at all.

    Bytes that Python stores as surrogate escapes are written unchanged.

    Raises:
        OSError: the file can't be written.
    """
    write_bytes(file, text.encode("utf-8", "surrogateescape"))


def write_output(file: Path, text: str) -> None:
    """Writes a text to a file that a user has named, as ``whole_output``.

    Raises:
        OSError: the file can't be written.
    """
    with whole_output(file) as stream:
        stream.write(text.encode("utf-8", "surrogateescape"))


def sync_folder(folder: Path) -> None:
    """Writes the names in a folder to the disk, if the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
