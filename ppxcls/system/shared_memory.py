"""Anonymous memory that processes share: memfd and mmap, without ``/dev/shm``.

Containers limit ``/dev/shm`` to 64 MB by default. A memfd has no such limit, and nothing remains of it after
the last process that uses it has ended, however it ended.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import pickle
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ppxcls.system.arrays import Array

HAS_SHARED_MEMORY = hasattr(os, "memfd_create")  # Linux
_ALIGNMENT_BYTES = 64


class SharedMemory:
    """Memory behind a file descriptor. Each process maps it by itself.

    Args:
        descriptor: descriptor that another process sent; None for new memory. It is closed with this object.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = os.memfd_create("ppxcls") if descriptor is None else descriptor
        self._map: mmap.mmap | None = None
        weakref.finalize(self, os.close, self.descriptor)

    def reserve(self, size: int) -> None:
        """Makes the memory at least ``size`` bytes large. It never shrinks, because others may use it.

        Raises:
            OSError: the machine has too little memory.
        """
        if os.fstat(self.descriptor).st_size < size:
            os.posix_fallocate(self.descriptor, 0, size)

    def array(
        self, shape: Sequence[int], dtype: np.dtype[Any], release: Callable[[], None] | None = None
    ) -> Array:
        """Returns an array on the first bytes of the memory, which must be reserved.

        Args:
            shape: shape of the array.
            dtype: type of the array.
            release: function to call when neither the array nor a view of it exists any more.
        """
        count = math.prod(shape)
        size = count * dtype.itemsize
        if not size:
            return np.empty(shape, dtype)
        if self._map is None or len(self._map) < size:
            self._map = mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size)
        flat_array = np.frombuffer(self._map, dtype, count)
        if release:
            weakref.finalize(flat_array, release).atexit = False  # every view has this array as its base
        return flat_array.reshape(shape)


class _Pickler(pickle.Pickler):
    """Pickles arrays on files by their place in the file, not by their content."""

    def reducer_override(self, value: Any) -> Any:
        """Returns how to pickle an array on a file; NotImplemented for any other value."""
        is_on_file = isinstance(value, np.memmap) and value.filename is not None and value.mode != "c"
        if not is_on_file or not value.flags.c_contiguous or not value.size:
            return NotImplemented
        # The attribute ``offset`` of a part of an array is that of the whole.
        map_start = np.frombuffer(value._mmap, np.uint8).__array_interface__["data"][0]
        map_offset = value.offset - value.offset % mmap.ALLOCATIONGRANULARITY
        offset = map_offset + value.__array_interface__["data"][0] - map_start
        return _array_on_file, (str(value.filename), value.dtype, offset, value.shape)


def _array_on_file(file: str, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...]) -> Array:
    return np.memmap(file, dtype, "c", offset, shape)


def share_object(value: Any) -> tuple[SharedMemory, list[int]]:
    """Pickles an object into shared memory. Its numpy arrays are not copied again by those who read it.

    Args:
        value: object to share.

    Returns:
        The memory, and the sizes in bytes of the pickle and of each array, for ``shared_object``.

    Raises:
        Exception: the object can't be pickled. Pickle raises many kinds.
    """
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
    parts = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
    sizes = [part.nbytes for part in parts]
    memory = SharedMemory()
    memory.reserve(sum(map(_aligned, sizes)) or 1)
    target = memory.array([sum(map(_aligned, sizes))], np.dtype(np.uint8))
    position = 0
    for part, size in zip(parts, sizes, strict=True):
        target[position : position + size] = np.frombuffer(part, np.uint8) if size else 0
        position += _aligned(size)
    return memory, sizes


def shared_object(descriptor: int, sizes: Sequence[int]) -> Any:
    """Returns the object that another process put into shared memory with ``share_object``.

    Its arrays are on the shared memory. A change of an array copies the changed pages for this process alone.

    Args:
        descriptor: descriptor of the memory.
        sizes: sizes from ``share_object``.

    Raises:
        Exception: the object can't be unpickled, because this process can't import its class, for example.
    """
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    content = memoryview(mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE, prot=protection))
    parts = []
    position = 0
    for size in sizes:
        parts.append(content[position : position + size])
        position += _aligned(size)
    return pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301  from the process that started this one


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
