"""Reads protobuf messages by a table of their fields. Everything else is refused.

Libraries that read a program accept much that no exporter writes, such as unknown fields, a field twice, or
numbers in many more bytes than they need. Two readers may then disagree about a file. This one accepts one
form only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ppxcls.system.errors import UserError

_MAX_VARINT_BYTES = 10  # of 64 bits
_MAX_FIELDS = 1_000_000  # values of one file; the largest network here has 100,000
_MESSAGE_COST = 8  # values; a message takes more memory than a number
_MAX_TEXT_BYTES = 1 << 16
_VARINT, _FIXED_64, _LENGTH, _FIXED_32 = 0, 1, 2, 5  # kinds of values in the format

_NUMBERS = ("integer", "int32", "float", "double")

Kind = Literal["integer", "int32", "float", "double", "text", "bytes"]
Schema: TypeAlias = "Mapping[int, Field]"


class FormatError(UserError, ValueError):
    """A file is not in its format."""


@dataclass(frozen=True)
class Field:
    """A field of a message.

    Attributes:
        name: name of the value in the result.
        kind: kind of the value; or the fields of a message within the message. An ``int32`` is an integer
            that other readers would cut to 32 bits.
        is_repeated: True for a list of values.
        max_bytes: largest size of a text.
    """

    name: str
    kind: Kind | Schema
    is_repeated: bool = False
    max_bytes: int = _MAX_TEXT_BYTES


class _Budget:
    """Counts the values of a file, and refuses too many."""

    def __init__(self, count: int) -> None:
        self._rest = count

    def spend(self, count: int = 1) -> None:
        self._rest -= count
        if self._rest < 0:
            raise FormatError(f"it has more than {_MAX_FIELDS:,} values")


def read_message(data: memoryview, schema: Schema) -> dict[str, Any]:
    """Returns the values of a message by the names of their fields.

    A field that is missing has no entry; a repeated one has an empty list. Integers are signed. Bytes are
    views of the data.

    Args:
        data: bytes of the message.
        schema: fields of the message by their numbers.

    Raises:
        FormatError: the data has another form, or too many values.
    """
    return _read(data, schema, _Budget(_MAX_FIELDS))


def _read(data: memoryview, schema: Schema, budget: _Budget) -> dict[str, Any]:
    values: dict[str, Any] = {field.name: [] for field in schema.values() if field.is_repeated}
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        field = schema.get(tag >> 3)
        if field is None:
            raise FormatError(f"it has a field {tag >> 3}, which is not expected there")
        budget.spend()
        wire_kind = tag & 7
        if wire_kind == _LENGTH and field.is_repeated and field.kind in _NUMBERS:
            part, position = _part(data, position)
            values[field.name] += _packed(part, field, budget)
            continue
        value, position = _value(data, position, (wire_kind, field), budget)
        if field.is_repeated:
            values[field.name].append(value)
        elif field.name in values:
            raise FormatError(f"{field.name} is there twice")
        else:
            values[field.name] = value
    return values


def _value(data: memoryview, position: int, entry: tuple[int, Field], budget: _Budget) -> tuple[Any, int]:
    """Returns a value and the position after it."""
    wire_kind, field = entry
    expected_kind = {"integer": _VARINT, "int32": _VARINT, "float": _FIXED_32, "double": _FIXED_64}.get(
        field.kind if isinstance(field.kind, str) else "", _LENGTH
    )
    if wire_kind != expected_kind:
        raise FormatError(f"{field.name} has another type than expected")
    if field.kind in ("integer", "int32"):
        return _integer(data, position, field)
    if field.kind in ("float", "double"):
        code = "<f" if field.kind == "float" else "<d"
        size = struct.calcsize(code)
        if position + size > len(data):
            raise FormatError("it is cut off")
        return struct.unpack_from(code, data, position)[0], position + size
    part, position = _part(data, position)
    if field.kind == "bytes":
        return part, position
    if field.kind == "text":
        return _text(part, field), position
    assert not isinstance(field.kind, str)
    budget.spend(_MESSAGE_COST)
    return _read(part, field.kind, budget), position


def _text(part: memoryview, field: Field) -> str:
    if len(part) > field.max_bytes:
        raise FormatError(f"{field.name} has {len(part):,} bytes, more than {field.max_bytes:,}")
    try:
        return bytes(part).decode()
    except UnicodeDecodeError:
        raise FormatError(f"{field.name} is not UTF-8") from None


def _part(data: memoryview, position: int) -> tuple[memoryview, int]:
    """Returns the bytes of a text, a message or packed numbers, and the position after them."""
    size, position = _varint(data, position)
    if size > len(data) - position:
        raise FormatError("it is cut off")
    return data[position : position + size], position + size


def _packed(part: memoryview, field: Field, budget: _Budget) -> list[Any]:
    """Returns the numbers of a packed list."""
    if field.kind in ("integer", "int32"):
        numbers: list[int] = []
        position = 0
        while position < len(part):
            budget.spend()
            number, position = _integer(part, position, field)
            numbers.append(number)
        return numbers
    code = "f" if field.kind == "float" else "d"
    size = struct.calcsize(f"<{code}")
    if len(part) % size:
        raise FormatError(f"{field.name} is cut off")
    budget.spend(len(part) // size)
    return list(struct.unpack(f"<{len(part) // size}{code}", part))


def _integer(data: memoryview, position: int, field: Field) -> tuple[int, int]:
    """Returns a signed number, and the position after it."""
    number, position = _varint(data, position)
    number = number - (1 << 64) if number >> 63 else number
    if field.kind == "int32" and not -(1 << 31) <= number < 1 << 31:
        raise FormatError(f"{field.name} is {number}, which does not fit into 32 bits")
    return number, position


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Returns an unsigned number of 64 bits, and the position after it."""
    number = 0
    for i in range(_MAX_VARINT_BYTES):
        if position >= len(data):
            raise FormatError("it is cut off")
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            if number >> 64 or (i and not byte):
                break
            return number, position
    raise FormatError("a number has more bytes than it needs")


def parts_of_message(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yields the number and the bytes of each field that is a message or a text, and skips all others.

    Raises:
        FormatError: the data is no message.
    """
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        wire_kind = tag & 7
        if wire_kind == _LENGTH:
            part, position = _part(data, position)
            yield tag >> 3, part
        elif wire_kind == _VARINT:
            _, position = _varint(data, position)
        elif wire_kind in (_FIXED_32, _FIXED_64):
            position += 4 if wire_kind == _FIXED_32 else 8
        else:
            raise FormatError("it has a group, which nobody writes any more")
