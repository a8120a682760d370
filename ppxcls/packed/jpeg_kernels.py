"""Reads and rewrites the coded data of baseline JPEGs (ITU-T T.81) with a numba kernel.

The coefficients stay the same, and their codes change. The data is not trusted: every access is inside the
arrays, and invalid data ends with an error.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ppxcls.packed.jpeg_bits_kernels import (
    BITS,
    COUNT,
    PADDING_BITS,
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
    LONGEST_AC,
    LONGEST_DC,
    MARKER,
    MAX_DC,
    MIN_DC,
)
from ppxcls.system.arrays import Array
from ppxcls.system.kernels import compile_kernel


class Codes(NamedTuple):
    """Huffman tables for writing: two for DC, two for AC.

    Attributes:
        counts: number of uses of each symbol, int64 [4, 256]; counted if nothing is written.
        codes: codes of the symbols, int64 [4, 256].
        lengths: lengths of the codes in bits, int64 [4, 256]; 0 for no code.
    """

    counts: Array
    codes: Array
    lengths: Array


@compile_kernel
def read_symbol(data: Array, state: Array, lookup: Array) -> tuple[Any, Any]:
    """Returns the next symbol and the bits that follow it, or (-1, 0) if there is none."""
    position, bits, count = state[POSITION], state[BITS], state[COUNT]
    while count <= 40:
        byte = np.int64(0)
        if position < data.size and data[position] != MARKER:
            byte = np.int64(data[position])
            position += 1
        elif position + 1 < data.size and data[position + 1] == 0:  # a zero follows each byte of 255
            byte = np.int64(MARKER)
            position += 2
        else:  # at a marker or at the end: padding with zeros, which must not be used
            state[PADDING_BITS] += 8
        bits = (bits << 8) | byte
        count += 8
    entry = np.int64(lookup[(bits >> (count - 16)) & 0xFFFF])
    size = entry & 15
    count -= entry >> 8
    count -= size
    extra_bits = (bits >> count) & ((1 << size) - 1)
    state[POSITION], state[BITS], state[COUNT] = position, bits & ((1 << count) - 1), count
    if entry == 0 or count < state[PADDING_BITS]:
        return -1, 0
    return entry & 0xFF, extra_bits


@compile_kernel
def pass_marker(data: Array, state: Array, marker: int) -> bool:
    """Moves the reader past the marker that must be next.

    Returns:
        False if other data or another marker is next.
    """
    position = state[POSITION]
    if state[COUNT] - state[PADDING_BITS] >= 8:  # unread whole bytes remain
        return False
    while position + 1 < data.size and data[position] == MARKER and data[position + 1] == MARKER:
        position += 1
    if position + 1 >= data.size or data[position] != MARKER or data[position + 1] != marker:
        return False
    state[POSITION] = position + 2
    state[BITS] = state[COUNT] = state[PADDING_BITS] = 0
    return True


@compile_kernel
def emit(symbol: int, bits: int, size: int, table: int, huffman: Codes, out: Array, state: Array) -> bool:
    """Counts a symbol, or writes it with the bits that follow it.

    Returns:
        False if the symbol has no code, or ``out`` is too small.
    """
    if out.size == 0:
        huffman.counts[table, symbol] += 1
        return True
    if huffman.lengths[table, symbol] == 0 or state[POSITION] + 16 > out.size:
        return False
    put_bits(out, state, huffman.codes[table, symbol], huffman.lengths[table, symbol], False)
    put_bits(out, state, bits, size, False)
    return True


@compile_kernel
def code_block(
    data: Array,
    reader: Array,
    lookup: Array,
    tables: Array,
    last_dc: Array,
    huffman: Codes,
    out: Array,
    writer: Array,
) -> bool:
    """Reads one block of 64 coefficients, and counts or writes its symbols.

    Returns:
        False if the data is invalid, or ``out`` is too small.
    """
    symbol, bits = read_symbol(data, reader, lookup[tables[0]])
    if symbol < 0 or symbol > LONGEST_DC:
        return False
    last_dc[0] += value_of(symbol, bits)
    if last_dc[0] < MIN_DC or last_dc[0] > MAX_DC:
        return False
    difference = last_dc[0] - last_dc[1]
    last_dc[1] = last_dc[0]
    size = size_of(difference)
    if not emit(size, bits_of(difference, size), size, tables[2], huffman, out, writer):
        return False
    coefficient = 1
    while coefficient < COEFFICIENTS:
        symbol, bits = read_symbol(data, reader, lookup[tables[1]])
        size = symbol & 15
        if symbol < 0 or (size == 0 and symbol % 0xF0) or size > LONGEST_AC:
            return False
        coefficient = COEFFICIENTS if symbol == 0 else coefficient + (symbol >> 4) + 1
        if coefficient > COEFFICIENTS or not emit(symbol, bits, size, tables[3], huffman, out, writer):
            return False
    return True


@compile_kernel
def transcode(
    data: Array,
    lookup: Array,
    blocks: Array,
    mcus: int,
    mcus_per_row: int,
    restart_interval: int,
    mcus_per_segment: int,
    counts: Array,
    codes: Array,
    lengths: Array,
    out: Array,
    segments: Array,
) -> int:
    """Reads a scan, and counts the symbols of the same scan without restart markers, or writes it.

    Args:
        data: file from the first byte of the scan to the end, uint8.
        lookup: lookup tables, uint16 [4, 65536]. For the next 16 bits, the length of the code << 8 | symbol,
            or 0. Two tables are for DC, two for AC.
        blocks: description of an MCU's blocks, int64 [blocks of an MCU, 5]: component, the rows of ``lookup``
            for DC and AC, and the rows of ``Codes`` for DC and AC.
        mcus: number of MCUs.
        mcus_per_row: number of MCUs in a row of the picture.
        restart_interval: number of MCUs between the restart markers of the data; 0 if there are none.
        mcus_per_segment: number of MCUs in a segment.
        counts: field of ``Codes``.
        codes: field of ``Codes``.
        lengths: field of ``Codes``.
        out: output without the zeros after bytes of 255, uint8; empty to count.
        segments: output, int64 [segments, 4]: position of each segment in bits, and the DC of the three
            components before it.

    Returns:
        Number of bits written; -1 if the data is invalid, or ``out`` is too small.
    """
    huffman = Codes(counts, codes, lengths)
    reader, writer = np.zeros(4, np.int64), np.zeros(4, np.int64)
    last_dc = np.zeros((3, 2), np.int64)  # DC of each component's last block, in the input and in the output
    segment = 0
    for mcu in range(mcus):
        if restart_interval and mcu and mcu % restart_interval == 0:
            if not pass_marker(data, reader, FIRST_RESTART + (mcu // restart_interval - 1) % 8):
                return WRONG
            last_dc[:, 0] = 0
        if mcu % mcus_per_row % mcus_per_segment == 0:
            segments[segment, 0] = 8 * writer[POSITION] + writer[COUNT]
            segments[segment, 1:] = last_dc[:, 1]
            segment += 1
        for block in range(blocks.shape[0]):
            component_dc = last_dc[blocks[block, 0]]
            if not code_block(data, reader, lookup, blocks[block, 1:], component_dc, huffman, out, writer):
                return WRONG
    if not pass_marker(data, reader, END):
        return WRONG
    bit_count = 8 * writer[POSITION] + writer[COUNT]
    if out.size:
        fill_byte(out, writer, False)
    return int(bit_count)
