"""Cuts a part out of a packed JPEG: a numba kernel that joins the coded data of the part's rows.

The data is not trusted: every access is inside the arrays, and invalid data ends with an error.
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
from ppxcls.system.arrays import Array
from ppxcls.system.kernels import compile_kernel

_SEGMENT_BYTES = SEGMENT.itemsize
_SHORT_CODE_BITS = 9  # bits, the longest code that is in the lookup table


class Tables(NamedTuple):
    """Huffman tables: two for a grey picture, and four otherwise.

    Attributes:
        limits: smallest 16-bit value, for each length, that begins no code of this length or a shorter one,
            int64 [tables, 17].
        symbols: position of the symbols of each length, minus their first code, int64 [tables, 17].
        short_codes: lookup table, uint16 [tables, 512]. For the next 9 bits, the length of their code << 8 |
            symbol; 0 for a longer code.
    """

    limits: Array
    symbols: Array
    short_codes: Array


@compile_kernel
def number_at(data: Array, position: int) -> Any:
    """Returns 16 bits as an unsigned number, little endian."""
    return np.int64(data[position]) | np.int64(data[position + 1]) << 8


@compile_kernel
def signed_at(data: Array, position: int) -> Any:
    """Returns 16 bits as a signed number, little endian, two's complement."""
    return (number_at(data, position) ^ 0x8000) - 0x8000


@compile_kernel
def bits_at(data: Array, bit: int) -> Any:
    """Returns the bits from a position on, as the upper bits of a 64-bit word.

    At least 57 bits are valid. 8 bytes must be present in ``data``.
    """
    start = np.uint64(bit) >> np.uint64(3)  # unsigned, so that the compiler joins eight loads into one
    word = (
        np.uint64(data[start]) << np.uint64(56)
        | np.uint64(data[start + np.uint64(1)]) << np.uint64(48)
        | np.uint64(data[start + np.uint64(2)]) << np.uint64(40)
        | np.uint64(data[start + np.uint64(3)]) << np.uint64(32)
        | np.uint64(data[start + np.uint64(4)]) << np.uint64(24)
        | np.uint64(data[start + np.uint64(5)]) << np.uint64(16)
        | np.uint64(data[start + np.uint64(6)]) << np.uint64(8)
        | np.uint64(data[start + np.uint64(7)])
    )
    return word << (np.uint64(bit) & np.uint64(7))


@compile_kernel
def has_marker(word: Any) -> bool:
    """True if one of the eight bytes is 255."""
    low_bits, high_bits = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
    return (~word - low_bits) & word & high_bits != np.uint64(0)


@compile_kernel
def copy_bits(data: Array, bit: int, end: int, out: Array, state: Array) -> None:
    """Copies the bits from one position up to another, and adds a zero after each byte of 255.

    Eight bytes more must be free.
    """
    position, count = state[POSITION], np.uint64(state[COUNT])
    pending_bits = np.uint64(state[BITS])
    while end - bit >= 56:
        new_bits = bits_at(data, bit) & ~np.uint64(255)
        word = (pending_bits << (np.uint64(63) - count) << np.uint64(1)) | new_bits >> count
        pending_bits = new_bits >> np.uint64(8) & ((np.uint64(1) << count) - np.uint64(1))
        if has_marker(word & ~np.uint64(255)):
            for index in range(7):
                byte = word >> np.uint64(56 - 8 * index) & np.uint64(255)
                out[position] = byte
                position += 1
                if byte == np.uint64(MARKER):
                    out[position] = 0
                    position += 1
        else:
            start = np.uint64(position)
            out[start] = word >> np.uint64(56)
            out[start + np.uint64(1)] = word >> np.uint64(48) & np.uint64(255)
            out[start + np.uint64(2)] = word >> np.uint64(40) & np.uint64(255)
            out[start + np.uint64(3)] = word >> np.uint64(32) & np.uint64(255)
            out[start + np.uint64(4)] = word >> np.uint64(24) & np.uint64(255)
            out[start + np.uint64(5)] = word >> np.uint64(16) & np.uint64(255)
            out[start + np.uint64(6)] = word >> np.uint64(8) & np.uint64(255)
            out[start + np.uint64(7)] = np.uint64(0)  # the compiler joins eight stores into one
            position += 7
        bit += 56
    state[POSITION], state[BITS] = position, np.int64(pending_bits)
    while bit < end:
        size = min(end - bit, 32)
        put_bits(out, state, np.int64(bits_at(data, bit) >> np.uint64(64 - size)), size, True)
        bit += size


@compile_kernel
def read_tables(data: Array, position: int, scan: int, tables: Tables) -> bool:
    """Reads the consecutive Huffman tables: DC of brightness and of colour, then AC.

    Args:
        data: record, uint8.
        position: position of the first table in the record.
        scan: position of the coded data; the tables must end before it.
        tables: tables to fill.

    Returns:
        True if the tables are valid.
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
            free_bits = _SHORT_CODE_BITS - length
            if free_bits >= 0:
                for index in range(count << free_bits):
                    tables.short_codes[table, (code << free_bits) + index] = length << 8 | np.int64(
                        data[symbols + (index >> free_bits)]
                    )
            symbols += count
            code += count
            tables.limits[table, length] = code << (LONGEST_CODE - length)
            code <<= 1
        position = symbols
    return True


@compile_kernel
def next_symbol(data: Array, bit: int, tables: Tables, table: int) -> tuple[Any, Any]:
    """Returns the symbol at a position and the length of its code, or (-1, 0) if there is none."""
    code = np.int64(bits_at(data, bit) >> np.uint64(48))
    entry = np.int64(tables.short_codes[table, code >> (LONGEST_CODE - _SHORT_CODE_BITS)])
    if entry:
        return entry & 0xFF, entry >> 8
    length = _SHORT_CODE_BITS + 1
    while code >= tables.limits[table, length]:
        length += 1
        if length > LONGEST_CODE:
            return -1, 0
    return np.int64(data[tables.symbols[table, length] + (code >> (LONGEST_CODE - length))]), length


@compile_kernel
def pass_coefficients(data: Array, bit: int, end: int, tables: Tables, table: int) -> int:
    """Returns the position after the AC coefficients of a block, or -1 if they are invalid."""
    coefficient = 1
    while coefficient < COEFFICIENTS:
        symbol, length = next_symbol(data, bit, tables, table)
        bit += length + (symbol & 15)
        if symbol < 0 or bit > end:
            return WRONG
        coefficient = COEFFICIENTS if symbol == 0 else coefficient + (symbol >> 4) + 1
    return bit


@compile_kernel
def put_difference(
    data: Array, difference: int, tables: Tables, table: int, out: Array, state: Array
) -> bool:
    """Writes a difference of DC: the code of its symbol, and its bits.

    Returns:
        False if the symbol has no code.
    """
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


@compile_kernel
def join_mcu(
    data: Array, bit: int, end: int, blocks: int, shifts: Array, tables: Tables, out: Array, state: Array
) -> int:
    """Writes an MCU after a different predecessor, with new DC differences.

    Args:
        data: record, uint8.
        bit: position of the MCU in bits.
        end: position in bits at which the row's part ends.
        blocks: number of blocks of the first component.
        shifts: numbers that are added to each component's first difference of DC, int64 [components].
        tables: Huffman tables.
        out: output, uint8.
        state: state of the writer.

    Returns:
        The position in bits up to which the MCU is written, after the last of these differences; -1 if the
        data is invalid.
    """
    copied_bits, first_ac_table = bit, tables.limits.shape[0] // 2
    for component in range(shifts.size):
        table = min(component, 1)
        for block in range(blocks if component == 0 else 1):
            symbol, length = next_symbol(data, bit, tables, table)
            difference_end = bit + length + symbol
            if symbol < 0 or symbol > LONGEST_DC or difference_end > end:
                return WRONG
            if block == 0:
                bits = np.int64(bits_at(data, bit + length) >> np.uint64(1) >> np.uint64(63 - symbol))
                copy_bits(data, copied_bits, bit, out, state)
                if not put_difference(
                    data, value_of(symbol, bits) + shifts[component], tables, table, out, state
                ):
                    return WRONG
                copied_bits = difference_end
            bit = pass_coefficients(data, difference_end, end, tables, first_ac_table + table)
            if bit < 0:
                return WRONG
    return copied_bits


@compile_kernel
def cut(
    data: Array,
    places: tuple[int, int, int],
    grid: tuple[int, int],
    blocks: int,
    shifts: Array,
    part: tuple[int, ...],
    out: Array,
) -> int:
    """Writes the segments of a part as one scan.

    At the beginning of a row, DC gets the difference to the end of the previous row.

    Args:
        data: record, uint8: head, coded data without the zeros after bytes of 255, and table of the segments.
            The table must have as many segments as the grid, and at least one.
        places: positions of the Huffman tables, of the coded data, and of the table of the segments.
        grid: numbers of columns and rows of segments.
        blocks: number of blocks of the first component in an MCU.
        shifts: work space, int64 [components].
        part: first column, column after the last, first row, row after the last.
        out: output, uint8, written from the position of the coded data on. It must have room for twice the
            coded data, because a zero may follow each byte. It also needs 64 bytes for each row and 64 at the
            end: a row's new differences take at most 26.

    Returns:
        Number of bytes in ``out``, including the end marker; -1 if the data is invalid.
    """
    tables_at, scan, table = places
    columns, rows = grid
    first, stop, top, bottom = part
    count = 2 * min(shifts.size, 2)
    codes = LONGEST_CODE + 1
    tables = Tables(
        np.zeros((count, codes), np.int64),
        np.zeros((count, codes), np.int64),
        np.zeros((count, 1 << _SHORT_CODE_BITS), np.uint16),
    )
    if not read_tables(data, tables_at, scan, tables):
        return WRONG
    state, last_dc = np.zeros(3, np.int64), np.zeros(3, np.int64)
    state[POSITION] = scan
    bit, entry = 8 * scan, table
    for row in range(rows):
        begin = end = bit
        for column in range(columns):
            if column == first:
                begin = bit
                for component in range(shifts.size):
                    shifts[component] = signed_at(data, entry + 2 + 2 * component) - last_dc[component]
            bit += number_at(data, entry)
            entry += _SEGMENT_BYTES
            if column + 1 == stop:
                end = bit
                if top <= row < bottom - 1:
                    for component in range(shifts.size):
                        last_dc[component] = signed_at(data, entry + 2 + 2 * component)
        if bit > 8 * table:
            return WRONG
        if top <= row < bottom:
            copied_bits = join_mcu(data, begin, end, blocks, shifts, tables, out, state)
            if copied_bits < 0:
                return WRONG
            copy_bits(data, copied_bits, end, out, state)
    if bit <= 8 * table - 8:
        return WRONG
    fill_byte(out, state, True)
    out[state[POSITION]] = MARKER
    out[state[POSITION] + 1] = END
    return int(state[POSITION] + 2)
