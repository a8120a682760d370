"""A folder that is opened once, so that nobody can exchange it while a file in it is written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

# Windows has no descriptors of folders. Its names are used there.
_HAS_DESCRIPTORS = {os.open, os.stat, os.unlink, os.rename} <= os.supports_dir_fd
_FOLDER_FLAGS = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)


class OpenFolder:
    """Opens, renames and removes files of one folder.

    Another user may exchange a folder on its path for a link while a file is written. The file still gets its
    name in the folder that was opened.

    Args:
        path: path of the folder. Links above the folder are followed.
        follows_link: False to refuse a link to a folder.

    Raises:
        OSError: it is not a folder, or it can't be entered.
    """

    def __init__(self, path: Path, *, follows_link: bool = True) -> None:
        self._path = path
        flags = 0 if follows_link else getattr(os, "O_NOFOLLOW", 0)
        self._descriptor: int | None = None
        if _HAS_DESCRIPTORS:
            # O_PATH also opens a folder with names that this user may use but not list.
            self._descriptor = os.open(path, flags | _FOLDER_FLAGS | getattr(os, "O_PATH", os.O_RDONLY))

    def __enter__(self) -> OpenFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def open(self, name: str, flags: int, mode: int = 0o666) -> int:
        """Opens a file and returns its descriptor, as ``os.open``. A link is refused.

        Args:
            name: name in the folder.
            flags: flags of ``os.open``.
            mode: permissions of a new file. The umask removes some of them.

        Raises:
            OSError: the file can't be opened, or it is a link.
        """
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        return os.open(self._place(name), flags, mode, dir_fd=self._descriptor)

    def replace(self, source: str, target: str) -> None:
        """Gives a file another name, and removes the file that had it. A link is replaced by the file.

        Raises:
            OSError: the file can't be renamed.
        """
        os.replace(
            self._place(source),
            self._place(target),
            src_dir_fd=self._descriptor,
            dst_dir_fd=self._descriptor,
        )

    def link(self, source: str, target: str) -> None:
        """Gives a file a second name.

        Raises:
            FileExistsError: there is a file of this name.
            OSError, NotImplementedError: the file system or the system has no such links.
        """
        os.link(
            self._place(source),
            self._place(target),
            src_dir_fd=self._descriptor,
            dst_dir_fd=self._descriptor,
        )

    def can_replace(self, source: str, target: str) -> bool:
        """Tries ``replace``, and returns False if it fails."""
        try:
            self.replace(source, target)
        except OSError:
            return False
        return True

    def remove(self, name: str) -> None:
        """Removes a file or a link.

        Raises:
            OSError: it can't be removed.
        """
        os.unlink(self._place(name), dir_fd=self._descriptor)

    def status(self, name: str) -> os.stat_result | None:
        """Returns the status of a file or a link itself; None if there is none of this name.

        Raises:
            OSError: the status can't be read.
        """
        try:
            return os.stat(self._place(name), dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def own_status(self) -> os.stat_result | None:
        """Returns the status of the folder itself; None on a system without descriptors of folders."""
        return None if self._descriptor is None else os.fstat(self._descriptor)

    def names(self) -> list[str]:
        """Returns the names in the folder; none if they can't be listed."""
        with contextlib.suppress(OSError), self._readable() as descriptor:
            return os.listdir(self._path if descriptor is None else descriptor)
        return []

    def sync(self) -> None:
        """Writes the names in the folder to the disk, if the file system can."""
        with contextlib.suppress(OSError), self._readable() as descriptor:
            if descriptor is not None:
                os.fsync(descriptor)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[int | None]:
        """Opens the folder to read its names; None on a system without descriptors of folders."""
        if self._descriptor is None:
            yield None
            return
        descriptor = os.open(".", _FOLDER_FLAGS | os.O_RDONLY, dir_fd=self._descriptor)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _place(self, name: str) -> str:
        return name if self._descriptor is not None else os.path.join(self._path, name)
