"""Reads a packed data set from an object store through fsspec, with a bounded cache of its files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ppxcls.data.errors import DataError
from ppxcls.packed.format import MANIFEST
from ppxcls.packed.web_files import WebFiles
from ppxcls.system.appended_files import change_descriptor
from ppxcls.system.atomic_files import (
    named_errors,
    new_file,
    open_regular,
    read_regular,
    reason_of,
    write_bytes,
)
from ppxcls.system.file_lock import locked

# Protocols of stores that only hold bytes. fsspec has others, which run programs, open archives, read what a
# file of theirs names, or join several protocols by ``::``.
PROTOCOLS = (
    *("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "bos", "obs", "hdfs", "webhdfs"),
    *("https", "http", "memory"),
)
_BLOCK_BYTES = 1 << 22
_DOWNLOAD_THREADS = 2  # copies at a time
_MAX_QUEUED_SHARDS = 8  # shards, maximum length of the queue of downloads
_PAUSE_SECONDS = 0.05  # seconds between attempts to reserve space
_ABANDONED_SECONDS = 600  # seconds without a write, after which an incomplete copy may be removed


class ObjectStore:
    """A folder in an object store, such as ``s3://bucket/imagenet``.

    The manifest, the list and the indices are copied to the cache folder. The records of a shard are read one
    by one, or the whole shard is copied when its first record is needed. Copies of the most recently used
    shards stay, up to the cache's size. The processes of a host share the folder, and each shard is copied
    once. A changed manifest gets its own folder.

    Args:
        url: URL of the data set.
        cache: folder for the copies.
        cache_bytes: maximum size of the copied shards in bytes; None reads records one by one.

    Raises:
        DataError: fsspec, or its package for this kind of store, is not installed, or the URL is invalid.
    """

    def __init__(self, url: str, cache: Path, cache_bytes: int | None) -> None:
        self._file_system, self._path = _file_system(url)
        self._url = url
        self._cache_bytes = cache_bytes
        self._cache = cache
        self._name = hashlib.sha256(url.encode()).hexdigest()[:16]
        self._folder = cache / self._name
        self._shards: Mapping[str, tuple[int, str]] = {}
        self._requests: queue.Queue[str] = queue.Queue(_MAX_QUEUED_SHARDS)
        self._workers: list[threading.Thread] = []
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        """Another process copies shards in threads of its own."""
        if "memory" in self._file_system.protocol:
            raise TypeError(f"{self._url} is in the memory of this process")
        own_names = ("_requests", "_workers", "_lock")
        return {key: value for key, value in vars(self).items() if key not in own_names}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._requests = queue.Queue(_MAX_QUEUED_SHARDS)
        self._workers = []
        self._lock = threading.Lock()

    def small(self, name: str, *, sha256: str | None = None, max_bytes: int) -> Path:
        """Returns a copy of the file.

        The manifest is always copied again. Its checksum determines the folder of the other copies.
        """
        if name == MANIFEST:
            with self._store_errors(), self._file_system.open(f"{self._path}/{name}", "rb") as source:
                data = b"".join(self._blocks(source, name, max_bytes))
            self._folder = self._cache / f"{self._name}-{hashlib.sha256(data).hexdigest()[:16]}"
            self._folder.mkdir(parents=True, exist_ok=True)
            with locked(self._folder / "lock"):
                write_bytes(self._folder / name, data)
        file = self._folder / name
        with locked(self._folder / "lock"):
            if not _is_copy(file, sha256, max_bytes):
                self._copy(name, sha256, max_bytes)
        return file

    def expect(self, shards: Mapping[str, tuple[int, str]]) -> None:
        """Checks that the largest shard fits in the cache. Raises DataError."""
        self._shards = shards
        largest_bytes = max(size for size, _ in shards.values())
        if self._cache_bytes is not None and largest_bytes > self._cache_bytes:
            raise DataError(
                f"{self._url}: cache_gb is less than the largest shard, {largest_bytes / 1e9:.3g} GB"
            )

    def forget(self, name: str) -> None:
        """Removes the copy of a shard, so that it is copied again."""
        if self._cache_bytes is not None:
            (self._folder / name).unlink(missing_ok=True)

    def size(self, name: str) -> int:
        """Returns the size of a shard in bytes."""
        with self._store_errors():
            return int(self._file_system.size(f"{self._path}/{name}") or 0)

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Returns bytes of a shard, from its copy or from the store."""
        if self._cache_bytes is None:
            with self._store_errors():
                data = self._file_system.cat_file(f"{self._path}/{name}", start=offset, end=offset + size)
                return bytes(data[:size])
        while True:
            self._ensure_copy(name)
            # The file does not stay open, because an open file uses disk space even after it is removed.
            with (
                contextlib.suppress(FileNotFoundError),
                open_regular(self._folder / name) as file,
            ):  # the copy may be removed in between
                file.seek(offset)
                return file.read(size)

    def announce(self, parts: Iterable[tuple[str, int, int]]) -> None:
        """Queues the shards of these parts for copying, as long as the queue has space."""
        if self._cache_bytes is None:
            return
        with self._lock:
            while len(self._workers) < _DOWNLOAD_THREADS:
                # A daemon, so that the end of a run does not wait for it.
                worker = threading.Thread(target=self._copy_in_background, name="ppxcls-shards", daemon=True)
                worker.start()
                self._workers.append(worker)
        for name in dict.fromkeys(part[0] for part in parts):
            if not (self._folder / name).exists() and name not in self._requests.queue:
                with contextlib.suppress(queue.Full):
                    self._requests.put_nowait(name)

    def _copy_in_background(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # ``read`` reports the error later
                self._ensure_copy(self._requests.get())

    def _ensure_copy(self, name: str) -> None:
        """Copies a shard, or marks its copy as used if there is one. Raises OSError."""
        file = self._folder / name
        with contextlib.suppress(FileNotFoundError):
            return os.utime(file)
        with locked(file.with_suffix(".lock")):
            if not file.exists():
                while not self._reserve_space(name):
                    time.sleep(_PAUSE_SECONDS)  # until other processes' copies can be removed
                size, sha256 = self._shards[name]
                self._copy(name, sha256, size)
        return None

    def _reserve_space(self, name: str) -> bool:
        """Reserves space for a shard with an empty file of its size.

        Removes the least recently used shards if needed.

        Returns:
            False if not enough shards can be removed yet.
        """
        needed_bytes = self._shards[name][0]
        with locked(self._cache / f"{self._name}.lock"):
            shards: dict[Path, os.stat_result] = {}
            for extension in (
                "data.new",
                "data",
            ):  # in this order, so that a copy that is renamed during the search is found
                for shard in self._cache.glob(f"{self._name}-*/*.{extension}"):
                    with contextlib.suppress(FileNotFoundError):
                        shards[shard] = shard.stat()
            free_bytes = (self._cache_bytes or 0) - sum(status.st_size for status in shards.values())
            for shard in sorted(shards, key=lambda shard: shards[shard].st_mtime):
                # An incomplete copy stays, unless its process has not written to it for a long time.
                if free_bytes < needed_bytes and (
                    shard.suffix == ".data" or time.time() - shards[shard].st_mtime > _ABANDONED_SECONDS
                ):
                    shard.unlink(missing_ok=True)
                    free_bytes += shards[shard].st_size
            if free_bytes < needed_bytes:
                return False
            with named_errors(self._folder / name), new_file(self._folder / f"{name}.new") as file:
                file.truncate(needed_bytes)
        return True

    def _copy(self, name: str, sha256: str | None, max_bytes: int) -> None:
        """Copies a file. It gets its final name only if it is complete and has its digest. Raises OSError."""
        temporary = self._folder / f"{name}.new"
        digest = hashlib.sha256()
        size = 0
        try:
            with (
                self._store_errors(),
                self._file_system.open(f"{self._path}/{name}", "rb") as source,
                open(change_descriptor(temporary), "r+b") as target,
            ):
                for block in self._blocks(source, name, max_bytes):
                    digest.update(block)
                    with named_errors(self._folder / name):
                        size += target.write(block)
            self._check_copy(name, size, is_intact=sha256 in (None, digest.hexdigest()))
            os.truncate(temporary, size)
            os.replace(temporary, self._folder / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _check_copy(self, name: str, size: int, *, is_intact: bool) -> None:
        """Raises OSError if a copy is not whole. Its number tells whether copying again can help."""
        expected_size = self._shards[name][0] if name in self._shards else None
        if size == (expected_size or size) and is_intact:
            return
        if size == expected_size:
            reason = f"is damaged: its SHA-256 is not the one in {MANIFEST}"
            raise OSError(errno.EBADMSG, f"{self._url}/{name}: {reason}")
        reason = f"or its SHA-256 is not the one in {MANIFEST}" if expected_size is None else "too few"
        raise OSError(errno.EIO, f"{self._url}/{name}: the copy is not whole: {size:,} bytes, {reason}")

    def _blocks(self, source: Any, name: str, max_bytes: int) -> Iterator[bytes]:
        """Yields the blocks of an open file. Raises OSError if it has more than ``max_bytes``."""
        size = 0
        while block := source.read(min(_BLOCK_BYTES, max_bytes + 1 - size)):
            size += len(block)
            if size > max_bytes:
                raise OSError(
                    errno.EFBIG, f"{self._url}/{name}: larger than expected, more than {max_bytes:,} bytes"
                )
            yield block

    @contextlib.contextmanager
    def _store_errors(self) -> Iterator[None]:
        """Converts errors to OSError with the number EIO, so that reads are retried.

        This applies to a store's own errors, and to an OSError without a number.
        """
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise OSError(errno.EIO, f"{self._url}: {reason_of(error)}") from None


def _is_copy(file: Path, sha256: str | None, max_bytes: int) -> bool:
    """True if a file of the cache exists and has its digest."""
    try:
        data = read_regular(file, max_bytes)
    except (OSError, ValueError):
        return False
    return sha256 is None or hashlib.sha256(data).hexdigest() == sha256


def _file_system(url: str) -> tuple[Any, str]:
    """Returns the file system of a URL, and the path in it.

    Raises:
        DataError: the protocol is not one of ``PROTOCOLS``, or its package is not installed.
    """
    protocol = url.partition("://")[0].lower()
    if protocol not in PROTOCOLS or "::" in url:
        raise DataError(f"{url}: expected a folder, or a URL with one of {', '.join(PROTOCOLS)}")
    if protocol in WebFiles.protocol:
        return WebFiles(), url
    try:
        import fsspec
    except ImportError:
        raise DataError(f"{url}: reading from an object store needs the package fsspec") from None
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"{url}: {error}") from None
