"""Where the files of a packed data set lie: in a folder, or in an object store that fsspec reads, with a bounded cache."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from ppxcls.data.errors import DataError
from ppxcls.packed.format import MANIFEST, MOST_MANIFEST_BYTES
from ppxcls.system.turns import turn
from ppxcls.system.whole_files import open_regular, reason_of, write_bytes

_OPEN_FILES = 64
_BLOCK = 1 << 22
_DOWNLOADS = 2  # at a time
_WAITING = 8  # downloads that are asked for ahead
_PAUSE = 0.05  # seconds
_ABANDONED = 600  # seconds without a write


class Storage(Protocol):
    """Reads the files of a packed data set.

    Several threads call it at once. Errors of the store are raised as OSError.
    """

    def small(self, name: str, sha256: str | None = None) -> Path:
        """A manifest, list or index, as a file of this host.

        Args:
            name: of the file.
            sha256: that a copy must have.
        """

    def expect(self, sizes: Mapping[str, int]) -> None:
        """Take note of the shards' sizes in bytes, by name.

        Raises DataError if there is no room for the largest.
        """

    def size(self, name: str) -> int:
        """Bytes of a shard."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a shard; fewer if it ends before."""

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

    def small(self, name: str, sha256: str | None = None) -> Path:  # noqa: ARG002
        """The file, which is read where it is."""
        return self._folder / name

    def expect(self, sizes: Mapping[str, int]) -> None:
        """Nothing is copied."""

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

    Manifest, list and indices are copied to the cache folder. The records of a shard are read one by one, or
    the whole shard is copied when its first record is needed. Then the shards that were used last stay, up to
    the cache's size. The processes of a host share the folder, and each shard is copied once. A changed
    manifest gets a folder of its own.

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
        self._cache, self._name = cache, hashlib.sha256(url.encode()).hexdigest()[:16]
        self._folder = cache / self._name
        self._sizes: Mapping[str, int] = {}
        self._asked: queue.Queue[str] = queue.Queue(_WAITING)
        self._workers: list[threading.Thread] = []
        self._lock = threading.Lock()

    def small(self, name: str, sha256: str | None = None) -> Path:
        """A copy of the file. That of the manifest is made anew, and decides the folder of the others."""
        if name == MANIFEST:
            with self._store_errors():
                if self._system.size(f"{self._path}/{name}") > MOST_MANIFEST_BYTES:
                    raise OSError(errno.EFBIG, f"{self._url}/{name} is too large for a manifest")
                data = self._system.cat_file(f"{self._path}/{name}")
            self._folder = self._cache / f"{self._name}-{hashlib.sha256(data).hexdigest()[:16]}"
            self._folder.mkdir(parents=True, exist_ok=True)
            with turn(self._folder / "lock"):
                write_bytes(self._folder / name, data)
        file = self._folder / name
        with turn(self._folder / "lock"):
            if not file.exists():
                self._copy(name, sha256)
        return file

    def expect(self, sizes: Mapping[str, int]) -> None:
        """Compare the cache's size with that of the largest shard. Raises DataError."""
        self._sizes = sizes
        if self._cache_bytes is not None and max(sizes.values()) > self._cache_bytes:
            raise DataError(
                f"{self._url}: cache_gb is less than the largest shard, {max(sizes.values()) / 1e9:.3g} GB"
            )

    def size(self, name: str) -> int:
        """Bytes of a shard."""
        with self._store_errors():
            return int(self._system.size(f"{self._path}/{name}") or 0)

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a shard, from the copy or from the store."""
        if self._cache_bytes is None:
            with self._store_errors():
                return bytes(self._system.cat_file(f"{self._path}/{name}", start=offset, end=offset + size))
        while True:
            self._ensure(name)
            # Not kept open, because an open file takes its room also when it is removed.
            with (
                contextlib.suppress(FileNotFoundError),
                open_regular(self._folder / name) as file,
            ):  # removed in between
                file.seek(offset)
                return file.read(size)

    def announce(self, parts: Iterable[tuple[str, int, int]]) -> None:
        """Begin to copy the shards of these parts, of which a few may wait."""
        if self._cache_bytes is None:
            return
        with self._lock:
            while len(self._workers) < _DOWNLOADS:
                worker = threading.Thread(
                    target=self._work, name="ppxcls-shards", daemon=True
                )  # a run does not wait for it
                worker.start()
                self._workers.append(worker)
        for name in dict.fromkeys(part[0] for part in parts):
            if not (self._folder / name).exists() and name not in self._asked.queue:
                with contextlib.suppress(queue.Full):
                    self._asked.put_nowait(name)

    def _work(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # the reading itself says what is wrong
                self._ensure(self._asked.get())

    def _ensure(self, name: str) -> None:
        """Copy a shard, unless it is there. Raises OSError."""
        file = self._folder / name
        with contextlib.suppress(FileNotFoundError):
            return os.utime(file)
        with turn(file.with_suffix(".lock")):
            if not file.exists():
                while not self._reserved(name):
                    time.sleep(_PAUSE)  # until the copies that others make can be removed
                self._copy(name)
        return None

    def _reserved(self, name: str) -> bool:
        """Make room for a shard by removing those that were not used for longest; an empty file of its size reserves it."""
        needed = self._sizes[name]
        with turn(self._cache / f"{self._name}.lock"):
            shards: dict[Path, os.stat_result] = {}
            for extension in (
                "data.new",
                "data",
            ):  # in this order, because a copy that gets its name meanwhile must be seen
                for shard in self._cache.glob(f"{self._name}-*/*.{extension}"):
                    with contextlib.suppress(FileNotFoundError):
                        shards[shard] = shard.stat()
            free = (self._cache_bytes or 0) - sum(status.st_size for status in shards.values())
            for shard in sorted(shards, key=lambda shard: shards[shard].st_mtime):
                # What is being copied stays, unless who copied it has been gone for long.
                if free < needed and (
                    shard.suffix == ".data" or time.time() - shards[shard].st_mtime > _ABANDONED
                ):
                    shard.unlink(missing_ok=True)
                    free += shards[shard].st_size
            if free < needed:
                return False
            with open(self._folder / f"{name}.new", "wb") as file:
                file.truncate(needed)
        return True

    def _copy(self, name: str, sha256: str | None = None) -> None:
        """Copy a file; it appears under its name if it is whole. Raises OSError."""
        temporary, digest, size = self._folder / f"{name}.new", hashlib.sha256(), 0
        temporary.touch()
        try:
            with (
                self._store_errors(),
                self._system.open(f"{self._path}/{name}", "rb") as source,
                open(temporary, "r+b") as target,
            ):
                while block := source.read(_BLOCK):
                    digest.update(block)
                    size += target.write(block)
            if (sha256 is not None and digest.hexdigest() != sha256) or size != self._sizes.get(name, size):
                raise OSError(errno.EIO, f"{self._url}/{name}: the copy is not whole: {size:,} bytes")
            os.truncate(temporary, size)
            os.replace(temporary, self._folder / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    @contextlib.contextmanager
    def _store_errors(self) -> Iterator[None]:
        """Each store has errors of its own; those that are no OSError, or have no number, may pass."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise OSError(errno.EIO, f"{self._url}: {reason_of(error)}") from None


def is_url(place: str) -> bool:
    """Whether a place is in an object store, not a folder of this host."""
    return "://" in place


def storage_of(place: str, cache: str | None, cache_gb: float | None) -> Storage:
    """The storage of a folder or a URL.

    Raises:
        DataError: as ``ObjectStore``.
    """
    if not is_url(place):
        return Folder(Path(place))
    folder = (
        Path(cache)
        if cache
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppxcls" / "packs"
    )
    return ObjectStore(place.rstrip("/"), folder, None if cache_gb is None else int(cache_gb * 1e9))
