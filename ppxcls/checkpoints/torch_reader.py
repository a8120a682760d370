"""Reads the files that ``torch.save`` writes, without torch and without running code from them.

A file is a ZIP archive with a pickle and the numbers of each storage. Before torch 1.6, it was a sequence of
pickles, followed by the numbers. Training programs also store their arguments and other objects there. None
of these objects is created: a placeholder takes its place, so the weights beside it can be read.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppxcls.checkpoints.archives import archive_of, read_member
from ppxcls.checkpoints.pickle_reader import ACTIONS, MAX_OPCODES, Machine
from ppxcls.checkpoints.pickle_whitelist import (
    GLOBALS,
    AllowedGlobal,
    PendingArray,
    PendingType,
    RefusedError,
)
from ppxcls.system.arrays import Array

ZIP_SIGNATURE = b"PK\x03\x04"
LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAX_DIMENSIONS = 8
_MAX_DEPTH = 8  # deeper values are placeholders
# numpy's types by torch's classes. numpy has no bfloat16: its bits are kept, as in Paddle's files.
_TYPES = {
    **{"DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "<u2"},
    **{"LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "|i1"},
    **{"ByteStorage": "|u1", "BoolStorage": "|b1"},
}


@dataclass(frozen=True)
class OpaqueValue:
    """A placeholder for a class, a function, or an object that is not created.

    Attributes:
        name: name of the class or function.
    """

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    type_name: str
    offset: int = 0


@dataclass(frozen=True)
class _PendingTensor:
    """A tensor before the numbers of its storage are read. Offset and strides are in numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch(data: bytes, *, has_numbers: bool = True) -> Any:
    """Returns the value in a file of ``torch.save``.

    It consists of nested dictionaries, lists and tuples of arrays and plain values, and of an ``OpaqueValue``
    for each object of another kind. bfloat16 numbers are returned as their bits, uint16.

    Args:
        data: bytes of the file.
        has_numbers: False to return zeros in the place of all numbers, which takes less time.

    Raises:
        RefusedError: the data is no such file, or is damaged. Nothing in it has been called.
    """
    root, storages = _read_zip(data) if data.startswith(ZIP_SIGNATURE) else _read_legacy(data)
    return _Finisher(storages if has_numbers else None, len(data)).finish(root)


def _read_zip(data: bytes) -> tuple[Any, Callable[[_Storage], Any]]:
    archive = archive_of(data)
    names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        raise RefusedError("it is a TorchScript program; save the state_dict() of the model instead")
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise RefusedError("it is a compressed archive, and torch writes none")
    pickle_names = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickle_names) != 1:
        raise RefusedError("it is an archive without torch's data")
    prefix = pickle_names[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in names and read_member(archive, f"{prefix}byteorder", 16) != b"little":
        raise RefusedError("its numbers are big-endian")
    root = _TorchMachine(read_member(archive, pickle_names[0], len(data))).run()
    return root, lambda storage: read_member(archive, f"{prefix}data/{storage.key}", len(data))


def _read_legacy(data: bytes) -> tuple[Any, Callable[[_Storage], Any]]:
    values = []
    storages: dict[str, _Storage] = {}
    position = 0
    for _ in range(5):
        machine = _TorchMachine(data, position, storages)
        values.append(machine.run())
        position = machine.position
        if values[0] != LEGACY_MAGIC:
            raise RefusedError("it is not written by torch.save")
    _, protocol, system, root, keys = values
    is_little_endian = isinstance(system, dict) and system.get("little_endian") is True
    if protocol != _LEGACY_PROTOCOL or not is_little_endian or not isinstance(keys, list):
        raise RefusedError("its header is unknown")
    parts: dict[str, memoryview] = {}
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        count = int.from_bytes(data[position : position + 8], "little")
        item_size = np.dtype(_TYPES.get(storage.type_name, "|u1")).itemsize if storage else 0
        if storage is None or count * item_size > len(data) - position - 8:
            raise RefusedError("its storages end too early")
        parts[key] = memoryview(data)[position + 8 : position + 8 + count * item_size]
        position += 8 + count * item_size

    def read_storage(storage: _Storage) -> Any:
        if storage.key not in parts:
            raise RefusedError(f"the numbers of the storage {storage.key[:20]!r} are missing")
        return parts[storage.key]

    return root, read_storage


class _TorchMachine(Machine):
    """Interprets the pickles of torch.

    Args:
        data: bytes of the file.
        position: position of the pickle's first byte.
        storages: dictionary that receives the storages by key; None for a new one.
    """

    max_integer_bytes = 255

    def __init__(self, data: bytes, position: int = 0, storages: dict[str, _Storage] | None = None) -> None:
        super().__init__(data, position)
        self._storages = {} if storages is None else storages

    def actions(self) -> dict[int, Callable[[Any], object]]:
        """Returns the method of each allowed opcode."""
        return _ACTIONS

    def push_global(self, module: str, name: str) -> None:
        """Pushes a class or function: a known one of numpy's writers, or a placeholder."""
        known_name = GLOBALS.get((module, name))
        self.push(AllowedGlobal(known_name) if known_name else OpaqueValue(f"{module}.{name}"))

    def top(self, kind: type) -> Any:
        """Returns the list or dictionary at the top; a new one that is dropped for a placeholder."""
        is_opaque = bool(self._stack) and isinstance(self._stack[-1], OpaqueValue | _PendingTensor)
        return kind() if is_opaque else super().top(kind)

    def set_entry(self, key: Any, value: Any) -> None:
        """Sets an entry of a dictionary. Keys that are neither text nor integers are left out."""
        if isinstance(key, str | int):
            super().set_entry(key, value)

    def reduce(self) -> None:
        """Replaces a call by its result: an array, a tensor, a dictionary, or a placeholder."""
        arguments, function = self.pop(), self.pop()
        if isinstance(function, OpaqueValue):
            self.push(_call(function, arguments))
        elif isinstance(function, AllowedGlobal) and function.name == "OrderedDict":
            pairs = arguments[0] if isinstance(arguments, tuple) and arguments else []
            self.push(_dictionary(pairs))
        else:
            self.push(function)
            self.push(arguments)
            try:
                super().reduce()
            except RefusedError:
                self.push(OpaqueValue("numpy"))

    def build(self) -> None:
        """Sets the state of an array; the state of anything else is dropped."""
        if len(self._stack) < 2 or not isinstance(self._stack[-2], PendingType | PendingArray):
            self.pop()
            return
        try:
            super().build()
        except RefusedError:  # such as an array of objects in a program's arguments
            self.pop()
            self.push(OpaqueValue("numpy.ndarray"))

    def new_object(self, count: int) -> None:
        """Replaces a class and its arguments by a placeholder, or by an empty dictionary."""
        for _ in range(count):
            self.pop()
        kind = self.pop()
        is_dictionary = isinstance(kind, AllowedGlobal) and kind.name == "OrderedDict"
        value = kind if isinstance(kind, OpaqueValue) else OpaqueValue("object")
        self.push({} if is_dictionary else value)

    def persistent(self) -> None:
        """Replaces the description of a storage by the storage.

        torch before 1.6 also describes the class of a pickled module, with its source code.
        """
        description = self.pop()
        if isinstance(description, tuple) and len(description) == 4 and description[0] == "module":
            kind = description[1]
            self.push(kind if isinstance(kind, OpaqueValue) else OpaqueValue("a module"))
            return
        is_storage = isinstance(description, tuple) and len(description) >= 5 and description[0] == "storage"
        if not is_storage or not isinstance(description[2], str):
            raise RefusedError("it refers to something else than a storage")
        kind = description[1]
        type_name = kind.name.rpartition(".")[2] if isinstance(kind, OpaqueValue) else ""
        view = description[5] if len(description) > 5 else None
        offset = view[1] if isinstance(view, tuple) and len(view) == 3 and type(view[1]) is int else 0
        storage = _Storage(description[2], type_name, offset)
        self._storages[storage.key] = storage
        self.push(storage)

    def bytes_as_text(self, length: int) -> None:
        """Pushes a text of Python 2."""
        self.push(str(self.take(length), "latin1"))

    def drop_items(self) -> None:
        """Drops the items of a set, which is a placeholder."""
        self.items_since_mark()

    def frozen_set(self) -> None:
        """Replaces the items of a frozen set by a placeholder."""
        self.items_since_mark()
        self.push(OpaqueValue("frozenset"))


_ACTIONS: dict[int, Callable[[Any], object]] = {
    **ACTIONS,
    0x51: _TorchMachine.persistent,
    0x52: _TorchMachine.reduce,
    0x62: _TorchMachine.build,
    0x81: lambda m: m.new_object(1),
    0x92: lambda m: m.new_object(2),
    0x55: lambda m: m.bytes_as_text(m.number("<B")),
    0x54: lambda m: m.bytes_as_text(m.number("<I")),
    0x8F: lambda m: m.push(OpaqueValue("set")),
    0x90: _TorchMachine.drop_items,
    0x91: _TorchMachine.frozen_set,
    0x30: _TorchMachine.pop,
}


def _dictionary(pairs: Any) -> Any:
    """Returns a dictionary of pairs; Python 2 writes an ordered dictionary so."""
    is_valid = isinstance(pairs, list) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
    )
    return {pair[0]: pair[1] for pair in pairs} if is_valid else OpaqueValue("collections.OrderedDict")


def _call(function: OpaqueValue, arguments: Any) -> Any:
    """Returns the tensor that one of torch's functions would build; a placeholder for any other function."""
    name = function.name.rpartition(".")[2] if function.name.startswith("torch.") else ""
    if not isinstance(arguments, tuple):
        return function
    if name in ("_rebuild_tensor", "_rebuild_tensor_v2") and len(arguments) >= 4:
        storage, offset, shape, strides = arguments[:4]
        if isinstance(storage, _Storage) and type(offset) is int and _are_sizes(shape, strides):
            return _PendingTensor(storage, offset + storage.offset, tuple(shape), tuple(strides))
    if name in ("_rebuild_parameter", "_rebuild_parameter_with_state") and arguments:
        return arguments[0]
    if name == "_rebuild_from_type_v2" and len(arguments) >= 3 and isinstance(arguments[0], OpaqueValue):
        return _call(arguments[0], arguments[2])
    if name == "Size" and arguments and isinstance(arguments[0], list | tuple):
        return tuple(arguments[0])
    return function


def _are_sizes(shape: Any, strides: Any) -> bool:
    return (
        isinstance(shape, tuple)
        and isinstance(strides, tuple)
        and len(shape) == len(strides) <= _MAX_DIMENSIONS
        and all(type(n) is int and n >= 0 for n in (*shape, *strides))
    )


class _Finisher:
    """Replaces tensors by arrays, and counts values and bytes.

    Args:
        read_storage: function that returns the bytes of a storage; None for zeros that take no memory.
        file_bytes: bytes of the file.
    """

    def __init__(self, read_storage: Callable[[_Storage], Any] | None, file_bytes: int) -> None:
        self._read_storage = read_storage
        self._file_bytes = file_bytes
        self._max_bytes = 4 * file_bytes
        self._storage_bytes = 0
        self._numbers: dict[str, Array] = {}
        self._value_count = 0
        self._byte_count = 0

    def finish(self, part: Any, depth: int = 0) -> Any:
        """Returns a value with arrays in the place of tensors."""
        self._value_count += 1
        if self._value_count > MAX_OPCODES:
            raise RefusedError(f"it shares values more than {MAX_OPCODES:,} times")
        if isinstance(part, dict | list | tuple) and depth >= _MAX_DEPTH:
            return OpaqueValue("a deeply nested value")
        if isinstance(part, Mapping):
            return {key: self.finish(value, depth + 1) for key, value in part.items()}
        if isinstance(part, list | tuple):
            values = [self.finish(value, depth + 1) for value in part]
            return values if isinstance(part, list) else tuple(values)
        if isinstance(part, _PendingTensor):
            return self._array(part)
        if isinstance(part, PendingArray) and part.value is not None:
            return part.value
        is_plain = part is None or isinstance(part, bool | int | float | str | np.generic | OpaqueValue)
        return part if is_plain else OpaqueValue(type(part).__name__)

    def _array(self, tensor: _PendingTensor) -> Any:
        storage = tensor.storage
        if storage.type_name not in _TYPES:
            return OpaqueValue(f"a tensor of {storage.type_name}")
        if self._read_storage is None:
            return self._zeros(tensor, np.dtype(_TYPES[storage.type_name]))
        if storage.key not in self._numbers:
            data = self._read_storage(storage)
            self._storage_bytes += len(data)
            if self._storage_bytes > self._file_bytes:  # members of an archive may share their bytes
                raise RefusedError("its storages have more bytes than the file")
            dtype = np.dtype(_TYPES[storage.type_name])
            self._numbers[storage.key] = np.frombuffer(data, dtype, len(data) // dtype.itemsize)
        numbers = self._numbers[storage.key]
        count = math.prod(tensor.shape)
        last = tensor.offset + sum(
            (n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True)
        )
        self._byte_count += count * numbers.itemsize
        if count and (tensor.offset < 0 or last >= len(numbers) or count > len(numbers)):
            raise RefusedError(f"a tensor of shape {list(tensor.shape)} does not fit its storage")
        if self._byte_count > self._max_bytes:
            raise RefusedError("it shares its arrays again and again")
        if not count:
            return np.zeros(tensor.shape if max(tensor.shape, default=0) < 1 << 40 else (0,), numbers.dtype)
        steps = [step * numbers.itemsize for step in tensor.strides]
        return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, steps, writeable=False)

    def _zeros(self, tensor: _PendingTensor, dtype: np.dtype[Any]) -> Array:
        """Returns zeros of a tensor's shape."""
        if math.prod(tensor.shape) * dtype.itemsize > self._max_bytes:
            raise RefusedError(f"a tensor of shape {list(tensor.shape)} does not fit its storage")
        return np.broadcast_to(np.zeros((), dtype), tensor.shape)
