"""JPEGs of which a part of the picture is decoded from a part of the file.

``segmented`` writes the coded data of a JPEG anew without touching a coefficient, and notes where in it each
segment begins: a few MCUs beside one another (the smallest units of a JPEG, 8 or 16 pixels wide).
``SegmentedImage`` then makes a small valid JPEG of the segments under a part, and the stock decoder does the
rest. Within a row the segments are one run of bits. DC, which a JPEG codes as the difference to the block
before, is adapted where a row begins. Restart markers would be simpler, but libjpeg-turbo decodes data that
has them by a path that takes a tenth longer.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import simplejpeg

from ppxcls.data.decode import MOST_PIXELS, Image, ImageParts
from ppxcls.packed.jpeg_codes import END, HUFFMAN_TABLE, LONGEST_CODE, LONGEST_DC, MARKER, SEGMENT
from ppxcls.system import kernels

Array = np.ndarray[Any, Any]

_START, _SCAN, _FRAME, _QUANTIZATION, _INTERVAL, _JFIF, _ADOBE = 0xD8, 0xDA, 0xC0, 0xDB, 0xDD, 0xE0, 0xEE
_IGNORED = {0xFE, *range(0xE1, 0xEE), 0xEF}  # comments, and applications' data
_HEAD = b"\xff\xd8\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0"
_FRAMES = (
    b"\xff\xc0\x00\x11\x08",
    b"\xff\xc0\x00\x0b\x08",
)  # beginning of a frame of three colours, of a grey one
HEIGHT_AT = len(_HEAD) + 5  # of the frame's height, two bytes; its width follows
# Width of a segment that is looked for. Of ImageNet's crops, 16 would save 1 % of the decoding and cost 1 %
# of the size; 64 would save 3 % of the size and cost 10 % of the decoding.
SEGMENT_PIXELS = 32
_NOT_DESCRIBED = "the record is not the JPEG that its index describes"
_MARGIN = 2  # pixels around a part, if the colours have fewer pixels: the decoder interpolates them from their neighbours
_LEAST_WIDTH = 32  # pixels of a part; the decoder does not interpolate a few pixels


class Grid(NamedTuple):
    """How a JPEG is cut.

    Attributes:
        width, height: of the picture in pixels.
        mcu_width, mcu_height: of an MCU in pixels.
        per_segment: MCUs in a segment; the last of a row may have fewer.
    """

    width: int
    height: int
    mcu_width: int
    mcu_height: int
    per_segment: int

    @property
    def mcus(self) -> int:
        """MCUs in a row."""
        return -(-self.width // self.mcu_width)

    @property
    def columns(self) -> int:
        """Segments in a row."""
        return -(-self.mcus // self.per_segment)

    @property
    def rows(self) -> int:
        """Rows of MCUs."""
        return -(-self.height // self.mcu_height)


class Segmented(NamedTuple):
    """A rewritten JPEG.

    Attributes:
        data: head, coded data without the zeros that follow bytes of 255 in a JPEG, and table of the segments
            (``SEGMENT``).
        grid: how it is cut.
        scan: position of the coded data.
        table: position of the table, which is ``size`` in the index.
    """

    data: bytes
    grid: Grid
    scan: int
    table: int


@dataclass
class _Frame:
    """What the markers before the scan say.

    Attributes:
        components: horizontal and vertical sampling, and quantization table, of each.
        ids: of the components.
        quantization: the markers with these tables.
        tables: what ``_lookup`` makes of a Huffman table; 0 and 1 are for DC, 2 and 3 for AC.
        interval: MCUs between restart markers.
        scan: position of the coded data.
        uses: tables of each component, for DC and AC.
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


def segmented(data: bytes) -> Segmented | None:
    """Rewrite a JPEG, with its best Huffman tables and without what decoders ignore.

    Returns:
        None if it is no baseline JPEG with one scan and a grey or YCbCr picture, if it is damaged, or if
        numba is missing.
    """
    frame = _parsed(data) if kernels.HAS_NUMBA else None
    return None if frame is None else _rewritten(data, frame)


def _parsed(data: bytes) -> _Frame | None:
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
        if not (marker in _IGNORED or _read(frame, marker, body)):
            return None
    return None


def _read(frame: _Frame, marker: int, body: bytes) -> bool:
    """Take over what a marker says; False if it is not supported."""
    if marker == _FRAME and not frame.components and len(body) >= 6:
        frame.height, frame.width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
        rows = [body[i : i + 3] for i in range(6, len(body), 3)]
        frame.ids = bytes(row[0] for row in rows)
        frame.components = [(row[1] >> 4, row[1] & 15, row[2]) for row in rows if len(row) == 3]
        return body[0] == 8 and body[5] == len(rows) == len(frame.components) and _is_supported(frame)
    if marker == _QUANTIZATION:
        frame.quantization += _marked(marker, body)
        return True
    if marker == HUFFMAN_TABLE:
        return _read_tables(frame, body)
    if marker == _INTERVAL and len(body) == 2:
        frame.interval = int.from_bytes(body, "big")
        return True
    # Adobe's marker says that the picture is RGB, YCCK or CMYK, or YCbCr, which is 1.
    return marker == _JFIF or (
        marker == _ADOBE and len(body) >= 12 and body[:5] == b"Adobe" and body[11] == 1
    )


def _is_supported(frame: _Frame) -> bool:
    if not 0 < frame.width * frame.height <= MOST_PIXELS:
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
        table = _lookup(counts, symbols)
        if kind > 1 or number > 1 or len(symbols) != sum(counts) or table is None:
            return False
        frame.tables[2 * kind + number] = table
    return position == len(body)


def _lookup(counts: bytes, symbols: bytes) -> Array | None:
    """For 16 bits: length of the code << 8 | symbol, 0 for no code; uint16 [65536].

    None if the table is not in order.
    """
    table = np.zeros(1 << LONGEST_CODE, np.uint16)
    at, used = 0, 0
    for length, count in enumerate(counts, 1):
        for symbol in symbols[used : used + count]:
            width = 1 << (LONGEST_CODE - length)
            if at + width > table.size:
                return None
            table[at : at + width] = length << 8 | symbol
            at += width
        used += count
    return table


def _is_whole_scan(frame: _Frame, body: bytes) -> bool:
    """Whether the first scan has all components, and their tables are there."""
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


def _rewritten(data: bytes, frame: _Frame) -> Segmented | None:
    from ppxcls.packed.jpeg_kernels import transcode

    grid = _grid(frame)
    blocks = []
    for number, ((across, down, _), (dc, ac)) in enumerate(zip(frame.components, frame.uses, strict=True)):
        one = [number, dc, ac, int(number > 0), 2 + int(number > 0)]
        blocks += [one] * (1 if len(frame.components) == 1 else across * down)
    lookup = np.stack([frame.tables.get(i, np.zeros(1 << LONGEST_CODE, np.uint16)) for i in range(4)])
    scan = np.frombuffer(data, np.uint8)[frame.scan :]
    segments = np.zeros((grid.rows * grid.columns, 4), np.int64)
    sizes = grid.rows * grid.mcus, grid.mcus, frame.interval, grid.per_segment
    facts = scan, lookup, np.array(blocks, np.int64), *sizes
    counts, codes, lengths = (np.zeros((4, 256), np.int64) for _ in range(3))

    def transcoded(out: Array) -> int:
        return int(kernels.call(transcode, *facts, counts, codes, lengths, out, segments))

    if transcoded(np.empty(0, np.uint8)) < 0:
        return None
    counts[: min(len(frame.components), 2), : LONGEST_DC + 1] += 1  # a part may need any of them
    tables = [_best_table(row) for row in counts]
    for table, own_codes, own_lengths in zip(tables, codes, lengths, strict=True):
        _assign(table, own_codes, own_lengths)
    out = np.empty(2 * scan.size + 1024, np.uint8)
    bits = transcoded(out)
    in_bits = np.diff(segments[:, 0], append=bits)
    if bits < 0 or in_bits.max() > np.iinfo(np.uint16).max:
        return None
    listed = np.zeros(len(segments), SEGMENT)
    listed["bits"], listed["dc"] = in_bits, segments[:, 1:]
    head = _head(frame, tables)
    coded = out[: -(-bits // 8)].tobytes()
    return Segmented(head + coded + listed.tobytes(), grid, len(head), len(head) + len(coded))


def _grid(frame: _Frame) -> Grid:
    across, down = (1, 1) if len(frame.components) == 1 else frame.components[0][:2]
    return Grid(frame.width, frame.height, 8 * across, 8 * down, SEGMENT_PIXELS // (8 * across))


def _best_table(counts: Array) -> tuple[bytes, bytes]:
    """Numbers of codes by their length, and symbols in the order of their codes (ITU-T T.81, annex K.2)."""
    symbols = np.flatnonzero(counts).tolist()
    if not symbols:
        return bytes(LONGEST_CODE), b""
    # One more, which gets the code of only ones, because no symbol may have it.
    heap = [(0, -1, [-1]), *((int(counts[symbol]), symbol, [symbol]) for symbol in symbols)]
    heapq.heapify(heap)
    lengths = dict.fromkeys([-1, *symbols], 0)
    while len(heap) > 1:
        (count, _, members), (other, order, others) = heapq.heappop(heap), heapq.heappop(heap)
        members = members + others
        for member in members:
            lengths[member] += 1
        heapq.heappush(heap, (count + other, order, members))
    by_length = np.bincount(list(lengths.values()), minlength=LONGEST_CODE + 1)
    for length in range(by_length.size - 1, LONGEST_CODE, -1):  # codes that are too long: figure K.3
        while by_length[length]:
            shorter = max(n for n in range(1, length - 1) if by_length[n])
            np.add.at(by_length, [length, length - 1, shorter + 1, shorter], [-2, 1, 2, -1])
    by_length[np.flatnonzero(by_length)[-1]] -= 1
    ordered = sorted(symbols, key=lambda symbol: (lengths[symbol], symbol))
    return bytes(by_length[1 : LONGEST_CODE + 1].tolist()), bytes(ordered)


def _assign(table: tuple[bytes, bytes], codes: Array, lengths: Array) -> None:
    """The codes of a table's symbols (annex C)."""
    code, used = 0, 0
    for length, count in enumerate(table[0], 1):
        for symbol in table[1][used : used + count]:
            codes[symbol], lengths[symbol] = code, length
            code += 1
        used += count
        code <<= 1


def _head(frame: _Frame, tables: list[tuple[bytes, bytes]]) -> bytes:
    """All that precedes the coded data: the frame at a fixed place, the Huffman tables behind it, and the rest."""
    count = len(frame.components)
    body = b"\x08" + _size(frame.height, frame.width) + bytes([count])
    body += b"".join(
        bytes([i + 1, across << 4 | down, table]) for i, (across, down, table) in enumerate(frame.components)
    )
    parts = [(_FRAME, body)]
    for number, (lengths, symbols) in enumerate(tables):
        if symbols:
            parts.append((HUFFMAN_TABLE, bytes([number % 2 | number // 2 << 4]) + lengths + symbols))
    uses = b"".join(bytes([i + 1, 0x11 * int(i > 0)]) for i in range(count))
    written = [_marked(marker, body) for marker, body in parts]
    return (
        _HEAD + b"".join(written) + frame.quantization + _marked(_SCAN, bytes([count]) + uses + b"\0\x3f\0")
    )


def _size(height: int, width: int) -> bytes:
    """As it stands in a frame."""
    return height.to_bytes(2, "big") + width.to_bytes(2, "big")


def _marked(marker: int, body: bytes) -> bytes:
    return bytes((MARKER, marker)) + (len(body) + 2).to_bytes(2, "big") + body


class SegmentedImage(ImageParts):
    """A rewritten JPEG that is decoded as far as it is needed.

    Args:
        rewritten: from a packed data set.

    Attributes:
        shape: of the picture: height, width, 3.
    """

    def __init__(self, rewritten: Segmented) -> None:
        self._data, self._grid, self._scan, self._table = rewritten
        self.shape = self._grid.height, self._grid.width, 3

    @property
    def encoded(self) -> bytes:
        """The JPEG."""
        data = self._data
        return b"".join(
            [
                data[: self._scan],
                data[self._scan : self._table].replace(b"\xff", b"\xff\0"),
                bytes((MARKER, END)),
            ]
        )

    def whole(self) -> Image:
        """The picture, uint8 [H, W, 3], RGB.

        Raises:
            ValueError: it can't be decoded.
        """
        return _decoded(self.encoded, self._grid.height, self._grid.width)

    def part(self, left: int, top: int, width: int, height: int) -> Image:
        """The pixels of a part, as ``whole()`` has them.

        Raises:
            ValueError: it can't be decoded.
        """
        left, top, width, height = int(left), int(top), int(width), int(height)  # numpy's, perhaps
        if not kernels.HAS_NUMBA:
            return self.whole()[top : top + height, left : left + width]
        grid = self._grid
        across, down = grid.mcu_width * grid.per_segment, grid.mcu_height
        margin = 0 if grid.mcu_width == grid.mcu_height == 8 else _MARGIN
        first, stop = max(left - margin, 0) // across, -(-min(left + width + margin, grid.width) // across)
        # Not a few pixels alone, such as those of a last column.
        first = max(
            0, min(first, grid.columns - 1, (min(stop * across, grid.width) - _LEAST_WIDTH) // across)
        )
        row, end = max(top - margin, 0) // down, -(-min(top + height + margin, grid.height) // down)
        cut_height, cut_width = (
            min(end * down, grid.height) - row * down,
            min(stop * across, grid.width) - first * across,
        )
        picture = _decoded(self._cut((first, stop, row, end), cut_height, cut_width), cut_height, cut_width)
        top, left = top - row * down, left - first * across
        return picture[top : top + height, left : left + width]

    def _cut(self, part: tuple[int, int, int, int], height: int, width: int) -> Array:
        """A JPEG of the segments of a part: first column, column behind the last, first row, row behind the last."""
        from ppxcls.packed.jpeg_cut_kernels import cut

        grid, data = self._grid, np.frombuffer(self._data, np.uint8)
        if data.size != self._table + SEGMENT.itemsize * grid.columns * grid.rows:  # the kernel relies on it
            raise ValueError(_NOT_DESCRIBED)
        is_grey = self._data[HEIGHT_AT + 4] == 1
        components, blocks = (1, 1) if is_grey else (3, grid.mcu_width * grid.mcu_height // 64)
        tables = HEIGHT_AT + 5 + 3 * components
        made = np.empty(2 * self._table - self._scan + 64 * (grid.rows + 1), np.uint8)
        made[: self._scan] = data[: self._scan]
        made[HEIGHT_AT : HEIGHT_AT + 4] = np.frombuffer(_size(height, width), np.uint8)
        places, shifts = (tables, self._scan, self._table), np.zeros(components, np.int64)
        size = kernels.call(cut, data, places, (grid.columns, grid.rows), blocks, shifts, part, made)
        if size < 0:
            raise ValueError(_NOT_DESCRIBED)
        return made[:size]


def _decoded(data: bytes | Array, height: int, width: int) -> Image:
    """A JPEG of a known size. Raises ValueError."""
    if bytes(data[: HEIGHT_AT + 4]) not in (
        _HEAD + frame + _size(height, width) for frame in _FRAMES
    ):  # else the decoder might allocate any size
        raise ValueError(_NOT_DESCRIBED)
    picture = simplejpeg.decode_jpeg(data, "RGB")
    if picture.shape != (height, width, 3):
        raise ValueError(_NOT_DESCRIBED)
    return picture
