"""Writes protobuf messages, right and wrong ones."""

from __future__ import annotations

import struct


def varint(number: int) -> bytes:
    """Returns an integer as protobuf writes it."""
    number %= 1 << 64
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*data, number])


def field(number: int, *values: int | float | str | bytes) -> bytes:
    """Returns a field once for each value: integers, floats of 32 bits, texts, or messages."""
    parts = []
    for value in values:
        if isinstance(value, int):
            parts.append(varint(number << 3) + varint(value))
        elif isinstance(value, float):
            parts.append(varint(number << 3 | 5) + struct.pack("<f", value))
        else:
            part = value.encode() if isinstance(value, str) else value
            parts.append(varint(number << 3 | 2) + varint(len(part)) + part)
    return b"".join(parts)
