"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
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


def write_text(file: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all. Bytes that Python reads as surrogate escapes are written unchanged.

    Raises:
        OSError: it can't be written.
    """
    with whole_file(file) as stream:
        stream.write(text.encode("utf-8", "surrogateescape"))


def sync_folder(folder: Path) -> None:
    """Write the names in a folder through to the disk, if the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
