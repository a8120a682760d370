"""Files that are read whole within a limit, and written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def whole_file(file: Path, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a file that appears under its name when the block ends, and never if the block raises.

    Until then it has the additional extension ``.new``.

    Args:
        file: the name.
        durable: before it appears, write it and the names in its folder through to the disk.

    Raises:
        OSError: it can't be written.
    """
    temporary = file.with_name(file.name + ".new")
    try:
        with open(temporary, "wb") as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        if durable:
            sync_folder(file.parent)
        os.replace(temporary, file)
    except Exception:  # a killed process leaves it behind
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        sync_folder(file.parent)


def read_regular(file: str | Path, most_bytes: int) -> bytes:
    """Read a whole regular file.

    A pipe or a device, which could block or never end, is refused before it is opened.

    Args:
        file: the file; a link to a regular file is one.
        most_bytes: limit of its size.

    Raises:
        OSError: it can't be read.
        ValueError: it is no regular file, or larger. The message has no name.
    """
    _check_regular(os.stat(file), most_bytes)
    with open(
        os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb"
    ) as stream:  # it may have been replaced meanwhile
        status = os.fstat(stream.fileno())
        _check_regular(status, most_bytes)
        return stream.read(status.st_size)  # with a size, because Python reserves as much


def open_regular(file: Path) -> BinaryIO:
    """Open a regular file to read it without a buffer. A pipe or a device is refused.

    Raises:
        OSError: it can't be read, or it is no regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    stream = open(os.open(file, flags), "rb", buffering=0)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "it is no regular file", str(file))
    return stream


def reason_of(error: Exception) -> str:
    """Why a file can't be used: the system's words without the path, or else the message of the error."""
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


def _check_regular(status: os.stat_result, most_bytes: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ValueError("it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    if status.st_size > most_bytes:
        raise ValueError(f"{status.st_size:,} bytes; such a file may have {most_bytes:,}")


def write_bytes(file: Path, data: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        OSError: it can't be written.
    """
    with whole_file(file) as stream:
        stream.write(data)


def write_text(file: Path, text: str) -> None:
    """The same with a text in UTF-8. Bytes that Python reads as surrogate escapes are written unchanged.

    Raises:
        OSError: it can't be written.
    """
    write_bytes(file, text.encode("utf-8", "surrogateescape"))


def sync_folder(folder: Path) -> None:
    """Write the names in a folder through to the disk, if the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
