"""Hostile pictures: small files that are large when they are decoded, slow to decode, or damaged."""

from __future__ import annotations

import functools
import re
import struct
import zlib
from collections.abc import Callable, Iterator

import cv2
import numpy as np

_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def chunk(kind: bytes, data: bytes) -> bytes:
    """Returns a chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, *, depth: int = 8, kind: int = 2, rows: int | None = None, extra: bytes = b""
) -> bytes:
    """Returns a black PNG.

    Args:
        width: pixels of a row.
        height: number of rows in the header.
        depth: bits of a channel.
        kind: type of colour; 0 grey, 2 RGB, 6 RGBA.
        rows: number of rows in the data; None for all.
        extra: chunks before the data.
    """
    row_bytes = 1 + width * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(kind, 1) * depth // 8
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(bytes(row_bytes)) for _ in range(height if rows is None else rows))
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = (chunk(b"IHDR", header), extra, chunk(b"IDAT", data + packer.flush()), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def huge_pictures(width: int, height: int) -> Iterator[tuple[str, bytes]]:
    """Yields a header of each format that claims a size, with a little data behind it."""
    rest = bytes(3000)
    big, little = struct.pack(">II", width, height), struct.pack("<II", width, height)
    shorts = struct.pack("<HH", min(width, 65535), min(height, 65535))
    swapped = struct.pack(">II", height, width)
    yield "PNG", png(width, height, rows=0)
    yield "PNG of 16 bits", png(width, height, depth=16, kind=6, rows=0)
    frame = struct.pack(">BHHB", 8, min(height, 65535), min(width, 65535), 3) + b"\1\x11\0\2\x11\0\3\x11\0"
    yield (
        "JPEG",
        b"\xff\xd8\xff\xc0"
        + struct.pack(">H", len(frame) + 2)
        + frame
        + b"\xff\xda\0\x0c\3\1\0\2\0\3\0\0\x3f\0"
        + rest,
    )
    yield (
        "progressive JPEG",
        b"\xff\xd8\xff\xc2"
        + struct.pack(">H", len(frame) + 2)
        + frame
        + b"\xff\xda\0\x0c\3\1\0\2\0\3\0\0\0\0"
        + rest,
    )
    yield (
        "BMP",
        b"BM"
        + struct.pack("<IHHI", 5000, 0, 0, 54)
        + struct.pack("<I", 40)
        + little
        + struct.pack("<HHIIiiII", 1, 24, 0, 0, 0, 0, 0, 0)
        + rest,
    )
    yield "GIF", b"GIF89a" + shorts + b"\0\0\0," + bytes(4) + shorts + b"\0\2\2\x4c\1\0;"
    for letter in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"):
        maximum = b"" if letter in (b"P1", b"P4") else b"\n255"
        yield (
            f"PNM {letter.decode()}",
            letter + b"\n# a comment\n%d %d" % (width, height) + maximum + b"\n" + rest,
        )
    yield (
        "PAM",
        b"P7\nWIDTH %d\nHEIGHT %d\nDEPTH 4\nMAXVAL 65535\nTUPLTYPE RGB_ALPHA\nENDHDR\n" % (width, height)
        + rest,
    )
    yield "PFM", b"PF\n%d %d\n-1.0\n" % (width, height) + rest
    for name in (b"#?RADIANCE", b"#?RGBE"):
        yield name[2:].decode(), name + b"\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % (height, width) + rest
    yield "Sun raster", b"\x59\xa6\x6a\x95" + big + struct.pack(">IIIII", 24, 0, 1, 0, 0) + rest
    yield (
        "WebP",
        b"RIFF"
        + struct.pack("<I", 3000)
        + b"WEBPVP8X"
        + struct.pack("<I", 10)
        + bytes(4)
        + struct.pack("<I", max(min(width, 1 << 24) - 1, 0))[:3]
        + struct.pack("<I", max(min(height, 1 << 24) - 1, 0))[:3]
        + rest,
    )
    for order, name in (("<", "TIFF"), (">", "TIFF of the other order")):
        yield name, tiff(width, height, order=order) + rest
    yield "TIFF of 64 samples", tiff(width // 8, height // 8, samples=64) + rest
    yield (
        "TIFF with a huge tile",
        tiff(10, 10, tile=(min(width, 1 << 16) // 16 * 16, min(height, 1 << 16) // 16 * 16)) + rest,
    )
    codestream = (
        b"\xff\x4f\xff\x51"
        + struct.pack(">HH", 47, 0)
        + big
        + bytes(8)
        + big
        + bytes(8)
        + struct.pack(">H", 3)
        + b"\7\1\1" * 3
        + rest
    )
    yield "JPEG 2000's codestream", codestream
    box = struct.pack(">I", 22) + b"ihdr" + swapped + struct.pack(">HBBBB", 3, 7, 7, 0, 0)
    yield (
        "JPEG 2000",
        b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 "
        + struct.pack(">I", 8 + len(box))
        + b"jp2h"
        + box
        + struct.pack(">I", 0)
        + b"jp2c"
        + codestream,
    )
    for brand in (b"avif", b"heic"):
        sizes = struct.pack(">I", 20) + b"ispe" + bytes(4) + big
        yield (
            brand.decode().upper(),
            b"\0\0\0\x18ftyp"
            + brand
            + b"\0\0\0\0"
            + brand
            + b"mif1"
            + struct.pack(">I", 12 + len(sizes))
            + b"meta"
            + bytes(4)
            + sizes
            + rest,
        )
    yield "OpenEXR", b"v/1\1\2\0\0\0displayWindow\0box2i\0\x10\0\0\0" + bytes(8) + little + rest
    yield "QOI", b"qoif" + big + b"\3\0" + rest
    yield "PSD", b"8BPS\0\1" + bytes(6) + b"\0\3" + swapped + b"\0\x08\0\3" + rest
    yield "ICO", b"\0\0\1\0\1\0\0\0\0\0\1\0\x20\0" + struct.pack("<II", 1000, 22) + png(width, height, rows=0)


def tiff(
    width: int,
    height: int,
    *,
    order: str = "<",
    samples: int = 3,
    tile: tuple[int, int] | None = None,
    next_page: int = 0,
) -> bytes:
    """Returns a TIFF of one page with 8 bits per sample and almost no data."""
    entries = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8)),
        *((259, 3, 1, 1), (262, 3, 1, 2), (277, 3, 1, samples)),
    ]
    if tile:
        entries += [(322, 4, 1, tile[0]), (323, 4, 1, tile[1]), (324, 4, 1, 8), (325, 4, 1, 1000)]
    else:
        entries += [(273, 4, 1, 8), (278, 4, 1, height), (279, 4, 1, 1000)]
    body = b""
    for tag, kind, count, value in sorted(entries):
        packed_value = struct.pack(
            order + ("HH" if kind == 3 else "I"), *((value, 0) if kind == 3 else (value,))
        )
        body += struct.pack(order + "HHI", tag, kind, count) + packed_value
    directory = struct.pack(order + "H", len(entries)) + body + struct.pack(order + "I", next_page)
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(order + "I", 8) + directory


@functools.cache
def progressive_jpeg(side: int) -> bytes:
    """Returns a grey progressive JPEG."""
    _, data = cv2.imencode(".jpg", np.zeros((side, side), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    return data.tobytes()


def many_scans(side: int, count: int) -> bytes:
    """Returns a progressive JPEG whose last scan is repeated."""
    data = progressive_jpeg(side)
    start = data.rindex(b"\xff\xda")
    scan = data[start : data.rindex(b"\xff\xd9")]
    return data[:start] + scan * count + b"\xff\xd9"


def damaged_pictures() -> Iterator[tuple[str, bytes]]:
    """Yields files of each format that end early, or go on with noise."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (60, 70, 3), np.uint8)
    for extension in (
        ".png",
        ".jpg",
        ".webp",
        ".tiff",
        ".bmp",
        ".jp2",
        ".gif",
        ".ppm",
        ".ras",
        ".hdr",
        ".avif",
    ):
        content = image.astype(np.float32) if extension == ".hdr" else image
        try:
            _, encoded = cv2.imencode(extension, content)
        except cv2.error:
            continue
        data = encoded.tobytes()
        noise = rng.bytes(3000)
        yield f"{extension} that ends early", data[: len(data) // 3]
        yield f"{extension} with noise", data[:40] + noise
        yield f"{extension} of the first bytes", data[:12]


def _many_frames() -> bytes:
    frames = [chunk(b"fcTL", struct.pack(">IIIIIHHBB", i, 4000, 4000, 0, 0, 1, 1, 0, 0)) for i in range(1000)]
    count = chunk(b"acTL", struct.pack(">II", 1000, 0))
    return png(4000, 4000, extra=count + b"".join(frames))


def _many_gif_frames() -> bytes:
    sides = struct.pack("<HH", 4000, 4000)
    frame = b",\0\0\0\0" + sides + b"\0\2\2\x4c\1\0"
    return b"GIF89a" + sides + b"\x80\0\0\0\0\0\xff\xff\xff" + frame * 50_000 + b";"


def _packed_text() -> bytes:
    return b"a\0\0" + zlib.compress(bytes(200 << 20), 9)


_ENTITY = b'<!DOCTYPE svg [<!ENTITY a "' + b"a" * 1000 + b'">]><svg>'
# Pictures that are small and cost time or memory in another way than by their stated size.
ODD_PICTURES: dict[str, Callable[[], bytes]] = {
    "a PNG with a text of 200 MB": lambda: png(8, 8, extra=chunk(b"zTXt", _packed_text())),
    "a PNG with a profile of 200 MB": lambda: png(8, 8, extra=chunk(b"iCCP", _packed_text())),
    "a PNG with 200,000 chunks": lambda: png(8, 8, extra=chunk(b"tEXt", b"a\0b") * 200_000),
    "an animated PNG of 1,000 frames": _many_frames,
    "a GIF of 50,000 frames": _many_gif_frames,
    "a TIFF whose pages are a circle": lambda: tiff(10, 10, next_page=8) + bytes(2000),
    "a TIFF of 60,000 entries": lambda: b"II*\0\x08\0\0\0" + struct.pack("<H", 60_000) + bytes(12 * 60_000),
    "a JPEG of 100,000 segments": lambda: b"\xff\xd8" + b"\xff\xe1\0\x02" * 100_000,
    "a JPEG of 10 MB of fill bytes": lambda: b"\xff\xd8" + b"\xff" * (10 << 20),
    "a wide picture of one row in its data": lambda: png(3_000_000, 16, rows=1),
    "a column of pixels": lambda: png(1, 45_000_000, rows=1),
    "20 MB of zeros": lambda: bytes(20 << 20),
    "an SVG of entities": lambda: _ENTITY + b"&a;" * 10_000 + b"</svg>",
    "a PNG of 16 bits and 13,000 pixels a side": lambda: png(13_000, 13_000, depth=16, kind=2),
    "a PNG of 16 bits and 7,000 pixels a side": lambda: png(7000, 7000, depth=16, kind=2),
    "a PNG of 8 bits and 7,000 pixels a side": lambda: png(7000, 7000),
    "a progressive JPEG of 4,000 scans": lambda: many_scans(4000, 4000),
    "a progressive JPEG of 90 scans": lambda: many_scans(7000, 90),
    "a JPEG of 4,000 scans that are empty": lambda: progressive_jpeg(64)[:-2] + _EMPTY_SCAN * 4000,
}
_EMPTY_SCAN = b"\xff\xda\0\x08\1\1\0\1\x3f\0"
