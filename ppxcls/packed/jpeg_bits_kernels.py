"""Bits in the coded data of JPEGs (ITU-T T.81), for the numba kernels that rewrite and cut JPEGs."""

from __future__ import annotations

from ppxcls.packed.jpeg_codes import MARKER
from ppxcls.system.arrays import Array
from ppxcls.system.kernels import compile_kernel

WRONG = -1
POSITION, BITS, COUNT, PADDING_BITS = 0, 1, 2, 3  # indices in the state of a reader or a writer


@compile_kernel
def value_of(size: int, bits: int) -> int:
    """Returns the number that the bits after a symbol encode (table F.1)."""
    return bits - (1 << size) + 1 if size and bits < 1 << (size - 1) else bits


@compile_kernel
def size_of(difference: int) -> int:
    """Returns the symbol of a difference, which is the number of bits that follow the symbol."""
    size = 0
    while abs(difference) >> size:
        size += 1
    return size


@compile_kernel
def bits_of(difference: int, size: int) -> int:
    """Returns the bits that follow the symbol of a difference."""
    return difference if difference >= 0 else difference + (1 << size) - 1


@compile_kernel
def put_bits(out: Array, state: Array, value: int, size: int, has_stuffing: bool) -> None:
    """Writes up to 32 bits. 16 bytes must be free.

    Only whole bytes are written to ``out``. With ``has_stuffing``, a zero follows each byte of 255.
    """
    bits, count = (state[BITS] << size) | value, state[COUNT] + size
    position = state[POSITION]
    while count >= 8:
        count -= 8
        byte = (bits >> count) & 0xFF
        out[position] = byte
        position += 1
        if has_stuffing and byte == MARKER:
            out[position] = 0
            position += 1
    state[POSITION], state[BITS], state[COUNT] = position, bits & ((1 << count) - 1), count


@compile_kernel
def fill_byte(out: Array, state: Array, has_stuffing: bool) -> None:
    """Fills the last byte with ones."""
    free_bits = -state[COUNT] & 7
    put_bits(out, state, (1 << free_bits) - 1, free_bits, has_stuffing)
