"""Reads whole files up to a limit, and writes files whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

# A full disk, a full quota, a file that is too large, a failure of the disk, a file system that is read-only.
_WRITE_ERRORS = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG, errno.EIO, errno.EROFS)


@contextlib.contextmanager
def whole_file(file: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Opens a file that appears under its name when the block ends, and never if the block raises.

    Until then its name has the additional extension ``.new``. A pipe or a device, such as ``/dev/stdout``, is
    written directly.

    Args:
        file: final name.
        durable: True to write the data and the names in the folder to the disk before the file appears.

    Raises:
        OSError: the file can't be written. The error has the final name. Other errors of the block are not
            changed.
    """
    if is_special(file):
        # Appended, because standard output may be a regular file with other lines.
        with named_errors(file), open(file, "ab") as stream:
            yield stream
        return
    temporary_file = file.with_name(file.name + ".new")
    with named_errors(file, temporary_file):
        try:
            with open(temporary_file, "wb") as stream:
                yield stream
                if durable:
                    stream.flush()
                    os.fsync(stream.fileno())
            if durable:
                sync_folder(file.parent)
            os.replace(temporary_file, file)
        except BaseException:  # also Ctrl-C: only a killed process leaves the temporary file
            with contextlib.suppress(OSError):
                temporary_file.unlink()
            raise
    if durable:
        sync_folder(file.parent)


@contextlib.contextmanager
def whole_text_file(file: Path) -> Iterator[TextIO]:
    """Opens a text file in UTF-8 that appears whole or not at all, as ``whole_file``.

    If the name is a link to a file, that file is replaced.

    Raises:
        OSError: the file can't be written. The error has the name.
    """
    is_link = file.is_symlink() and not is_special(file)
    with whole_file(Path(os.path.realpath(file)) if is_link else file) as stream:
        text_stream = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        yield text_stream
        text_stream.flush()
        text_stream.detach()  # otherwise it would close the file, which is not complete yet


@contextlib.contextmanager
def named_errors(file: Path, temporary_file: Path | None = None) -> Iterator[None]:
    """Adds the name of a file to the errors of writing it. The system's errors of writing have no name.

    Other errors without a name are not changed. The block may also read from a store, whose connection can
    fail.

    Args:
        file: name to add.
        temporary_file: other name of the file, which is replaced in errors.
    """
    try:
        yield
    except OSError as error:
        is_nameless = error.errno in _WRITE_ERRORS and error.filename is None
        if not is_nameless and (temporary_file is None or error.filename != str(temporary_file)):
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error


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


def read_regular(file: str | Path, max_bytes: int) -> bytes:
    """Reads a whole regular file.

    A pipe or a device, which could block or never end, is refused before it is opened.

    Args:
        file: file to read. A link to a regular file is allowed.
        max_bytes: largest size in bytes.

    Raises:
        OSError: the file can't be read.
        ValueError: it is not a regular file, or it is too large. The message does not contain the name.
    """
    _check_regular(os.stat(file), max_bytes)
    with open(os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as stream:
        # Checked again, because the file may have been replaced.
        status = os.fstat(stream.fileno())
        _check_regular(status, max_bytes)
        return stream.read(status.st_size)  # with a size, because Python allocates that much memory


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


def _check_regular(status: os.stat_result, max_bytes: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ValueError("it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > max_bytes:
        raise ValueError(f"{status.st_size:,} bytes; the limit is {max_bytes:,}")


def write_bytes(file: Path, data: bytes) -> None:
    """Writes a file, whole or not at all.

    Raises:
        OSError: the file can't be written.
    """
    with whole_file(file) as stream:
        stream.write(data)


def write_text(file: Path, text: str) -> None:
    """Writes a text as UTF-8, whole or not at all.

    Bytes that Python stores as surrogate escapes are written unchanged.

    Raises:
        OSError: the file can't be written.
    """
    write_bytes(file, text.encode("utf-8", "surrogateescape"))


def sync_folder(folder: Path) -> None:
    """Writes the names in a folder to the disk, if the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
