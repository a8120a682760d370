"""Remembers the code that a user has agreed to run.

A config from somebody else can name a Python file. Importing the file would run the other person's program.
So a user gives the word once, for exactly this code: this file with this content. The record is outside of
all run folders, in the user's own state folder. The name of an entry is a digest of the path and a digest of
the content. So several processes can record at the same time.

The record also has the ``config.yaml`` of each run that this user has trained. It may name what the config of
somebody else's run may not; see ``values_of_runs``.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ppxcls.system import environment
from ppxcls.system.atomic_files import read_regular, reason_of
from ppxcls.system.logs import logger
from ppxcls.system.private_files import create_private, private_names, read_private, state_folder

MAX_CODE_BYTES = 16 << 20  # limit of a file with code
_FOLDER = "trusted"
_PATH_DIGITS = 32
_trusted_names: set[str] = set()  # entries of this process, for a user whose home can't be written


@dataclass(frozen=True)
class Code:
    """A file with a program. What is checked is also what runs, even if the file changes.

    Attributes:
        path: absolute path without symbolic links, or the name of a module that Python contains.
        data: content.
    """

    path: str
    data: bytes

    @property
    def entry(self) -> str:
        """Name of the entry in the record."""
        return f"{self._path_digest}-{hashlib.sha256(self.data).hexdigest()}"

    @property
    def is_trusted(self) -> bool:
        """True if the user has agreed to run exactly this code."""
        return self.entry in _trusted_names or _is_recorded(self.entry)

    @property
    def has_changed(self) -> bool:
        """True if the user has agreed to run the file with another content."""
        folder = _folder()
        names = private_names(folder) if folder else []
        return any(name.startswith(f"{self._path_digest}-") for name in [*names, *_trusted_names])

    @property
    def _path_digest(self) -> str:
        return hashlib.sha256(self.path.encode("utf-8", "surrogateescape")).hexdigest()[:_PATH_DIGITS]


def read_code(file: Path) -> Code:
    """Reads a file with a program.

    Raises:
        OSError, ValueError: the file can't be read, is not a regular file, or is too large.
    """
    path = file.resolve()
    return Code(str(path), read_regular(path, MAX_CODE_BYTES))


def config_codes(file: Path, text: str) -> tuple[Code, Code]:
    """Returns the ``config.yaml`` of a run as files to trust. Its values can name folders and addresses.

    Args:
        file: the file.
        text: its content.

    Returns:
        The file at its path, which may name folders to write to. Its text at any path, which may name
        addresses: a run that was moved reads the same data.
    """
    data = text.encode("utf-8", "surrogateescape")
    return Code(str(file.resolve()), data), Code("the config of a run", data)


def record_trust(codes: Sequence[Code], *, warns: bool = True) -> None:
    """Remembers that the user has agreed to run some code.

    If nothing can be recorded, the agreement holds for this process, and a warning is logged.

    Args:
        codes: files that the user trusts.
        warns: False for no warning, because few users would miss the record.
    """
    entries = {code.entry: code.path for code in codes if code.entry not in _trusted_names}
    _trusted_names.update(entries)
    folder = _folder()
    try:
        for entry, path in entries.items():
            if folder is None:
                raise OSError("the user has no home folder")
            if not _is_recorded(entry):
                create_private(folder, entry, f"{path}\n".encode("utf-8", "surrogateescape"))
    except OSError as error:
        if warns:
            _warn_once(str(folder or ""), reason_of(error))


def _folder() -> Path | None:
    folder = state_folder()
    return folder / _FOLDER if folder else None


def _is_recorded(entry: str) -> bool:
    folder = _folder()
    return folder is not None and read_private(folder, entry) is not None


@functools.cache
def _warn_once(folder: str, reason: str) -> None:
    if environment.launched_rank() == 0:
        place = f" in {folder}" if folder else ""
        logger.warning(
            f"that you trust these files can't be remembered{place}: {reason}; "
            "so the next command needs --trust too"
        )
