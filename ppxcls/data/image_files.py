"""Finds the images below a folder, and counts the skipped files by reason."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ppxcls.data.decode import can_read_heic
from ppxcls.data.errors import DataError
from ppxcls.system.atomic_files import reason_of
from ppxcls.system.file_kinds import HEIF_HINT

# Extensions of the formats that decode_image reads, in lower case.
IMAGE_EXTENSIONS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
}
HEIC_EXTENSIONS = {".heic", ".heif", ".hif"}  # decode_image reads them if pillow-heif is installed
_HIDDEN_NAMES = {"__MACOSX", "$RECYCLE.BIN", "System Volume Information"}
_NO_IMAGE_REASON = "not images"
_MAX_SHOWN_EXTENSIONS = 8
Identity = tuple[int, int]


@dataclass
class ImageFiles:
    """The images below a folder.

    Attributes:
        files: paths relative to the folder, sorted.
        skip_counts: numbers of skipped files and folders, by reason.
        other_extensions: extensions of the files that are not images.
    """

    files: list[str] = field(default_factory=list)
    skip_counts: Counter[str] = field(default_factory=Counter)
    other_extensions: set[str] = field(default_factory=set)

    def add(self, images: ImageFiles, subfolder: str) -> list[str]:
        """Adds the images of a subfolder, and returns their paths relative to this folder."""
        paths = [f"{subfolder}/{file}" for file in images.files]
        self.files += paths
        self.skip_counts += images.skip_counts
        self.other_extensions |= images.other_extensions
        return paths

    def skipped_line(self) -> str:
        """Returns one line with the numbers of skipped files and folders, by reason."""
        counts = [f"{count:,} {reason}" for reason, count in sorted(self.skip_counts.items()) if count]
        if self.other_extensions:
            extensions = sorted(self.other_extensions)
            extension_text = ", ".join(extensions[:_MAX_SHOWN_EXTENSIONS])
            extension_text += ", ..." if len(extensions) > _MAX_SHOWN_EXTENSIONS else ""
            counts = [
                text.replace(_NO_IMAGE_REASON, f"{_NO_IMAGE_REASON} ({extension_text})") for text in counts
            ]
        return f"skipped: {', '.join(counts) or 'nothing'}"


def is_hidden(name: str) -> bool:
    """True if a file or folder of this name is created by an operating system or an editor."""
    return name.startswith(".") or name in _HIDDEN_NAMES


def find_image_files(folder: str | Path) -> ImageFiles:
    """Finds all images below a folder.

    Links are followed, except links to a folder that contains them.

    Raises:
        DataError: the folder does not exist, or can't be read.
    """
    images = ImageFiles()
    try:
        pending_folders = [(str(folder), "", ancestor_ids(folder))]
        os.listdir(folder)
    except OSError as error:
        raise DataError(f"{folder}: {reason_of(error)}") from None
    while pending_folders:
        path, prefix, ancestors = pending_folders.pop()
        try:
            entries = list(os.scandir(path))
        except OSError:
            images.skip_counts["folders that can't be read"] += 1
            continue
        for entry in entries:
            relative_path = f"{prefix}{entry.name}"
            if is_hidden(entry.name):
                images.skip_counts["hidden"] += 1
            elif os.path.isdir(entry):
                folder_id = identify_folder(entry)
                if folder_id in ancestors:
                    images.skip_counts["links to a folder that contains them"] += 1
                else:
                    pending_folders.append((entry.path, f"{relative_path}/", ancestors | {folder_id}))
            elif (reason := _reason_to_skip(entry)) is not None:
                images.skip_counts[reason] += 1
                if reason == _NO_IMAGE_REASON:
                    images.other_extensions.add(os.path.splitext(entry.name)[1].lower() or "no extension")
            else:
                images.files.append(relative_path)
    images.files.sort()
    return images


def _reason_to_skip(entry: os.DirEntry[str]) -> str | None:
    """Returns the reason to skip a file; None if it is an image."""
    if not os.path.isfile(entry):
        return "not regular files" if os.path.exists(entry) else "broken links"
    if _extension(entry.name) in HEIC_EXTENSIONS and not can_read_heic():
        return f"HEIC images, which need pillow-heif ({HEIF_HINT})"
    return None if is_image_name(entry.name) else _NO_IMAGE_REASON


def is_image_name(name: str) -> bool:
    """True if a file of this name is treated as an image."""
    extension = _extension(name)
    return extension in IMAGE_EXTENSIONS or (extension in HEIC_EXTENSIONS and can_read_heic())


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].strip().lower()


def ancestor_ids(folder: str | Path) -> frozenset[Identity]:
    """Returns the identities of the folder and of its parents, by the path as given and by the real path."""
    paths = [Path(os.path.abspath(folder)), Path(os.path.realpath(folder))]
    return frozenset(identify_folder(ancestor) for path in paths for ancestor in (path, *path.parents))


def identify_folder(folder: str | Path | os.DirEntry[str]) -> Identity:
    """Returns device and inode, which identify the folder for every path that leads to it."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino
