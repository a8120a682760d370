"""Decoders in processes of their own: right pixels, and a crash, a hang or a refusal costs one picture."""

from __future__ import annotations

import os
import signal
import struct
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from ppxcls.data.decode import decode_image
from ppxcls.data.errors import DataError
from ppxcls.data.picture_headers import PictureLimits
from ppxcls.data.pixel_format import PixelFormat
from ppxcls.serving import decoders
from ppxcls.serving.decoders import DecodeError, DecoderPool, SlowDecodeError

LIMITS = PictureLimits(20_000_000, 120_000_000, "--pixels")
IMAGE = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
IS_LINUX = sys.platform == "linux"


def encoded(extension: str, image: np.ndarray = IMAGE, *options: int) -> bytes:
    return cv2.imencode(extension, image, list(options))[1].tobytes()


PROGRESSIVE_JPEG = encoded(".jpg", IMAGE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)


def slow_jpeg() -> bytes:
    """Returns a JPEG of 20 million pixels that is decoded 90 times."""
    data = encoded(".jpg", np.zeros((4400, 4400), np.uint8), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * 90 + b"\xff\xd9"


def slow_decoding(pool: DecoderPool) -> tuple[threading.Thread, list[Exception]]:
    """Lets a pool decode a slow picture in a thread, and returns the thread and the errors that it gets."""
    errors: list[Exception] = []

    def decode() -> None:
        try:
            pool.decode(slow_jpeg())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=decode)
    thread.start()
    return thread, errors


def new_pool(count: int = 1, seconds: float = 30.0) -> DecoderPool:
    return DecoderPool(count, LIMITS, max_file=20 << 20, seconds=seconds)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = new_pool(2)
    pool.wait_until_ready()
    yield pool
    pool.close()


def test_a_fourth_channel_and_16_bits_reach_the_server() -> None:
    image = np.random.default_rng(0).integers(0, 65536, (40, 30, 4), np.uint16)
    pool = DecoderPool(1, LIMITS, max_file=20 << 20, seconds=30.0, pixel_format=PixelFormat(4, 16))
    received = pool.decode(encoded(".png", image))
    pool.close()
    assert received.dtype == np.uint16
    assert np.array_equal(received[:, :, [2, 1, 0, 3]], image)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_process_that_does_not_start_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "_START_SECONDS", 0.2)
    monkeypatch.setattr(decoders, "_CODE", "import time; time.sleep(600)")
    pool = new_pool()
    try:
        with pytest.raises(DataError, match="the process that decodes images can't start: SIGKILL"):
            pool.wait_until_ready()
        with pytest.raises(DecodeError, match="ended with SIGKILL"):
            pool.decode(encoded(".png"))
    finally:
        pool.close()


@pytest.mark.parametrize("extension", [".png", ".jpg", ".webp", ".bmp", ".tiff", ".jp2", ".ppm", ".hdr"])
def test_pixels_are_those_of_this_process(extension: str, pool: DecoderPool) -> None:
    data = encoded(extension, IMAGE.astype(np.float32) if extension == ".hdr" else IMAGE)
    np.testing.assert_array_equal(pool.decode(data), decode_image(data))


def test_a_large_picture_and_a_small_one_after_it(pool: DecoderPool) -> None:
    large_image = np.random.default_rng(1).integers(0, 255, (3000, 4000, 3), np.uint8)
    large_data = encoded(".bmp", large_image[:1500, :2000])
    for _ in range(3):
        np.testing.assert_array_equal(pool.decode(large_data), large_image[:1500, :2000, ::-1])
        np.testing.assert_array_equal(pool.decode(encoded(".png")), IMAGE[..., ::-1])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"hello", "not an image, but a text"),
        (encoded(".jpg")[:200], "JPEG|damaged"),
        (
            encoded(".png", np.zeros((5000, 5000, 3), np.uint8)),
            "5000 x 5000 pixels; an image may have at most",
        ),
        (encoded(".png", np.zeros((4400, 4400, 4), np.uint16)), "of 8 bytes each"),
        (PROGRESSIVE_JPEG[:-2] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" * 4000, "more than 100 scans"),
    ],
    ids=["empty", "text", "cut", "pixels", "bytes", "scans"],
)
def test_refusals(data: bytes, message: str, pool: DecoderPool) -> None:
    with pytest.raises(DecodeError, match=message):
        pool.decode(data)
    np.testing.assert_array_equal(pool.decode(encoded(".png")), IMAGE[..., ::-1])


def process_ids(pool: DecoderPool) -> list[int]:
    return [decoder.pid for decoder in pool._decoders]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_crash_costs_one_picture(number: int) -> None:
    pool = new_pool()
    try:
        pool.wait_until_ready()
        thread, errors = slow_decoding(pool)
        (decoder,) = pool._decoders
        while decoder.started_at is None:
            time.sleep(0.01)
        os.kill(decoder.pid, number)
        thread.join()
        assert [str(error) for error in errors] == [
            f"can't decode the image: the decoder ended with {signal.Signals(number).name}"
        ]
        np.testing.assert_array_equal(pool.decode(encoded(".png")), IMAGE[..., ::-1])
        assert process_ids(pool) != [decoder.pid]
    finally:
        pool.close()


def test_a_picture_that_takes_too_long_is_given_up() -> None:
    pool = new_pool(seconds=0.2)
    try:
        pool.wait_until_ready()
        with pytest.raises(DecodeError, match=r"decoding takes more than 0\.2 s"):
            pool.decode(slow_jpeg())
        np.testing.assert_array_equal(pool.decode(encoded(".png")), IMAGE[..., ::-1])
    finally:
        pool.close()


def test_a_slow_picture_makes_room_for_others() -> None:
    """It has a fifth of the time while another one waits, and may be sent again."""
    pool = new_pool(seconds=5)
    try:
        pool.wait_until_ready()
        errors: list[Exception] = []

        def decode() -> None:
            try:
                while True:
                    pool.decode(slow_jpeg())
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=decode)
        thread.start()
        (decoder,) = pool._decoders
        os.kill(decoder.pid, signal.SIGSTOP)  # so that the picture takes long on any machine
        while decoder.started_at is None:
            time.sleep(0.01)
        np.testing.assert_array_equal(pool.decode(encoded(".png")), IMAGE[..., ::-1])
        thread.join()
        assert [type(error) for error in errors] == [SlowDecodeError]
    finally:
        pool.close()


def test_closing_ends_everything() -> None:
    pool = new_pool(2)
    folder = pool._folder
    ids = process_ids(pool)
    thread, errors = slow_decoding(pool)
    while not any(decoder.started_at for decoder in pool._decoders):
        time.sleep(0.01)
    pool.close()
    thread.join()
    assert [type(error) for error in errors] == [SlowDecodeError]
    assert not folder.exists()
    for pid in ids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(SlowDecodeError, match="the server is stopping"):
        pool.decode(encoded(".png"))


@pytest.mark.skipif(not IS_LINUX, reason="/proc of Linux")
def test_a_decoder_has_limits_and_nothing_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    with tempfile.TemporaryFile() as file:
        os.set_inheritable(file.fileno(), True)
        pool = new_pool()
        try:
            pool.wait_until_ready()
            (pid,) = process_ids(pool)
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"SECRET_TOKEN" not in environment
            assert str(pool._folder).encode() in environment
            targets = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
            assert not any(target.startswith("socket:") for target in targets)
            assert len(targets) <= 6
            limits = Path(f"/proc/{pid}/limits").read_text()
            for name in ("Max address space", "Max file size", "Max core file size"):
                line = next(line for line in limits.splitlines() if line.startswith(name))
                assert line.split()[-2] != "unlimited", line
            assert (pool._folder.stat().st_mode & 0o777) == 0o700
        finally:
            pool.close()


def text_chunk_png() -> bytes:
    """Returns a picture of 8 x 8 pixels whose text would take 200 MB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200 << 20), 1))
    pixels = chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + text + pixels + chunk(b"IEND", b"")


@pytest.mark.skipif(not IS_LINUX, reason="/proc of Linux")
def test_files_of_a_picture_do_not_stay(pool: DecoderPool) -> None:
    for height in (60_000, 40):
        data = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X 50\n" % height + bytes(100)
        with pytest.raises(DecodeError):
            pool.decode(data)
    assert pool.decode(text_chunk_png()).shape == (8, 8, 3)
    files = [file for file in pool._folder.rglob("*") if file.is_file()]
    assert files == []
