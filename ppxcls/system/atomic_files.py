"""Reads whole files up to a limit, and writes files whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def whole_file(file: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Opens a file that appears under its name when the block ends, and never if the block raises.

    Until then its name has the additional extension ``.new``.

    Args:
        file: final name.
        durable: True to write the data and the names in the folder to the disk before the file appears.

    Raises:
        OSError: the file can't be written.
    """
    temporary_file = file.with_name(file.name + ".new")
    try:
        with open(temporary_file, "wb") as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        if durable:
            sync_folder(file.parent)
        os.replace(temporary_file, file)
    except Exception:  # only a killed process leaves the temporary file
        with contextlib.suppress(OSError):
            temporary_file.unlink()
        raise
    if durable:
        sync_folder(file.parent)


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
