"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def whole_file(file: Path, durable: bool = False) -> Iterator[BinaryIO]:
    """A file to write to that appears under its name when the block ends, and not at all if the block raises.

    Until then it is beside it with the extension ``.new``.

    Args:
        durable: it is on the disk, with everything written in its folder before, when it appears.

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
    except Exception:  # a process that is killed leaves it
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        sync_folder(file.parent)


def write_text(file: Path, text: str) -> None:
    """Write a text whole or not at all, in UTF-8; bytes that were no UTF-8 when they were read are written as they were.

    Raises:
        OSError: it can't be written.
    """
    with whole_file(file) as stream:
        stream.write(text.encode("utf-8", "surrogateescape"))


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, if the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
