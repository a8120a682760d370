"""Writes an export whole or not at all, and reads its parts with their digests.

An export is a folder. Its parts are the files of Paddle, ONNX and PaddleX. Its metadata,
``inference_config.json``, contains the size and SHA-256 of each part, and a digest of itself.

Renaming the metadata commits an export. Before that, all parts are complete in a hidden folder below the
export's folder. Its name, ``.export-<id>``, follows from the digests. After that, the parts are moved to
their plain names. So if an export is interrupted at any point, each part of the metadata exists in one of the
two places. The next export moves or removes what an interrupted one has left.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ppxcls.checkpoints.files import CheckpointError, weights_bytes
from ppxcls.data.errors import DataError
from ppxcls.deploy.metadata import (
    MAX_METADATA_BYTES,
    METADATA_FILE,
    ExportMetadata,
    parse_metadata,
    read_metadata,
)
from ppxcls.system.atomic_files import read_regular, sync_folder, write_text
from ppxcls.system.digests import file_sha256
from ppxcls.system.file_lock import LockedError, locked_folder
from ppxcls.system.json_text import json_text, read_json
from ppxcls.system.logs import logger
from ppxcls.system.sealed_json import sealed

PART_NAMES = (
    "inference.json",
    "inference.pdmodel",
    "inference.pdiparams",
    "inference.pdiparams.info",
    "inference.onnx",
    "inference.int8.onnx",
    "inference.yml",
)
_STAGING_NAME = re.compile(r"\.export-[0-9a-f]{16}")
# Names of earlier versions: of the staging folder, and of what is in it beside the parts.
_OLD_STAGING_NAME = re.compile(r"\.export-[a-z0-9_]{8}")
_OLD_TEMPORARY_NAME = re.compile(r"tmp.*|\.int8-.*|inference_config\.json(?:\.new)?")
_OBSOLETE_FILE = "obsolete.json"  # names of the parts that only the earlier export has, while a save is moved
_MAX_LIST_BYTES = 1 << 20  # of the names of the parts that only the earlier export has
_ABANDONED_SECONDS = 86_400  # without a lock, only older leftovers are removed
_MAX_SHOWN_CHARACTERS = 100  # of a text in metadata, in a message


@contextlib.contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """Yields a hidden folder for the parts, in which ``commit_export`` finds them.

    What an interrupted export has left is completed or removed first. Nothing remains of the hidden folder
    and of new, empty folders.

    Args:
        folder: folder of the export. It is created if it does not exist.

    Raises:
        CheckpointError: another process exports to the folder.
        OSError: the folder can't be created.
    """
    missing_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked_folder(folder) as is_locked:
            _complete(folder)
            _sweep(folder, is_locked=is_locked)
            staging = folder / f".export-{secrets.token_hex(8)}"
            staging.mkdir()
            try:
                yield staging
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except LockedError:
        raise CheckpointError(f"{folder}: another process exports to this folder; wait for its end") from None
    finally:
        for path in missing_folders:
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()


def commit_export(folder: Path, staging: Path, values: Mapping[str, Any]) -> None:
    """Replaces the export in a folder by the parts in its staging folder. Files of other programs stay.

    Args:
        folder: folder of the export.
        staging: folder that ``staging_folder`` has yielded, with complete parts.
        values: entries of the metadata.

    Raises:
        CheckpointError: a file of another program has the name of a part, or the class names are too long.
        OSError: a file can't be written. The earlier export is still whole if the metadata was not replaced.
    """
    for file in staging.iterdir():
        _sync_file(file)
    parts = {file.name: _entry(file) for file in sorted(staging.iterdir())}
    assert parts.keys() <= set(PART_NAMES), parts
    old_parts = _old_parts(folder, parse_metadata(values, "the metadata"))
    _check_names(folder, parts, old_parts)
    text = json_text(sealed({**values, "parts": parts}), indent=1) + "\n"
    if (size := len(text.encode())) > MAX_METADATA_BYTES:
        raise CheckpointError(
            f"{folder / METADATA_FILE}: {size:,} bytes, mostly of class names, expected at most "
            f"{MAX_METADATA_BYTES:,}"
        )
    write_text(staging / METADATA_FILE, text)
    write_text(staging / _OBSOLETE_FILE, json_text(sorted(old_parts.keys() - parts.keys())))
    _sync_file(staging / METADATA_FILE)
    save_folder = _save_folder(folder, parts)
    if save_folder.is_dir() and not save_folder.is_symlink():  # left by an export on a system without locks
        shutil.rmtree(save_folder)
    os.rename(staging, save_folder)
    try:
        sync_folder(save_folder)
        os.replace(save_folder / METADATA_FILE, folder / METADATA_FILE)
    except BaseException:
        shutil.rmtree(save_folder, ignore_errors=True)
        raise
    sync_folder(folder)
    _finish(folder, save_folder, parts)


def _finish(folder: Path, save_folder: Path, parts: Mapping[str, Any]) -> None:
    """Moves the parts of a save to their plain names, and removes those that only the earlier export had."""
    for name in parts:
        if (save_folder / name).is_file():
            os.replace(save_folder / name, folder / name)
    for name in read_json(read_regular(save_folder / _OBSOLETE_FILE, _MAX_LIST_BYTES)):
        if name in PART_NAMES and (folder / name).is_file():
            (folder / name).unlink()
            logger.warning(f"removed {folder / name}, which an earlier export wrote")
    sync_folder(folder)
    shutil.rmtree(save_folder)


class ReplacedError(CheckpointError):
    """An export was replaced after its metadata was read. It can be read again from the start."""


def read_export_part(folder: Path, name: str, metadata: ExportMetadata) -> bytes:
    """Returns the bytes of a part, which have the size and digest that the metadata gives.

    Exports of earlier versions have no digests. Their parts are read unchecked.

    Args:
        folder: folder of the export.
        name: name of the part, such as ``inference.onnx``.
        metadata: metadata of the export.

    Raises:
        CheckpointError: the part is missing, damaged, or can't be read.
        ReplacedError: another export has replaced this one.
    """
    file = folder / name
    if not metadata.parts:
        return weights_bytes(file)
    expected = metadata.parts.get(name)
    if expected is None:
        raise CheckpointError(f"{file}: no part of this export ({METADATA_FILE})")
    # The part may be moved to its plain name between the first two attempts.
    for candidate in (file, _save_folder(folder, metadata.parts) / name, file):
        with contextlib.suppress(OSError, CheckpointError):
            if candidate.stat().st_size == expected["size"]:
                data = weights_bytes(candidate)
                if hashlib.sha256(data).hexdigest() == expected["sha256"]:
                    return data
    with contextlib.suppress(DataError):
        if read_metadata(folder).parts != metadata.parts:
            raise ReplacedError(f"{file}: was replaced by another export while it was read; load it again")
    reason = (
        f"is damaged: its size or SHA-256 is not the one in {METADATA_FILE}"
        if file.exists()
        else "is missing"
    )
    raise CheckpointError(f"{file}: {reason}; export again")


def has_part(folder: Path, name: str, metadata: ExportMetadata) -> bool:
    """True if a part of an export exists, under its plain name or in the folder of its save."""
    if not metadata.parts:
        return (folder / name).is_file()
    files = (folder / name, _save_folder(folder, metadata.parts) / name)
    return name in metadata.parts and any(file.is_file() for file in files)


def check_parts(folder: Path, metadata: ExportMetadata, without: Collection[str] = ()) -> None:
    """Compares the parts of an export that exist with their digests.

    A user may have removed a format that is not needed.

    Args:
        folder: folder of the export.
        metadata: metadata of the export.
        without: names of parts that are compared elsewhere.

    Raises:
        CheckpointError: a part is damaged.
    """
    for name in metadata.parts:
        if name not in without and has_part(folder, name, metadata):
            read_export_part(folder, name, metadata)


def metadata_beside(file: Path) -> ExportMetadata | None:
    """Returns the metadata of the export that a file is a part of, with digests; None if there is none.

    A file with the name of a part belongs to the metadata beside it, even if these are damaged. Otherwise one
    changed character in them would switch off the comparison with the digests.

    Raises:
        DataError: there are metadata beside such a file, but they are not valid.
    """
    if file.name not in PART_NAMES or not os.path.lexists(file.parent / METADATA_FILE):
        return None
    try:
        metadata = read_metadata(file.parent)
    except DataError as error:
        raise DataError(f"{error}; {file.name} alone can be used in another folder") from None
    return metadata if file.name in metadata.parts else None


def _save_folder(folder: Path, parts: Mapping[str, Any]) -> Path:
    """Returns the folder of the parts of a save that are not yet moved to their plain names."""
    digests = "".join(f"{name} {parts[name]['sha256']}\n" for name in sorted(parts))
    return folder / f".export-{hashlib.sha256(digests.encode()).hexdigest()[:16]}"


def _entry(file: Path) -> dict[str, Any]:
    """Returns the size and digest of a part."""
    return {"size": file.stat().st_size, "sha256": file_sha256(file)}


def _sync_file(file: Path) -> None:
    with open(file, "r+b") as stream:
        os.fsync(stream.fileno())


def _old_parts(folder: Path, metadata: ExportMetadata) -> Mapping[str, Any]:
    """Returns the parts of the export that is replaced. Warns if it is one of another model.

    Args:
        folder: folder of the export.
        metadata: metadata of the new export.
    """
    if not os.path.lexists(folder / METADATA_FILE):
        return {}
    try:
        old_metadata = read_metadata(folder)
    except DataError:  # damaged, or of a version that wrote other entries
        return dict.fromkeys(name for name in PART_NAMES if (folder / name).is_file())
    if _origin(old_metadata) != _origin(metadata):
        origin = " from ".join(_origin(old_metadata))
        logger.warning(f"{folder}: replaces the export of {origin[:_MAX_SHOWN_CHARACTERS]}")
    for name, part in old_metadata.parts.items():
        if (folder / name).is_file() and _entry(folder / name) != part:
            logger.warning(f"{folder / name}: is replaced, although it was changed after its export")
    if old_metadata.parts:
        return old_metadata.parts
    return dict.fromkeys(name for name in PART_NAMES if (folder / name).is_file())


def _origin(metadata: ExportMetadata) -> tuple[str, str]:
    """Returns the network and the file of the weights, without the note about their training."""
    return metadata.model, metadata.weights.partition(" (")[0]


def _check_names(folder: Path, parts: Mapping[str, Any], old_parts: Mapping[str, Any]) -> None:
    """Refuses to replace a file that no export has written.

    Raises:
        CheckpointError: there is such a file.
        OSError: a folder has the name of a part.
    """
    for name in (METADATA_FILE, *parts):
        file = folder / name
        if file.is_dir():
            raise IsADirectoryError(
                errno.EISDIR, "expected a file of the export, received a folder", str(file)
            )
        if name in parts and name not in old_parts and os.path.lexists(file):
            raise CheckpointError(
                f"{file}: exists already, and no export of ppxcls wrote it; name another folder "
                "with -o Global.save_inference_dir=..."
            )


def _complete(folder: Path) -> None:
    """Moves the parts of an export that was interrupted after its commit."""
    with contextlib.suppress(DataError, CheckpointError):
        metadata = read_metadata(folder)
        save_folder = _save_folder(folder, metadata.parts)
        if not metadata.parts or not save_folder.is_dir() or save_folder.is_symlink():
            return
        for name in metadata.parts:
            if (save_folder / name).is_file():
                read_export_part(save_folder, name, metadata)  # nothing is moved if a part is damaged
        with contextlib.suppress(ValueError, FileNotFoundError):  # the list of obsolete files is damaged
            _finish(folder, save_folder, metadata.parts)


def _sweep(folder: Path, *, is_locked: bool) -> None:
    """Removes the hidden folders of interrupted exports.

    Args:
        folder: folder of the exports.
        is_locked: False if another process may be exporting, because the file system has no locks.
    """
    for path in folder.glob(".export-*"):
        is_staging = _STAGING_NAME.fullmatch(path.name) or _OLD_STAGING_NAME.fullmatch(path.name)
        if not is_staging or path.is_symlink() or not path.is_dir():
            continue
        # Earlier versions used names that a user's own folder may have too.
        is_of_export = _STAGING_NAME.fullmatch(path.name) is not None or all(
            entry.name in PART_NAMES or _OLD_TEMPORARY_NAME.fullmatch(entry.name) for entry in path.iterdir()
        )
        is_abandoned = is_locked or time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
        if is_of_export and is_abandoned:
            shutil.rmtree(path, ignore_errors=True)
