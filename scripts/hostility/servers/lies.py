"""Pictures whose headers contradict each other, and pictures that unpack to more than their headers say."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
from hostility.servers.pictures import chunk, png

_HUGE, _LARGE = 13_000, 7_000  # sides of a picture that is refused, and of one that is not
_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # of an interlaced PNG: first column and row, and the steps


def _encoded(extension: str, side: int) -> bytes:
    return cv2.imencode(extension, np.zeros((side, side, 3), np.uint8))[1].tobytes()


def _interlaced_png() -> bytes:
    packer = zlib.compressobj(9)
    data = b""
    for left, top, right_step, down_step in _PASSES:
        width, height = -(-(_LARGE - left) // right_step), -(-(_LARGE - top) // down_step)
        data += b"".join(packer.compress(bytes(1 + 3 * width)) for _ in range(height))
    header = struct.pack(">IIBBBBB", _LARGE, _LARGE, 8, 2, 0, 0, 1)
    return (
        png(1, 1)[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", data + packer.flush()) + chunk(b"IEND", b"")
    )


def _png_with_more_data(mib: int) -> bytes:
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(bytes(1 << 20)) for _ in range(mib)) + packer.flush()
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    return png(1, 1)[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _png_of_single_bytes() -> bytes:
    data = zlib.compress(bytes(200 * 601), 0)
    header = struct.pack(">IIBBBBB", 200, 200, 8, 2, 0, 0, 0)
    parts = b"".join(chunk(b"IDAT", data[i : i + 1]) for i in range(len(data)))
    return png(1, 1)[:8] + chunk(b"IHDR", header) + parts + chunk(b"IEND", b"")


def _png_with_two_headers() -> bytes:
    small = png(8, 8)
    return small[: small.index(b"IDAT") - 4] + png(_HUGE, _HUGE, rows=1)[8:]


def _tiff_with_two_sizes(*, is_large_first: bool) -> bytes:
    data = zlib.compress(bytes(3 * _HUGE * 8))
    large, small = [(256, _HUGE), (257, _HUGE)], [(256, 8), (257, 8)]
    entries = [struct.pack("<HHII", tag, 4, 1, side) for tag, side in large + small]
    if not is_large_first:
        entries = entries[2:] + entries[:2]
    for tag, kind, value in ((258, 3, 8), (259, 3, 8), (262, 3, 2), (277, 3, 3)):
        entries.append(struct.pack("<HHII", tag, kind, 1, value))
    for tag, value in ((278, _HUGE), (273, 8), (279, len(data))):
        entries.append(struct.pack("<HHII", tag, 4, 1, value))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def _jpeg(insert: bytes, side: int = 64) -> bytes:
    """Returns a JPEG with bytes behind its start."""
    data = _encoded(".jpg", side)
    return data[:2] + insert + data[2:]


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _jpeg_with_two_frames() -> bytes:
    large, small = _encoded(".jpg", _HUGE), _encoded(".jpg", 8)
    start = small.index(b"\xff\xc0")
    length = 2 + int.from_bytes(small[start + 2 : start + 4], "big")
    place = large.index(b"\xff\xc0")
    return large[:place] + small[start : start + length] + large[place:]


def _jpeg_of_odd_exif() -> bytes:
    entries = struct.pack("<HHII", 0x112, 3, 1, 6) * 5000
    circle = b"Exif\0\0MM\0*" + struct.pack(">IHHHIII", 8, 1, 0x8769, 4, 1, 8, 8)
    return _jpeg(_segment(0xE1, b"Exif\0\0II*\0" + struct.pack("<IH", 8, 60_000) + entries) + circle)


def _jpeg_of_profiles() -> bytes:
    parts = (b"ICC_PROFILE\0" + bytes([i % 255 + 1, 255]) + bytes(65_000) for i in range(300))
    return _jpeg(b"".join(_segment(0xE2, part) for part in parts))


def _jpeg2000_with_two_sizes(side: int) -> bytes:
    data = bytearray(_encoded(".jp2", 64))
    start = data.index(b"\xff\x4f\xff\x51")
    box = struct.pack(">I", 24 + 60) + b"uuid" + bytes(16) + data[start : start + 60]
    struct.pack_into(">IIIIII", data, start + 8, side, side, 0, 0, side, side)
    place = data.index(b"jp2c") - 4
    return bytes(data[:place] + box + data[place:])


def _jpeg2000_of_small_tiles() -> bytes:
    data = bytearray(_encoded(".jp2", 64))
    struct.pack_into(">IIIIII", data, data.index(b"\xff\x4f\xff\x51") + 8, 4000, 4000, 0, 0, 1, 1)
    struct.pack_into(">II", data, data.index(b"ihdr") + 4, 4000, 4000)
    return bytes(data)


def _gif_with_a_larger_frame() -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0x80, 0, 0) + bytes(6)
    return screen + b"," + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0) + b"\x02\x02\x4c\x01\0;"


def _with_two_lines(first: bytes, second: bytes) -> bytes:
    return b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n" + first + b"\n\n" + second + b"\n" + bytes(1000)


def _pam(*sides: int) -> bytes:
    lines = b"".join(b"WIDTH %d\nHEIGHT %d\n" % (side, side) for side in sides)
    return b"P7\n" + lines + b"DEPTH 3\nMAXVAL 65535\nTUPLTYPE RGB\nENDHDR\n" + bytes(1000)


LYING_PICTURES: dict[str, Callable[[], bytes]] = {
    "an interlaced PNG of 49 million pixels": _interlaced_png,
    "a PNG of 8 pixels a side with 500 MiB of data": lambda: _png_with_more_data(500),
    "a PNG of 8 pixels a side with 3,000 MiB of data": lambda: _png_with_more_data(3000),
    "a PNG of 120,000 chunks of one byte": _png_of_single_bytes,
    "a PNG with two headers": _png_with_two_headers,
    "a TIFF with two sizes, the large one first": lambda: _tiff_with_two_sizes(is_large_first=True),
    "a TIFF with two sizes, the small one first": lambda: _tiff_with_two_sizes(is_large_first=False),
    "a huge JPEG behind noise": lambda: _jpeg(b"\0noise", _HUGE),
    "a huge JPEG behind 5,000 segments": lambda: _jpeg(b"\xff\xe1\0\x02" * 5000, _HUGE),
    "a JPEG with two frames": _jpeg_with_two_frames,
    "a JPEG with EXIF data of 60,000 entries and a circle": _jpeg_of_odd_exif,
    "a JPEG with a profile of 20 MB": _jpeg_of_profiles,
    "a JPEG 2000 with two sizes of 13,000": lambda: _jpeg2000_with_two_sizes(_HUGE),
    "a JPEG 2000 with two sizes of 60,000": lambda: _jpeg2000_with_two_sizes(60_000),
    "a JPEG 2000 of 16 million tiles": _jpeg2000_of_small_tiles,
    "a GIF whose frame is larger than its screen": _gif_with_a_larger_frame,
    "a Radiance picture with two sizes": lambda: _with_two_lines(b"-Y 8 +X 8", b"-Y 13000 +X 13000"),
    "a Radiance picture with a size in a comment": lambda: _with_two_lines(
        b"#-Y 8 +X 8", b"-Y 13000 +X 13000"
    ),
    "a PPM whose width has zeros before it": lambda: b"P6 000000000013000 13000 255\n" + bytes(1000),
    "a PPM with a comment of 70,000 characters": lambda: b"P6\n#%s\n13000 13000 65535\n" % (b"a" * 70_000),
    "a PPM of text": lambda: b"P3 6000 6000 255\n" + b"0 " * 9_000_000,
    "a PAM with two sizes, the large one first": lambda: _pam(_HUGE, 8),
    "a PAM with two sizes, the small one first": lambda: _pam(8, _HUGE),
}
