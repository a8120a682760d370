"""Fetches published weights into the cache. A file gets its name there when all checks have passed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from ppxcls.checkpoints.safe_states import INSTALL_HINT
from ppxcls.published.caches import (
    DigestError,
    folder_to_write,
    own_copy,
    published_problem,
    record_of,
    write_record,
)
from ppxcls.published.content import content_problem
from ppxcls.published.hub import check_architecture
from ppxcls.published.offline import offline_variable
from ppxcls.published.transfer import Transfer
from ppxcls.published.web import FetchError, MissingFileError
from ppxcls.published.words import RemoteFile
from ppxcls.system.atomic_files import read_regular, write_text
from ppxcls.system.digests import file_sha256
from ppxcls.system.environment import launched_rank, launched_world_size
from ppxcls.system.file_lock import locked
from ppxcls.system.logs import logger
from ppxcls.system.open_folder import OpenFolder

# Packages that read a file, by its suffix.
_READERS = {".safetensors": "safetensors", ".h5": "h5py", ".hdf5": "h5py", ".keras": "h5py"}
_MAX_MARK_BYTES = 100


def fetched(candidates: list[RemoteFile]) -> Path:
    """Returns a file that was fetched into the cache: the first of some that its server has.

    Only one process of this host fetches it, and the others wait.

    Args:
        candidates: files that a word may mean, in order of preference.

    Raises:
        FetchError: none of them can be fetched.
        OSError: the cache can't be written.
    """
    label = candidates[0].label
    if variable := offline_variable():
        raise FetchError(
            f"{label}: not on this machine, and {variable} forbids to fetch it; 'ppxcls weights {label}' on "
            "another machine prints the path of the file to copy here"
        )
    for remote in candidates:
        _check_reader(remote)
    folder = folder_to_write()
    with _alone(folder, candidates):
        for remote in candidates:
            if file := own_copy(remote):
                return file
        network = check_architecture(candidates[0])
        for remote in candidates[:-1]:
            with contextlib.suppress(MissingFileError):
                return _fetch(remote, folder, network)
        return _fetch(candidates[-1], folder, network)


@contextlib.contextmanager
def _alone(folder: Path, candidates: list[RemoteFile]) -> Iterator[None]:
    """Runs a block while no other process of this host fetches the same file.

    A block that fails leaves a mark. A rank that finds a new one after it has waited does not try it again.

    Raises:
        FetchError: another process has failed while this rank of a job waited for it.
    """
    name = candidates[0].file
    mark = folder / f".{name}.failed"
    earlier_failure = _failure(mark)
    with locked(folder / f".{name}.lock", is_kept=False):
        is_of_job = launched_world_size() > 1
        if is_of_job and _failure(mark) not in (b"", earlier_failure):
            raise FetchError(
                f"{candidates[0].label}: another process has just tried to fetch it, without success"
            )
        try:
            yield
        except Exception:
            if is_of_job:
                with contextlib.suppress(OSError):
                    write_text(mark, secrets.token_hex())
            raise
        mark.unlink(missing_ok=True)


def _failure(mark: Path) -> bytes:
    """Returns the random text of the last failure; empty for none."""
    try:
        return read_regular(mark, _MAX_MARK_BYTES, follows_links=False)
    except (OSError, ValueError):
        return b""


def _fetch(remote: RemoteFile, folder: Path, network: str | None) -> Path:
    """Fetches one file, from the first of its addresses that has it.

    Raises:
        MissingFileError: no address has it.
        FetchError: it can't be fetched, or is not what it should be.
    """
    *first_addresses, last_address = remote.addresses
    for address in first_addresses:
        try:
            return _fetch_from(address, remote, folder=folder, network=network)
        except DigestError:
            raise
        except FetchError as error:
            logger.warning(f"{error}; another address is tried")
    return _fetch_from(last_address, remote, folder=folder, network=network)


def _fetch_from(address: str, remote: RemoteFile, *, folder: Path, network: str | None) -> Path:
    entry = remote.entry
    file = folder / remote.file
    # Two processes without a common lock must not write to the same part.
    own_suffix = f".{os.getpid()}" if os.name == "nt" else ""
    part = folder / f"{remote.file}{own_suffix}.part"
    unchecked_file = folder / f".unchecked{own_suffix}.{remote.file}"  # its reader needs the extension
    has_digest = entry is not None and bool(entry.sha256 or entry.md5)
    transfer = Transfer(
        address, part, label=remote.label, size=entry.size if entry else None, has_digest=has_digest
    )
    size = f" ({entry.megabytes} MB, {entry.licence})" if entry else ""
    if launched_rank() == 0:
        logger.info(f"fetching {remote.label}{size} from {address}")
    unchecked_file.unlink(missing_ok=True)  # of a killed process
    sha256 = _transferred(transfer, part, remote)
    try:
        _check_record(file, sha256)
        with OpenFolder(folder) as open_folder:
            open_folder.replace(part.name, unchecked_file.name)
            if problem := content_problem(unchecked_file, network or remote.network, is_known=has_digest):
                raise FetchError(f"{address}: refused, {problem}")
            byte_count = unchecked_file.stat().st_size
            write_record(file, address, sha256=sha256, size=byte_count)
            open_folder.replace(unchecked_file.name, file.name)
    finally:
        unchecked_file.unlink(missing_ok=True)
        transfer.remove()
    if launched_rank() == 0:
        logger.info(f"{remote.label}: {file}, {byte_count:,} bytes, SHA-256 {sha256}")
    return file


def _transferred(transfer: Transfer, part: Path, remote: RemoteFile) -> str:
    """Copies a file, and returns its SHA-256. If its parts do not fit each other, it is copied anew once.

    Raises:
        DigestError: it is not the published file, and was removed.
    """
    is_new_try_allowed = True
    while True:
        transfer.run()
        try:
            sha256 = file_sha256(part)
            _check_digest(part, remote, sha256=sha256, linked_sha256=transfer.linked_sha256)
        except BaseException as error:
            transfer.remove()
            if not isinstance(error, DigestError) or not transfer.has_resumed or not is_new_try_allowed:
                raise
            is_new_try_allowed = False
            continue
        return sha256


def _check_digest(part: Path, remote: RemoteFile, *, sha256: str, linked_sha256: str | None) -> None:
    """Raises DigestError if a file is not the published one."""
    problem = published_problem(part, remote, sha256)
    if problem is None and linked_sha256 not in (None, sha256):
        problem = "its SHA-256 is not the one that the hub states"
    if problem:
        raise DigestError(f"{remote.label}: the fetched file was removed, because {problem}")


def _check_record(file: Path, sha256: str) -> None:
    """Raises DigestError if a file differs from the one of the same name that was fetched before."""
    record = record_of(file)
    if record is not None and record["sha256"] != sha256:
        raise DigestError(
            f"{file.name}: the fetched file was removed, because its SHA-256 is not that of the first fetch; "
            f"if its publisher has changed it, remove {file}.source"
        )


def _check_reader(remote: RemoteFile) -> None:
    """Raises FetchError if the package that reads a file is not installed."""
    package = _READERS.get(Path(remote.file).suffix.lower())
    if package and importlib.util.find_spec(package) is None:
        raise FetchError(f"{remote.label}: reading it needs {package}, {INSTALL_HINT}")
