"""Lets one ``fit`` at a time work in an output folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ppxcls.data.errors import DataError
from ppxcls.system.file_lock import LockedError, locked

_FILE = "fit.lock"


@contextlib.contextmanager
def only_fit_in(output: Path) -> Iterator[None]:
    """Runs a block while no other ``fit`` of this host works in a folder, if the file system has locks.

    Args:
        output: folder of the results. It is created. If nothing else is in it after the block, it is removed.

    Raises:
        DataError: another ``fit`` works there.
        OSError: the folder can't be created.
    """
    new_folders = [folder for folder in (output, *output.parents) if not folder.exists()]
    output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(output / _FILE, waits=False))
        except LockedError:
            raise DataError(
                f"{output}: another fit is running there; wait until it ends, or give another --output"
            ) from None
        try:
            yield
        finally:
            _remove_if_unused(output, new_folders)


def _remove_if_unused(output: Path, new_folders: list[Path]) -> None:
    """Removes the lock and the new folders if nothing was written, such as after a refused argument."""
    with contextlib.suppress(OSError):
        if [entry.name for entry in output.iterdir()] == [_FILE]:
            (output / _FILE).unlink()
        for folder in new_folders:
            folder.rmdir()
