"""Finds the images below a folder, and counts by reason what it skips."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ppxcls.data.errors import DataError
from ppxcls.system.whole_files import reason_of

# In lower case; what decode_image reads.
IMAGE_EXTENSIONS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
}
_HIDDEN = {"__MACOSX", "$RECYCLE.BIN", "System Volume Information"}
_OTHER = "not images"
_SHOWN_EXTENSIONS = 8
Identity = tuple[int, int]


@dataclass
class ImageFiles:
    """The images below a folder.

    Attributes:
        files: paths relative to the folder, sorted.
        skipped: number of files and folders that were left out, by reason.
        others: extensions of the files that are no images.
    """

    files: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    others: set[str] = field(default_factory=set)

    def add(self, other: ImageFiles, below: str) -> list[str]:
        """Add what was found in a folder below this one; returns its files with their paths from here."""
        added = [f"{below}/{file}" for file in other.files]
        self.files += added
        self.skipped += other.skipped
        self.others |= other.others
        return added

    def skipped_line(self) -> str:
        """One line that counts by reason what was skipped."""
        shown = [f"{count:,} {reason}" for reason, count in sorted(self.skipped.items()) if count]
        if self.others:
            extensions = sorted(self.others)
            listed = ", ".join(extensions[:_SHOWN_EXTENSIONS]) + (
                ", ..." if len(extensions) > _SHOWN_EXTENSIONS else ""
            )
            shown = [text.replace(_OTHER, f"{_OTHER} ({listed})") for text in shown]
        return f"skipped: {', '.join(shown) or 'nothing'}"


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name was put there by an operating system or an editor."""
    return name.startswith(".") or name in _HIDDEN


def find_image_files(folder: str | Path) -> ImageFiles:
    """All images below a folder. Links are followed, except to a folder that they lie in.

    Raises:
        DataError: there is no such folder, or it can't be read.
    """
    found = ImageFiles()
    try:
        waiting = [(str(folder), "", lies_in(folder))]
        os.listdir(folder)
    except OSError as error:
        raise DataError(f"{folder}: {reason_of(error)}") from None
    while waiting:
        path, below, inside = waiting.pop()
        try:
            entries = list(os.scandir(path))
        except OSError:
            found.skipped["folders that can't be read"] += 1
            continue
        for entry in entries:
            name = f"{below}{entry.name}"
            if is_hidden(entry.name):
                found.skipped["hidden"] += 1
            elif os.path.isdir(entry):
                place = identity(entry)
                if place in inside:
                    found.skipped["links to a folder that they lie in"] += 1
                else:
                    waiting.append((entry.path, f"{name}/", inside | {place}))
            elif (reason := _reason_to_skip(entry)) is not None:
                found.skipped[reason] += 1
                if reason == _OTHER:
                    found.others.add(os.path.splitext(entry.name)[1].lower() or "no extension")
            else:
                found.files.append(name)
    found.files.sort()
    return found


def _reason_to_skip(entry: os.DirEntry[str]) -> str | None:
    """Why a file is not taken; None if it is."""
    if not os.path.isfile(entry):
        return "not regular files" if os.path.exists(entry) else "links that lead nowhere"
    return None if is_image_name(entry.name) else _OTHER


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return os.path.splitext(name)[1].strip().lower() in IMAGE_EXTENSIONS


def lies_in(folder: str | Path) -> frozenset[Identity]:
    """The folder, and those that it lies in, by its written and by its real path."""
    paths = [Path(os.path.abspath(folder)), Path(os.path.realpath(folder))]
    return frozenset(identity(above) for path in paths for above in (path, *path.parents))


def identity(folder: str | Path | os.DirEntry[str]) -> Identity:
    """What tells a folder from every other, by whatever path it is reached."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino
