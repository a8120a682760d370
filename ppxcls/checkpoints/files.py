"""Files of weights and states: written whole or not at all, checked before use, read without running code from
them.

A checkpoint is a group of files with one prefix, such as ``latest``. Its parts, such as ``.pdparams``
(weights) and ``.pdopt`` (optimizer), are as Paddle writes them; the weights may be ``.safetensors`` instead.
Its manifest, ``.json``, holds the progress of the run, and size and SHA-256 of each part. In memory, a part
is called by the extension that Paddle gives it.

Renaming the manifest commits a save. Before that, all parts are complete under the additional extension
``.new``; after that, they are renamed. So if a save is cut off anywhere, each part of the manifest exists
under one of its two names, and can be read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppxcls.checkpoints.array_pickle import read_arrays
from ppxcls.checkpoints.pickled_arrays import RefusedError
from ppxcls.checkpoints.safe_states import INSTALL, NAMES, pack, unpack
from ppxcls.system.paths import printable
from ppxcls.system.whole_files import read_regular, reason_of, sync_folder, whole_file

FORMAT = 1
MOST_BYTES = 1 << 32  # of one file; the largest network here and its optimizer have 0.6 GB
_MOST_MANIFEST_BYTES = 1 << 24
WEIGHTS, OPTIMIZER, AVERAGE = ".pdparams", ".pdopt", ".pdema"
_SAFE = {
    WEIGHTS: ".safetensors",
    AVERAGE: ".ema.safetensors",
}  # the files of parts that are written as safetensors
_PART_OF = {file: part for part, file in _SAFE.items()}
EXTENSIONS = (WEIGHTS, OPTIMIZER, AVERAGE, *_PART_OF)  # of all files of parts

State = dict[str, Any]


class CheckpointError(Exception):
    """A file of weights or of a checkpoint can't be used.

    The message names the file and the reason, in one printable line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class MissingPackageError(CheckpointError):
    """The package that reads or writes a format is not installed."""


def unpickle(data: bytes, file: Path) -> Any:
    """The plain values and arrays of a pickle. Nothing of it is called; see ``array_pickle``.

    Raises:
        CheckpointError: it is no pickle, is damaged, or asks for more than arrays.
    """
    try:
        return read_arrays(data)
    except RefusedError as error:
        raise CheckpointError(f"{file}: refused, not a file of weights: {error}") from None


def _read(file: Path) -> bytes:
    try:
        return read_regular(file, MOST_BYTES)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: can't be read: {reason_of(error)}") from None


def read_state(file: str | Path) -> State:
    """Read a ``.pdparams``, ``.pdopt`` or ``.safetensors`` file.

    Unlike ``paddle.load``, it runs no code from the file.

    Returns:
        Numpy arrays and plain values by key.

    Raises:
        CheckpointError: it is missing, or as ``unpickle``.
    """
    return _as_state(_read(Path(file)), Path(file))


def _as_state(data: bytes, file: Path) -> State:
    state = _unpack(data, file) if file.suffix == ".safetensors" else unpickle(data, file)
    if isinstance(
        state, list
    ):  # PaddleClas writes one state per optimizer, and a classifier has one optimizer
        state = next((s for s in state if s), {})
    if not isinstance(state, dict):
        raise CheckpointError(f"{file}: expected a dictionary of arrays, received {type(state).__name__}")
    names = state.get(NAMES, {})
    if (
        not all(isinstance(key, str) for key in state)
        or not isinstance(names, dict)
        or not all(map(_is_text, names.items()))
    ):
        raise CheckpointError(f"{file}: expected names as keys, and {NAMES} from name to name")
    return {key: _plain(value) for key, value in state.items()}


def _unpack(data: bytes, file: Path) -> State:
    try:
        return unpack(data)
    except ImportError as error:
        raise MissingPackageError(f"{file}: to read it needs {error.name}, {INSTALL}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{file}: not a file of weights, or damaged: {type(error).__name__}: {reason}"
        ) from None


def _is_text(pair: tuple[Any, Any]) -> bool:
    return isinstance(pair[0], str) and isinstance(pair[1], str)


def _plain(value: Any) -> Any:
    """The array of a tensor, which Paddle pickles as a pair of name and array; any other value unchanged."""
    is_tensor = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], np.ndarray)
    return value[1] if is_tensor else value


def with_extension(prefix: Path, extension: str) -> Path:
    """The prefix with an extension appended. The prefix itself may contain a dot."""
    return prefix.with_name(prefix.name + extension)


def write_state(file: Path, state: State) -> None:
    """Write one file of states, whole or not at all: ``.safetensors``, or as Paddle's for any other extension.

    Raises:
        CheckpointError: safetensors is not installed.
        OSError: it can't be written.
    """
    with whole_file(file, durable=True) as stream:
        _dump(file, state, stream)


def _dump(file: Path, state: State, stream: Any) -> None:
    if file.suffix != ".safetensors":
        pickle.dump(state, stream, protocol=4)
        return
    try:
        stream.write(pack(state))
    except ImportError as error:
        raise MissingPackageError(f"{file}: to write it needs {error.name}, {INSTALL}") from None


def write_checkpoint(
    prefixes: Sequence[Path],
    states: Mapping[str, State],
    manifest: Mapping[str, Any],
    safe: bool = False,
    without: Mapping[Path, Collection[str]] | None = None,
) -> None:
    """Save one state under one or more prefixes, each whole or not at all.

    Args:
        prefixes: of the checkpoint's names; all names share the same parts.
        states: arrays and plain values, by part.
        manifest: ``progress``, and facts about the run.
        safe: write weights as ``.safetensors``.
        without: parts that a prefix does not have.

    Raises:
        CheckpointError: safetensors is not installed.
        OSError: it can't be written. Earlier checkpoints stay whole.
    """
    sources: dict[str, Path] = {}  # finished files of parts
    written: dict[str, dict[str, Any]] = {}  # their sizes and digests
    for prefix in prefixes:
        recover(prefix)
        left_out = (without or {}).get(prefix, ())
        parts = {}
        with _cleared_on_error(prefix):
            for part, state in states.items():
                if part in left_out:
                    continue
                extension = _SAFE.get(part, part) if safe else part
                file = with_extension(prefix, extension + ".new")
                if part in sources:
                    _link(sources[part], file)
                else:
                    written[part] = _write_new(file, with_extension(prefix, extension), state)
                parts[extension] = written[part]
        _commit(prefix, {"format": FORMAT, **manifest, "parts": parts})
        sources |= {
            _PART_OF.get(extension, extension): with_extension(prefix, extension) for extension in parts
        }


def read_checkpoint(prefix: Path) -> tuple[dict[str, State], dict[str, Any]]:
    """The states of a checkpoint by part, and its manifest.

    Raises:
        CheckpointError: missing, damaged, or of a newer format.
    """
    manifest = read_manifest(prefix)
    return {part: read_part(prefix, manifest, part) for part in parts_of(manifest)}, manifest


def parts_of(manifest: Mapping[str, Any]) -> list[str]:
    """The parts that a checkpoint has, from its manifest."""
    return [_PART_OF.get(extension, extension) for extension in manifest.get("parts", {})]


def read_manifest(prefix: Path) -> dict[str, Any]:
    """A checkpoint's manifest.

    Raises:
        CheckpointError: missing, no manifest, or of a newer format.
    """
    file = with_extension(prefix, ".json")
    try:
        manifest = json.loads(read_regular(file, _MOST_MANIFEST_BYTES).decode())
        number = manifest["format"]
        parts = dict(manifest["parts"])
        if WEIGHTS not in parts_of(manifest):
            raise KeyError(WEIGHTS)
        progress = manifest["progress"]
        complete = isinstance(progress, dict) and all(
            isinstance(part["size"], int) and isinstance(part["sha256"], str) for part in parts.values()
        )
        complete &= all(extension[0] == "." and Path(extension).name == extension for extension in parts)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such checkpoint") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointError(
            f"{file}: not a checkpoint's manifest: {type(error).__name__}: {error}"
        ) from None
    if number != FORMAT or not complete:
        raise CheckpointError(f"{file}: expected a manifest of format {FORMAT}, received format {number!r}")
    return dict(manifest)


def is_complete(manifest: Mapping[str, Any]) -> bool:
    """Whether a run can go on from a checkpoint. ``best_model`` may hold weights alone."""
    return OPTIMIZER in parts_of(manifest)


def has_any_part(prefix: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether a file of a checkpoint is there beside the manifest."""
    return any(
        with_extension(prefix, extension + new).exists()
        for extension in manifest["parts"]
        for new in ("", ".new")
    )


def read_part(prefix: Path, manifest: Mapping[str, Any], part: str) -> State:
    """One part of a checkpoint, from the same bytes whose digest was compared.

    Raises:
        CheckpointError: no file has the size and digest that the manifest gives, or the part can't be read.
    """
    extension = part if part in manifest["parts"] else _SAFE.get(part, part)
    return _as_state(_part(prefix, manifest, extension)[1], with_extension(prefix, extension))


def _part(prefix: Path, manifest: Mapping[str, Any], extension: str) -> tuple[Path, bytes]:
    """The file that holds a part, and its bytes."""
    expected = manifest["parts"][extension]
    file = with_extension(prefix, extension)
    for candidate in (file, with_extension(prefix, extension + ".new")):
        with contextlib.suppress(OSError):
            if candidate.stat().st_size == expected["size"]:
                data = read_regular(candidate, MOST_BYTES)
                if hashlib.sha256(data).hexdigest() == expected["sha256"]:
                    return candidate, data
    reason = "is damaged: its size or SHA-256 is not the manifest's" if file.exists() else "is missing"
    raise CheckpointError(f"{file}: {reason} ({prefix.name}.json)")


def check_whole(prefix: Path) -> dict[str, Any]:
    """Check the digests of all parts of a checkpoint, and return its manifest.

    Raises:
        CheckpointError: it is not whole.
    """
    manifest = read_manifest(prefix)
    for extension in manifest["parts"]:
        _part(prefix, manifest, extension)
    return manifest


def remove_checkpoint(prefix: Path) -> None:
    """Remove a checkpoint, its manifest first. So a removal that is cut off leaves no checkpoint.

    Raises:
        OSError: it can't be removed.
    """
    for extension in (".json", *read_manifest(prefix)["parts"]):
        with_extension(prefix, extension).unlink(missing_ok=True)


def recover(prefix: Path) -> None:
    """Finish a save that was cut off after its commit, or remove what is left of one that was cut off before."""
    if not _leftovers(prefix):
        return
    with contextlib.suppress(CheckpointError):
        manifest = read_manifest(prefix)
        for extension in manifest["parts"]:
            source, _ = _part(prefix, manifest, extension)
            if source.suffix == ".new":
                os.replace(source, with_extension(prefix, extension))
    for file in _leftovers(prefix):
        file.unlink()


def _leftovers(prefix: Path) -> list[Path]:
    names = [with_extension(prefix, f"{extension}.new") for extension in (".json", *EXTENSIONS)]
    return [file for file in names if file.exists()]


def _write_new(file: Path, final: Path, state: State) -> dict[str, Any]:
    """Write a part under its temporary name; returns its size and digest."""
    with open(file, "wb") as stream:
        writer = _HashingWriter(stream)
        _dump(final, state, writer)
        stream.flush()
        os.fsync(stream.fileno())
    return {"size": writer.size, "sha256": writer.digest.hexdigest()}


class _HashingWriter:
    """A file for pickle to write to. It computes size and SHA-256 on the way."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.size = 0
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size += memoryview(data).nbytes
        return int(self._stream.write(data))


def _commit(prefix: Path, manifest: Mapping[str, Any]) -> None:
    with _cleared_on_error(prefix), whole_file(with_extension(prefix, ".json"), durable=True) as stream:
        stream.write(json.dumps(manifest, indent=1).encode())
    try:
        for extension in manifest["parts"]:
            os.replace(with_extension(prefix, extension + ".new"), with_extension(prefix, extension))
    except FileNotFoundError:  # somebody has removed them in the meantime
        with_extension(prefix, ".json").unlink(missing_ok=True)
        raise
    for extension in set(EXTENSIONS) - manifest["parts"].keys():  # of what had this name before
        with_extension(prefix, extension).unlink(missing_ok=True)
    sync_folder(prefix.parent)


def _link(source: Path, target: Path) -> None:
    """Give a finished file a second name, or copy it if the file system has no links.

    Finished files are only replaced.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        with open(target, "rb") as stream:
            os.fsync(stream.fileno())


@contextlib.contextmanager
def _cleared_on_error(prefix: Path) -> Iterator[None]:
    """On an error before the commit, remove what was written, and name the checkpoint in the error."""
    try:
        yield
    except (OSError, CheckpointError) as error:
        with contextlib.suppress(OSError):
            for file in _leftovers(prefix):
                file.unlink()
        if isinstance(error, CheckpointError):
            raise
        raise OSError(error.errno, f"can't save the checkpoint: {error.strerror}", str(prefix)) from error
