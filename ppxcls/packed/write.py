"""Packs the files of a list, compares them with the originals, and unpacks them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from ppxcls.data.class_names import CLASS_NAMES
from ppxcls.data.dataset import ImageNetDataset
from ppxcls.data.decode import Image, ImageParts, decode_image
from ppxcls.data.errors import DataError
from ppxcls.data.list_index import MOST_LIST_BYTES
from ppxcls.data.resize import resizer
from ppxcls.packed.dataset import PackedDataset
from ppxcls.packed.format import (
    LIST,
    MANIFEST,
    RECORD,
    RESAMPLING,
    Manifest,
    Shard,
    read_index,
    read_manifest,
    shard_name,
)
from ppxcls.packed.jpeg import SEGMENT_PIXELS, SegmentedImage, segmented
from ppxcls.packed.storage import is_url
from ppxcls.system import kernels
from ppxcls.system.paths import printable
from ppxcls.system.turns import TakenError, turn
from ppxcls.system.whole_files import open_regular, read_regular, reason_of, whole_file, write_bytes

Array = np.ndarray[Any, Any]
Progress = Callable[[int], object]

SAMPLES_PER_SHARD = 8192
_UNFINISHED = "pack.unfinished.json"
_LOCK = "pack.lock"
_SHOWN = 5
_AT_ONCE = 256  # samples in memory


@dataclass(frozen=True)
class Packed:
    """What a packed data set holds.

    Attributes:
        folder: the data set.
        samples: number of samples.
        segmented: number of those that are JPEGs in segments; the others are files as they were.
        bytes: size of the shards.
    """

    folder: Path
    samples: int
    segmented: int
    bytes: int

    def __str__(self) -> str:
        as_they_were = self.samples - self.segmented
        kinds = f"{self.segmented:,} JPEGs in segments, {as_they_were:,} files as they were"
        kinds += "" if kernels.HAS_NUMBA else " (cutting needs the package numba)"
        return f"{printable(str(self.folder))}: {self.samples:,} samples, {self.bytes:,} bytes; {kinds}"


_resize = resizer(RESAMPLING, "pil")


@dataclass(frozen=True)
class _Reduction:
    """Makes large images smaller; see ``pack``. Averages of areas would blur them: networks see that."""

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
    output: str | Path,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    short_side: int | None = None,
    quality: int | None = None,
    delimiter: str = " ",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Packed:
    """Write a packed data set. Work that was interrupted goes on after the last complete shard.

    No pixel changes unless ``short_side`` or ``quality`` is given. Then every image is decoded, reduced to
    the shorter side if it is larger, and written as a JPEG with half the colour resolution.

    Args:
        list_file: lines of ``path label``.
        image_root: folder to which the paths are relative; None is the list's folder.
        output: folder of the data set.
        samples_per_shard: number of samples in a file.
        short_side: pixels; None changes no size.
        quality: of the JPEGs, 1 to 100; None is 90 if ``short_side`` is given.
        delimiter: between path and label.
        threads: None is one per core.
        progress: called with the number of samples since the last call.

    Raises:
        DataError: the list or a file can't be read, or the folder holds another data set.
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
    dataset = _originals(list_file, image_root, delimiter)
    if short_side is not None and quality is None:
        quality = 90
    reduction = None if quality is None else _Reduction(short_side or 1 << 16, quality)
    changes = short_side, quality, None if short_side is None else RESAMPLING
    manifest = Manifest(dataset.digest(), delimiter, len(dataset), samples_per_shard, *changes)
    output.mkdir(parents=True, exist_ok=True)
    try:
        with turn(output / _LOCK, waits=False), ThreadPoolExecutor(threads or os.cpu_count()) as pool:
            _check_free(output, Path(list_file))
            manifest = _begun(output, manifest)
            _write_beside(output, Path(list_file))
            if progress:
                progress(sum(shard.samples for shard in manifest.shards))
            for number in range(len(manifest.shards), manifest.count):
                samples = range(
                    number * samples_per_shard, min((number + 1) * samples_per_shard, len(dataset))
                )
                shard = _write_shard(output, number, samples, dataset, reduction, pool, progress)
                manifest = replace(manifest, shards=[*manifest.shards, shard])
                manifest.write(output / _UNFINISHED)
            manifest.write(output / MANIFEST)
            (output / _UNFINISHED).unlink(missing_ok=True)
    except TakenError:
        raise DataError(f"{output}: another process is packing there") from None
    return _facts(output, manifest)


def _check_options(delimiter: str, **numbers: int | None) -> None:
    """Raises DataError if an option can't be used."""
    if not delimiter:
        raise DataError("expected a delimiter of at least one character, received ''")
    most = {"samples_per_shard": 1 << 24, "short_side": 1 << 14, "quality": 100, "threads": 1 << 10}
    for name, value in numbers.items():
        if value is not None and not 1 <= value <= most[name]:
            raise DataError(f"expected {name} from 1 to {most[name]:,}, received {value}")


def _check_free(output: Path, list_file: Path) -> None:
    """Refuse to replace a list or class names that packing has not written. Raises DataError."""
    if (output / MANIFEST).exists() or (output / _UNFINISHED).exists():
        return
    for name, source in ((LIST, list_file), (CLASS_NAMES, list_file.parent / CLASS_NAMES)):
        if (
            (output / name).exists()
            and source.is_file()
            and (output / name).read_bytes() != source.read_bytes()
        ):
            raise DataError(
                f"{output / name}: is there already, and is another file than {source}; choose an empty folder"
            )


def _write_beside(output: Path, list_file: Path) -> None:
    """The list, and the class names if there are any."""
    write_bytes(output / LIST, read_regular(list_file, MOST_LIST_BYTES))
    with contextlib.suppress(OSError, ValueError):  # a list need not have names beside it
        write_bytes(output / CLASS_NAMES, read_regular(list_file.parent / CLASS_NAMES, MOST_LIST_BYTES))


def _originals(list_file: str | Path, image_root: str | Path | None, delimiter: str) -> ImageNetDataset:
    root = Path(list_file).parent if image_root is None else image_root
    return ImageNetDataset(str(root), str(list_file), delimiter=delimiter)


def _begun(output: Path, wanted: Manifest) -> Manifest:
    """The manifest with the shards that an earlier, interrupted call has written. Raises DataError."""
    for name in (MANIFEST, _UNFINISHED):
        if (output / name).exists():
            try:
                found = read_manifest(output / name)
            except DataError:
                if name == _UNFINISHED:  # cut off with the machine: begin again
                    return wanted
                raise
            if found.format != wanted.format:
                raise DataError(
                    f"{output / name}: the folder holds a data set of the format {found.format!r}; choose another"
                )
            if replace(found, shards=[]) != wanted:
                raise DataError(
                    f"{output / name}: the folder holds a data set of another list, or with other options"
                )
            shards = found.shards
            for number, shard in enumerate(shards):
                if not _is_whole(output, number, shard):
                    return replace(wanted, shards=shards[:number])
            return found
    return wanted


def _is_whole(folder: Path, number: int, shard: Shard) -> bool:
    """Whether both files of a shard have their checksums."""
    files = {f"{shard_name(number)}.data": shard.sha256, f"{shard_name(number)}.index": shard.index_sha256}
    return all(
        (folder / name).is_file() and _digest(folder / name) == digest for name, digest in files.items()
    )


def _write_shard(
    output: Path,
    number: int,
    samples: range,
    dataset: ImageNetDataset,
    reduction: _Reduction | None,
    pool: ThreadPoolExecutor,
    progress: Progress | None,
) -> Shard:
    """Write the two files of a shard."""
    index = np.zeros(len(samples), RECORD)
    digest = hashlib.sha256()
    offset = 0
    with whole_file(output / f"{shard_name(number)}.data", durable=True) as stream:
        for start in range(0, len(samples), _AT_ONCE):
            part = samples[start : start + _AT_ONCE]
            for place, (record, data) in enumerate(
                pool.map(lambda i: _record(dataset, i, reduction), part), start
            ):
                record["offset"] = offset
                index[place] = record
                digest.update(data)
                stream.write(data)
                offset += len(data)
            if progress:
                progress(len(part))
    with whole_file(output / f"{shard_name(number)}.index", durable=True) as stream:
        np.save(stream, index, allow_pickle=False)
    index_digest = hashlib.sha256((output / f"{shard_name(number)}.index").read_bytes()).hexdigest()
    return Shard(len(samples), offset, digest.hexdigest(), index_digest)


def _record(dataset: ImageNetDataset, sample: int, reduction: _Reduction | None) -> tuple[Array, bytes]:
    """A record of the index without its offset, and the bytes. Raises DataError."""
    data = dataset.load(sample)
    assert isinstance(data, bytes)
    try:
        picture = decode_image(data)
    except (ValueError, MemoryError):  # a damaged file stays what it is; training reports it
        picture = None
    if picture is not None and reduction is not None:
        try:
            data = reduction(picture)
        except ValueError as error:
            raise DataError(f"{dataset.path(sample)} ({dataset.line(sample)}): {error}") from None
        picture = decode_image(data)
    record = np.zeros((), RECORD)
    record["size"] = len(data)
    made = None if picture is None else segmented(data)
    if made is None or not _is_equal(SegmentedImage(made), picture):
        return record, data
    grid = made.grid
    record["size"], record["scan"], record["segments"] = made.table, made.scan, grid.columns * grid.rows
    for name in ("width", "height", "per_segment", "mcu_width", "mcu_height"):
        record[name] = getattr(grid, name)
    return record, made.data


def _is_equal(image: ImageParts, picture: Image | None) -> bool:
    """Whether the whole has these pixels, and so have strips that between them begin and end at each segment."""
    try:
        if picture is None or not np.array_equal(image.whole(), picture):
            return False
        height, width = picture.shape[:2]
        lefts = range(0, width, SEGMENT_PIXELS)
        strips = [(left, min(SEGMENT_PIXELS, width - left)) for left in lefts]
        return all(
            np.array_equal(image.part(x, 0, wide, height), picture[:, x : x + wide]) for x, wide in strips
        )
    except ValueError:
        return False


def _facts(folder: Path, manifest: Manifest) -> Packed:
    indices = [
        read_index(folder / f"{shard_name(i)}.index", shard, manifest.format)
        for i, shard in enumerate(manifest.shards)
    ]
    count = sum(int(np.count_nonzero(index["segments"])) for index in indices)
    return Packed(folder, manifest.samples, count, sum(shard.bytes for shard in manifest.shards))


def verify_pack(
    folder: str | Path,
    list_file: str | Path | None = None,
    image_root: str | Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Packed:
    """Compare the shards with their checksums, and each image with its original, if there is a list.

    Args:
        folder: the data set.
        list_file: of the originals; None compares checksums only.
        image_root: of the originals; None is the list's folder.
        threads: None is one per core.
        progress: called with the number of samples since the last call.

    Raises:
        DataError: something differs. The message names the first few.
    """
    packed, folder = _of_this_host(folder), Path(folder)
    for number, shard in enumerate(packed.manifest.shards):
        for extension, expected in (("data", shard.sha256), ("index", shard.index_sha256)):
            file = folder / f"{shard_name(number)}.{extension}"
            if _digest(file) != expected:
                raise DataError(f"{file}: another checksum than in {MANIFEST}")
    if list_file is None:
        return _facts(folder, packed.manifest)
    if packed.manifest.quality is not None:
        raise DataError(f"{folder}: the images were reduced, so they can't be compared with the originals")
    originals = _originals(list_file, image_root, packed.manifest.delimiter)
    if originals.digest() != packed.digest():
        raise DataError(f"{list_file}: not the list of {folder}")
    different: list[str] = []

    def compare(start: int) -> int:
        part = range(start, min(start + 16, len(packed)))
        different.extend(originals.path(i) for i in part if not _is_same(packed, originals, i))
        return len(part)

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for count in pool.map(compare, range(0, len(packed), 16)):
            if progress:
                progress(count)
    if different:
        named = ", ".join(map(printable, sorted(different)[:_SHOWN])) + (
            ", ..." if len(different) > _SHOWN else ""
        )
        raise DataError(
            f"{folder}: {len(different):,} of {len(packed):,} images differ from their originals: {named}"
        )
    return _facts(folder, packed.manifest)


def _of_this_host(folder: str | Path) -> PackedDataset:
    if is_url(str(folder)):
        raise DataError(f"{folder}: expected a folder of this host; copy the data set first")
    return PackedDataset(str(folder))


def _digest(file: Path) -> str:
    try:
        with open_regular(file) as stream:
            digest = hashlib.sha256()
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{file}: {reason_of(error)}") from None
    return digest.hexdigest()


def _is_same(packed: PackedDataset, originals: ImageNetDataset, sample: int) -> bool:
    try:
        original: Any = originals.load(sample)
        found: Any = packed.load(sample)
        if isinstance(found, bytes):  # in format 1, rewritten ones too
            return found == original or np.array_equal(decode_image(found), decode_image(original))
        return _is_equal(found, decode_image(original))
    except (DataError, ValueError, MemoryError):  # one of both is missing or damaged
        return False


def unpack(folder: str | Path, output: str | Path, progress: Progress | None = None) -> int:
    """Write the files of a packed data set, under their names in the list, and the list.

    A JPEG has the pixels of the original, not its bytes.

    Args:
        folder: the data set.
        output: folder that does not exist, or is empty.
        progress: called with the number of samples since the last call.

    Returns:
        Number of files.

    Raises:
        DataError: a record can't be read, or a name leaves the folder.
        OSError: a file can't be written.
    """
    packed, output = _of_this_host(folder), Path(output)
    if output.exists() and any(output.iterdir()):
        raise DataError(f"{output}: expected an empty folder")
    outside = packed.index.first_outside(output)
    if outside is not None:
        raise DataError(
            f"{packed.line(outside)}: a path that leads out of the folder: {packed.listed(outside)!r}"
        )
    for i in range(len(packed)):
        if packed.listed(i) in (LIST, CLASS_NAMES):
            raise DataError(
                f"{packed.line(i)}: {packed.listed(i)} is the name of a file that is written beside the images"
            )
        found: Any = packed.load(i)
        file = output / packed.listed(i)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(found.encoded if isinstance(found, ImageParts) else found)
        if progress:
            progress(1)
    for name in (LIST, CLASS_NAMES):
        if (Path(folder) / name).is_file():
            (output / name).write_bytes((Path(folder) / name).read_bytes())
    return len(packed)
