"""Long lists, parsed once on a host, in a file that all its processes map into their memory.

The file lies in the user's cache folder (``XDG_CACHE_HOME``, or else ``~/.cache``) and is named by the SHA-256 of the list, so a
changed list is parsed anew. It holds a copy of the list's text, because nobody writes to it meanwhile.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ppxcls.system.turns import HAS_TURNS, turn
from ppxcls.system.whole_files import whole_file

Array = np.ndarray[Any, Any]

LEAST_BYTES = 1 << 26  # of a list that is worth a file: about 1.5 million lines
_MAGIC = b"ppxcls list 1\n\0\0"
_KEPT = 3  # files of the lists that were used last
_BLOCK = 1 << 20
_HEAD = len(_MAGIC) + 16


class Parsed(NamedTuple):
    """A list.

    Attributes:
        text: the bytes of the list file, uint8.
        starts: position of each sample's path, uint32 [n].
        lengths: bytes of each path, uint16 [n].
        labels: int32 [n].
    """

    text: Array
    starts: Array
    lengths: Array
    labels: Array


Parse = Callable[[Array], Parsed]


def shared(file: Path, delimiter: bytes, parse: Parse) -> tuple[Parsed, str] | None:
    """The list from the host's file, which one process makes while the others wait for it, and the SHA-256 of its text.

    None if there is no place for it.

    Args:
        file: a regular file.
        delimiter: of the lines; it belongs to the name.
        parse: makes the list from its text; what it raises is raised.
    """
    if not HAS_TURNS:  # each process parses for itself
        return None
    try:
        with open(file, "rb") as source:
            digest = _copied(source, None)
        name = hashlib.sha256(f"{digest} {delimiter.hex()}".encode()).hexdigest()
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppxcls" / "lists"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = folder / f"{name}.list"
        with turn(folder / f"{name}.lock"):
            if _mapped(target) is None:
                _make(file, target, digest, parse)
                _remove_old(folder)
            os.utime(target)  # it was used
            found = _mapped(target)
    except (OSError, RuntimeError):  # no home, no room, or the list has changed meanwhile
        return None
    return None if found is None else (found, digest)


def _copied(source: BinaryIO, target: BinaryIO | None) -> str:
    """Copy a file block by block; returns its SHA-256."""
    digest = hashlib.sha256()
    while block := source.read(_BLOCK):
        digest.update(block)
        if target:
            target.write(block)
    return digest.hexdigest()


def _make(file: Path, target: Path, digest: str, parse: Parse) -> None:
    """Write the file: numbers of bytes and of samples, the text, and the arrays. Raises OSError."""
    with whole_file(target) as stream:
        stream.write(bytes(_HEAD))
        with open(file, "rb") as source:
            if _copied(source, stream) != digest:
                raise OSError("the list has changed")
        size = stream.tell() - _HEAD
        stream.write(bytes(-size % 8))
        stream.flush()
        parsed = parse(np.memmap(stream.name, np.uint8, "r")[_HEAD : _HEAD + size])
        for array in (parsed.starts, parsed.labels, parsed.lengths):  # in the order of their alignment
            stream.write(np.ascontiguousarray(array).data)
        stream.seek(0)
        stream.write(_MAGIC + np.array([size, parsed.labels.size], np.int64).tobytes())


def _mapped(file: Path) -> Parsed | None:
    """The list in a file; None if there is none, or it is not whole."""
    try:
        memory = np.memmap(file, np.uint8, "r")
    except (OSError, ValueError):  # an empty file can't be mapped
        return None
    if memory.size < _HEAD or memory[: len(_MAGIC)].tobytes() != _MAGIC:
        return None
    size, count = memory[len(_MAGIC) : _HEAD].view(np.int64).tolist()
    begin = _HEAD + size + -size % 8
    if count < 1 or size < 1 or memory.size != begin + 10 * count:
        return None
    starts, labels = memory[begin : begin + 4 * count].view(np.uint32), memory[begin + 4 * count : begin + 8 * count].view(np.int32)
    return Parsed(memory[_HEAD : _HEAD + size], starts, memory[begin + 8 * count :].view(np.uint16), labels)


def _remove_old(folder: Path) -> None:
    files = sorted(folder.glob("*.list"), key=lambda file: file.stat().st_mtime)
    for file in files[:-_KEPT]:
        file.unlink(missing_ok=True)
        file.with_suffix(".lock").unlink(missing_ok=True)
