"""Sizes in headers equal those of the decoded pictures, and what is too large or too slow is refused before."""

from __future__ import annotations

import struct
import tempfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from ppxcls.data.decode import decode_image
from ppxcls.data.picture_headers import (
    MAX_SCANS,
    PictureLimits,
    PictureSize,
    check_scans,
    picture_limits,
    picture_size,
)
from ppxcls.data.transforms import Compose, DecodeImage

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 255, (40, 50, 3), np.uint8)
WIDE_IMAGE = RNG.integers(0, 65535, (40, 50, 3), np.uint16)


def encoded(extension: str, image: np.ndarray = IMAGE, *options: int) -> bytes:
    return cv2.imencode(extension, image, list(options))[1].tobytes()


def jpeg_with_scans(count: int, tail: bytes = b"") -> bytes:
    """Returns a progressive JPEG whose last scan is repeated."""
    data = encoded(".jpg", IMAGE[..., 0], cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    start = data.rindex(b"\xff\xda")
    own_count = data.count(b"\xff\xda")
    return data[:start] + data[start:-2] * (count - own_count + 1) + b"\xff\xd9" + tail


@pytest.mark.parametrize(
    ("data", "pixel_bytes"),
    [
        (encoded(".png"), 3),
        (encoded(".png", WIDE_IMAGE), 6),
        (encoded(".png", IMAGE[..., 0]), 3),
        (encoded(".png", np.dstack([WIDE_IMAGE, WIDE_IMAGE[..., 0]])), 8),
        (encoded(".jpg"), 3),
        (encoded(".jpg", IMAGE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1), 3),
        (encoded(".webp", IMAGE, cv2.IMWRITE_WEBP_QUALITY, 80), 4),
        (encoded(".webp", IMAGE, cv2.IMWRITE_WEBP_QUALITY, 101), 4),
        (encoded(".bmp"), 4),
        (encoded(".tiff"), 3),
        (encoded(".tiff", WIDE_IMAGE), 6),
        (encoded(".jp2"), 12),
        (encoded(".ppm"), 3),
        (encoded(".ppm", WIDE_IMAGE), 6),
        (encoded(".pgm", IMAGE[..., 0]), 3),
        (encoded(".pbm", IMAGE[..., 0]), 3),
        (encoded(".pam"), 3),
        (encoded(".pfm", IMAGE.astype(np.float32)), 12),
        (encoded(".hdr", IMAGE.astype(np.float32)), 12),
        (encoded(".ras"), 4),
    ],
)
def test_the_size_in_the_header_is_that_of_the_picture(data: bytes, pixel_bytes: int) -> None:
    assert decode_image(data).shape == (40, 50, 3)
    assert picture_size(data) == PictureSize(50, 40, pixel_bytes)


@pytest.mark.parametrize("name", ["GIF", "AVIF"])
def test_sizes_of_other_formats(name: str) -> None:
    from io import BytesIO

    from PIL import Image, features

    if name == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    file = BytesIO()
    Image.fromarray(IMAGE).save(file, name)
    assert picture_size(file.getvalue()) == PictureSize(50, 40, 4)


@pytest.mark.parametrize("length", [0, 1, 8, 12, 16, 24, 30])
def test_short_and_unknown_data_has_no_size(length: int) -> None:
    for extension in (".png", ".jpg", ".webp", ".bmp", ".tiff", ".jp2", ".ppm", ".hdr", ".ras"):
        image = IMAGE.astype(np.float32) if extension == ".hdr" else IMAGE
        data = encoded(extension, image)[:length]
        size = picture_size(data)
        assert size is None or size.width * size.height >= 0
    assert picture_size(b"hello" * length) is None


@pytest.mark.parametrize(
    "extension", [".png", ".jpg", ".webp", ".bmp", ".tiff", ".jp2", ".ppm", ".hdr", ".ras"]
)
def test_limits_hold_for_each_format_in_their_block_only(extension: str) -> None:
    data = encoded(extension, IMAGE.astype(np.float32) if extension == ".hdr" else IMAGE)
    with picture_limits(PictureLimits(1999, None, "an option")), pytest.raises(ValueError, match="an option"):
        decode_image(data)
    with picture_limits(PictureLimits(2000, 2000 * 12, "an option")):
        assert decode_image(data).shape == (40, 50, 3)
    assert decode_image(data).shape == (40, 50, 3)


@pytest.mark.parametrize(
    "extension",
    [
        ".png",
        ".jpg",
        ".webp",
        ".bmp",
        ".tiff",
        ".jp2",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pam",
        ".pfm",
        ".hdr",
        ".ras",
    ],
)
def test_the_limit_of_pixels_holds_for_every_format(extension: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = IMAGE.astype(np.float32) if extension in (".hdr", ".pfm") else IMAGE
    data = encoded(extension, image[..., 0] if extension in (".pgm", ".pbm") else image)
    assert decode_image(data).shape == (40, 50, 3)
    monkeypatch.setattr("ppxcls.data.decode._PIXEL_LIMITS", PictureLimits(1999, None, "an option"))
    with pytest.raises(ValueError, match=r"50 x 40 pixels; .* at most 1,999 \(an option\)"):
        decode_image(data)


def test_a_size_can_not_be_hidden() -> None:
    data = encoded(".jpg")
    start = data.index(b"\xff\xc0")
    hidden = b"\xff\x01" + data[start:]  # a marker without a length, which seems to have that of FF C0
    assert picture_size(data[:start] + hidden) == PictureSize(50, 40, 3)
    assert decode_image(data[:start] + hidden).shape == (40, 50, 3)
    assert picture_size(encoded(".pam") + b"\nWIDTH 1\nHEIGHT 1\n") == PictureSize(50, 40, 3)


@pytest.mark.parametrize(
    "data",
    [b"P6" + b"\n" * 60_000 + b"x", b"P6" + b"#\n" * 30_000, b"P7" + b"WIDTH" * 12_000 + b" " * 60_000],
    ids=["blank lines", "comments", "fields"],
)
def test_headers_that_a_search_could_read_in_many_ways(data: bytes) -> None:
    """With an ambiguous pattern, the first one would take longer than the universe exists."""
    assert picture_size(data) in (None, PictureSize(1, 1, 3))


def test_fill_bytes_of_a_jpeg_are_skipped_once() -> None:
    """With an ambiguous pattern, this would take hours."""
    check_scans(jpeg_with_scans(MAX_SCANS, tail=b"\xff\xda" * 10))
    check_scans(b"\xff\xd8" + b"\xff" * 3_000_000 + b"\x00" + b"\xff\xda\0\2" * MAX_SCANS + b"\xff\xda"[:1])
    with pytest.raises(ValueError, match="scans"):
        check_scans(b"\xff\xd8" + b"\xff" * 3_000_000 + b"\x00" + b"\xff\xda\0\2" * (MAX_SCANS + 1))


def test_bytes_of_a_pixel_count() -> None:
    with picture_limits(PictureLimits(2000, 2000 * 3, "an option")):
        decode_image(encoded(".png"))
        message = "50 x 40 pixels of 6 bytes each; an image may have at most 6,000 bytes decoded"
        with pytest.raises(ValueError, match=message):
            decode_image(encoded(".png", WIDE_IMAGE))


def test_a_tile_larger_than_its_page_counts() -> None:
    entries = [(256, 10), (257, 10), (258, 8), (277, 3), (322, 4096), (323, 8192)]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4)
    assert picture_size(data) == PictureSize(4096, 8192, 3)


def test_scans_are_counted() -> None:
    check_scans(jpeg_with_scans(MAX_SCANS))
    assert decode_image(jpeg_with_scans(MAX_SCANS)).shape == (40, 50, 3)
    with pytest.raises(ValueError, match=f"a JPEG with more than {MAX_SCANS} scans"):
        decode_image(jpeg_with_scans(MAX_SCANS + 1))


def test_further_scans_of_a_usual_picture_are_not_decoded() -> None:
    """A sequential JPEG whose first scan has all components has one scan, so the others need not be counted."""
    data = encoded(".jpg")
    scan = data[data.index(b"\xff\xda") : -2]
    picture = data[:-2] + scan * (2 * MAX_SCANS) + data[-2:]
    np.testing.assert_array_equal(decode_image(picture), decode_image(data))


def test_scans_of_single_components_are_counted() -> None:
    data = encoded(".jpg")
    start = data.index(b"\xff\xda")
    scan = b"\xff\xda\0\x08\1\1\0\0\x3f\0\0"
    with pytest.raises(ValueError, match="scans"):
        decode_image(data[:start] + scan * (MAX_SCANS + 1) + data[-2:])


def test_scans_in_a_preview_or_behind_the_picture_do_not_count() -> None:
    """Such as a preview in the EXIF data, or a phone's video behind its photograph."""
    data = encoded(".jpg")
    preview = b"\xff\xda" * 500
    segment = b"\xff\xe2" + struct.pack(">H", len(preview) + 2) + preview
    picture = data[:2] + segment + data[2:] + preview
    np.testing.assert_array_equal(decode_image(picture), decode_image(data))
    check_scans(jpeg_with_scans(MAX_SCANS, tail=preview))


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def test_a_huge_header_is_refused_by_the_own_limit_first() -> None:
    with picture_limits(PictureLimits(1000, None, "an option")), pytest.raises(ValueError, match="1,000"):
        decode_image(png_header(60_000, 60_000))
    with pytest.raises(ValueError, match="OPENCV_IO_MAX_IMAGE_PIXELS"):
        decode_image(png_header(60_000, 60_000))


@pytest.mark.parametrize("signature", [b"#?RADIANCE", b"#?RGBE"])
@pytest.mark.parametrize(("height", "width"), [(60_000, 60_000), (40, 50), (0, 50), (2**31 - 1, 2**31 - 1)])
def test_a_refused_radiance_picture_leaves_no_file(
    signature: bytes, height: int, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENCV_TEMP_PATH", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = signature + b"\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % (height, width) + bytes(100)
    with pytest.raises(ValueError, match="pixels|too many|image|PIXELS"):
        decode_image(data)
    assert list(tmp_path.iterdir()) == []


def test_a_radiance_picture_has_the_pixels_of_opencv() -> None:
    data = encoded(".hdr", IMAGE.astype(np.float32) / 255)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(decode_image(data), expected)


@pytest.mark.parametrize("to_rgb", [True, False])
def test_an_array_is_treated_as_the_file_it_came_from(to_rgb: bool) -> None:
    transforms = Compose([DecodeImage(to_rgb=to_rgb)])
    data = encoded(".png")
    np.testing.assert_array_equal(transforms.without_decoding(decode_image(data)), transforms(data))
