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
            # Removed folders: nothing was written, such as after a refused argument.
            stack.callback(_remove_empty, new_folders)
            stack.enter_context(locked(output / _FILE, waits=False, is_kept=False))
        except LockedError as error:
            reason = f"{output}: another fit is running there"
            if error.owner:
                reason = f"{error}, whose fit is running there"
            raise DataError(f"{reason}; wait until it ends, or give another --output") from None
        yield


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
