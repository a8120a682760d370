"""Storage of a packed data set: a folder, or an object store."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from ppxcls.data.errors import DataError
from ppxcls.packed.object_store import ObjectStore
from ppxcls.system.atomic_files import open_regular, reason_of
from ppxcls.system.own_folders import UnsafeFolderError, cache_folder, own_folder

_MAX_OPEN_FILES = 64


class Storage(Protocol):
    """Reads the files of a packed data set.

    Several threads call it at the same time. Errors of the store are raised as OSError.
    """

    def small(self, name: str, *, sha256: str | None = None, max_bytes: int) -> Path:
        """Returns a manifest, list or index as a file of this host.

        Args:
            name: file name.
            sha256: expected SHA-256 of a copy; None for no check.
            max_bytes: largest size of a copy in bytes.
        """

    def expect(self, shards: Mapping[str, tuple[int, str]]) -> None:
        """Stores the shards' sizes in bytes and their SHA-256, by file name.

        Raises:
            DataError: the cache is too small for the largest shard.
        """

    def size(self, name: str) -> int:
        """Returns the size of a shard in bytes."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Returns bytes of a shard, fewer if it ends earlier."""

    def announce(self, parts: Iterable[tuple[str, int, int]]) -> None:
        """Announces parts (name, offset, size) that will be read soon."""

    def forget(self, name: str) -> None:
        """Removes the copy of a shard, because it is damaged."""


class Folder:
    """A folder of this host, or of a network file system.

    Args:
        folder: folder of the data set.
        open_files: maximum number of shards that stay open.
    """

    def __init__(self, folder: Path, open_files: int = _MAX_OPEN_FILES) -> None:
        self._folder = folder
        self._max_open_files = open_files
        self._files: OrderedDict[str, BinaryIO] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Folder], tuple[Path, int]]:
        """Another process opens the files by itself."""
        return Folder, (self._folder.absolute(), self._max_open_files)

    def small(self, name: str, *, sha256: str | None = None, max_bytes: int) -> Path:  # noqa: ARG002
        """Returns the file in the folder; it is not copied."""
        return self._folder / name

    def forget(self, name: str) -> None:
        """Does nothing, because nothing is copied."""

    def expect(self, shards: Mapping[str, tuple[int, str]]) -> None:
        """Does nothing, because nothing is copied."""

    def size(self, name: str) -> int:
        """Returns the size of a shard in bytes."""
        return (self._folder / name).stat().st_size

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Returns bytes of a shard."""
        if not hasattr(os, "pread"):  # Windows
            with open(self._folder / name, "rb") as stream:
                stream.seek(offset)
                return stream.read(size)
        file = self._open(name)
        data = os.pread(file.fileno(), size, offset)
        while len(data) < size and (rest := os.pread(file.fileno(), size - len(data), offset + len(data))):
            data += rest
        return data

    def _open(self, name: str) -> BinaryIO:
        """Returns an open file. It closes itself when this table and all reading threads have dropped it."""
        with self._lock:
            file = self._files.get(name)
            if file is None:
                file = self._files[name] = open_regular(self._folder / name)
            self._files.move_to_end(name)
            if len(self._files) > self._max_open_files:
                self._files.popitem(last=False)
        return file

    def announce(self, parts: Iterable[tuple[str, int, int]]) -> None:
        """Asks the operating system to read the parts into its memory."""
        if hasattr(os, "posix_fadvise"):
            for name, offset, size in parts:
                with contextlib.suppress(OSError):  # ``read`` reports the error later
                    os.posix_fadvise(self._open(name).fileno(), offset, size, os.POSIX_FADV_WILLNEED)


def is_url(place: str) -> bool:
    """True if a place is in an object store, not a folder of this host."""
    return "://" in place


def storage_of(place: str, cache: str | None, cache_gb: float | None) -> Storage:
    """Returns the storage of a folder or a URL.

    Raises:
        DataError: fsspec, or its package for this kind of store, is not installed, the URL is invalid, or
            there is no folder for copies that only this user can change.
    """
    if not is_url(place):
        return Folder(Path(place))
    folder = _chosen_folder(cache) if cache else cache_folder("packs")
    if folder is None:
        raise DataError(f"{place}: expected a cache_dir that can be written to, for copies of its files")
    return ObjectStore(place.rstrip("/"), folder, None if cache_gb is None else int(cache_gb * 1e9))


def _chosen_folder(cache: str) -> Path:
    """Returns the folder that a user has named for copies. Another one would silently fill another disk.

    Raises:
        DataError: it can't be written to, or another user could change its files.
    """
    try:
        return own_folder(cache)
    except UnsafeFolderError as error:
        raise DataError(
            f"cache_dir {cache}: {error}; name a folder that only you can change. "
            "To share copies with others, copy the data set to a folder and name that as pack"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cache_dir {cache}: {reason_of(error)}") from None
