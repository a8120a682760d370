"""Cuts a part out of a packed JPEG: a numba kernel that joins the coded data of its rows.

The data is not trusted: every access is inside the arrays, and data that is not in order ends with an error.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ppxcls.packed.jpeg_bits_kernels import (
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
    HUFFMAN_TABLE,
    LONGEST_CODE,
    LONGEST_DC,
    MARKER,
    SEGMENT,
)
from ppxcls.system.kernels import compiled

Array = np.ndarray[Any, Any]

_SEGMENT_BYTES = SEGMENT.itemsize
_SHORT = 9  # bits of a code that is looked up


class Tables(NamedTuple):
    """Huffman tables, of which there are two for a grey picture, and four otherwise.

    Attributes:
        limits: int64 [tables, 17]: for each length, the first 16 bits that begin no code of this length or a
            shorter one.
        symbols: int64 [tables, 17]: position of the symbols of this length, less their first code.
        short: uint16 [tables, 512]: for the next 9 bits, the length of their code << 8 | symbol; 0 for a
            longer code.
    """

    limits: Array
    symbols: Array
    short: Array


@compiled
def number_at(data: Array, position: int) -> Any:
    """16 bits, little endian."""
    return np.int64(data[position]) | np.int64(data[position + 1]) << 8


@compiled
def signed_at(data: Array, position: int) -> Any:
    """16 bits, little endian, two's complement."""
    return (number_at(data, position) ^ 0x8000) - 0x8000


@compiled
def bits_at(data: Array, bit: int) -> Any:
    """The bits from a place on, at the top of 64, of which at least 57 are valid. 8 bytes must be there."""
    p = np.uint64(bit) >> np.uint64(3)  # unsigned, so that eight loads become one
    word = (
        np.uint64(data[p]) << np.uint64(56)
        | np.uint64(data[p + np.uint64(1)]) << np.uint64(48)
        | np.uint64(data[p + np.uint64(2)]) << np.uint64(40)
        | np.uint64(data[p + np.uint64(3)]) << np.uint64(32)
        | np.uint64(data[p + np.uint64(4)]) << np.uint64(24)
        | np.uint64(data[p + np.uint64(5)]) << np.uint64(16)
        | np.uint64(data[p + np.uint64(6)]) << np.uint64(8)
        | np.uint64(data[p + np.uint64(7)])
    )
    return word << (np.uint64(bit) & np.uint64(7))


@compiled
def has_marker(word: Any) -> bool:
    """Whether one of the eight bytes is 255."""
    ones, tops = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
    return (~word - ones) & word & tops != np.uint64(0)


@compiled
def copy_bits(data: Array, bit: int, end: int, out: Array, state: Array) -> None:
    """Copy the bits from one place up to another, with a zero behind each byte of 255.

    Eight bytes more must be free.
    """
    position, count = state[POSITION], np.uint64(state[COUNT])
    pending = np.uint64(state[BITS])
    while end - bit >= 56:
        new = bits_at(data, bit) & ~np.uint64(255)
        word = (pending << (np.uint64(63) - count) << np.uint64(1)) | new >> count
        pending = new >> np.uint64(8) & ((np.uint64(1) << count) - np.uint64(1))
        if has_marker(word & ~np.uint64(255)):
            for k in range(7):
                byte = word >> np.uint64(56 - 8 * k) & np.uint64(255)
                out[position] = byte
                position += 1
                if byte == np.uint64(MARKER):
                    out[position] = 0
                    position += 1
        else:
            p = np.uint64(position)
            out[p] = word >> np.uint64(56)
            out[p + np.uint64(1)] = word >> np.uint64(48) & np.uint64(255)
            out[p + np.uint64(2)] = word >> np.uint64(40) & np.uint64(255)
            out[p + np.uint64(3)] = word >> np.uint64(32) & np.uint64(255)
            out[p + np.uint64(4)] = word >> np.uint64(24) & np.uint64(255)
            out[p + np.uint64(5)] = word >> np.uint64(16) & np.uint64(255)
            out[p + np.uint64(6)] = word >> np.uint64(8) & np.uint64(255)
            out[p + np.uint64(7)] = np.uint64(0)  # eight stores become one
            position += 7
        bit += 56
    state[POSITION], state[BITS] = position, np.int64(pending)
    while bit < end:
        size = min(end - bit, 32)
        put_bits(out, state, np.int64(bits_at(data, bit) >> np.uint64(64 - size)), size, True)
        bit += size


@compiled
def read_tables(data: Array, position: int, scan: int, tables: Tables) -> bool:
    """Read the Huffman tables, which stand one after another: DC of brightness and of colour, then AC.

    Args:
        data: uint8, the record.
        position: of the first table in it.
        scan: position behind the last table, at least.
        tables: filled.
    """
    for table in range(tables.limits.shape[0]):
        if position + 21 > scan or data[position] != MARKER or data[position + 1] != HUFFMAN_TABLE:
            return False
        symbols: Any = position + 21
        code: Any = 0
        for length in range(1, LONGEST_CODE + 1):
            count = np.int64(data[position + 4 + length])
            tables.symbols[table, length] = symbols - code
            if symbols + count > scan or code + count > 1 << length:
                return False
            free = _SHORT - length
            if free >= 0:
                for k in range(count << free):
                    tables.short[table, (code << free) + k] = length << 8 | np.int64(
                        data[symbols + (k >> free)]
                    )
            symbols += count
            code += count
            tables.limits[table, length] = code << (LONGEST_CODE - length)
            code <<= 1
        position = symbols
    return True


@compiled
def next_symbol(data: Array, bit: int, tables: Tables, table: int) -> tuple[Any, Any]:
    """The symbol at a place, and the length of its code; (-1, 0) if there is none."""
    code = np.int64(bits_at(data, bit) >> np.uint64(48))
    entry = np.int64(tables.short[table, code >> (LONGEST_CODE - _SHORT)])
    if entry:
        return entry & 0xFF, entry >> 8
    length = _SHORT + 1
    while code >= tables.limits[table, length]:
        length += 1
        if length > LONGEST_CODE:
            return -1, 0
    return np.int64(data[tables.symbols[table, length] + (code >> (LONGEST_CODE - length))]), length


@compiled
def pass_coefficients(data: Array, bit: int, end: int, tables: Tables, table: int) -> int:
    """The place behind the AC coefficients of a block; -1 if they are not in order."""
    k = 1
    while k < COEFFICIENTS:
        symbol, length = next_symbol(data, bit, tables, table)
        bit += length + (symbol & 15)
        if symbol < 0 or bit > end:
            return WRONG
        k = COEFFICIENTS if symbol == 0 else k + (symbol >> 4) + 1
    return bit


@compiled
def put_difference(
    data: Array, difference: int, tables: Tables, table: int, out: Array, state: Array
) -> bool:
    """Write a difference of DC: its symbol's code, and its bits. False if the symbol has no code."""
    size, first = size_of(difference), 0
    for length in range(1, LONGEST_CODE + 1):
        stop = tables.limits[table, length] >> (LONGEST_CODE - length)
        for code in range(first, stop):
            if data[tables.symbols[table, length] + code] == size:
                put_bits(out, state, code, length, True)
                put_bits(out, state, bits_of(difference, size), size, True)
                return True
        first = stop << 1
    return False


@compiled
def join_mcu(
    data: Array, bit: int, end: int, blocks: int, shifts: Array, tables: Tables, out: Array, state: Array
) -> int:
    """Write an MCU whose predecessor is another one than it was.

    Args:
        data: uint8, the record.
        bit: where the MCU begins.
        end: bit behind the segment.
        blocks: number of blocks of the first component.
        shifts: int64 [components], what is added to each component's first difference of DC.
        tables: of the codes.
        out: uint8, to write to.
        state: of the writer.

    Returns:
        The bit up to which it is written, behind the last of these differences; -1 if the data is not in
        order.
    """
    written, ac = bit, tables.limits.shape[0] // 2
    for component in range(shifts.size):
        table = min(component, 1)
        for block in range(blocks if component == 0 else 1):
            symbol, length = next_symbol(data, bit, tables, table)
            behind = bit + length + symbol
            if symbol < 0 or symbol > LONGEST_DC or behind > end:
                return WRONG
            if block == 0:
                extra = np.int64(bits_at(data, bit + length) >> np.uint64(1) >> np.uint64(63 - symbol))
                copy_bits(data, written, bit, out, state)
                if not put_difference(
                    data, value_of(symbol, extra) + shifts[component], tables, table, out, state
                ):
                    return WRONG
                written = behind
            bit = pass_coefficients(data, behind, end, tables, ac + table)
            if bit < 0:
                return WRONG
    return written


@compiled
def cut(
    data: Array,
    places: tuple[int, int, int],
    grid: tuple[int, int],
    blocks: int,
    shifts: Array,
    part: tuple[int, ...],
    out: Array,
) -> int:
    """Write the segments of a part as one scan.

    Where a row begins, DC gets the difference to the end of the row before it.

    Args:
        data: uint8, the record: head, coded data without the zeros behind bytes of 255, table of the
            segments, of which there must be at least one, and as many as the grid has.
        places: positions of the Huffman tables, of the coded data, and of the table.
        grid: columns and rows of segments.
        blocks: blocks of the first component in an MCU.
        shifts: int64 [components], for use in here.
        part: first column, column behind the last, first row, row behind the last.
        out: uint8, written from the position of the coded data on. It must have room for that data twice,
            because each byte may get a zero behind it, and for 64 bytes a row and 64 at the end: a row's new
            differences take at most 26.

    Returns:
        Bytes of ``out`` with the marker of the end; -1 if the data is not in order.
    """
    tables_at, scan, table = places
    columns, rows = grid
    first, stop, top, bottom = part
    count = 2 * min(shifts.size, 2)
    codes = LONGEST_CODE + 1
    tables = Tables(
        np.zeros((count, codes), np.int64),
        np.zeros((count, codes), np.int64),
        np.zeros((count, 1 << _SHORT), np.uint16),
    )
    if not read_tables(data, tables_at, scan, tables):
        return WRONG
    state, last = np.zeros(3, np.int64), np.zeros(3, np.int64)
    state[POSITION] = scan
    bit, entry = 8 * scan, table
    for row in range(rows):
        begin = end = bit
        for column in range(columns):
            if column == first:
                begin = bit
                for component in range(shifts.size):
                    shifts[component] = signed_at(data, entry + 2 + 2 * component) - last[component]
            bit += number_at(data, entry)
            entry += _SEGMENT_BYTES
            if column + 1 == stop:
                end = bit
                if top <= row < bottom - 1:
                    for component in range(shifts.size):
                        last[component] = signed_at(data, entry + 2 + 2 * component)
        if bit > 8 * table:
            return WRONG
        if top <= row < bottom:
            written = join_mcu(data, begin, end, blocks, shifts, tables, out, state)
            if written < 0:
                return WRONG
            copy_bits(data, written, end, out, state)
    if bit <= 8 * table - 8:
        return WRONG
    fill_byte(out, state, True)
    out[state[POSITION]] = MARKER
    out[state[POSITION] + 1] = END
    return int(state[POSITION] + 2)
