"""Reads the size of a picture from its header, and compares it with limits, before any library sees it.

Each reader is a few lines of Python without loops over the content. It may give a wrong size for damaged
data, which the decoders then refuse.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

MAX_SCANS = 100  # of a JPEG; cameras and programs write up to about 20
_HEADER_BYTES = 64 << 10  # in which headers of text are searched
_MAX_TAGS = 4096  # entries of a TIFF's directory
_MAX_SEGMENTS = 4096  # segments of a JPEG before its frame
_MAX_BOXES = 1024  # sizes in a HEIC or AVIF image
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by type of colour
_SEQUENTIAL_FRAMES = {0xC0, 0xC1, 0xC9}
_FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# Inside the data of a scan, FF is followed by 00 or by a restart marker.
# No part of a pattern here can match the same bytes in two ways. Otherwise a search may take a time that
# grows with the square of its input, or doubles with each byte.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
BARE_MARKERS = {0x01, *range(0xD0, 0xD8)}  # without a length and content
_PNM_NUMBER = re.compile(rb"(?:\s|#[^\n]*\n)*(\d{1,9})")
_PAM_FIELD = re.compile(rb"(WIDTH|HEIGHT|DEPTH|MAXVAL)\s+(\d{1,9})")
_RADIANCE_SIZE = re.compile(rb"[-+][XY] +(\d{1,9}) +[-+][XY] +(\d{1,9})\s*\n")
_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}
_WIDTH, _HEIGHT, _BITS, _SAMPLES, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 258, 277, 322, 323


class PictureSize(NamedTuple):
    """Size of a picture according to its header.

    Attributes:
        width: pixels of a row.
        height: number of rows.
        pixel_bytes: bytes of a decoded pixel, as the decoders hold it.
    """

    width: int
    height: int
    pixel_bytes: int

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the decoded picture."""
        return self.width * self.height * self.pixel_bytes


@dataclass(frozen=True)
class PictureLimits:
    """Limits of one picture.

    Attributes:
        pixels: largest number of pixels.
        decoded_bytes: largest size as the decoders hold it, in bytes; None for no limit of its own.
        option: name of what changes the limit, for messages.
    """

    pixels: int
    decoded_bytes: int | None
    option: str

    def check(self, size: PictureSize) -> None:
        """Checks a size.

        Raises:
            ValueError: the picture is larger than a limit.
        """
        width, height, pixel_bytes = size
        if width * height > self.pixels:
            raise ValueError(
                f"{width} x {height} pixels; an image may have at most {self.pixels:,} ({self.option})"
            )
        if self.decoded_bytes is not None and size.decoded_bytes > self.decoded_bytes:
            raise ValueError(
                f"{width} x {height} pixels of {pixel_bytes} bytes each; "
                f"an image may have at most {self.decoded_bytes:,} bytes decoded ({self.option})"
            )


_limits: contextvars.ContextVar[PictureLimits | None] = contextvars.ContextVar("limits", default=None)


def current_limits() -> PictureLimits | None:
    """Returns the limits of the innermost ``picture_limits``; None outside of one."""
    return _limits.get()


@contextlib.contextmanager
def picture_limits(limits: PictureLimits) -> Iterator[None]:
    """Sets limits for the pictures that this thread decodes and resizes in the block."""
    token = _limits.set(limits)
    try:
        yield
    finally:
        _limits.reset(token)


def picture_size(data: bytes) -> PictureSize | None:
    """Returns the size of a picture according to its header; None if its format is unknown or damaged."""
    for matches, read in _READERS:
        if matches(data):
            try:
                return read(data)
            except (struct.error, LookupError, ValueError, OverflowError):
                return None
    return None


def check_scans(data: bytes) -> None:
    """Checks the number of a JPEG's scans. A decoder goes over all pixels for each, even if it is empty.

    Raises:
        ValueError: there are more than ``MAX_SCANS``.
    """
    # Counting goes over the whole file, so it is left out for the usual JPEG. The bytes may also occur in
    # segments and after the end, so the rest counts properly.
    if data[:2] != b"\xff\xd8" or _has_one_scan(data) or data.count(b"\xff\xda") <= MAX_SCANS:
        return
    position, scans = 2, 0
    while position + 4 <= len(data) and (match := _NEXT_MARKER.search(data, position)):
        marker = data[match.end() - 1]
        if marker == _END_OF_IMAGE:
            return
        scans += marker == _START_OF_SCAN
        if scans > MAX_SCANS:
            raise ValueError(f"a JPEG with more than {MAX_SCANS} scans")
        position = match.end()
        if 0xC0 <= marker <= 0xFE and marker != 0xD8:
            position += int.from_bytes(data[position : position + 2], "big")


def _has_one_scan(data: bytes) -> bool:
    """True if a decoder expects one scan: in a sequential frame, one with all components. It refuses more."""
    components = None
    with contextlib.suppress(LookupError):
        for marker, place in _jpeg_segments(data):
            if marker in _FRAME_MARKERS:
                if marker not in _SEQUENTIAL_FRAMES or components is not None:
                    return False
                components = data[place + 7]
            elif marker == _START_OF_SCAN:
                return components is not None and data[place + 2] >= components
            elif marker in BARE_MARKERS:
                return False
    return False


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields the marker of each segment, and the place after it, up to the first byte that is none.

    Raises:
        IndexError: the data ends.
    """
    position = 2
    for _ in range(_MAX_SEGMENTS):
        if data[position] != 0xFF:
            return
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        position += 2
        yield marker, position
        if marker not in BARE_MARKERS:
            position += int.from_bytes(data[position : position + 2], "big")


def _size(layout: str, data: bytes, place: int, pixel_bytes: int) -> PictureSize:
    width, height = struct.unpack_from(layout, data, place)
    return PictureSize(width, height, pixel_bytes)


def _png(data: bytes) -> PictureSize | None:
    width, height, depth, kind = struct.unpack_from(">IIBB", data, 16)
    if data[12:16] != b"IHDR":
        return None
    return PictureSize(width, height, max(3, _PNG_CHANNELS.get(kind, 4)) * (2 if depth > 8 else 1))


def _jpeg(data: bytes) -> PictureSize | None:
    for marker, place in _jpeg_segments(data):
        if marker in _FRAME_MARKERS:
            precision, height, width, components = struct.unpack_from(">BHHB", data, place + 2)
            return PictureSize(width, height, max(3, components) * (2 if precision > 8 else 1))
    return None


def _bmp(data: bytes) -> PictureSize:
    if struct.unpack_from("<I", data, 14) == (12,):
        return _size("<HH", data, 18, 4)
    width, height = struct.unpack_from("<ii", data, 18)
    return PictureSize(abs(width), abs(height), 4)


def _gif(data: bytes) -> PictureSize:
    return _size("<HH", data, 6, 4)


def _webp(data: bytes) -> PictureSize | None:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        return None
    return PictureSize(width, height, 4)


def _pnm(data: bytes) -> PictureSize | None:
    header = data[:_HEADER_BYTES]
    if header[1:2] == b"7":
        fields: dict[bytes, int] = {}
        for name, value in _PAM_FIELD.findall(header.partition(b"ENDHDR")[0]):
            fields[name] = max(fields.get(name, 1), int(value))
        width, height, depth, largest_value = (
            fields.get(name, 1) for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL")
        )
        return PictureSize(width, height, max(3, depth) * (2 if largest_value > 255 else 1))
    numbers, position = [], 2
    for _ in range(2 if header[1:2] in b"14Ff" else 3):
        match = _PNM_NUMBER.match(header, position)
        if not match:
            return None
        numbers.append(int(match[1]))
        position = match.end()
    if header[1:2] in b"Ff":
        return PictureSize(numbers[0], numbers[1], 12)
    return PictureSize(numbers[0], numbers[1], 6 if len(numbers) == 3 and numbers[2] > 255 else 3)


def _radiance(data: bytes) -> PictureSize | None:
    match = _RADIANCE_SIZE.search(data[:_HEADER_BYTES])
    return PictureSize(int(match[2]), int(match[1]), 12) if match else None


def _sun(data: bytes) -> PictureSize:
    return _size(">II", data, 4, 4)


def _jpeg2000(data: bytes) -> PictureSize | None:
    sizes = []
    if (box := data.find(b"ihdr", 0, _HEADER_BYTES)) >= 0:
        height, width, components = struct.unpack_from(">IIH", data, box + 4)
        sizes.append(PictureSize(width, height, 4 * max(3, components)))
    if (marker := data.find(b"\xff\x4f\xff\x51")) >= 0:
        right_edge, bottom_edge, left_edge, top_edge = struct.unpack_from(">IIII", data, marker + 8)
        (components,) = struct.unpack_from(">H", data, marker + 40)
        sizes.append(
            PictureSize(
                max(right_edge - left_edge, 0), max(bottom_edge - top_edge, 0), 4 * max(3, components)
            )
        )
    return max(sizes, key=lambda size: size.decoded_bytes, default=None)


def _heif(data: bytes) -> PictureSize | None:
    """Returns the largest of the sizes of a HEIC or AVIF image, which also states those of its tiles."""
    sizes, position = [], 0
    for _ in range(_MAX_BOXES):
        position = data.find(b"ispe", position) + 4
        if position < 4 or position + 12 > len(data):
            break
        sizes.append(_size(">II", data, position + 4, 4))
    return max(sizes, key=lambda size: size.decoded_bytes, default=None)


def _tiff(data: bytes) -> PictureSize | None:
    """Returns the size of the first page. A tile may be larger than the page."""
    order = "<" if data[:2] == b"II" else ">"
    is_big = struct.unpack_from(order + "H", data, 2) == (43,)
    number = order + ("Q" if is_big else "I")  # layout of places and counts
    (start,) = struct.unpack_from(number, data, 8 if is_big else 4)
    (count,) = struct.unpack_from(number if is_big else order + "H", data, start)
    first, length, inline_bytes = _entry_layout(is_big=is_big)
    values = {_SAMPLES: 1, _BITS: 1, _TILE_WIDTH: 0, _TILE_HEIGHT: 0}
    for i in range(min(count, _MAX_TAGS)):
        position = start + first + i * length
        tag, kind = struct.unpack_from(order + "HH", data, position)
        if tag not in (*values, _WIDTH, _HEIGHT) or kind not in _TIFF_TYPES:
            continue
        (value_count,) = struct.unpack_from(number, data, position + 4)
        place = position + length - inline_bytes
        if value_count * struct.calcsize(order + _TIFF_TYPES[kind]) > inline_bytes:
            (place,) = struct.unpack_from(number, data, place)
        (values[tag],) = struct.unpack_from(order + _TIFF_TYPES[kind], data, place)
    width = max(values[_WIDTH], values[_TILE_WIDTH])
    height = max(values[_HEIGHT], values[_TILE_HEIGHT])
    return PictureSize(width, height, max(3, values[_SAMPLES]) * max(1, -(-values[_BITS] // 8)))


def _entry_layout(*, is_big: bool) -> tuple[int, int, int]:
    """Returns bytes before a directory's entries, bytes of an entry, and bytes of a value in it."""
    return (8, 20, 8) if is_big else (2, 12, 4)


def _starts(*starts: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(starts)


_READERS: tuple[tuple[Callable[[bytes], bool], Callable[[bytes], PictureSize | None]], ...] = (
    (_starts(b"\xff\xd8"), _jpeg),
    (_starts(b"\x89PNG\r\n\x1a\n"), _png),
    (lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", _webp),
    (_starts(b"GIF8"), _gif),
    (_starts(b"BM"), _bmp),
    (_starts(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _tiff),
    (_starts(b"#?RADIANCE", b"#?RGBE"), _radiance),
    (_starts(*(b"P%c" % digit for digit in b"1234567Ff")), _pnm),
    (_starts(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), _jpeg2000),
    (_starts(b"\x59\xa6\x6a\x95"), _sun),
    (lambda data: data[4:8] == b"ftyp", _heif),
)
