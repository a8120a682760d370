"""JPEGs from which a part of the picture can be decoded without the rest of the file.

``rewrite_jpeg`` rewrites the coded data of a JPEG without changing a coefficient, and records the position of
each segment. A segment consists of a few MCUs side by side (the smallest units of a JPEG, 8 or 16 pixels
wide). ``SegmentedImage`` then builds a small valid JPEG from the segments under a part, and the standard
decoder decodes it. Within a row, the segments are one run of bits. A JPEG codes DC as the difference to the
previous block, so DC is adapted at the beginning of each row. Restart markers would be simpler, but
libjpeg-turbo decodes data with restart markers in a path that takes a tenth longer.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import simplejpeg

from ppxcls.data.decode import MAX_PIXELS, Image, ImageParts
from ppxcls.packed.jpeg_codes import END, HUFFMAN_TABLE, LONGEST_CODE, LONGEST_DC, MARKER, SEGMENT
from ppxcls.system import kernels
from ppxcls.system.arrays import Array

_START, _SCAN, _FRAME, _QUANTIZATION, _INTERVAL, _JFIF, _ADOBE = 0xD8, 0xDA, 0xC0, 0xDB, 0xDD, 0xE0, 0xEE
_IGNORED_MARKERS = {0xFE, *range(0xE1, 0xEE), 0xEF}  # comments and application data
_HEAD = b"\xff\xd8\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0"
# First bytes of a frame with three components, and of a grey frame.
_FRAME_HEADS = (
    b"\xff\xc0\x00\x11\x08",
    b"\xff\xc0\x00\x0b\x08",
)
HEIGHT_AT = len(_HEAD) + 5  # position of the frame's height, two bytes; its width follows
# Target width of a segment. For ImageNet's crops, 16 would save 1 % of the decoding and cost 1 % of the size.
# 64 would save 3 % of the size and cost 10 % of the decoding.
SEGMENT_PIXELS = 32
_INDEX_MISMATCH = "the record is not the JPEG that its index describes"
_MARGIN_PIXELS = 2  # pixels around a part: the decoder interpolates subsampled colours from neighbours
_MIN_WIDTH_PIXELS = 32  # pixels of a part, because the decoder does not interpolate very narrow pictures


class Grid(NamedTuple):
    """The layout of a JPEG's segments.

    Attributes:
        width, height: size of the picture in pixels.
        mcu_width, mcu_height: size of an MCU in pixels.
        per_segment: number of MCUs in a segment; the last segment of a row may have fewer.
    """

    width: int
    height: int
    mcu_width: int
    mcu_height: int
    per_segment: int

    @property
    def mcus(self) -> int:
        """Number of MCUs in a row."""
        return -(-self.width // self.mcu_width)

    @property
    def columns(self) -> int:
        """Number of segments in a row."""
        return -(-self.mcus // self.per_segment)

    @property
    def rows(self) -> int:
        """Number of rows of MCUs."""
        return -(-self.height // self.mcu_height)


class RewrittenJpeg(NamedTuple):
    """A JPEG that was rewritten in segments.

    Attributes:
        data: head, coded data, and table of the segments (``SEGMENT``). The coded data does not contain the
            zeros that follow bytes of 255 in a JPEG.
        grid: layout of the segments.
        scan: position of the coded data in bytes.
        table: position of the table in bytes, which is ``size`` in the index.
    """

    data: bytes
    grid: Grid
    scan: int
    table: int


@dataclass
class _Frame:
    """The contents of the markers before the scan.

    Attributes:
        width, height: size of the picture in pixels.
        components: horizontal and vertical sampling factor, and number of the quantization table, of each
            component.
        ids: identifiers of the components, one byte each.
        quantization: quantization tables with their markers, as bytes.
        tables: Huffman tables in the form of ``_lookup_table``; 0 and 1 are for DC, 2 and 3 for AC.
        interval: number of MCUs between restart markers; 0 if there are none.
        scan: position of the coded data in bytes.
        uses: numbers of each component's tables, for DC and AC.
    """

    width: int = 0
    height: int = 0
    components: list[tuple[int, int, int]] = field(default_factory=list)
    ids: bytes = b""
    quantization: bytes = b""
    tables: dict[int, Array] = field(default_factory=dict)
    interval: int = 0
    scan: int = 0
    uses: list[tuple[int, int]] = field(default_factory=list)


def rewrite_jpeg(data: bytes) -> RewrittenJpeg | None:
    """Rewrites a JPEG with its best Huffman tables, and without the data that decoders ignore.

    Returns:
        The rewritten JPEG. None if the file is not a baseline JPEG with one scan and a grey or YCbCr picture,
        if it is damaged, or if numba is missing.
    """
    frame = _parse_frame(data) if kernels.HAS_NUMBA else None
    return None if frame is None else _rewrite(data, frame)


def _parse_frame(data: bytes) -> _Frame | None:
    if data[:2] != bytes((MARKER, _START)):
        return None
    frame, position = _Frame(), 2
    while position + 4 <= len(data) and data[position] == MARKER:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        body = data[position + 4 : position + 2 + length]
        if len(body) != length - 2:
            return None
        position += 2 + length
        if marker == _SCAN:
            frame.scan = position
            return frame if _is_whole_scan(frame, body) else None
        if not (marker in _IGNORED_MARKERS or _read_marker(frame, marker, body)):
            return None
    return None


def _read_marker(frame: _Frame, marker: int, body: bytes) -> bool:
    """Stores the contents of a marker in the frame. Returns False if the marker is not supported."""
    if marker == _FRAME and not frame.components and len(body) >= 6:
        frame.height = int.from_bytes(body[1:3], "big")
        frame.width = int.from_bytes(body[3:5], "big")
        rows = [body[i : i + 3] for i in range(6, len(body), 3)]
        frame.ids = bytes(row[0] for row in rows)
        frame.components = [(row[1] >> 4, row[1] & 15, row[2]) for row in rows if len(row) == 3]
        return body[0] == 8 and body[5] == len(rows) == len(frame.components) and _is_supported(frame)
    if marker == _QUANTIZATION:
        frame.quantization += _marker_segment(marker, body)
        return True
    if marker == HUFFMAN_TABLE:
        return _read_tables(frame, body)
    if marker == _INTERVAL and len(body) == 2:
        frame.interval = int.from_bytes(body, "big")
        return True
    # Adobe's marker gives the colours: RGB, YCCK, CMYK, or YCbCr, which is 1. Only YCbCr is supported.
    is_ycbcr = len(body) >= 12 and body[:5] == b"Adobe" and body[11] == 1
    return marker == _JFIF or (marker == _ADOBE and is_ycbcr)


def _is_supported(frame: _Frame) -> bool:
    if not 0 < frame.width * frame.height <= MAX_PIXELS:
        return False
    sizes = [size[:2] for size in frame.components]
    if not all(1 <= factor <= 4 for size in sizes for factor in size):
        return False
    if len(sizes) == 1:
        return True
    return (
        len(sizes) == 3
        and sizes[1:] == [(1, 1)] * 2
        and max(sizes[0]) <= 2
        and frame.ids in (b"\0\1\2", b"\1\2\3")
    )


def _read_tables(frame: _Frame, body: bytes) -> bool:
    position = 0
    while position + 17 <= len(body):
        kind, number = body[position] >> 4, body[position] & 15
        counts = body[position + 1 : position + 17]
        symbols = body[position + 17 : position + 17 + sum(counts)]
        position += 17 + sum(counts)
        table = _lookup_table(counts, symbols)
        if kind > 1 or number > 1 or len(symbols) != sum(counts) or table is None:
            return False
        frame.tables[2 * kind + number] = table
    return position == len(body)


def _lookup_table(counts: bytes, symbols: bytes) -> Array | None:
    """Returns for each 16 bits: length of the code << 8 | symbol, 0 for no code; uint16 [65536].

    None if the table is invalid.
    """
    table = np.zeros(1 << LONGEST_CODE, np.uint16)
    entry, first_symbol = 0, 0
    for length, count in enumerate(counts, 1):
        for symbol in symbols[first_symbol : first_symbol + count]:
            width = 1 << (LONGEST_CODE - length)
            if entry + width > table.size:
                return None
            table[entry : entry + width] = length << 8 | symbol
            entry += width
        first_symbol += count
    return table


def _is_whole_scan(frame: _Frame, body: bytes) -> bool:
    """True if the first scan has all components, and their tables are present."""
    if not frame.components:
        return False
    count = len(frame.components)
    if (
        len(body) != 2 * count + 4
        or body[0] != count
        or body[-3:] != b"\0\x3f\0"
        or body[1 : 2 * count : 2] != frame.ids
    ):
        return False
    frame.uses = [(use >> 4, (use & 15) + 2) for use in body[2 : 2 * count + 1 : 2]]
    return all(use in frame.tables for uses in frame.uses for use in uses)


def _rewrite(data: bytes, frame: _Frame) -> RewrittenJpeg | None:
    from ppxcls.packed.jpeg_kernels import transcode

    grid = _grid(frame)
    blocks = []
    for number, ((x_factor, y_factor, _), (dc, ac)) in enumerate(
        zip(frame.components, frame.uses, strict=True)
    ):
        block = [number, dc, ac, int(number > 0), 2 + int(number > 0)]
        blocks += [block] * (1 if len(frame.components) == 1 else x_factor * y_factor)
    lookup = np.stack([frame.tables.get(i, np.zeros(1 << LONGEST_CODE, np.uint16)) for i in range(4)])
    scan = np.frombuffer(data, np.uint8)[frame.scan :]
    segments = np.zeros((grid.rows * grid.columns, 4), np.int64)
    sizes = grid.rows * grid.mcus, grid.mcus, frame.interval, grid.per_segment
    arguments = scan, lookup, np.array(blocks, np.int64), *sizes
    counts, codes, lengths = (np.zeros((4, 256), np.int64) for _ in range(3))

    def transcoded(out: Array) -> int:
        return int(kernels.call(transcode, *arguments, counts, codes, lengths, out, segments))

    if transcoded(np.empty(0, np.uint8)) < 0:
        return None
    counts[: min(len(frame.components), 2), : LONGEST_DC + 1] += 1  # a part may need any of these symbols
    tables = [_best_table(row) for row in counts]
    for table, table_codes, table_lengths in zip(tables, codes, lengths, strict=True):
        _assign_codes(table, table_codes, table_lengths)
    out = np.empty(2 * scan.size + 1024, np.uint8)
    bits = transcoded(out)
    segment_bits = np.diff(segments[:, 0], append=bits)
    if bits < 0 or segment_bits.max() > np.iinfo(np.uint16).max:
        return None
    segment_table = np.zeros(len(segments), SEGMENT)
    segment_table["bits"], segment_table["dc"] = segment_bits, segments[:, 1:]
    head = _head(frame, tables)
    coded_data = out[: -(-bits // 8)].tobytes()
    return RewrittenJpeg(
        head + coded_data + segment_table.tobytes(), grid, len(head), len(head) + len(coded_data)
    )


def _grid(frame: _Frame) -> Grid:
    x_factor, y_factor = (1, 1) if len(frame.components) == 1 else frame.components[0][:2]
    return Grid(frame.width, frame.height, 8 * x_factor, 8 * y_factor, SEGMENT_PIXELS // (8 * x_factor))


def _best_table(counts: Array) -> tuple[bytes, bytes]:
    """Returns the number of codes of each length, and the symbols in code order (ITU-T T.81, annex K.2)."""
    symbols = np.flatnonzero(counts).tolist()
    if not symbols:
        return bytes(LONGEST_CODE), b""
    # An additional symbol, -1, gets the code of only ones, because no real symbol may have it.
    heap = [(0, -1, [-1]), *((int(counts[symbol]), symbol, [symbol]) for symbol in symbols)]
    heapq.heapify(heap)
    lengths = dict.fromkeys([-1, *symbols], 0)
    while len(heap) > 1:
        (count, _, members), (second_count, order, second_members) = heapq.heappop(heap), heapq.heappop(heap)
        members = members + second_members
        for member in members:
            lengths[member] += 1
        heapq.heappush(heap, (count + second_count, order, members))
    by_length = np.bincount(list(lengths.values()), minlength=LONGEST_CODE + 1)
    for length in range(by_length.size - 1, LONGEST_CODE, -1):  # shorten codes that are too long (figure K.3)
        while by_length[length]:
            shorter_length = max(n for n in range(1, length - 1) if by_length[n])
            np.add.at(by_length, [length, length - 1, shorter_length + 1, shorter_length], [-2, 1, 2, -1])
    by_length[np.flatnonzero(by_length)[-1]] -= 1
    sorted_symbols = sorted(symbols, key=lambda symbol: (lengths[symbol], symbol))
    return bytes(by_length[1 : LONGEST_CODE + 1].tolist()), bytes(sorted_symbols)


def _assign_codes(table: tuple[bytes, bytes], codes: Array, lengths: Array) -> None:
    """Fills in the code and the code length of each symbol in a table (annex C)."""
    code, first_symbol = 0, 0
    for length, count in enumerate(table[0], 1):
        for symbol in table[1][first_symbol : first_symbol + count]:
            codes[symbol], lengths[symbol] = code, length
            code += 1
        first_symbol += count
        code <<= 1


def _head(frame: _Frame, tables: list[tuple[bytes, bytes]]) -> bytes:
    """Returns all bytes before the coded data.

    The frame is at a fixed position, followed by the Huffman tables and the rest.
    """
    count = len(frame.components)
    body = b"\x08" + _size_field(frame.height, frame.width) + bytes([count])
    body += b"".join(
        bytes([i + 1, x_factor << 4 | y_factor, table])
        for i, (x_factor, y_factor, table) in enumerate(frame.components)
    )
    parts = [(_FRAME, body)]
    for number, (lengths, symbols) in enumerate(tables):
        if symbols:
            parts.append((HUFFMAN_TABLE, bytes([number % 2 | number // 2 << 4]) + lengths + symbols))
    uses = b"".join(bytes([i + 1, 0x11 * int(i > 0)]) for i in range(count))
    segments = [_marker_segment(marker, body) for marker, body in parts]
    return (
        _HEAD
        + b"".join(segments)
        + frame.quantization
        + _marker_segment(_SCAN, bytes([count]) + uses + b"\0\x3f\0")
    )


def _size_field(height: int, width: int) -> bytes:
    """Returns the size in the form that a frame contains."""
    return height.to_bytes(2, "big") + width.to_bytes(2, "big")


def _marker_segment(marker: int, body: bytes) -> bytes:
    return bytes((MARKER, marker)) + (len(body) + 2).to_bytes(2, "big") + body


class SegmentedImage(ImageParts):
    """A rewritten JPEG that is decoded only as far as needed.

    Args:
        jpeg: rewritten JPEG from a packed data set.

    Attributes:
        shape: height and width of the picture in pixels, and 3.
    """

    def __init__(self, jpeg: RewrittenJpeg) -> None:
        self._data, self._grid, self._scan, self._table = jpeg
        self.shape = self._grid.height, self._grid.width, 3

    @property
    def encoded(self) -> bytes:
        """The picture as a JPEG file."""
        data = self._data
        return b"".join(
            [
                data[: self._scan],
                data[self._scan : self._table].replace(b"\xff", b"\xff\0"),
                bytes((MARKER, END)),
            ]
        )

    def whole(self) -> Image:
        """Returns the picture, uint8 [H, W, 3], RGB.

        Raises:
            ValueError: the picture can't be decoded.
        """
        return _decode_jpeg(self.encoded, self._grid.height, self._grid.width)

    def part(self, left: int, top: int, width: int, height: int) -> Image:
        """Returns the pixels of a part, the same as in ``whole()``, uint8 [height, width, 3].

        Raises:
            ValueError: the part can't be decoded.
        """
        left = int(left)
        top = int(top)
        width = int(width)
        height = int(height)  # they may be numpy integers
        if not kernels.HAS_NUMBA:
            return self.whole()[top : top + height, left : left + width]
        grid = self._grid
        segment_width, segment_height = grid.mcu_width * grid.per_segment, grid.mcu_height
        margin = 0 if grid.mcu_width == grid.mcu_height == 8 else _MARGIN_PIXELS
        first, stop = (
            max(left - margin, 0) // segment_width,
            -(-min(left + width + margin, grid.width) // segment_width),
        )
        # Avoid decoding only a few pixels, such as those of a narrow last column.
        first = max(
            0,
            min(
                first,
                grid.columns - 1,
                (min(stop * segment_width, grid.width) - _MIN_WIDTH_PIXELS) // segment_width,
            ),
        )
        row, end = (
            max(top - margin, 0) // segment_height,
            -(-min(top + height + margin, grid.height) // segment_height),
        )
        cut_height, cut_width = (
            min(end * segment_height, grid.height) - row * segment_height,
            min(stop * segment_width, grid.width) - first * segment_width,
        )
        picture = _decode_jpeg(
            self._cut((first, stop, row, end), cut_height, cut_width), cut_height, cut_width
        )
        top, left = top - row * segment_height, left - first * segment_width
        return picture[top : top + height, left : left + width]

    def _cut(self, part: tuple[int, int, int, int], height: int, width: int) -> Array:
        """Returns a JPEG of the segments of a part.

        Args:
            part: first column, column after the last, first row, row after the last.
            height: height of the new picture in pixels.
            width: width of the new picture in pixels.

        Raises:
            ValueError: the record is damaged.
        """
        from ppxcls.packed.jpeg_cut_kernels import cut

        grid, data = self._grid, np.frombuffer(self._data, np.uint8)
        if data.size != self._table + SEGMENT.itemsize * grid.columns * grid.rows:  # the kernel needs it
            raise ValueError(_INDEX_MISMATCH)
        is_grey = self._data[HEIGHT_AT + 4] == 1
        components, blocks = (1, 1) if is_grey else (3, grid.mcu_width * grid.mcu_height // 64)
        tables = HEIGHT_AT + 5 + 3 * components
        jpeg = np.empty(2 * self._table - self._scan + 64 * (grid.rows + 1), np.uint8)
        jpeg[: self._scan] = data[: self._scan]
        jpeg[HEIGHT_AT : HEIGHT_AT + 4] = np.frombuffer(_size_field(height, width), np.uint8)
        places, shifts = (tables, self._scan, self._table), np.zeros(components, np.int64)
        size = kernels.call(cut, data, places, (grid.columns, grid.rows), blocks, shifts, part, jpeg)
        if size < 0:
            raise ValueError(_INDEX_MISMATCH)
        return jpeg[:size]


def _decode_jpeg(data: bytes | Array, height: int, width: int) -> Image:
    """Decodes a JPEG of a known size, uint8 [height, width, 3]. Raises ValueError."""
    # Otherwise the decoder might allocate any amount of memory.
    heads = [_HEAD + frame + _size_field(height, width) for frame in _FRAME_HEADS]
    if bytes(data[: HEIGHT_AT + 4]) not in heads:
        raise ValueError(_INDEX_MISMATCH)
    picture = simplejpeg.decode_jpeg(data, "RGB")
    if picture.shape != (height, width, 3):
        raise ValueError(_INDEX_MISMATCH)
    return picture
