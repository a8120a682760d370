"""Reads names from attributes of HDF5 files, with a limit of the memory that they can take.

Texts of any length are in heaps of the file, and many of them may refer to the same long one. So the size of
the largest heap counts for each of them.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

from ppxcls.checkpoints.files import CheckpointError

_HEAP_START = b"GCOL\x01"  # signature and version of a heap
_SIZE_PLACE = 8  # place of its size after that of the signature
_MAX_TEXT_BYTES = 1 << 28  # of all texts of any length together
_MAX_LIST_BYTES = 1 << 20  # bytes of an attribute; HDF5 itself allows 64 KiB in most files
_MAX_NAME_BYTES = 1 << 12
_MAX_PARTS = 1000  # attributes that one list is divided into


class TextReader:
    """Reads names from attributes.

    Args:
        file: name of the file, for messages.
        source: file, or its content as a buffer.
    """

    def __init__(self, file: Path, source: Any) -> None:
        self._file = file
        self._source = source
        self._largest_heap: int | None = None
        self._remaining_bytes = _MAX_TEXT_BYTES

    def texts(self, group: Any, name: str) -> list[str]:
        """Returns the texts of an attribute, which Keras divides if they are long: ``name0``, ``name1``.

        Raises:
            CheckpointError: it is no list of texts, or they take too much memory.
        """
        parts = [name]
        if name not in group.attrs:
            part_names = [f"{name}{number}" for number in range(_MAX_PARTS)]
            parts = [part for part in part_names if part in group.attrs]
        texts: list[str] = []
        for part in parts:
            attribute = group.attrs.get_id(part)
            if attribute.shape == (0,):
                continue
            is_bounded = attribute.shape is not None and attribute.get_storage_size() <= _MAX_LIST_BYTES
            if not is_bounded or len(attribute.shape) != 1:
                raise CheckpointError(f"{self._file}: refused, {name} is no list of names, or a long one")
            self._spend(attribute, attribute.shape[0], name)
            texts += [_decoded(text) for text in group.attrs[part]]
        return texts

    def text(self, group: Any, name: str) -> str | None:
        """Returns the text of an attribute; None if there is none, or it is no single short text.

        Raises:
            CheckpointError: the texts of the file take too much memory.
        """
        if name not in group.attrs:
            return None
        attribute = group.attrs.get_id(name)
        if attribute.shape != () or attribute.get_storage_size() > _MAX_NAME_BYTES:
            return None
        if attribute.dtype.kind not in "SO":
            return None
        self._spend(attribute, 1, name)
        return _decoded(group.attrs[name])[:_MAX_NAME_BYTES]

    def _spend(self, attribute: Any, count: int, name: str) -> None:
        """Counts the memory that texts can take."""
        import h5py

        if attribute.dtype.kind == "S":
            return  # the attribute itself contains them
        if h5py.check_string_dtype(attribute.dtype) is None:
            raise CheckpointError(f"{self._file}: refused, {name} is no list of names")
        if self._largest_heap is None:
            self._largest_heap = _largest_heap(self._source)
        self._remaining_bytes -= count * self._largest_heap
        if self._remaining_bytes < 0:
            raise CheckpointError(
                f"{self._file}: refused, {name} may take more than {_MAX_TEXT_BYTES:,} bytes"
            )


def _decoded(text: Any) -> str:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)


def _largest_heap(source: Any) -> int:
    """Returns the bytes of the largest heap of texts in an HDF5 file."""
    if not isinstance(source, Path):
        return _largest_heap_in(source.getvalue())
    with open(source, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _largest_heap_in(data)


def _largest_heap_in(data: Any) -> int:
    largest, place = 0, data.find(_HEAP_START)
    while place >= 0:
        start = place + _SIZE_PLACE
        # Its objects are inside the file, whatever it states.
        largest = max(largest, min(int.from_bytes(data[start : start + 8], "little"), len(data)))
        place = data.find(_HEAP_START, place + 1)
    return largest
