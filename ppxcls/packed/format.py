"""The format of a packed data set: its files, and the functions that read them.

A packed data set is a folder with these files:

- ``pack.json``: the manifest, written last.
- ``list.txt``: the list file, byte for byte. Sample ``i`` of the list is record ``i % samples_per_shard`` of
  shard ``i // samples_per_shard``.
- ``shard-00000.data``: the records, one after another. A record is an unchanged file or a rewritten JPEG. A
  rewritten JPEG consists of its head, its coded data without the zeros that follow bytes of 255, and a table.
  The table has a row of ``SEGMENT`` for each segment, in rows from left to right.
- ``shard-00000.index``: the position and CRC-32 of each record, a numpy array in the ``.npy`` format with the
  fields of ``RECORD``.

Format 2, of ppxcls 0.10 to 0.12.1, has no CRC-32 in its indices, and no digests of the manifest and of the
class names.

Format 1, of ppxcls 0.7 to 0.9, had restart markers in its JPEGs, and other tables. Its images can still be
read, but they are decoded whole.

Files are not mapped into memory, for two reasons. A page that is not in memory would be read while the
interpreter's lock is held, and a truncated file would end the process.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppxcls.data.decode import MAX_PIXELS
from ppxcls.data.errors import DataError
from ppxcls.data.list_index import MAX_LIST_BYTES
from ppxcls.data.read_file import MAX_IMAGE_FILE_BYTES
from ppxcls.packed.jpeg import Grid, RewrittenJpeg
from ppxcls.packed.jpeg_codes import SEGMENT
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import read_regular, reason_of, whole_file
from ppxcls.system.json_text import json_text, read_json
from ppxcls.system.sealed_json import SEAL_KEY, is_intact, sealed

PACK_FORMAT, FORMAT_2, _FORMAT_1 = "ppxcls pack 3", "ppxcls pack 2", "ppxcls pack 1"
MANIFEST, LIST = "pack.json", "list.txt"
RESAMPLING = "lanczos"  # Pillow's filter for images that are reduced
RECORD = np.dtype(
    [
        ("offset", "<u8"),  # bytes, position of the record in its shard
        ("size", "<u4"),  # bytes of the file, or of head and coded data; the table follows them
        ("scan", "<u4"),  # bytes, position of the coded data in the record
        ("segments", "<u4"),  # number of segments; 0 for an unchanged file, and then the fields below are 0
        ("width", "<u2"),  # pixels of the picture
        ("height", "<u2"),  # pixels of the picture
        ("per_segment", "<u2"),  # MCUs in a segment
        ("mcu_width", "u1"),  # pixels of an MCU
        ("mcu_height", "u1"),  # pixels of an MCU
        ("crc32", "<u4"),  # CRC-32 of the record's bytes
    ]
)
# The index of earlier versions. Their records can only be compared shard by shard.
_RECORD_WITHOUT_CRC = np.dtype([(name, RECORD[name]) for name in RECORD.names or () if name != "crc32"])
MAX_MANIFEST_BYTES = 1 << 24
_MAX_SAMPLES_PER_SHARD = 1 << 24
_MAX_PATH_BYTES = 65_600  # of a line of a list
_MAX_LIST_SLACK_BYTES = 1 << 20  # for blank lines
_MAX_INDEX_HEADER_BYTES = 4096  # bytes, upper limit for the header of an index file
_MIN_JPEG_HEAD_BYTES = 40  # bytes of a JPEG's head; every real head is longer, and contains the frame


@dataclass(frozen=True)
class Shard:
    """The manifest's entry for one shard.

    Attributes:
        samples: number of records.
        bytes: size of the data file in bytes.
        sha256: SHA-256 of the data file.
        index_sha256: SHA-256 of the index file.
    """

    samples: int
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of ``pack.json``.

    Attributes:
        list_sha256: SHA-256 of the list file.
        delimiter: separator between path and label in the list.
        samples: number of samples.
        samples_per_shard: number of samples in each shard but the last.
        short_side: pixels of the short side to which larger images were reduced; None if no image was
            reduced.
        quality: JPEG quality of the images that were encoded again, 1 to 100; None if no pixel was changed.
        resampling: filter that reduced the images; None without a short side, and for the area averages of
            ppxcls up to 0.8.
        class_names_sha256: SHA-256 of the file of class names when it was packed; None without this file, and
            for packs of ppxcls up to 0.12.
        shards: shards in order. While the data set is being packed, only those that are complete.
        format: name and version of the file format.
    """

    list_sha256: str
    delimiter: str
    samples: int
    samples_per_shard: int
    short_side: int | None = None
    quality: int | None = None
    resampling: str | None = None
    class_names_sha256: str | None = None
    shards: list[Shard] = field(default_factory=list)
    format: str = PACK_FORMAT

    @property
    def count(self) -> int:
        """Number of shards of the complete data set."""
        return -(-self.samples // self.samples_per_shard)

    def write(self, file: Path) -> None:
        """Writes the manifest atomically, with a digest of itself. Raises OSError."""
        with whole_file(file, durable=True) as stream:
            stream.write((json_text(sealed(asdict(self)), indent=1, is_ascii=True) + "\n").encode())

    @property
    def max_list_bytes(self) -> int:
        """Largest size of the list file in bytes."""
        return min(MAX_LIST_BYTES, self.samples * _MAX_PATH_BYTES + _MAX_LIST_SLACK_BYTES)


def shard_name(number: int) -> str:
    """Returns the name of a shard's files without their extension."""
    return f"shard-{number:05d}"


def read_pack_manifest(file: Path) -> Manifest:
    """Reads a manifest.

    Raises:
        DataError: the file is missing, or is not a valid manifest.
    """
    try:
        fields = read_json(read_regular(file, MAX_MANIFEST_BYTES))
        if SEAL_KEY in fields and not is_intact(fields):
            raise ValueError("it is damaged or was changed: its SHA-256 is not the one in it")
        fields.pop(SEAL_KEY, None)
        if fields["format"] not in (PACK_FORMAT, FORMAT_2, _FORMAT_1):
            raise ValueError(f"expected a format from {_FORMAT_1!r} to {PACK_FORMAT!r}")
        shards = [Shard(**shard) for shard in fields.pop("shards")]
        manifest = Manifest(**fields, shards=shards)
        numbers = [manifest.samples, manifest.samples_per_shard]
        numbers += [n for shard in shards for n in (shard.samples, shard.bytes)]
        texts = [
            manifest.list_sha256,
            manifest.delimiter,
            *(t for s in shards for t in (s.sha256, s.index_sha256)),
        ]
        options = [value for value in (manifest.short_side, manifest.quality) if value is not None]
        has_valid_numbers = all(type(n) is int and 0 <= n < 1 << 48 for n in numbers + options)
        has_valid_texts = all(type(text) is str for text in texts)
        if not has_valid_numbers or not has_valid_texts:
            raise ValueError("a value has an invalid type, or is out of range")
        if manifest.samples < 1 or not manifest.delimiter:
            raise ValueError("expected at least one sample and a delimiter")
        if not 1 <= manifest.samples_per_shard <= _MAX_SAMPLES_PER_SHARD:
            raise ValueError(f"expected 1 to {_MAX_SAMPLES_PER_SHARD:,} samples per shard")
        if not 1 <= (manifest.quality or 1) <= 100 or manifest.quality == 0 or manifest.short_side == 0:
            raise ValueError("expected a quality from 1 to 100 and a short side of at least 1")
        if not isinstance(manifest.class_names_sha256, str | None):
            raise ValueError("expected a text as class_names_sha256")
        if manifest.resampling not in (None, RESAMPLING):
            raise ValueError(f"expected the resampling {RESAMPLING!r} or none")
        has_valid_sizes = all(s.samples == _shard_samples(manifest, i) for i, s in enumerate(shards))
        if len(shards) > manifest.count or not has_valid_sizes:
            raise ValueError("the shards don't match the number of samples")
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; ppxcls pack writes it at the end of its work") from None
    except (TypeError, KeyError, AttributeError) as error:
        reason = f"an entry is missing, unknown, or of a wrong type ({type(error).__name__})"
        raise DataError(f"{file}: not the manifest of a packed data set: {reason}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not the manifest of a packed data set: {reason_of(error)}") from None
    return manifest


def _shard_samples(manifest: Manifest, number: int) -> int:
    return min(manifest.samples_per_shard, manifest.samples - number * manifest.samples_per_shard)


def max_index_bytes(shard: Shard) -> int:
    """Returns the largest size of a shard's index file in bytes."""
    return shard.samples * RECORD.itemsize + _MAX_INDEX_HEADER_BYTES


def read_index(file: Path, shard: Shard, pack_format: str) -> Array:
    """Reads the index of a shard, ``RECORD`` [samples], without ``crc32`` if an earlier version wrote it.

    Args:
        file: index file.
        shard: manifest entry of the shard.
        pack_format: format in the manifest. JPEGs of format 1 are treated as unchanged files.

    Raises:
        DataError: the index is damaged, or a record is outside the shard or too large.
        OSError: the file can't be read.
    """
    try:
        data = read_regular(file, max_index_bytes(shard))
        if hashlib.sha256(data).hexdigest() != shard.index_sha256:
            raise DataError(f"{file}: is damaged: its SHA-256 is not the one in {MANIFEST}")
        stream = io.BytesIO(data)
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except (OSError, DataError):
        raise
    except Exception as error:  # numpy parses the header as Python code, which can raise many kinds of errors
        raise DataError(f"{file}: can't be read: {reason_of(error)}") from None
    rows = stream.read()
    is_valid = dtype in (RECORD, _RECORD_WITHOUT_CRC) and shape == (shard.samples,)
    if not is_valid or len(rows) != shard.samples * dtype.itemsize:
        raise DataError(
            f"{file}: expected {shard.samples:,} records, "
            f"received {len(rows):,} bytes of {dtype} {list(shape)}"
        )
    index = np.frombuffer(bytearray(rows), dtype)
    if pack_format == _FORMAT_1:
        index["segments"] = 0
    sizes = index["size"].astype(np.uint64) + SEGMENT.itemsize * index["segments"].astype(np.uint64)
    ends = index["offset"] + sizes
    if (index["offset"] > shard.bytes).any() or (ends > shard.bytes).any():
        raise DataError(f"{file}: a record is outside the shard's {shard.bytes:,} bytes")
    if (ends - index["offset"] > MAX_IMAGE_FILE_BYTES).any():
        raise DataError(
            f"{file}: a record is larger than an image file may be, {MAX_IMAGE_FILE_BYTES:,} bytes"
        )
    return index


class IndexRow(NamedTuple):
    """A row of the index, with the fields of ``RECORD``; ``crc32`` is None if an earlier version wrote it."""

    offset: int
    size: int
    scan: int
    segments: int
    width: int
    height: int
    per_segment: int
    mcu_width: int
    mcu_height: int
    crc32: int | None = None

    @property
    def bytes(self) -> int:
        """Size of the record in its shard in bytes, including the table of its segments."""
        return self.size + SEGMENT.itemsize * self.segments


def has_damage(record: IndexRow, data: bytes) -> bool:
    """True if the bytes of a record are not those that were packed."""
    return record.crc32 is not None and (len(data) != record.bytes or zlib.crc32(data) != record.crc32)


def unpacked(record: IndexRow, data: bytes) -> bytes | RewrittenJpeg:
    """Returns the content of a record: a file's bytes, or a rewritten JPEG.

    Args:
        record: row of the index.
        data: bytes of the record, as many as ``record.bytes``.

    Raises:
        ValueError: the bytes don't match the index.
    """
    if len(data) != record.bytes:
        raise ValueError(f"expected {record.bytes:,} bytes in the shard, received {len(data):,}")
    if not record.segments:
        return data
    grid = Grid(record.width, record.height, record.mcu_width, record.mcu_height, record.per_segment)
    is_valid = (
        grid.width * grid.height <= MAX_PIXELS
        and grid.mcu_width in (8, 16)
        and grid.mcu_height in (8, 16)
        and 0 not in grid
        and grid.columns * grid.rows == record.segments
    )
    if not is_valid or not _MIN_JPEG_HEAD_BYTES <= record.scan < record.size:
        raise ValueError("its segments don't fit the record")
    return RewrittenJpeg(data, grid, record.scan, record.size)
