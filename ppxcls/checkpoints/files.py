"""Reads and writes files of weights and states.

Files are written whole or not at all, checked before use, and read without running code from them.

A checkpoint is a group of files with one prefix, such as ``latest``. Its parts, such as ``.pdparams``
(weights) and ``.pdopt`` (optimizer), have Paddle's format; the weights may be ``.safetensors`` instead. Its
manifest, ``.json``, contains the progress of the run, and the size and SHA-256 of each part. In memory, the
name of a part is the extension that Paddle gives it.

Renaming the manifest commits a save. Before that, all parts are complete under the additional extension
``.new``. After that, they are renamed. So if a save is interrupted at any point, each part of the manifest
exists under one of its two names, and can be read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ppxcls.checkpoints.manifest import check_manifest
from ppxcls.checkpoints.pickle_reader import read_arrays
from ppxcls.checkpoints.pickle_whitelist import RefusedError
from ppxcls.checkpoints.safe_states import INSTALL_HINT, PARAMETER_NAMES_KEY, from_safetensors, to_safetensors
from ppxcls.checkpoints.wrong_files import wrong_kind
from ppxcls.system.atomic_files import (
    check_own_names,
    new_file,
    read_regular,
    reason_of,
    sync_folder,
    whole_file,
)
from ppxcls.system.errors import UserError
from ppxcls.system.file_lock import locked_folder
from ppxcls.system.json_text import json_text, read_json

CHECKPOINT_FORMAT = 1
MAX_FILE_BYTES = 1 << 32  # limit of one file; the largest network here and its optimizer have 0.6 GB
_MAX_MANIFEST_BYTES = 1 << 24
WEIGHTS, OPTIMIZER, AVERAGE = ".pdparams", ".pdopt", ".pdema"
# extensions of the parts that can be written as safetensors
_SAFETENSORS_EXTENSIONS = {WEIGHTS: ".safetensors", AVERAGE: ".ema.safetensors"}
_PARTS_BY_EXTENSION = {file: part for part, file in _SAFETENSORS_EXTENSIONS.items()}
# Extensions of all files that can contain a part.
EXTENSIONS = (
    WEIGHTS,
    OPTIMIZER,
    AVERAGE,
    *_PARTS_BY_EXTENSION,
)

State = dict[str, Any]
# Called with a prefix and the SHA-256 of each part.
BeforeCommit: TypeAlias = Callable[[Path, Mapping[str, str]], None]


class CheckpointError(UserError):
    """A file of weights or of a checkpoint can't be used.

    The message gives the file and the reason.
    """


class MissingPackageError(CheckpointError):
    """The package that reads or writes a format is not installed."""


def unpickle(data: bytes, file: Path) -> Any:
    """Returns the plain values and arrays of a pickle. Nothing in it is called; see ``pickle_reader``.

    Raises:
        CheckpointError: the data is no pickle, is damaged, or contains something else than arrays and plain
            values.
    """
    try:
        return read_arrays(data)
    except RefusedError as error:
        if kind := wrong_kind(data, file.suffix):
            raise CheckpointError(f"{file}: not a file of weights, but {kind}") from None
        raise CheckpointError(f"{file}: refused, not a file of weights: {error}") from None


def weights_bytes(file: Path) -> bytes:
    """Returns the bytes of a file of weights or states, which must be a regular file up to 4 GiB.

    Raises:
        CheckpointError: the file is missing or can't be read.
    """
    try:
        return read_regular(file, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: can't be read: {reason_of(error)}") from None


def read_state(file: str | Path, extension: str | None = None) -> State:
    """Reads a ``.pdparams``, ``.pdopt`` or ``.safetensors`` file.

    Unlike ``paddle.load``, it runs no code from the file.

    Args:
        file: file to read.
        extension: extension of the file's format; None for that of its name.

    Returns:
        Numpy arrays and plain values by key.

    Raises:
        CheckpointError: the file is missing, can't be read, is damaged, or contains something else.
    """
    file = Path(file)
    return _as_state(weights_bytes(file), file, (extension or file.suffix).lower())


def _as_state(data: bytes, file: Path, extension: str) -> State:
    state = _unpack(data, file) if extension == ".safetensors" else unpickle(data, file)
    # PaddleClas writes a list with one state per optimizer. A classifier has one optimizer.
    if isinstance(state, list):
        state = next((s for s in state if s), {})
    if not isinstance(state, dict):
        raise CheckpointError(f"{file}: expected a dictionary of arrays, received {type(state).__name__}")
    names = state.get(PARAMETER_NAMES_KEY, {})
    has_text_keys = all(isinstance(key, str) for key in state)
    has_valid_names = isinstance(names, dict) and all(map(_is_text, names.items()))
    if not has_text_keys or not has_valid_names:
        raise CheckpointError(f"{file}: expected names as keys, and {PARAMETER_NAMES_KEY} from name to name")
    return {key: _unwrap_tensor(value) for key, value in state.items()}


def _unpack(data: bytes, file: Path) -> State:
    try:
        return from_safetensors(data)
    except ImportError as error:
        raise MissingPackageError(f"{file}: reading it needs {error.name}, {INSTALL_HINT}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if kind := wrong_kind(data, file.suffix):
            raise CheckpointError(f"{file}: not a file of weights, but {kind}") from None
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{file}: not a file of weights, or damaged: {type(error).__name__}: {reason}"
        ) from None


def _is_text(pair: tuple[Any, Any]) -> bool:
    return isinstance(pair[0], str) and isinstance(pair[1], str)


def _unwrap_tensor(value: Any) -> Any:
    """Returns the array of a tensor, and any other value unchanged.

    Paddle pickles a tensor as a pair of name and array.
    """
    is_tensor = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], np.ndarray)
    return value[1] if is_tensor else value


def with_extension(prefix: Path, extension: str) -> Path:
    """Returns the prefix with an extension appended. The prefix itself may contain a dot."""
    return prefix.with_name(prefix.name + extension)


def write_state(file: Path, state: State) -> None:
    """Writes one state to a file, whole or not at all.

    The format is safetensors for the extension ``.safetensors``, and Paddle's for any other.

    Raises:
        CheckpointError: safetensors is not installed.
        OSError: the file can't be written.
    """
    with whole_file(file, durable=True) as stream:
        _dump(file, state, stream)


def _dump(file: Path, state: State, stream: Any) -> None:
    if file.suffix != ".safetensors":
        pickle.dump(state, stream, protocol=4)
        return
    try:
        stream.write(to_safetensors(state))
    except ImportError as error:
        raise MissingPackageError(f"{file}: writing it needs {error.name}, {INSTALL_HINT}") from None


def write_checkpoint(
    prefixes: Sequence[Path],
    states: Mapping[str, State],
    *,
    manifest: Mapping[str, Any],
    safe: bool = False,
    without: Mapping[Path, Collection[str]] | None = None,
    before_commit: BeforeCommit | None = None,
) -> None:
    """Saves one state under one or more prefixes, each whole or not at all.

    Args:
        prefixes: prefixes of the checkpoint. All of them share the same files.
        states: arrays and plain values, by part.
        manifest: ``progress``, and facts about the run.
        safe: True to write weights as ``.safetensors``.
        without: parts that a prefix does not get, by prefix.
        before_commit: function that is called for each prefix before it is committed, with the SHA-256 of
            each part, so that a file about the checkpoint is there when the checkpoint is; None for none.

    Raises:
        CheckpointError: safetensors is not installed.
        OSError: the checkpoint can't be written. Earlier checkpoints stay whole.
    """
    with contextlib.ExitStack() as locks:
        for folder in sorted({prefix.parent for prefix in prefixes}):
            locks.enter_context(locked_folder(folder, waits=True))
        _write_checkpoint(
            prefixes,
            states,
            manifest=manifest,
            safe=safe,
            without=without or {},
            before_commit=before_commit,
        )


def _write_checkpoint(
    prefixes: Sequence[Path],
    states: Mapping[str, State],
    *,
    manifest: Mapping[str, Any],
    safe: bool,
    without: Mapping[Path, Collection[str]],
    before_commit: BeforeCommit | None,
) -> None:
    sources: dict[str, Path] = {}  # a complete file of each part
    part_entries: dict[str, dict[str, Any]] = {}  # size and digest of each part
    for prefix in prefixes:
        recover(prefix)
        excluded_parts = without.get(prefix, ())
        parts = {}
        with _cleanup_on_error(prefix):
            check_own_names(prefix.parent, [prefix.name + extension for extension in (".json", *EXTENSIONS)])
            for part, state in states.items():
                if part in excluded_parts:
                    continue
                extension = _SAFETENSORS_EXTENSIONS.get(part, part) if safe else part
                file = with_extension(prefix, extension + ".new")
                if part in sources:
                    _link(sources[part], file)
                else:
                    part_entries[part] = _write_new(file, with_extension(prefix, extension), state)
                parts[extension] = part_entries[part]
            if before_commit:
                before_commit(prefix, {part: entry["sha256"] for part, entry in part_entries.items()})
        _commit(prefix, {"format": CHECKPOINT_FORMAT, **manifest, "parts": parts})
        sources |= {
            _PARTS_BY_EXTENSION.get(extension, extension): with_extension(prefix, extension)
            for extension in parts
        }


def read_checkpoint(prefix: Path) -> tuple[dict[str, State], dict[str, Any]]:
    """Returns the states of a checkpoint by part, and its manifest.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or of a newer format.
    """
    manifest = read_manifest(prefix)
    return {part: read_part(prefix, manifest, part) for part in parts_of(manifest)}, manifest


def parts_of(manifest: Mapping[str, Any]) -> list[str]:
    """Returns the parts that a checkpoint has, according to its manifest."""
    return [_PARTS_BY_EXTENSION.get(extension, extension) for extension in manifest.get("parts", {})]


def read_manifest(prefix: Path) -> dict[str, Any]:
    """Returns a checkpoint's manifest.

    Raises:
        CheckpointError: the file is missing, is no manifest, or is of a newer format.
    """
    file = with_extension(prefix, ".json")
    try:
        manifest = read_json(read_regular(file, _MAX_MANIFEST_BYTES), is_nan_null=True)
        if not isinstance(manifest, dict):
            raise ValueError("expected an object")
        format_number = manifest.get("format")
        if type(format_number) is int and format_number > CHECKPOINT_FORMAT:
            raise CheckpointError(
                f"{file}: expected a manifest of format {CHECKPOINT_FORMAT}, received format {format_number}"
            )
        if type(format_number) is not int or format_number != CHECKPOINT_FORMAT:
            raise ValueError(f"expected {CHECKPOINT_FORMAT} as 'format'")
        check_manifest(manifest, EXTENSIONS)
        if WEIGHTS not in parts_of(manifest):
            raise ValueError(f"expected '{WEIGHTS}' in 'parts'")
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not a checkpoint's manifest: {reason_of(error)}") from None
    return manifest


def part_digest(manifest: Mapping[str, Any], part: str) -> str | None:
    """Returns the SHA-256 of a part, according to a checkpoint's manifest; None if it has no such part."""
    parts = manifest.get("parts", {})
    entry = parts.get(part) or parts.get(_SAFETENSORS_EXTENSIONS.get(part, part))
    return entry["sha256"] if entry else None


def is_complete(manifest: Mapping[str, Any]) -> bool:
    """True if a run can resume from a checkpoint. ``best_model`` may contain weights alone."""
    return OPTIMIZER in parts_of(manifest)


def has_any_part(prefix: Path, manifest: Mapping[str, Any]) -> bool:
    """True if at least one part of a checkpoint exists beside its manifest."""
    return any(
        with_extension(prefix, extension + new).exists()
        for extension in manifest["parts"]
        for new in ("", ".new")
    )


def read_part(prefix: Path, manifest: Mapping[str, Any], part: str) -> State:
    """Returns one part of a checkpoint, read from the same bytes that were compared with the digest.

    Raises:
        CheckpointError: no file has the size and digest in the manifest, or the part can't be read.
    """
    extension = part if part in manifest["parts"] else _SAFETENSORS_EXTENSIONS.get(part, part)
    file = with_extension(prefix, extension)
    return _as_state(_find_part(prefix, manifest, extension)[1], file, file.suffix)


def _find_part(prefix: Path, manifest: Mapping[str, Any], extension: str) -> tuple[Path, bytes]:
    """Returns the file that contains a part, and its bytes."""
    expected = manifest["parts"][extension]
    file = with_extension(prefix, extension)
    for candidate in (file, with_extension(prefix, extension + ".new")):
        with contextlib.suppress(OSError):
            if candidate.stat().st_size == expected["size"]:
                data = read_regular(candidate, MAX_FILE_BYTES)
                if hashlib.sha256(data).hexdigest() == expected["sha256"]:
                    return candidate, data
    reason = "is damaged: its size or SHA-256 is not the manifest's" if file.exists() else "is missing"
    raise CheckpointError(f"{file}: {reason} ({prefix.name}.json)")


def check_whole(prefix: Path) -> dict[str, Any]:
    """Checks the digests of all parts of a checkpoint, and returns its manifest.

    Raises:
        CheckpointError: a part is missing or damaged.
    """
    manifest = read_manifest(prefix)
    for extension in manifest["parts"]:
        _find_part(prefix, manifest, extension)
    return manifest


def remove_checkpoint(prefix: Path) -> None:
    """Removes a checkpoint, its manifest first. So an interrupted removal leaves no checkpoint.

    Raises:
        OSError: a file can't be removed.
    """
    for extension in (".json", *read_manifest(prefix)["parts"]):
        with_extension(prefix, extension).unlink(missing_ok=True)


def recover(prefix: Path) -> None:
    """Completes a save that was interrupted after its commit.

    If it was interrupted before, removes its files.
    """
    if not _leftovers(prefix):
        return
    with contextlib.suppress(CheckpointError):
        manifest = read_manifest(prefix)
        for extension in manifest["parts"]:
            source, _ = _find_part(prefix, manifest, extension)
            if source.suffix == ".new":
                os.replace(source, with_extension(prefix, extension))
    for file in _leftovers(prefix):
        file.unlink()


def _leftovers(prefix: Path) -> list[Path]:
    names = [with_extension(prefix, f"{extension}.new") for extension in (".json", *EXTENSIONS)]
    return [file for file in names if os.path.lexists(file)]


def _write_new(file: Path, final: Path, state: State) -> dict[str, Any]:
    """Writes a part under its temporary name; returns its size and digest."""
    with new_file(file) as stream:
        writer = _HashingWriter(stream)
        _dump(final, state, writer)
        stream.flush()
        os.fsync(stream.fileno())
    return {"size": writer.size, "sha256": writer.digest.hexdigest()}


class _HashingWriter:
    """A file object for pickle, which computes the size and SHA-256 of the written data."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.size = 0
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size += memoryview(data).nbytes
        return int(self._stream.write(data))


def refuse_checkpoint(file: Path) -> None:
    """Raises CheckpointError if a weights file, with a manifest beside it, would replace a run's checkpoint.

    Args:
        file: weights file that is to be written.
    """
    prefix = file.with_suffix("")
    try:
        manifest = read_manifest(prefix)
    except CheckpointError:
        return
    if "run" in manifest or len(manifest["parts"]) > 1:
        raise CheckpointError(f"{file}: expected another name, because {prefix} is a checkpoint of a run")


def remove_copied_manifest(file: Path) -> None:
    """Removes the manifest of a weights file that is about to be replaced. A JSON file of others stays.

    So a killed process never leaves weights with the manifest of other weights.

    Args:
        file: weights file, which is no checkpoint of a run.

    Raises:
        OSError: the manifest can't be removed.
    """
    prefix = file.with_suffix("")
    with contextlib.suppress(CheckpointError):
        read_manifest(prefix)
        with_extension(prefix, ".json").unlink()


def write_copied_manifest(file: Path, manifest: Mapping[str, Any]) -> None:
    """Writes a manifest beside a weights file that was made from a checkpoint.

    It tells what the checkpoint's manifest tells about the weights. It has no run id, because the file is no
    checkpoint of the run. A JSON file of another program is not replaced.

    Args:
        file: weights file.
        manifest: manifest of the checkpoint.

    Raises:
        OSError: the manifest can't be written.
    """
    prefix = file.with_suffix("")
    if with_extension(prefix, ".json").exists():
        try:
            read_manifest(prefix)
        except CheckpointError:
            return
    data = weights_bytes(file)
    part = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    facts = {key: value for key, value in manifest.items() if key not in ("parts", "run")}
    text = json_text({**facts, "format": CHECKPOINT_FORMAT, "parts": {file.suffix: part}}, indent=1)
    with whole_file(with_extension(prefix, ".json"), durable=True) as stream:
        stream.write(text.encode())


def _commit(prefix: Path, manifest: Mapping[str, Any]) -> None:
    with _cleanup_on_error(prefix), whole_file(with_extension(prefix, ".json"), durable=True) as stream:
        stream.write(json_text(manifest, indent=1, is_ascii=True).encode())
    try:
        for extension in manifest["parts"]:
            os.replace(with_extension(prefix, extension + ".new"), with_extension(prefix, extension))
    except FileNotFoundError:  # another process or a user has removed them in the meantime
        with_extension(prefix, ".json").unlink(missing_ok=True)
        raise
    for extension in set(EXTENSIONS) - manifest["parts"].keys():  # files of an earlier checkpoint
        with_extension(prefix, extension).unlink(missing_ok=True)
    sync_folder(prefix.parent)


def _link(source: Path, target: Path) -> None:
    """Gives a complete file a second name, or copies it if the file system has no links.

    Complete files are never changed, only replaced. So a link is as good as a copy.
    """
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with open(source, "rb") as source_stream, new_file(target) as stream:
            shutil.copyfileobj(source_stream, stream)
            stream.flush()
            os.fsync(stream.fileno())


@contextlib.contextmanager
def _cleanup_on_error(prefix: Path) -> Iterator[None]:
    """On an error before the commit, removes the new files, and adds the checkpoint's name to the error."""
    try:
        yield
    except (OSError, CheckpointError) as error:
        with contextlib.suppress(OSError):
            for file in _leftovers(prefix):
                file.unlink()
        if isinstance(error, CheckpointError):
            raise
        raise OSError(error.errno, f"can't save the checkpoint: {error.strerror}", str(prefix)) from error
