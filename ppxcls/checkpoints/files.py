"""Files of states: written whole or not at all, checked before they are used, read without running anything.

A checkpoint is some files under one prefix, such as ``latest``: the parts, such as ``.pdparams`` (weights) and ``.pdopt``
(optimizer), both as Paddle writes them, and ``.json``, the manifest: where the run stands, size and SHA-256 of the parts. The
manifest's rename commits: before it the parts lie complete beside their names as ``.new``, after it they are renamed into place.
Wherever a save is cut off, each part that the manifest means is at its name or at ``.new``, so the checkpoint that the manifest
describes can be read.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ppxcls.system.whole_files import sync_folder, whole_file

FORMAT = 1
PARTS = (".pdparams", ".pdopt")  # what every checkpoint has

State = dict[str, Any]


class CheckpointError(Exception):
    """A weights or checkpoint file that can't be used; names the file and what is wrong."""


class _ArraysOnly(pickle.Unpickler):
    """Admits numpy arrays and plain containers: a pickle can ask for nothing else, so it can run nothing."""

    _ALLOWED: ClassVar = {
        *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("collections", "OrderedDict"),
        ("builtins", "tuple"),  # how Paddle pickles a tensor: its name and its array
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 writes bytes
            return _encode_latin1
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty_array
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and weights need arrays only")
        return super().find_class(module, name)


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


def _empty_array(kind: type, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """What numpy's pickles begin with; the bytes follow, so a pickle can't ask for memory that it does not fill."""
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError(f"it asks for an array of shape {shape} without its bytes")
    return np.ndarray(shape, dtype)


def unpickle(data: bytes, file: Path) -> Any:
    """The plain values and arrays that a pickle holds.

    Raises:
        CheckpointError: no such pickle, or one that asks for more than arrays.
    """
    try:
        return _ArraysOnly(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle fails in ways of its own
        reason = " ".join(str(error).split())[:200]
        if isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(f"{file}: refused, not a file of weights: {reason}") from None
        raise CheckpointError(f"{file}: not a file of weights, or damaged: {type(error).__name__}: {reason}") from None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{file}: can't be read: {error.strerror}") from None


def read_state(file: str | Path) -> State:
    """Read a ``.pdparams`` or ``.pdopt`` without running what a hostile pickle asks for.

    Returns:
        Numpy arrays by key, and whatever plain values stand beside them.

    Raises:
        CheckpointError: missing, no such pickle, or one that asks for more than arrays.
    """
    return _as_state(_read(Path(file)), Path(file))


def _as_state(data: bytes, file: Path) -> State:
    state = unpickle(data, file)
    if isinstance(state, list):  # PaddleClas: one for each of its optimizers, of which a classifier has one
        state = next((s for s in state if s), {})
    if not isinstance(state, dict):
        raise CheckpointError(f"{file}: expected a dictionary of arrays, received {type(state).__name__}")
    return {key: _plain(value) for key, value in state.items()}


def _plain(value: Any) -> Any:
    """The array of a tensor that Paddle pickled as its name and its array; anything else as it is."""
    is_tensor = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], np.ndarray)
    return value[1] if is_tensor else value


def with_extension(prefix: Path, extension: str) -> Path:
    """The file of a checkpoint with this extension: its prefix may have a dot of its own."""
    return prefix.with_name(prefix.name + extension)


def write_state(file: Path, state: State) -> None:
    """Write one file of states, whole or not at all.

    Raises:
        OSError: it can't be written.
    """
    with whole_file(file, durable=True) as stream:
        pickle.dump(state, stream, protocol=4)


def write_checkpoint(prefixes: Sequence[Path], states: Mapping[str, State], manifest: Mapping[str, Any]) -> None:
    """Save one state under one or more prefixes, each whole or not at all.

    Args:
        states: by extension; arrays of numpy and plain values.
        manifest: ``progress``, and facts for readers.

    Raises:
        OSError: it can't be written; earlier checkpoints stay whole.
    """
    first, *others = prefixes
    recover(first)
    with _cleared_on_error(first):
        parts = {extension: _write_new(with_extension(first, extension + ".new"), state) for extension, state in states.items()}
    whole = {"format": FORMAT, **manifest, "parts": parts}
    _commit(first, whole)
    for prefix in others:
        recover(prefix)
        with _cleared_on_error(prefix):
            for extension in parts:
                _link(with_extension(first, extension), with_extension(prefix, extension + ".new"))
        _commit(prefix, whole)


def read_checkpoint(prefix: Path) -> tuple[dict[str, State], dict[str, Any]]:
    """The states of a checkpoint by extension, and its manifest.

    Raises:
        CheckpointError: missing, damaged, or of a newer format.
    """
    manifest = read_manifest(prefix)
    return {extension: read_part(prefix, manifest, extension) for extension in manifest["parts"]}, manifest


def read_manifest(prefix: Path) -> dict[str, Any]:
    """A checkpoint's manifest.

    Raises:
        CheckpointError: missing, no manifest, or of a newer format.
    """
    file = with_extension(prefix, ".json")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        number = manifest["format"]
        parts = dict(manifest["parts"])
        if missing := set(PARTS) - parts.keys():
            raise KeyError(*missing)
        complete = isinstance(manifest["progress"], dict) and all(
            isinstance(part["size"], int) and isinstance(part["sha256"], str) for part in parts.values()
        )
        complete &= all(extension[0] == "." and Path(extension).name == extension for extension in parts)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such checkpoint") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointError(f"{file}: not a checkpoint's manifest: {type(error).__name__}: {error}") from None
    if number != FORMAT or not complete:
        raise CheckpointError(f"{file}: expected a manifest of format {FORMAT}, received format {number!r}")
    return dict(manifest)


def read_part(prefix: Path, manifest: Mapping[str, Any], extension: str) -> State:
    """One part of a checkpoint, from the bytes that were checked and no others.

    Raises:
        CheckpointError: neither the part nor its ``.new`` has the manifest's size and digest, or it is no state.
    """
    return _as_state(_part(prefix, manifest, extension)[1], with_extension(prefix, extension))


def _part(prefix: Path, manifest: Mapping[str, Any], extension: str) -> tuple[Path, bytes]:
    """The file that is the part, and its bytes."""
    expected = manifest["parts"][extension]
    file = with_extension(prefix, extension)
    for candidate in (file, with_extension(prefix, extension + ".new")):
        with contextlib.suppress(OSError):
            if candidate.stat().st_size == expected["size"]:
                data = candidate.read_bytes()
                if hashlib.sha256(data).hexdigest() == expected["sha256"]:
                    return candidate, data
    reason = "is damaged: its size or SHA-256 is not the manifest's" if file.exists() else "is missing"
    raise CheckpointError(f"{file}: {reason} ({prefix.name}.json)")


def check_whole(prefix: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose parts all have their digests.

    Raises:
        CheckpointError: it is not whole.
    """
    manifest = read_manifest(prefix)
    for extension in manifest["parts"]:
        _part(prefix, manifest, extension)
    return manifest


def remove_checkpoint(prefix: Path) -> None:
    """Remove a checkpoint, the manifest first: what is left of a removal that was cut off is no checkpoint.

    Raises:
        OSError: it can't be removed.
    """
    for extension in (".json", *read_manifest(prefix)["parts"]):
        with_extension(prefix, extension).unlink(missing_ok=True)


def recover(prefix: Path) -> None:
    """Finish a save that was cut off after its commit; remove what one left that was cut off before."""
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
    return sorted(f for f in prefix.parent.glob("*.new") if f.name.rpartition(".new")[0].rpartition(".")[0] == prefix.name)


def _write_new(file: Path, state: State) -> dict[str, Any]:
    """Write a part under its temporary name; returns its size and digest."""
    with open(file, "wb") as stream:
        writer = _HashingWriter(stream)
        pickle.dump(state, writer, protocol=4)
        stream.flush()
        os.fsync(stream.fileno())
    return {"size": writer.size, "sha256": writer.digest.hexdigest()}


class _HashingWriter:
    """A file for pickle to write to, that takes size and SHA-256 on the way."""

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
    for extension in manifest["parts"]:
        os.replace(with_extension(prefix, extension + ".new"), with_extension(prefix, extension))
    sync_folder(prefix.parent)


def _link(source: Path, target: Path) -> None:
    """A second name for a finished file, which is never written again but only replaced; a copy where there are no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        with open(target, "rb") as stream:
            os.fsync(stream.fileno())


@contextlib.contextmanager
def _cleared_on_error(prefix: Path) -> Iterator[None]:
    """Before the commit: leave a full disk's space to the checkpoints that are whole, and say what was being written."""
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):
            for file in _leftovers(prefix):
                file.unlink()
        raise OSError(error.errno, f"can't save the checkpoint: {error.strerror}", str(prefix)) from error
