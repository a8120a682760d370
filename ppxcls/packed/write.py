"""Packs the files of a list, compares packed images with the originals, and unpacks them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from ppxcls.data.class_names import CLASS_NAMES_FILE, MAX_NAMES_BYTES, read_class_names
from ppxcls.data.dataset import ImageNetDataset
from ppxcls.data.decode import Image, ImageParts, decode_image
from ppxcls.data.errors import DataError
from ppxcls.data.groups import GROUPS_FILE
from ppxcls.data.list_index import MAX_LIST_BYTES
from ppxcls.data.picture_headers import picture_size
from ppxcls.data.resize import resizer
from ppxcls.data.tables import MAX_TABLE_BYTES
from ppxcls.packed.dataset import PackedDataset
from ppxcls.packed.format import (
    FORMAT_2,
    LIST,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    PACK_FORMAT,
    RECORD,
    RESAMPLING,
    Manifest,
    Shard,
    read_index,
    read_pack_manifest,
    shard_name,
)
from ppxcls.packed.jpeg import SEGMENT_PIXELS, SegmentedImage, rewrite_jpeg
from ppxcls.packed.storage import is_url
from ppxcls.system import kernels
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import read_regular, reason_of, whole_file, write_bytes
from ppxcls.system.digests import file_sha256
from ppxcls.system.file_lock import LockedError, locked
from ppxcls.system.logs import logger, warn_once
from ppxcls.system.paths import printable

ProgressCallback = Callable[[int], object]

SAMPLES_PER_SHARD = 8192
_OPTIONAL_FILES = {CLASS_NAMES_FILE: MAX_NAMES_BYTES, GROUPS_FILE: MAX_TABLE_BYTES}  # beside a list
_UNFINISHED_FILE = "pack.unfinished.json"
_LOCK = "pack.lock"
_MAX_NAMES = 5
_MAX_SHARDS = MAX_MANIFEST_BYTES // 256  # an entry of the manifest is shorter
_JPEG_PIXEL_BYTES, _JPEG_START = 3, b"\xff\xd8"
_BATCH_SAMPLES = 256  # samples in memory at a time


@dataclass(frozen=True)
class PackSummary:
    """A summary of a packed data set.

    Attributes:
        folder: folder of the data set.
        samples: number of samples.
        segmented_images: number of samples that are JPEGs in segments; the others are unchanged files.
        bytes: total size of the shards in bytes.
    """

    folder: Path
    samples: int
    segmented_images: int
    bytes: int

    def __str__(self) -> str:
        unchanged_files = self.samples - self.segmented_images
        kinds = f"{self.segmented_images:,} JPEGs in segments, {unchanged_files:,} unchanged files"
        kinds += "" if kernels.HAS_NUMBA else " (segments need the package numba)"
        return f"{printable(str(self.folder))}: {self.samples:,} samples, {self.bytes:,} bytes; {kinds}"


_resize = resizer(RESAMPLING, "pil")


@dataclass(frozen=True)
class _Reduction:
    """Reduces large images and encodes all as JPEGs, see ``pack``.

    The filter is ``RESAMPLING``. Area averages would blur the images, which affects networks.
    """

    short_side: int
    quality: int

    def __call__(self, image: Image) -> bytes:
        factor = self.short_side / min(image.shape[:2])
        if factor < 1:
            size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
            image = _resize(image, size)
        return simplejpeg.encode_jpeg(np.ascontiguousarray(image), self.quality, "RGB", "420")


def pack(
    list_file: str | Path,
    image_root: str | Path | None,
    *,
    output: str | Path,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    short_side: int | None = None,
    quality: int | None = None,
    delimiter: str = " ",
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> PackSummary:
    """Writes a packed data set. An interrupted packing resumes after the last complete shard.

    No pixel changes unless ``short_side`` or ``quality`` is given. With one of them, every image is decoded,
    reduced to the short side if it is larger, and written as a JPEG with half the colour resolution.

    Args:
        list_file: list file with lines of ``path label``.
        image_root: folder of relative paths; None for the list's folder.
        output: folder of the data set.
        samples_per_shard: number of samples in a shard.
        short_side: maximum length of the short side in pixels; None changes no size.
        quality: JPEG quality, 1 to 100; None is 90 if ``short_side`` is given.
        delimiter: separator between path and label.
        threads: number of threads; None for one per core.
        progress: function that is called with the number of samples since the last call.

    Returns:
        A summary of the data set.

    Raises:
        DataError: an option is invalid, the list or a file can't be read, the folder contains other data, or
            another process is packing there.
        OSError: the data set can't be written.
    """
    output = Path(output)
    _check_options(
        delimiter,
        samples_per_shard=samples_per_shard,
        short_side=short_side,
        quality=quality,
        threads=threads,
    )
    dataset = _original_dataset(list_file, image_root, delimiter)
    if short_side is not None and quality is None:
        quality = 90
    reduction = None if quality is None else _Reduction(short_side or 1 << 16, quality)
    changes = short_side, quality, None if short_side is None else RESAMPLING
    manifest = Manifest(dataset.digest(), delimiter, len(dataset), samples_per_shard, *changes)
    manifest = replace(manifest, class_names_sha256=_names_digest(Path(list_file).parent))
    if manifest.count > _MAX_SHARDS:
        raise DataError(
            f"{output}: expected at most {_MAX_SHARDS:,} shards, received {manifest.count:,}; "
            "put more samples into a shard"
        )
    output.mkdir(parents=True, exist_ok=True)
    try:
        with (
            locked(output / _LOCK, waits=False, is_kept=False),
            ThreadPoolExecutor(threads or os.cpu_count()) as pool,
        ):
            _check_foreign_files(output, Path(list_file))
            manifest = _resumable_manifest(output, manifest)
            _write_list_files(output, Path(list_file))
            if progress:
                progress(sum(shard.samples for shard in manifest.shards))
            for number in range(len(manifest.shards), manifest.count):
                samples = range(
                    number * samples_per_shard, min((number + 1) * samples_per_shard, len(dataset))
                )
                shard = _write_shard(
                    output,
                    number,
                    samples=samples,
                    dataset=dataset,
                    reduction=reduction,
                    pool=pool,
                    progress=progress,
                )
                manifest = replace(manifest, shards=[*manifest.shards, shard])
                manifest.write(output / _UNFINISHED_FILE)
            if manifest.format == PACK_FORMAT:
                manifest.write(output / MANIFEST)
            (output / _UNFINISHED_FILE).unlink(missing_ok=True)
    except LockedError as error:
        if error.owner:
            raise DataError(f"{error}, who is packing there; remove it if that is over") from None
        raise DataError(f"{output}: another process is packing there") from None
    return _summary(output, manifest)


def _check_options(delimiter: str, **numbers: int | None) -> None:
    """Checks the options. Raises DataError if one is invalid."""
    if not delimiter:
        raise DataError("expected a delimiter of at least one character, received ''")
    limits = {"samples_per_shard": 1 << 24, "short_side": 1 << 14, "quality": 100, "threads": 1 << 10}
    for name, value in numbers.items():
        if value is not None and not 1 <= value <= limits[name]:
            raise DataError(f"expected {name} from 1 to {limits[name]:,}, received {value}")


def _check_foreign_files(output: Path, list_file: Path) -> None:
    """Refuses to replace a list or class names that packing has not written. Raises DataError."""
    if (output / MANIFEST).exists() or (output / _UNFINISHED_FILE).exists():
        return
    for name, source, max_bytes in (
        (LIST, list_file, MAX_LIST_BYTES),
        *((name, list_file.parent / name, max_bytes) for name, max_bytes in _OPTIONAL_FILES.items()),
    ):
        is_regular = not (output / name).exists() or (output / name).is_file()
        if not is_regular or (
            (output / name).exists()
            and source.is_file()
            and read_regular(output / name, max_bytes) != read_regular(source, max_bytes)
        ):
            raise DataError(
                f"{output / name}: exists already and differs from {source}; choose an empty folder"
            )


def _write_list_files(output: Path, list_file: Path) -> None:
    """Writes the list, and the class names and the groups if there are any."""
    write_bytes(output / LIST, read_regular(list_file, MAX_LIST_BYTES))
    for name, max_bytes in _OPTIONAL_FILES.items():
        with contextlib.suppress(OSError, ValueError):
            write_bytes(output / name, read_regular(list_file.parent / name, max_bytes))


def _names_digest(folder: Path) -> str | None:
    """Returns the SHA-256 of the class names in a folder; None if there are none."""
    try:
        return hashlib.sha256(read_regular(folder / CLASS_NAMES_FILE, MAX_NAMES_BYTES)).hexdigest()
    except (OSError, ValueError):
        return None


def _original_dataset(
    list_file: str | Path, image_root: str | Path | None, delimiter: str
) -> ImageNetDataset:
    root = Path(list_file).parent if image_root is None else image_root
    return ImageNetDataset(str(root), str(list_file), delimiter=delimiter)


def _resumable_manifest(output: Path, new_manifest: Manifest) -> Manifest:
    """Returns the manifest with the shards that an interrupted call has completed. Raises DataError."""
    for name in (MANIFEST, _UNFINISHED_FILE):
        if (output / name).exists():
            try:
                old_manifest = read_pack_manifest(output / name)
            except DataError:
                if name == _UNFINISHED_FILE:  # truncated by a crash of the machine: start again
                    return new_manifest
                raise
            is_whole = name == MANIFEST and len(old_manifest.shards) == old_manifest.count
            if is_whole and old_manifest.format == FORMAT_2:  # it stays as it is
                new_manifest = replace(new_manifest, format=FORMAT_2)
            if old_manifest.format != new_manifest.format:
                raise DataError(
                    f"{output / name}: the folder contains a data set of the format {old_manifest.format!r}; "
                    "choose another folder"
                )
            # Other names are written beside the same shards, and earlier versions stored no digest of them.
            old_manifest = replace(old_manifest, class_names_sha256=new_manifest.class_names_sha256)
            if replace(old_manifest, shards=[]) != new_manifest:
                raise DataError(
                    f"{output / name}: the folder contains a data set of another list, or with other options"
                )
            shards = old_manifest.shards
            for number, shard in enumerate(shards):
                if not _is_complete(output, number, shard):
                    if old_manifest.format != PACK_FORMAT:
                        raise DataError(
                            f"{output / shard_name(number)}: is damaged, and an earlier version wrote it; "
                            "choose another folder"
                        )
                    return replace(new_manifest, shards=shards[:number])
            return old_manifest
    return new_manifest


def _is_complete(folder: Path, number: int, shard: Shard) -> bool:
    """True if both files of a shard match their checksums."""
    files = {f"{shard_name(number)}.data": shard.sha256, f"{shard_name(number)}.index": shard.index_sha256}
    return all(
        (folder / name).is_file() and _digest(folder / name) == digest for name, digest in files.items()
    )


def _write_shard(
    output: Path,
    number: int,
    *,
    samples: range,
    dataset: ImageNetDataset,
    reduction: _Reduction | None,
    pool: ThreadPoolExecutor,
    progress: ProgressCallback | None,
) -> Shard:
    """Writes the two files of a shard."""
    index = np.zeros(len(samples), RECORD)
    digest = hashlib.sha256()
    offset = 0
    error_texts: list[str] = []
    with whole_file(output / f"{shard_name(number)}.data", durable=True) as stream:
        for start in range(0, len(samples), _BATCH_SAMPLES):
            part = samples[start : start + _BATCH_SAMPLES]
            for place, (record, data, reason) in enumerate(
                pool.map(lambda i: _record(dataset, i, reduction), part), start
            ):
                if reason:
                    error_texts.append(f"{dataset.path(samples[place])}: {reason}")
                record["offset"] = offset
                record["crc32"] = zlib.crc32(data)
                index[place] = record
                digest.update(data)
                stream.write(data)
                offset += len(data)
            if progress:
                progress(len(part))
    if error_texts:
        logger.warning(
            f"{shard_name(number)}: {len(error_texts):,} of {len(samples):,} files can't be decoded, and are "
            f"packed unchanged; the first one is {error_texts[0]}"
        )
    with whole_file(output / f"{shard_name(number)}.index", durable=True) as stream:
        np.save(stream, index, allow_pickle=False)
    index_digest = hashlib.sha256((output / f"{shard_name(number)}.index").read_bytes()).hexdigest()
    return Shard(len(samples), offset, digest.hexdigest(), index_digest)


def _record(dataset: ImageNetDataset, sample: int, reduction: _Reduction | None) -> tuple[Array, bytes, str]:
    """Returns a record of the index without its offset, its bytes, and why it can't be decoded, or "".

    A damaged file is packed unchanged. Raises DataError.
    """
    data = dataset.load(sample)
    assert isinstance(data, bytes)
    reason = ""
    try:
        picture = decode_image(data)
    except (ValueError, MemoryError) as error:
        picture, reason = None, str(error) or "too large for the memory"
    if picture is not None and reduction is not None:
        _warn_of_lost_values(data)
        try:
            data = reduction(picture)
        except ValueError as error:
            raise DataError(f"{dataset.path(sample)} ({dataset.line(sample)}): {error}") from None
        picture = decode_image(data)
    record = np.zeros((), RECORD)
    record["size"] = len(data)
    jpeg = None if picture is None else rewrite_jpeg(data)
    if jpeg is None or not _is_equal(SegmentedImage(jpeg), picture):
        return record, data, reason
    grid = jpeg.grid
    record["size"] = jpeg.table
    record["scan"] = jpeg.scan
    record["segments"] = grid.columns * grid.rows
    for name in ("width", "height", "per_segment", "mcu_width", "mcu_height"):
        record[name] = getattr(grid, name)
    return record, jpeg.data, reason


def _warn_of_lost_values(data: bytes) -> None:
    """Warns once if an image has values that a JPEG does not keep."""
    size = picture_size(data)
    if size is not None and size.pixel_bytes > _JPEG_PIXEL_BYTES and not data.startswith(_JPEG_START):
        warn_once("some images have a fourth channel or 16 bits, which the packed JPEGs do not keep")


def _is_equal(image: ImageParts, picture: Image | None) -> bool:
    """True if the image has these pixels, both as a whole and in strips.

    Each strip is one segment wide, so every segment is tested as the beginning and as the end of a part.
    """
    try:
        if picture is None or not np.array_equal(image.whole(), picture):
            return False
        height, width = picture.shape[:2]
        lefts = range(0, width, SEGMENT_PIXELS)
        strips = [(left, min(SEGMENT_PIXELS, width - left)) for left in lefts]
        return all(
            np.array_equal(image.part(x, 0, strip_width, height), picture[:, x : x + strip_width])
            for x, strip_width in strips
        )
    except ValueError:
        return False


def _summary(folder: Path, manifest: Manifest) -> PackSummary:
    indices = [
        read_index(folder / f"{shard_name(i)}.index", shard, manifest.format)
        for i, shard in enumerate(manifest.shards)
    ]
    count = sum(int(np.count_nonzero(index["segments"])) for index in indices)
    return PackSummary(folder, manifest.samples, count, sum(shard.bytes for shard in manifest.shards))


def verify_pack(
    folder: str | Path,
    list_file: str | Path | None = None,
    *,
    image_root: str | Path | None = None,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> PackSummary:
    """Compares the shards with their checksums, and each image with its original if a list is given.

    Args:
        folder: folder of the data set.
        list_file: list of the originals; None compares checksums only.
        image_root: folder of the originals; None for the list's folder.
        threads: number of threads; None for one per core.
        progress: function that is called with the number of samples since the last call.

    Returns:
        A summary of the data set.

    Raises:
        DataError: a checksum, the list, its class names or an image differs, or the images were reduced. The
            message names the first few different images.
    """
    dataset, folder = _open_local(folder), Path(folder)
    for number, shard in enumerate(dataset.manifest.shards):
        _check_digest(folder / f"{shard_name(number)}.data", shard.sha256)
        _check_digest(folder / f"{shard_name(number)}.index", shard.index_sha256)
    names_digest = dataset.manifest.class_names_sha256
    if names_digest is not None and _names_digest(folder) != names_digest:
        raise DataError(f"{folder / CLASS_NAMES_FILE}: was changed or damaged after it was packed")
    if list_file is None:
        return _summary(folder, dataset.manifest)
    if dataset.manifest.quality is not None:
        raise DataError(f"{folder}: the images were reduced, so they can't be compared with the originals")
    originals = _original_dataset(list_file, image_root, dataset.manifest.delimiter)
    if originals.digest() != dataset.digest():
        raise DataError(f"{list_file}: the list does not match the list in {folder}")
    _check_same_names(folder / CLASS_NAMES_FILE, Path(list_file).parent / CLASS_NAMES_FILE)
    paths: list[str] = []

    def compare(start: int) -> int:
        part = range(start, min(start + 16, len(dataset)))
        paths.extend(originals.path(i) for i in part if not _is_same(dataset, originals, i))
        return len(part)

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for count in pool.map(compare, range(0, len(dataset), 16)):
            if progress:
                progress(count)
    if paths:
        names = ", ".join(map(printable, sorted(paths)[:_MAX_NAMES]))
        names += ", ..." if len(paths) > _MAX_NAMES else ""
        raise DataError(
            f"{folder}: {len(paths):,} of {len(dataset):,} images differ from their originals: {names}"
        )
    return _summary(folder, dataset.manifest)


def _check_digest(file: Path, expected: str) -> None:
    """Raises DataError if a file does not have the SHA-256 of the manifest."""
    if _digest(file) != expected:
        raise DataError(f"{file}: the checksum does not match {MANIFEST}")


def _check_same_names(file: Path, other_file: Path) -> None:
    """Raises DataError if both files of class names exist and differ: equal labels have other meanings."""
    if file.is_file() and other_file.is_file():
        names, other_names = read_class_names(file, None), read_class_names(other_file, None)
        pairs = zip_longest(names, other_names)
        difference = next((f"{i} is {a!r} and {b!r}" for i, (a, b) in enumerate(pairs) if a != b), None)
        if difference:
            raise DataError(f"{file} and {other_file} have different classes: {difference}")


def _open_local(folder: str | Path) -> PackedDataset:
    if is_url(str(folder)):
        raise DataError(f"{folder}: expected a folder of this host; copy the data set first")
    return PackedDataset(str(folder))


def _digest(file: Path) -> str:
    try:
        return file_sha256(file)
    except OSError as error:
        raise DataError(f"{file}: {reason_of(error)}") from None


def _is_same(dataset: PackedDataset, originals: ImageNetDataset, sample: int) -> bool:
    try:
        original: Any = originals.load(sample)
        content: Any = dataset.load(sample)
        if isinstance(content, bytes):  # in format 1, rewritten JPEGs too
            return content == original or np.array_equal(decode_image(content), decode_image(original))
        return _is_equal(content, decode_image(original))
    except (DataError, ValueError, MemoryError):  # one of the two images is missing or damaged
        return False


def unpack(folder: str | Path, output: str | Path, progress: ProgressCallback | None = None) -> int:
    """Writes the files of a packed data set under their names in the list, and the list itself.

    A rewritten JPEG has the pixels of the original, but not its bytes.

    Args:
        folder: folder of the data set.
        output: folder that does not exist, or is empty.
        progress: function that is called with the number of samples since the last call.

    Returns:
        Number of images.

    Raises:
        DataError: the output folder is not empty, a record or another file can't be read or is damaged, or a
            name in the list leads out of the folder or is reserved.
        OSError: a file can't be written.
    """
    dataset, output = _open_local(folder), Path(output)
    if output.exists() and any(output.iterdir()):
        raise DataError(f"{output}: expected an empty folder")
    outside_sample = dataset.index.first_outside(output)
    if outside_sample is not None:
        raise DataError(
            f"{dataset.line(outside_sample)}: the path leads out of the folder: "
            f"{dataset.listed(outside_sample)!r}"
        )
    for sample in range(len(dataset)):
        if dataset.listed(sample) in (LIST, *_OPTIONAL_FILES):
            raise DataError(
                f"{dataset.line(sample)}: the name {dataset.listed(sample)} is reserved "
                "for a file that unpacking writes"
            )
        content: Any = dataset.load(sample)
        number, place = divmod(sample, dataset.manifest.samples_per_shard)
        if place == 0 and not dataset.has_digest(sample):  # otherwise each record is compared
            data_file = Path(folder) / f"{shard_name(number)}.data"
            _check_digest(data_file, dataset.manifest.shards[number].sha256)
        file = output / dataset.listed(sample)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Without a search for what killed processes have left, because a folder may have a million images.
        write_bytes(file, content.encoded if isinstance(content, ImageParts) else content, sweeps=False)
        if progress:
            progress(1)
    for name, digest in (
        (LIST, dataset.manifest.list_sha256),
        (CLASS_NAMES_FILE, dataset.manifest.class_names_sha256),
        (GROUPS_FILE, None),
    ):
        if (Path(folder) / name).is_file():
            data = read_regular(Path(folder) / name, _OPTIONAL_FILES.get(name, MAX_LIST_BYTES))
            if digest not in (None, hashlib.sha256(data).hexdigest()):
                raise DataError(f"{Path(folder) / name}: was changed or damaged after it was packed")
            write_bytes(output / name, data)
    return len(dataset)
