"""Where the files of a packed data set lie: in a folder, or in an object store that fsspec reads, with a bounded cache."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Protocol

from ppxcls.data.errors import DataError
from ppxcls.system.turns import turn
from ppxcls.system.whole_files import open_regular, reason_of, whole_file

_OPEN_FILES = 64
_BLOCK = 1 << 22
_DOWNLOADS = 2  # at a time
_WAITING = 8  # downloads that are asked for ahead


class Storage(Protocol):
    """Reads the files of a packed data set. Several threads call it at once."""

    def small(self, name: str) -> Path:
        """A manifest, list or index, as a file of this host.

        Raises:
            DataError: it can't be read.
        """

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a shard; fewer if it ends before.

        Raises:
            OSError: it can't be read.
        """

    def size(self, name: str) -> int:
        """Bytes of a shard.

        Raises:
            OSError: there is none.
        """

    def announce(self, parts: Iterable[tuple[str, int, int]]) -> None:
        """Parts (name, offset, size) that are read soon."""


class Folder:
    """A folder of this host, or of a network file system.

    Args:
        folder: the data set.
        open_files: shards that stay open.
    """

    def __init__(self, folder: Path, open_files: int = _OPEN_FILES) -> None:
        self._folder = folder
        self._open_files = open_files
        self._files: OrderedDict[str, BinaryIO] = OrderedDict()
        self._lock = threading.Lock()

    def small(self, name: str) -> Path:
        """The file."""
        return self._folder / name

    def size(self, name: str) -> int:
        """Bytes of a shard."""
        return (self._folder / name).stat().st_size

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a shard."""
        if not hasattr(os, "pread"):  # Windows
            with open(self._folder / name, "rb") as stream:
                stream.seek(offset)
                return stream.read(size)
        file = self._open(name)
        data = os.pread(file.fileno(), size, offset)
        while len(data) < size and (more := os.pread(file.fileno(), size - len(data), offset + len(data))):
            data += more
        return data

    def _open(self, name: str) -> BinaryIO:
        """A file; it closes itself when neither this table nor a reading thread has it."""
        with self._lock:
            file = self._files.get(name)
            if file is None:
                file = self._files[name] = open_regular(self._folder / name)
            self._files.move_to_end(name)
            if len(self._files) > self._open_files:
                self._files.popitem(last=False)
        return file

    def announce(self, parts: Iterable[tuple[str, int, int]]) -> None:
        """Ask the system to read the parts into its memory."""
        if hasattr(os, "posix_fadvise"):
            for name, offset, size in parts:
                with contextlib.suppress(OSError):  # the reading itself says what is wrong
                    os.posix_fadvise(self._open(name).fileno(), offset, size, os.POSIX_FADV_WILLNEED)


class ObjectStore:
    """A folder in an object store, such as ``s3://bucket/imagenet``.

    Manifest, list and indices are copied to the cache folder. The records of a shard are read one by one, or the whole shard is
    copied when its first record is needed. Then the shards that were used last stay, up to the cache's size, besides
    those that are being copied. The processes of a host share the folder, and each shard is copied once.

    Args:
        url: of the data set.
        cache: folder of the copies.
        cache_bytes: that the shards may take there; None reads records one by one.

    Raises:
        DataError: fsspec, or its part for this kind of store, is not installed.
    """

    def __init__(self, url: str, cache: Path, cache_bytes: int | None) -> None:
        try:
            import fsspec
        except ImportError:
            raise DataError(f"{url}: reading from an object store needs the package fsspec") from None
        try:
            self._system, self._path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise DataError(f"{url}: {error}") from None
        self._url, self._cache_bytes = url, cache_bytes
        self._folder = cache / hashlib.sha256(url.encode()).hexdigest()[:16]
        self._copies = Folder(self._folder, open_files=0)  # an open file would take its room also when it is removed
        self._pool = ThreadPoolExecutor(_DOWNLOADS, thread_name_prefix="ppxcls-shards")
        self._asked: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def small(self, name: str) -> Path:
        """A copy of the file. That of the manifest is made anew, and if it has changed, all copies are."""
        file = self._folder / name
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with turn(self._folder / "lock"):
                if name == "pack.json":
                    data = self._system.cat_file(f"{self._path}/{name}")
                    if not file.exists() or file.read_bytes() != data:
                        for old in self._folder.glob("*.*"):
                            old.unlink(missing_ok=True)
                        with whole_file(file) as stream:
                            stream.write(data)
                elif not file.exists():
                    self._copy(name)
        except FileNotFoundError:
            raise DataError(f"{self._url}/{name}: no such file") from None
        except Exception as error:  # each store has errors of its own
            raise DataError(f"{self._url}/{name}: {reason_of(error)}") from None
        return file

    def size(self, name: str) -> int:
        """Bytes of a shard."""
        try:
            return int(self._system.size(f"{self._path}/{name}") or 0)
        except OSError:
            raise
        except Exception as error:
            raise OSError(errno.EIO, f"{self._url}: {reason_of(error)}") from None

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a shard, from the copy or from the store."""
        if self._cache_bytes is None:
            try:
                return bytes(self._system.cat_file(f"{self._path}/{name}", start=offset, end=offset + size))
            except OSError:
                raise
            except Exception as error:
                raise OSError(errno.EIO, f"{self._url}: {reason_of(error)}") from None
        while True:
            self._ensure(name)
            with contextlib.suppress(FileNotFoundError):  # another thread needed the room in between
                return self._copies.read(name, offset, size)

    def announce(self, parts: Iterable[tuple[str, int, int]]) -> None:
        """Begin to copy the shards of these parts."""
        if self._cache_bytes is None:
            return
        for name in dict.fromkeys(part[0] for part in parts):
            with self._lock:
                is_new = name not in self._asked
                self._asked[name] = None
                if len(self._asked) > _WAITING:
                    self._asked.popitem(last=False)
            if is_new:
                self._pool.submit(self._try_to_ensure, name)

    def _try_to_ensure(self, name: str) -> None:
        with contextlib.suppress(OSError):  # the reading itself says what is wrong
            self._ensure(name)

    def _ensure(self, name: str) -> None:
        """Copy a shard, unless it is there. Raises OSError."""
        file = self._folder / name
        with contextlib.suppress(FileNotFoundError):
            return os.utime(file)
        with turn(file.with_suffix(".lock")):
            if not file.exists():
                self._make_room(self.size(name))
                self._copy(name)
        return None

    def _make_room(self, needed: int) -> None:
        """Remove the shards that were not used for the longest time. Who reads them keeps them until it has read."""
        with turn(self._folder / "lock"):
            shards = sorted(self._folder.glob("*.data"), key=lambda shard: shard.stat().st_mtime)
            free = (self._cache_bytes or 0) - sum(shard.stat().st_size for shard in shards)
            while shards and free < needed:
                oldest = shards.pop(0)
                free += oldest.stat().st_size
                oldest.unlink(missing_ok=True)

    def _copy(self, name: str) -> None:
        try:
            with whole_file(self._folder / name) as target, self._system.open(f"{self._path}/{name}", "rb") as source:
                while block := source.read(_BLOCK):
                    target.write(block)
        except OSError:
            raise
        except Exception as error:
            raise OSError(errno.EIO, f"{self._url}: {reason_of(error)}") from None


def storage_of(place: str, cache: str | None, cache_gb: float | None) -> Storage:
    """The storage of a folder or a URL.

    Raises:
        DataError: as ``ObjectStore``.
    """
    if "://" not in place:
        return Folder(Path(place))
    folder = Path(cache) if cache else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppxcls" / "packs"
    return ObjectStore(place.rstrip("/"), folder, None if cache_gb is None else int(cache_gb * 1e9))
