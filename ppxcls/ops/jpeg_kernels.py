"""The coded data of baseline JPEGs (ITU-T T.81), read and written anew by a numba kernel.

The coefficients stay as they are. Their codes change, and there is a restart marker after every ``interval`` MCUs. The data is not
trusted: every access is inside the arrays, and data that is not in order ends with an error.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ppxcls.ops.cpu import compiled

Array = np.ndarray[Any, Any]

_COEFFICIENTS = 64
_MARKER, _FIRST_RESTART = 0xFF, 0xD0
_LONGEST_DC, _LARGEST_DC = 11, 1 << 11
_WRONG = -1
# Places in the reader's and the writer's state.
_POSITION, _BITS, _COUNT, _BEYOND = 0, 1, 2, 3


@compiled
def read_symbol(data: Array, state: Array, lookup: Array) -> tuple[Any, Any]:
    """The next symbol and the bits that follow it; (-1, 0) if there is none."""
    position, bits, count = state[_POSITION], state[_BITS], state[_COUNT]
    while count <= 40:
        byte = np.int64(0)
        if position < data.size and data[position] != _MARKER:
            byte = np.int64(data[position])
            position += 1
        elif position + 1 < data.size and data[position + 1] == 0:  # a byte of 255 is followed by a zero
            byte = np.int64(_MARKER)
            position += 2
        else:  # a marker or the end: zeros, of which none may be used
            state[_BEYOND] += 8
        bits = (bits << 8) | byte
        count += 8
    entry = np.int64(lookup[(bits >> (count - 16)) & 0xFFFF])
    size = entry & 15
    count -= entry >> 8
    count -= size
    extra = (bits >> count) & ((1 << size) - 1)
    state[_POSITION], state[_BITS], state[_COUNT] = position, bits & ((1 << count) - 1), count
    if entry == 0 or count < state[_BEYOND]:
        return -1, 0
    return entry & 0xFF, extra


@compiled
def pass_marker(data: Array, state: Array, marker: int) -> bool:
    """Go on behind the marker that must be next."""
    position = state[_POSITION]
    if state[_COUNT] - state[_BEYOND] >= 8:  # whole bytes are left
        return False
    while position + 1 < data.size and data[position] == _MARKER and data[position + 1] == _MARKER:
        position += 1
    if position + 1 >= data.size or data[position] != _MARKER or data[position + 1] != marker:
        return False
    state[_POSITION] = position + 2
    state[_BITS] = state[_COUNT] = state[_BEYOND] = 0
    return True


@compiled
def put_bits(out: Array, state: Array, value: int, size: int) -> None:
    """Write bits, of which there are at most 16; whole bytes go out. The caller has checked that 8 bytes are free."""
    bits, count = (state[_BITS] << size) | value, state[_COUNT] + size
    position = state[_POSITION]
    while count >= 8:
        count -= 8
        byte = (bits >> count) & 0xFF
        out[position] = byte
        position += 1
        if byte == _MARKER:
            out[position] = 0
            position += 1
    state[_POSITION], state[_BITS], state[_COUNT] = position, bits & ((1 << count) - 1), count


@compiled
def put_marker(out: Array, state: Array, marker: int) -> None:
    """Fill the last byte with ones, and write a marker."""
    if state[_COUNT]:
        free = 8 - state[_COUNT]
        put_bits(out, state, (1 << free) - 1, free)
    out[state[_POSITION]] = _MARKER
    out[state[_POSITION] + 1] = marker
    state[_POSITION] += 2


@compiled
def emit(
    symbol: int, extra: int, size: int, row: int, counts: Array, codes: Array, lengths: Array, out: Array, state: Array
) -> bool:
    """Count a symbol, or write it with the bits that follow it."""
    if out.size == 0:
        counts[row, symbol] += 1
        return True
    if lengths[row, symbol] == 0 or state[_POSITION] + 16 > out.size:
        return False
    put_bits(out, state, np.int64(codes[row, symbol]), np.int64(lengths[row, symbol]))
    put_bits(out, state, extra, size)
    return True


@compiled
def code_block(
    data: Array,
    reader: Array,
    lookup: Array,
    tables: Array,
    before: Array,
    counts: Array,
    codes: Array,
    lengths: Array,
    out: Array,
    writer: Array,
) -> bool:
    """One block of 64 coefficients."""
    symbol, extra = read_symbol(data, reader, lookup[tables[0]])
    if symbol < 0 or symbol > _LONGEST_DC:
        return False
    if symbol and extra < 1 << (symbol - 1):
        extra -= (1 << symbol) - 1
    before[0] += extra
    difference = before[0] - before[1]
    before[1] = before[0]
    if abs(difference) >= _LARGEST_DC or abs(before[0]) >= 1 << 15:
        return False
    size = 0
    while abs(difference) >> size:
        size += 1
    bits = difference if difference >= 0 else difference + (1 << size) - 1
    if not emit(size, bits, size, tables[2], counts, codes, lengths, out, writer):
        return False
    k = 1
    while k < _COEFFICIENTS:
        symbol, extra = read_symbol(data, reader, lookup[tables[1]])
        size = symbol & 15
        if symbol < 0 or (size == 0 and symbol % 0xF0) or size > 10:
            return False
        k = _COEFFICIENTS if symbol == 0 else k + (symbol >> 4) + 1
        if k > _COEFFICIENTS or not emit(symbol, extra, size, tables[3], counts, codes, lengths, out, writer):
            return False
    return True


@compiled
def transcode(
    data: Array,
    lookup: Array,
    blocks: Array,
    mcus: int,
    old_interval: int,
    interval: int,
    counts: Array,
    codes: Array,
    lengths: Array,
    out: Array,
    segments: Array,
) -> int:
    """Read a scan, and count the symbols that the scan with the new interval has, or write it.

    Args:
        data: uint8, from the first byte of the scan to the end of the file.
        lookup: uint16 [4, 65536]: for the next 16 bits, the length of the code << 8 | symbol, or 0. Two DC tables, two AC tables.
        blocks: int64 [blocks of an MCU, 5]: component, the rows of ``lookup`` for DC and AC, and the rows to write with.
        mcus: number of MCUs.
        old_interval: MCUs between the restart markers of the data; 0 if there are none.
        interval: MCUs between those that are written.
        counts: int64 [4, 256], of the symbols; counted if ``out`` is empty.
        codes: int64 [4, 256], to write with.
        lengths: int64 [4, 256], of the codes in bits; 0 for none.
        out: uint8, to write to; empty to count.
        segments: int64, lengths of the segments that are written, each with the marker that ends it.

    Returns:
        Number of bytes written, with the marker of the end; -1 if the data is not in order, or ``out`` is too small.
    """
    reader, writer = np.zeros(4, np.int64), np.zeros(4, np.int64)
    before = np.zeros((4, 2), np.int64)  # DC of each component's last block: as it was read, and as it was written
    begin = 0
    for mcu in range(mcus):
        if old_interval and mcu and mcu % old_interval == 0:
            if not pass_marker(data, reader, _FIRST_RESTART + (mcu // old_interval - 1) % 8):
                return _WRONG
            before[:, 0] = 0
        if mcu and mcu % interval == 0:
            before[:, 1] = 0
            if out.size:
                if writer[_POSITION] + 16 > out.size:
                    return _WRONG
                put_marker(out, writer, _FIRST_RESTART + (mcu // interval - 1) % 8)
                segments[mcu // interval - 1] = writer[_POSITION] - begin
                begin = writer[_POSITION]
        for b in range(blocks.shape[0]):
            last = before[blocks[b, 0]]
            if not code_block(data, reader, lookup, blocks[b, 1:], last, counts, codes, lengths, out, writer):
                return _WRONG
    if not pass_marker(data, reader, 0xD9):
        return _WRONG
    if out.size:
        if writer[_POSITION] + 16 > out.size:
            return _WRONG
        put_marker(out, writer, 0xD9)
        segments[-1] = writer[_POSITION] - begin
    return int(writer[_POSITION])
