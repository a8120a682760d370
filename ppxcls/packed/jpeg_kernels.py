"""The coded data of baseline JPEGs (ITU-T T.81), read and written anew by a numba kernel.

The coefficients stay as they are, their codes change. The data is not trusted: every access is inside the
arrays, and data that is not in order ends with an error.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ppxcls.packed.jpeg_bits_kernels import (
    BEYOND,
    BITS,
    COUNT,
    POSITION,
    WRONG,
    bits_of,
    fill_byte,
    put_bits,
    size_of,
    value_of,
)
from ppxcls.packed.jpeg_codes import (
    COEFFICIENTS,
    END,
    FIRST_RESTART,
    LARGEST_DC,
    LEAST_DC,
    LONGEST_AC,
    LONGEST_DC,
    MARKER,
)
from ppxcls.system.kernels import compiled

Array = np.ndarray[Any, Any]


class Codes(NamedTuple):
    """The Huffman tables to write with: two for DC, two for AC.

    Attributes:
        counts: int64 [4, 256], of the symbols; counted if nothing is written.
        codes: int64 [4, 256].
        lengths: int64 [4, 256], of the codes in bits; 0 for none.
    """

    counts: Array
    codes: Array
    lengths: Array


@compiled
def read_symbol(data: Array, state: Array, lookup: Array) -> tuple[Any, Any]:
    """The next symbol and the bits that follow it; (-1, 0) if there is none."""
    position, bits, count = state[POSITION], state[BITS], state[COUNT]
    while count <= 40:
        byte = np.int64(0)
        if position < data.size and data[position] != MARKER:
            byte = np.int64(data[position])
            position += 1
        elif position + 1 < data.size and data[position + 1] == 0:  # a byte of 255 is followed by a zero
            byte = np.int64(MARKER)
            position += 2
        else:  # a marker or the end: zeros, of which none may be used
            state[BEYOND] += 8
        bits = (bits << 8) | byte
        count += 8
    entry = np.int64(lookup[(bits >> (count - 16)) & 0xFFFF])
    size = entry & 15
    count -= entry >> 8
    count -= size
    extra = (bits >> count) & ((1 << size) - 1)
    state[POSITION], state[BITS], state[COUNT] = position, bits & ((1 << count) - 1), count
    if entry == 0 or count < state[BEYOND]:
        return -1, 0
    return entry & 0xFF, extra


@compiled
def pass_marker(data: Array, state: Array, marker: int) -> bool:
    """Go on behind the marker that must be next."""
    position = state[POSITION]
    if state[COUNT] - state[BEYOND] >= 8:  # whole bytes are left
        return False
    while position + 1 < data.size and data[position] == MARKER and data[position + 1] == MARKER:
        position += 1
    if position + 1 >= data.size or data[position] != MARKER or data[position + 1] != marker:
        return False
    state[POSITION] = position + 2
    state[BITS] = state[COUNT] = state[BEYOND] = 0
    return True


@compiled
def emit(symbol: int, extra: int, size: int, table: int, huffman: Codes, out: Array, state: Array) -> bool:
    """Count a symbol, or write it with the bits that follow it."""
    if out.size == 0:
        huffman.counts[table, symbol] += 1
        return True
    if huffman.lengths[table, symbol] == 0 or state[POSITION] + 16 > out.size:
        return False
    put_bits(out, state, huffman.codes[table, symbol], huffman.lengths[table, symbol], False)
    put_bits(out, state, extra, size, False)
    return True


@compiled
def code_block(
    data: Array,
    reader: Array,
    lookup: Array,
    tables: Array,
    before: Array,
    huffman: Codes,
    out: Array,
    writer: Array,
) -> bool:
    """One block of 64 coefficients."""
    symbol, extra = read_symbol(data, reader, lookup[tables[0]])
    if symbol < 0 or symbol > LONGEST_DC:
        return False
    before[0] += value_of(symbol, extra)
    if before[0] < LEAST_DC or before[0] > LARGEST_DC:
        return False
    difference = before[0] - before[1]
    before[1] = before[0]
    size = size_of(difference)
    if not emit(size, bits_of(difference, size), size, tables[2], huffman, out, writer):
        return False
    k = 1
    while k < COEFFICIENTS:
        symbol, extra = read_symbol(data, reader, lookup[tables[1]])
        size = symbol & 15
        if symbol < 0 or (size == 0 and symbol % 0xF0) or size > LONGEST_AC:
            return False
        k = COEFFICIENTS if symbol == 0 else k + (symbol >> 4) + 1
        if k > COEFFICIENTS or not emit(symbol, extra, size, tables[3], huffman, out, writer):
            return False
    return True


@compiled
def transcode(
    data: Array,
    lookup: Array,
    blocks: Array,
    mcus: int,
    per_row: int,
    interval: int,
    per_segment: int,
    counts: Array,
    codes: Array,
    lengths: Array,
    out: Array,
    segments: Array,
) -> int:
    """Read a scan, and count the symbols of the same scan without restart markers, or write it.

    Args:
        data: uint8, from the first byte of the scan to the end of the file.
        lookup: uint16 [4, 65536]: for the next 16 bits, the length of the code << 8 | symbol, or 0. Two DC
            tables, two AC tables.
        blocks: int64 [blocks of an MCU, 5]: component, the rows of ``lookup`` for DC and AC, and the rows to
            write with.
        mcus: number of MCUs.
        per_row: MCUs in a row of the picture.
        interval: MCUs between the restart markers of the data; 0 if there are none.
        per_segment: MCUs in a segment.
        counts: of ``Codes``.
        codes: of ``Codes``.
        lengths: of ``Codes``.
        out: uint8, to write to, without the zeros behind bytes of 255; empty to count.
        segments: int64 [segments, 4], filled: the bit at which each begins, and the DC of the three
            components before it.

    Returns:
        Number of bits written; -1 if the data is not in order, or ``out`` is too small.
    """
    huffman = Codes(counts, codes, lengths)
    reader, writer = np.zeros(4, np.int64), np.zeros(4, np.int64)
    before = np.zeros(
        (3, 2), np.int64
    )  # DC of each component's last block: as it was read, and as it was written
    segment = 0
    for mcu in range(mcus):
        if interval and mcu and mcu % interval == 0:
            if not pass_marker(data, reader, FIRST_RESTART + (mcu // interval - 1) % 8):
                return WRONG
            before[:, 0] = 0
        if mcu % per_row % per_segment == 0:
            segments[segment, 0] = 8 * writer[POSITION] + writer[COUNT]
            segments[segment, 1:] = before[:, 1]
            segment += 1
        for b in range(blocks.shape[0]):
            last = before[blocks[b, 0]]
            if not code_block(data, reader, lookup, blocks[b, 1:], last, huffman, out, writer):
                return WRONG
    if not pass_marker(data, reader, END):
        return WRONG
    written = 8 * writer[POSITION] + writer[COUNT]
    if out.size:
        fill_byte(out, writer, False)
    return int(written)
