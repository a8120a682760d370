"""The data set class that reads packed files."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ppxcls.config.checks import Positive
from ppxcls.data.class_names import CLASS_NAMES_FILE, MAX_NAMES_BYTES
from ppxcls.data.dataset import DATASETS, Dataset
from ppxcls.data.decode import ImageParts
from ppxcls.data.errors import DataError
from ppxcls.data.list_index import ListIndex
from ppxcls.data.read_file import read_with_retries
from ppxcls.data.transforms import TransformOps, starts_with_decoding
from ppxcls.packed.format import (
    FORMAT_2,
    LIST,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    PACK_FORMAT,
    IndexRow,
    has_damage,
    max_index_bytes,
    read_index,
    read_pack_manifest,
    shard_name,
    unpacked,
)
from ppxcls.packed.jpeg import SegmentedImage
from ppxcls.packed.storage import storage_of
from ppxcls.system import kernels
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import reason_of
from ppxcls.system.digests import file_sha256
from ppxcls.system.logs import logger, warn_once


@DATASETS.register
class PackedDataset(Dataset):
    """The samples of a list file, read from a data set that ``ppxcls pack`` wrote.

    Images and batches are identical to those of the list's files, to the last bit, unless packing reduced the
    images. A run that began with the files can resume with the packed data, and the other way round.

    Args:
        pack: folder of the data set, or a URL of an object store or a web server, such as
            ``s3://bucket/imagenet-train``.
        transform_ops: transforms in order; None returns the encoded bytes, or an ``ImageParts``.
        cache_dir: folder for copies of an object store's files; None for ``ppxcls/packs`` in
            ``XDG_CACHE_HOME`` or ``~/.cache``. No other user may be able to change files in it.
        cache_gb: maximum size of the copied shards, in units of 10^9 bytes; None copies no shards, and
            requests each image from the store.
        class_num: number of classes, for a check of the labels; None for no check.
        patience: time in seconds to retry reads if a disk or a store does not answer.

    Raises:
        DataError: the data set is incomplete or damaged, or a label is outside ``class_num``.
    """

    keeps_bytes = False

    def __init__(
        self,
        pack: str,
        transform_ops: TransformOps | None = None,
        *,
        cache_dir: str | None = None,
        cache_gb: Positive | None = None,
        class_num: int | None = None,
        patience: float = 0.0,
    ) -> None:
        if transform_ops is not None and not starts_with_decoding(transform_ops):
            raise ValueError(
                "expected DecodeImage as the first of transform_ops, because files are read as bytes"
            )
        self.pack = pack
        self._storage = storage_of(pack, cache_dir, cache_gb)
        self._patience = patience
        self.manifest = read_pack_manifest(self._small_file(MANIFEST))
        if len(self.manifest.shards) != self.manifest.count:
            raise DataError(
                f"{pack}: expected {self.manifest.count:,} shards in the manifest, "
                f"received {len(self.manifest.shards):,}"
            )
        self._storage.expect(
            {
                f"{shard_name(i)}.data": (shard.bytes, shard.sha256)
                for i, shard in enumerate(self.manifest.shards)
            }
        )
        list_file = self._small_file(
            LIST, sha256=self.manifest.list_sha256, max_bytes=self.manifest.max_list_bytes
        )
        self.index = ListIndex(list_file, self.manifest.delimiter)
        self.source = f"{pack}/{LIST}"
        if (len(self.index), self.index.digest()) != (self.manifest.samples, self.manifest.list_sha256):
            raise DataError(f"{self.source}: the list does not match {MANIFEST}")
        self._indices: dict[int, Array] = {}
        for reason in self._whole_decoding_reasons():
            logger.warning(f"{pack}: images are decoded whole, {reason}")
        super().__init__(self.index.labels, transform_ops, class_num)
        pixel_format = self.transform.pixel_format
        if self.manifest.quality is not None and (pixel_format.channels == 4 or pixel_format.bits == 16):
            raise DataError(
                f"{pack}: was packed as JPEGs (--short-side, --quality), which keep 3 channels of 8 bits; "
                f"DecodeImage asks for {pixel_format.channels} channels of {pixel_format.bits} bits"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Another process reads the indices by itself."""
        return {**vars(self), "_indices": {}}

    def read(self, index: int) -> bytes | ImageParts:
        """Returns the bytes of the sample's file, or its parts."""
        name, record = self._locate_record(index)

        def read() -> bytes:
            return self._storage.read(name, record.offset, record.bytes)

        data = read_with_retries(read, self.path(index), self._patience)
        if has_damage(record, data):  # perhaps only in a copy, or on the way
            self._storage.forget(name)
            data = read_with_retries(read, self.path(index), self._patience)
            if has_damage(record, data):
                raise ValueError("the record is damaged: its CRC-32 is not the one in the index")
        content = unpacked(record, data)
        return content if isinstance(content, bytes) else SegmentedImage(content)

    def has_digest(self, index: int) -> bool:
        """True if the index has the CRC-32 of a sample's record. Raises ValueError."""
        return self._locate_record(index)[1].crc32 is not None

    def announce(self, indices: Iterable[int]) -> None:
        """Starts reading the samples ahead."""
        with contextlib.suppress(ValueError):  # ``read`` reports the error later
            records = [self._locate_record(int(i)) for i in indices]
            self._storage.announce([(name, record.offset, record.bytes) for name, record in records])

    def listed(self, index: int) -> str:
        """Returns the path in the list."""
        return self.index.path(index)

    def path(self, index: int) -> str:
        """Returns the shard and the path in the list."""
        return (
            f"{self.pack}/{shard_name(index // self.manifest.samples_per_shard)}.data: {self.listed(index)}"
        )

    def line(self, index: int) -> str:
        """Returns the sample's place in the list as ``file:line``."""
        return f"{self.source}:{self.index.line(index).rpartition(':')[2]}"

    def digest(self) -> str:
        """Returns the SHA-256 of the list file.

        If packing changed the pixels, the hash includes the options of that change.
        """
        manifest = self.manifest
        changes = [
            value
            for value in (manifest.short_side, manifest.quality, manifest.resampling)
            if value is not None
        ]
        digest = manifest.list_sha256
        return hashlib.sha256(f"{digest} {changes}".encode()).hexdigest() if changes else digest

    def check_files(self) -> None:
        """Checks that every shard has the size in the manifest.

        Raises:
            DataError: a shard is missing, or has another size.
        """
        for number, shard in enumerate(self.manifest.shards):
            name = f"{shard_name(number)}.data"
            try:
                size = self._storage.size(name)
            except OSError as error:
                raise DataError(f"{self.pack}/{name}: {reason_of(error)}") from None
            if size != shard.bytes:
                raise DataError(f"{self.pack}/{name}: expected {shard.bytes:,} bytes, received {size:,}")

    def _whole_decoding_reasons(self) -> Iterator[str]:
        """Yields the reasons why images can't be decoded in parts."""
        if not kernels.HAS_NUMBA:
            yield "because the package numba is not installed"
        if self.manifest.format not in (PACK_FORMAT, FORMAT_2):
            yield f"because the data set has the format {self.manifest.format!r}; pack the files again"

    def _small_file(
        self, name: str, *, sha256: str | None = None, max_bytes: int = MAX_MANIFEST_BYTES
    ) -> Path:
        """Returns a file that is needed at the start. Raises DataError."""
        try:
            return read_with_retries(
                lambda: self._storage.small(name, sha256=sha256, max_bytes=max_bytes),
                f"{self.pack}/{name}",
                self._patience,
            )
        except FileNotFoundError:
            raise DataError(f"{self.pack}/{name}: no such file") from None
        except OSError as error:
            raise DataError(f"{self.pack}/{name}: {reason_of(error)}") from None

    def _locate_record(self, index: int) -> tuple[str, IndexRow]:
        """Returns the name of a sample's shard file, and its row in the index. Raises ValueError."""
        number, place = divmod(index, self.manifest.samples_per_shard)
        if number not in self._indices:
            name, shard = f"{shard_name(number)}.index", self.manifest.shards[number]

            def read() -> Array:
                file = self._storage.small(name, sha256=shard.index_sha256, max_bytes=max_index_bytes(shard))
                return read_index(file, shard, self.manifest.format)

            try:
                self._indices[number] = read_with_retries(read, f"{self.pack}/{name}", self._patience)
            except (DataError, OSError) as error:
                raise ValueError(f"{name}: {reason_of(error)}") from None
        return f"{shard_name(number)}.data", IndexRow(*self._indices[number][place].item())


def pack_folder(pack: str, cache_dir: str | None) -> Path | None:
    """Returns the folder with the class names of a packed data set.

    For an object store, this is the folder of the copies, or None if the object store can't be read or has no
    class names.

    A damaged copy is copied again. If the names are not those that were packed, they are used with a warning,
    because a user may rename a class.
    """
    try:
        storage = storage_of(pack, cache_dir, None)
        digest = read_pack_manifest(storage.small(MANIFEST, max_bytes=MAX_MANIFEST_BYTES)).class_names_sha256
        try:
            file = storage.small(CLASS_NAMES_FILE, sha256=digest, max_bytes=MAX_NAMES_BYTES)
        except OSError:  # if it is because of the digest, the file can be copied without it
            file = storage.small(CLASS_NAMES_FILE, max_bytes=MAX_NAMES_BYTES)
        is_changed = digest is not None and file_sha256(file) != digest
    except (OSError, DataError):
        return None
    if is_changed:
        warn_once(f"{pack}/{CLASS_NAMES_FILE}: was changed or damaged after it was packed; it is still used")
    return file.parent
