"""Where weights lie on this machine: in this package's cache, and in those of other programs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ppxcls.checkpoints.files import MAX_FILE_BYTES
from ppxcls.published.web import FetchError
from ppxcls.published.words import RemoteFile
from ppxcls.system.atomic_files import read_regular, reason_of, write_text
from ppxcls.system.digests import file_md5, file_sha256
from ppxcls.system.environment import launched_rank
from ppxcls.system.json_text import is_count, json_text, read_json
from ppxcls.system.logs import logger, warn_once
from ppxcls.system.own_folders import UnsafeFolderError, cache_places, folder_problem, own_folder

CACHE_VARIABLE = "PPXCLS_CACHE"
_FOLDER = "weights"
_RECORD_SUFFIX = ".source"  # of the file that tells where a file comes from, and its digest
_MAX_RECORD_BYTES = 1 << 16
_FORMAT = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REVISION = re.compile(r"[0-9a-f]{40}")


class DigestError(FetchError):
    """A file is not the one that was published, or not the one that was fetched before."""


def cache_candidates() -> list[Path]:
    """Returns the folders that may be the cache of weights, in order of preference."""
    if chosen_folder := os.environ.get(CACHE_VARIABLE, "").strip():
        return [Path(os.path.abspath(os.path.expanduser(chosen_folder))) / _FOLDER]
    return [Path(folder) for folder in cache_places(_FOLDER)]


def folder_to_write() -> Path:
    """Returns the cache, which is created if it does not exist. No other user can write to it.

    Raises:
        FetchError: there is no such folder. The message gives the reason.
    """
    reasons = []
    for folder in cache_candidates():
        try:
            return own_folder(folder)
        except UnsafeFolderError as error:
            reasons.append(str(error))
        except (OSError, ValueError) as error:
            reasons.append(f"{folder}: {reason_of(error)}")
    reason = reasons[0] if reasons else "this user has no home folder"
    raise FetchError(f"no cache for weights: {reason}; set {CACHE_VARIABLE} to a folder of your own")


def folders_to_read() -> Iterator[Path]:
    """Yields the caches that exist and that no other user can write to. They may be read-only."""
    for candidate in cache_candidates():
        folder = Path(os.path.realpath(candidate))
        if not folder.is_dir():
            continue
        if problem := folder_problem(folder):
            warn_once(f"{problem}, so no weights are taken from {folder}")
            continue
        yield folder


def record_of(file: Path) -> dict[str, Any] | None:
    """Returns what was recorded when a file was fetched; None if there is no record, or a damaged one."""
    try:
        record = read_json(read_regular(_record_file(file), _MAX_RECORD_BYTES, follows_links=False))
    except (OSError, ValueError):
        return None
    is_valid = (
        isinstance(record, dict)
        and record.get("format") == _FORMAT
        and isinstance(record.get("sha256"), str)
        and _SHA256.fullmatch(record["sha256"]) is not None
        and is_count(record.get("size"))
    )
    return record if is_valid else None


def write_record(file: Path, address: str, *, sha256: str, size: int) -> None:
    """Records the address, the size in bytes and the digest of a file that gets its name after that.

    Raises:
        OSError: the record can't be written.
    """
    values = {"format": _FORMAT, "address": address, "size": size, "sha256": sha256}
    write_text(_record_file(file), json_text(values, indent=1, is_ascii=True) + "\n")


def _record_file(file: Path) -> Path:
    return file.with_name(f"{file.name}{_RECORD_SUFFIX}")


def published_problem(file: Path, remote: RemoteFile, sha256: str | None = None) -> str | None:
    """Returns how a file differs from what its publisher states; None if it does not, or nothing is stated.

    Args:
        file: file to check.
        remote: what was published.
        sha256: SHA-256 of the file, if it is known already.
    """
    entry = remote.entry
    if entry is None:
        return None
    size = file.stat().st_size
    if entry.size is not None and size != entry.size:
        return f"it has {size:,} bytes, and the published file has {entry.size:,}"
    if entry.md5 is not None and file_md5(file) != entry.md5:
        return "its MD5 is not the published one"
    if entry.sha256 or entry.sha256_start:
        digest = sha256 or file_sha256(file)
        if digest != (entry.sha256 or digest) or not digest.startswith(entry.sha256_start):
            return "its SHA-256 is not the published one"
    return None


def is_published_digest_known(remote: RemoteFile) -> bool:
    """True if the publisher states a digest of the file."""
    entry = remote.entry
    return entry is not None and bool(entry.sha256 or entry.sha256_start or entry.md5)


def own_copy(remote: RemoteFile, *, is_checked: bool = True) -> Path | None:
    """Returns the file in this package's cache, if it is there and unchanged.

    Args:
        remote: file to look for.
        is_checked: False to compare no digest, for a list.

    Raises:
        DigestError: the file is not the one that was fetched, and it can't be removed.
    """
    for folder in folders_to_read():
        file = folder / remote.file
        if not _is_usable(file):
            continue
        if not is_checked:
            return file
        problem = _copy_problem(file, remote)
        if problem is None:
            return file
        try:
            file.unlink()
        except OSError:
            raise DigestError(f"{file}: {problem}; remove it") from None
        logger.warning(f"{file}: {problem}, so it was removed")
    return None


def _copy_problem(file: Path, remote: RemoteFile) -> str | None:
    """Returns what is wrong with a file in the cache; None if nothing is."""
    record = record_of(file)
    if record is None:  # a user has put it there
        return published_problem(file, remote)
    if file.stat().st_size != record["size"] or file_sha256(file) != record["sha256"]:
        return "it has changed since it was fetched"
    return None


def foreign_copy(remote: RemoteFile, *, is_checked: bool = True) -> Path | None:
    """Returns the file in the cache of another program; None if there is none, or a wrong one.

    Args:
        remote: file to look for.
        is_checked: False to compare no digest and log nothing.
    """
    for file in _foreign_files(remote):
        try:
            if not _is_usable(file, follows_links=True):
                continue
            if not is_checked:
                return file
            if problem := published_problem(file, remote) or _blob_problem(file):
                warn_once(f"{file}: {problem}, so it is not used")
                continue
        except OSError:
            continue
        is_known = is_published_digest_known(remote) or _blob_digest(file) is not None
        note = "" if is_known else "; its digest is not known"
        if launched_rank() == 0:
            logger.info(f"{remote.label}: {file} is used, which another program has fetched{note}")
        return file
    return None


def _is_usable(file: Path, *, follows_links: bool = False) -> bool:
    try:
        if not follows_links and file.is_symlink():
            return False
        return file.is_file() and 0 < file.stat().st_size <= MAX_FILE_BYTES
    except (OSError, ValueError):
        return False


def _foreign_files(remote: RemoteFile) -> Iterator[Path]:
    """Yields the names under which other programs keep a published file."""
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        return
    if remote.repository:
        yield from _hub_files(remote, home)
        return
    if remote.entry is None:
        return
    folders = {
        "PaddleClas": os.path.join(home, ".paddleclas", "weights"),
        "Keras": os.path.join(os.environ.get("KERAS_HOME") or os.path.join(home, ".keras"), "models"),
    }
    torch_home = os.environ.get("TORCH_HOME") or os.path.join(_other_caches(home), "torch")
    folder = folders.get(remote.entry.publisher, os.path.join(torch_home, "hub", "checkpoints"))
    yield Path(os.path.expanduser(folder)) / remote.file


def _other_caches(home: str) -> str:
    """Returns the folder of the caches of torch and of the hub's library, which may be a relative path."""
    return os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")


def _hub_files(remote: RemoteFile, home: str) -> Iterator[Path]:
    """Yields the places of a file in the caches of the hub's own library."""
    hub_home = os.environ.get("HF_HOME") or os.path.join(_other_caches(home), "huggingface")
    chosen_folder = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    root = Path(os.path.expanduser(chosen_folder or os.path.join(hub_home, "hub")))
    folder = root / f"models--{(remote.repository or '').replace('/', '--')}"
    revision = remote.revision
    try:
        text = read_regular(folder / "refs" / revision, _MAX_RECORD_BYTES).decode("ascii").strip()
        revision = text if _REVISION.fullmatch(text) else revision
    except (OSError, ValueError):
        pass
    if "/" not in revision and revision not in (".", ".."):
        yield folder / "snapshots" / revision / remote.repository_file


def _blob_digest(file: Path) -> str | None:
    """Returns the SHA-256 that the hub's library has in the name of a large file; None if it has none."""
    name = Path(os.path.realpath(file)).name
    return name if _SHA256.fullmatch(name) else None


def _blob_problem(file: Path) -> str | None:
    digest = _blob_digest(file)
    is_right = digest is None or file_sha256(file) == digest
    return None if is_right else "its SHA-256 is not that of its name"
