"""Finds the files of a pattern such as ``photos/**/*.jpg``, and looks at a bounded number of names.

The functions of Python's ``glob`` can't be stopped: a pattern from a stranger's config can make them walk
through the whole disk, or through a folder such as ``/proc``, for hours.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import itertools
import os
import re
import time
from collections.abc import Callable

from ppxcls.system.errors import UserError

MAX_NAMES = 3_000_000  # ImageNet's training images are 1.3 million
_MAX_SECONDS = 30.0
_MAX_NAMES_OF_FIRST_FOLDER = 10_000  # while a config is loaded
_ANY_FOLDERS = "**"


class PatternError(UserError):
    """A pattern needs a look at too many names."""


def is_pattern(path: str) -> bool:
    """True if a path contains ``*``, ``?`` or ``[``."""
    return glob.has_magic(path)


def fixed_folder(pattern: str) -> str:
    """Returns the folder before the first part of a pattern that is no plain name; empty for no folder."""
    root, parts = _split(pattern)
    return os.path.join(root, *itertools.takewhile(lambda part: not is_pattern(part), parts))


def may_match(pattern: str) -> bool:
    """True if the folder before the first part with ``*`` exists and contains a name that this part matches.

    Nothing below that folder is looked at, and only its first names are.
    """
    _, parts = _split(pattern)
    first_part = next((part for part in parts if is_pattern(part)), "")
    try:
        with os.scandir(fixed_folder(pattern) or ".") as entries:
            names = (entry.name for entry in itertools.islice(entries, _MAX_NAMES_OF_FIRST_FOLDER))
            return any(map(_matcher("*" if first_part == _ANY_FOLDERS else first_part), names))
    except OSError:
        return False


def matching_files(pattern: str) -> list[str]:
    """Returns the sorted files that match a pattern, in which ``**`` stands for any number of folders.

    As in a shell, ``*`` matches no hidden name. Folders that can't be read are left out.

    Raises:
        PatternError: it would need a look at more than ``MAX_NAMES`` names, or too long.
    """
    root, parts = _split(pattern)
    names = _Names(pattern)
    files: set[str] = set()
    pending_places = [(root, tuple(parts))]
    while pending_places:
        folder, (part, *rest) = pending_places.pop()
        if part == _ANY_FOLDERS:
            pending_places += [(folder, tuple(rest or ["*"]))]
            pending_places += [
                (path, (part, *rest)) for path, is_folder in names.of(folder, "*") if is_folder
            ]
            continue
        if is_pattern(part):
            entries = names.of(folder, part)
        else:
            path = os.path.join(folder, part)
            entries = [(path, os.path.isdir(path))]
        if rest:
            pending_places += [(path, tuple(rest)) for path, is_folder in entries if is_folder]
        else:
            files.update(path for path, is_folder in entries if not is_folder and os.path.isfile(path))
    return sorted(files)


class _Names:
    """Lists folders, and counts the names.

    Args:
        pattern: pattern, for the message.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._count = 0
        self._end = time.monotonic() + _MAX_SECONDS
        self._last_folder: str | None = None
        self._last_entries: list[tuple[str, bool]] = []

    def of(self, folder: str, part: str) -> list[tuple[str, bool]]:
        """Returns the paths in a folder whose names match, with True for a folder."""
        if folder != self._last_folder:
            self._last_folder, self._last_entries = folder, []
            self._count += 1
            with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
                for entry in entries:
                    self._count_name()
                    self._last_entries.append((entry.name, entry.is_dir()))
        matches = _matcher(part)
        return [(os.path.join(folder, name), is_dir) for name, is_dir in self._last_entries if matches(name)]

    def _count_name(self) -> None:
        self._count += 1
        if self._count > MAX_NAMES or time.monotonic() > self._end:
            raise PatternError(
                f"{self._pattern}: no end after {self._count - 1:,} names; "
                "name a folder or a narrower pattern"
            )


def _matcher(part: str) -> Callable[[str], bool]:
    """Returns a function that tells if a name matches a part of a pattern."""
    expression = re.compile(fnmatch.translate(os.path.normcase(part)))
    shows_hidden = part.startswith(".")

    def matches(name: str) -> bool:
        is_shown = shows_hidden or not name.startswith(".")
        return is_shown and expression.match(os.path.normcase(name)) is not None

    return matches


def _split(pattern: str) -> tuple[str, list[str]]:
    """Returns the root of a pattern, which is empty for a relative one, and the parts below it."""
    drive, tail = os.path.splitdrive(pattern)
    separators = os.sep + (os.altsep or "")
    root = drive + (os.sep if tail[:1] and tail[0] in separators else "")
    return root, [part for part in re.split(f"[{re.escape(separators)}]", tail) if part]
