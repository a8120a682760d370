"""Checks that results can be written, before the work that produces them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ppxcls.system.atomic_files import is_special


def check_output_folder(folder: str | Path) -> None:
    """Checks that files can be written to a folder, which need not exist. Nothing is written.

    Raises:
        OSError: the folder can't be created or written to. The message names the folder that is in the way.
    """
    path = Path(os.path.abspath(folder))
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "expected a folder for the results", str(path))
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "nothing can be written to this folder", str(path))


def check_output_file(file: str | Path) -> None:
    """Checks that a file can be written, and creates its folder.

    A device or a pipe, such as ``/dev/stdout``, is written directly. Nothing is created in its folder, so
    that folder need not be writable.

    Raises:
        OSError: the file can't be written, or its folder can't be created.
    """
    file = Path(file)
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, "expected a file for the results, received a folder", str(file))
    if file.exists() and not os.access(file, os.W_OK):
        raise PermissionError(errno.EACCES, "the file can't be written", str(file))
    if is_special(file):
        return
    check_output_folder(file.parent)
    file.parent.mkdir(parents=True, exist_ok=True)
