"""Decoded pixels against OpenCV's own decoder, for every kind of image file."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, features

from ppxcls.data import decode
from ppxcls.data.decode import decode_image, largest_16bit_value
from tests.conftest import SHARED, needs_shared


def photo(width: int = 67, height: int = 45) -> Image.Image:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (9, 12, 3)).astype(np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def opencv(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), 1)[:, :, ::-1]


def orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


FILES = {
    "jpeg": encoded(photo()),
    "4:4:4": encoded(photo(), subsampling=0),
    "4:2:2": encoded(photo(), subsampling=1),
    "progressive": encoded(photo(), progressive=True),
    "optimized": encoded(photo(), optimize=True, quality=35),
    "grey": encoded(photo().convert("L")),
    "cmyk": encoded(photo().convert("CMYK")),
    "exif without orientation": encoded(photo(), exif=Image.Exif().tobytes()),
    "trailing bytes": encoded(photo()) + b"more",
    "one pixel": encoded(photo(1, 1)),
    "odd": encoded(photo(17, 33)),
    "png": encoded(photo(), "PNG"),
    "png with alpha": encoded(photo().convert("RGBA"), "PNG"),
    "palette": encoded(photo().convert("P"), "PNG"),
    "grey png": encoded(photo().convert("L"), "PNG"),
    "16 bit": cv2.imencode(".png", (np.arange(30000).reshape(100, 300) % 65536).astype(np.uint16))[
        1
    ].tobytes(),
    "bmp": encoded(photo(), "BMP"),
    "webp": encoded(photo(), "WEBP"),
    "tiff": encoded(photo(), "TIFF"),
    **{f"orientation {value}": encoded(photo(), exif=orientation(value)) for value in range(1, 9)},
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_equal_opencv(name: str) -> None:
    image = decode_image(FILES[name])
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert np.array_equal(image, opencv(FILES[name]))


def test_orientation_is_applied() -> None:
    assert decode_image(FILES["orientation 6"]).shape == (67, 45, 3)


def test_the_fast_path_takes_the_common_jpegs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    original = decode.simplejpeg.decode_jpeg
    monkeypatch.setattr(
        decode.simplejpeg, "decode_jpeg", lambda *a, **k: (taken.append(1), original(*a, **k))[1]
    )
    for name in FILES:
        before = len(taken)
        decode_image(FILES[name])
        slow = name.startswith(("orientation", "cmyk")) or FILES[name][:2] != b"\xff\xd8"
        assert (len(taken) == before) == slow, name


@needs_shared
def test_all_reference_images() -> None:
    files = sorted((SHARED / "imagenet-sample").rglob("*.JPEG"))
    assert len(files) == 240
    for file in files:
        data = file.read_bytes()
        assert np.array_equal(decode_image(data), opencv(data)), file


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\xff\xd8", "not an image"),
        (b"<html>not found</html>", "not an image"),
        (FILES["jpeg"][: len(FILES["jpeg"]) // 2], "truncated JPEG"),
        (FILES["progressive"][:-40], "truncated JPEG"),
        (FILES["jpeg"][:30], "not an image"),
        (FILES["png"][: len(FILES["png"]) // 2], ""),
        (b"\0" * 1000, "not an image"),
    ],
)  # fmt: skip
def test_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_image(data)


def test_png_named_jpeg(tmp_path: Path) -> None:
    file = tmp_path / "n02105855_2933.JPEG"
    file.write_bytes(FILES["png"])
    assert np.array_equal(decode_image(file.read_bytes()), opencv(FILES["png"]))


@pytest.mark.parametrize("extension", [".png", ".tiff"])
@pytest.mark.parametrize(("bits", "is_dark"), [(10, True), (12, True), (14, True), (16, False)])
def test_few_bits_in_16_are_noticed(extension: str, bits: int, is_dark: bool) -> None:
    for shape in ((40, 40, 3), (40, 40)):
        values = np.random.default_rng(0).integers(0, 1 << bits, shape).astype(np.uint16)
        values.flat[0] = (1 << bits) - 1
        data = cv2.imencode(extension, values)[1].tobytes()
        assert largest_16bit_value(data, decode_image(data)) == ((1 << bits) - 1 if is_dark else None)
    for dark in (np.full((9, 9, 3), 3, np.uint8), np.zeros((9, 9, 3), np.uint16)):
        data = cv2.imencode(extension, dark)[1].tobytes()
        assert largest_16bit_value(data, decode_image(data)) is None


@pytest.mark.parametrize("kind", ["GIF", "AVIF"])
def test_what_an_opencv_can_not_read_pillow_does(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV's wheels read GIF and AVIF only in newer releases."""
    if not features.check("avif") and kind == "AVIF":
        pytest.skip("this Pillow has no AVIF")
    picture = np.full((40, 30, 3), 200, np.uint8)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, kind)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: None)
    assert np.abs(decode_image(stream.getvalue()).astype(int) - picture).max() <= 3
    with pytest.raises(ValueError, match="damaged beyond decoding"):
        decode_image(stream.getvalue()[:30])


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 3)])
def test_floating_point_files_with_nan_are_refused(number: float, shape: tuple[int, ...]) -> None:
    """OpenCV makes black pixels from NaN."""
    pixels = np.full(shape, 100, np.float32)
    assert (
        decode_image(cv2.imencode(".pfm", pixels)[1].tobytes()).tolist() == np.full((6, 7, 3), 100).tolist()
    )
    pixels[2, 3] = number
    with pytest.raises(ValueError, match="the image contains NaN or infinite numbers"):
        decode_image(cv2.imencode(".pfm", pixels)[1].tobytes())
    with pytest.raises(ValueError, match="NaN or infinite|not an image"):  # only older OpenCVs read it
        decode_image(cv2.imencode(".tiff", pixels)[1].tobytes())


def test_plain_tiffs_are_still_read() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 7, 3)).astype(np.uint8)
    assert np.array_equal(decode_image(cv2.imencode(".tiff", pixels)[1].tobytes()), pixels[..., ::-1])


def test_an_error_of_opencv_in_the_search_for_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: bytes) -> bool:
        error = cv2.error("bad")
        error.err = "bad"
        raise error

    monkeypatch.setattr("ppxcls.data.decode._has_not_finite_pixels", failing)
    data = cv2.imencode(".pfm", np.zeros((4, 4, 3), np.float32))[1].tobytes()
    with pytest.raises(ValueError, match="OpenCV can't decode the image: bad"):
        decode_image(data)
