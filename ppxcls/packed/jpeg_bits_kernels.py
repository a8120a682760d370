"""Bits of the coded data of JPEGs (ITU-T T.81), for the numba kernels that write it anew and cut parts out of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ppxcls.packed.jpeg_codes import MARKER
from ppxcls.system.kernels import compiled

Array = np.ndarray[Any, Any]

WRONG = -1
POSITION, BITS, COUNT, BEYOND = 0, 1, 2, 3  # places in the state of a reader or a writer


@compiled
def value_of(size: int, extra: int) -> int:
    """The number that the bits behind a symbol stand for (table F.1)."""
    return extra - (1 << size) + 1 if size and extra < 1 << (size - 1) else extra


@compiled
def size_of(difference: int) -> int:
    """The symbol of a difference: how many bits follow it."""
    size = 0
    while abs(difference) >> size:
        size += 1
    return size


@compiled
def bits_of(difference: int, size: int) -> int:
    """The bits behind the symbol of a difference."""
    return difference if difference >= 0 else difference + (1 << size) - 1


@compiled
def put_bits(out: Array, state: Array, value: int, size: int, stuffed: bool) -> None:
    """Write up to 32 bits; whole bytes go out, with a zero behind each of 255 if ``stuffed``. 16 bytes must be free."""
    bits, count = (state[BITS] << size) | value, state[COUNT] + size
    position = state[POSITION]
    while count >= 8:
        count -= 8
        byte = (bits >> count) & 0xFF
        out[position] = byte
        position += 1
        if stuffed and byte == MARKER:
            out[position] = 0
            position += 1
    state[POSITION], state[BITS], state[COUNT] = position, bits & ((1 << count) - 1), count


@compiled
def fill_byte(out: Array, state: Array, stuffed: bool) -> None:
    """Fill the last byte with ones."""
    free = -state[COUNT] & 7
    put_bits(out, state, (1 << free) - 1, free, stuffed)
