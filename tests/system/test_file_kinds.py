"""Files that are no readable images: each message tells what the file is."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import ppxcls
from ppxcls.data import decode
from ppxcls.data.check import check_lists
from ppxcls.data.dataset import ImageNetDataset
from ppxcls.data.decode import can_read_heic, decode_image, image_count
from ppxcls.data.image_files import find_image_files
from ppxcls.data.transforms import DecodeImage
from ppxcls.system.file_kinds import why_unreadable
from tests.conftest import ROOT, run_tool

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(400)
JPEG = cv2.imencode(".jpg", np.full((20, 30, 3), 90, np.uint8))[1].tobytes()


def zip_file() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", "a")
    return stream.getvalue()


def tar_file() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return stream.getvalue()


KINDS = {
    "heic": (HEIC, "a HEIC image, which needs pillow-heif: pip install 'ppxcls[heif]'"),
    "heif": (HEIC.replace(b"ftypheic", b"ftypmif1"), "a HEIC image, which needs pillow-heif"),
    "jpeg xl": (b"\xff\x0a" + bytes(range(200)), "a JPEG XL image, a format that is not supported; convert it"),
    "psd": (b"8BPS\0\1" + bytes(200), "a Photoshop file, a format"),
    "dicom": (bytes(128) + b"DICM" + bytes(100), "a DICOM file, a format"),
    "canon": (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom" + bytes(100), "a camera's raw image; develop it"),
    "icon": (b"\0\0\1\0\1\0" + bytes(100), "an icon, a format"),
    "html": (b"<!DOCTYPE html>\n<html><head>", "not an image, but an HTML page, such as an error page of a dow"),
    "html with a comment": (b"\xef\xbb\xbf \n<!-- x -->\n<HTML>", "not an image, but an HTML page"),
    "html with comments": (b"<!--a-->\n<!---->" * 99 + b"<html>", "not an image, but an HTML page"),
    "an open comment": (b"<!-- <html>", "not an image, but a text"),
    "svg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image, but an SVG drawing"),
    "plain svg": (b'<svg width="9"></svg>', "not an image, but an SVG drawing, which has no pixels"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "not an image, but an XML text"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "not an image, but a PDF document"),
    "lfs": (LFS, "not an image, but a pointer of Git LFS (git lfs pull downloads the file itself)"),
    "annex": (b"/annex/objects/SHA256E-s3--abc.jpg\n", "not an image, but a pointer of git-annex"),
    "zip": (zip_file(), "not an image, but a ZIP archive, or a document in one"),
    "tar": (tar_file(), "not an image, but a tar archive"),
    "gzip": (b"\x1f\x8b\x08" + bytes(50), "not an image, but a gzip archive"),
    "mp4": (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(50), "not an image, but an MP4 or QuickTime video"),
    "mov": (b"\0\0\0\x14ftypqt  \0\0\2\0qt  " + bytes(50), "not an image, but an MP4 or QuickTime video"),
    "avi": (b"RIFF\0\0\0\0AVI LIST" + bytes(50), "not an image, but an AVI video"),
    "webm": (b"\x1aE\xdf\xa3" + bytes(50), "not an image, but a WebM or Matroska video"),
    "json": (b'{"error": "not found"}', "not an image, but a JSON text, such as an error message of a download"),
    "base64": (base64.b64encode(JPEG), "not an image, but a text with an image in base64"),
    "data uri": (b"data:image/png;base64,iVBORw0KGgo=", "not an image, but a text with an image in base64"),
    "text": ("404: das Bild fehlt, größer".encode(), "not an image, but a text, such as an error message of a download"),
    "long text": (b"a word " * 9999, "not an image, but a text"),
    "utf-16": ("a text in two bytes".encode("utf-16"), "not an image, but a text in UTF-16"),
    "numpy": (b"\x93NUMPY\1\0" + bytes(90), "not an image, but a numpy array"),
    "zeros": (bytes(5000), "not an image, but a file of zeros"),
    "apple": (b"\0\5\x16\7\0\2\0\0Mac OS X", "not an image, but a file of attributes that macOS writes"),
}  # fmt: skip


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    can_read_heic.cache_clear()
    monkeypatch.setattr(decode, "can_read_heic", lambda: False)


@pytest.mark.usefixtures("without_heif")
@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_named(name: str) -> None:
    data, message = KINDS[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared below
        decode_image(data)
    assert str(caught.value).startswith(message)
    assert str(caught.value) == why_unreadable(data)


def test_many_comments_are_read_once() -> None:
    """In another process, because a regular expression that backtracks here could not be stopped."""
    code = (
        "from ppxcls.system.file_kinds import why_unreadable; print(why_unreadable(b'<!---->' * 580 + b'x'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.stdout.startswith("not an image, but a text")


@pytest.mark.parametrize("extension", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_images_have_no_such_message(extension: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(stream, extension)
    assert why_unreadable(stream.getvalue()) is None
    assert decode_image(stream.getvalue()).shape == (20, 30, 3)


def test_random_bytes_are_no_known_kind() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        data = bytes([200, 201]) + rng.integers(0, 256, 500, np.uint8).tobytes()
        assert why_unreadable(data) is None


def test_avif_without_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1B" + bytes(400)
    monkeypatch.setattr(decode.features, "check", lambda _: False)
    with pytest.raises(ValueError, match="^an AVIF image, which needs Pillow 11.3 or later: pip install"):
        decode_image(data)
    monkeypatch.setattr(decode.features, "check", lambda _: True)
    with pytest.raises(ValueError, match="not an image, or damaged beyond decoding"):
        decode_image(data)


def test_heic_is_read_by_pillow_heif(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A module of this name that gives Pillow a reader; the real one's pixels are not this test's matter."""
    pixels = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)

    def register() -> None:
        original = decode.PillowImage.open
        monkeypatch.setattr(
            decode.PillowImage,
            "open",
            lambda stream: Image.fromarray(pixels) if stream.getvalue() == HEIC else original(stream),
        )

    module: Any = types.ModuleType("pillow_heif")
    module.register_heif_opener = register
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    can_read_heic.cache_clear()
    try:
        assert np.array_equal(decode_image(HEIC), pixels)
        (tmp_path / "a.HEIC").write_bytes(HEIC)
        assert find_image_files(tmp_path).files == ["a.HEIC"]
    finally:
        can_read_heic.cache_clear()


def test_real_heic() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    can_read_heic.cache_clear()
    picture = np.zeros((64, 48, 3), np.uint8)
    picture[:32] = (200, 40, 40)
    stream = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(picture)).save(stream, quality=95)
    image = decode_image(stream.getvalue())
    assert image.shape == (64, 48, 3)
    assert np.abs(image[::63].astype(int) - picture[::63]).max() < 12


def animated(form: str, **options: Any) -> bytes:
    colors = ((250, 0, 0), (0, 250, 0), (0, 0, 250))
    pictures = [Image.fromarray(np.full((20, 30, 3), color, np.uint8)) for color in colors]
    stream = io.BytesIO()
    pictures[0].save(stream, form, save_all=True, append_images=pictures[1:], **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("form", "options"), [("GIF", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("PNG", {})]
)
def test_the_first_of_several_images_is_used_and_that_is_said(
    form: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = animated(form, **options)
    assert image_count(data) == 3
    assert np.abs(decode_image(data).astype(int) - (250, 0, 0)).max() <= 2
    lines: list[str] = []
    monkeypatch.setattr(decode.logger, "warning", lines.append)
    monkeypatch.setattr(decode, "_several_search", decode._Search())
    for _ in range(3):
        decode.warn_if_several_images(data)
    (line,) = lines
    assert line.startswith("a file has 3 images, such as an animation or pages, and the first one is used")
    (tmp_path / "a.jpg").write_bytes(data)
    (tmp_path / "b.jpg").write_bytes(JPEG)
    (tmp_path / "list.txt").write_text("a.jpg 0\nb.jpg 1\n")
    report = check_lists([ImageNetDataset(str(tmp_path), str(tmp_path / "list.txt"))], 2)
    place = f"{tmp_path}/list.txt:1 a.jpg"
    assert report.findings["several images"] == [f"{place}: 3 images; the first one is used"]
    assert report.errors == 0


def encoded(form: str, pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["GIF", "TIFF"])
def test_files_are_not_opened_twice_for_ever(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the search for a warning ends. ``image_count``, which check calls, still counts."""
    counts = {"several": 0, "almost black": 0}

    def count(name: str, result: Any) -> Any:
        counts[name] += 1
        return result

    dark = encoded(form, np.full((20, 30, 3), 9, np.uint8))
    monkeypatch.setattr(decode, "_several_search", decode._Search())
    monkeypatch.setattr(decode, "_almost_black_search", decode._Search())
    monkeypatch.setattr(decode, "_MAX_REOPENED_FILES", 5)
    monkeypatch.setattr(decode, "image_count", lambda _: count("several", 1))
    monkeypatch.setattr(decode, "largest_16bit_value", lambda *_: count("almost black", None))
    transform = DecodeImage()
    for _ in range(3):  # other formats do not count
        transform(JPEG, np.random.default_rng(0))
    for _ in range(20):
        transform(dark, np.random.default_rng(0))
    assert counts == {"several": 5, "almost black": 5 if form == "TIFF" else 0}
    assert image_count(animated(form)) == 3


def test_still_images_are_not_counted_twice() -> None:
    assert image_count(JPEG) == 1
    for form in ("GIF", "TIFF", "WEBP", "PNG", "BMP"):
        stream = io.BytesIO()
        Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(stream, form)
        assert image_count(stream.getvalue()) == 1


def test_training_check_infer_and_pack_say_it(small: Callable[..., Path], tmp_path: Path) -> None:
    file = small()
    trainer = ppxcls.build_trainer(ppxcls.load_config(file))
    trainer.fit()
    listed = tmp_path / "bad.txt"
    config = ppxcls.load_config(file)
    assert config.DataLoader
    assert config.DataLoader.Train
    root = Path(config.DataLoader.Train.dataset["image_root"])
    bad = root / "train/pointer.jpg"
    bad.write_bytes(LFS)
    try:
        listed.write_text("train/0000.png 0\ntrain/pointer.jpg 1\n")
        reason = "not an image, but a pointer of Git LFS (git lfs pull downloads the file itself)"
        options = ("-c", file, "-o", f"DataLoader.Train.dataset.cls_label_path={listed}")
        result = run_tool("check", *options, "--json", tmp_path / "report.json")
        place = f"{listed}:2 train/pointer.jpg"
        assert json.loads((tmp_path / "report.json").read_text())["found"]["not an image"] == [
            f"{place}: {reason}"
        ]
        options = (*options, "-o", f"Global.output_dir={tmp_path}/other")
        result = run_tool("train", *options, "-o", "DataLoader.Train.sampler.batch_size=2")
        assert result.returncode == 1
        assert f"{bad} ({listed}:2): {reason}" in result.stderr
        result = run_tool("pack", listed, "--image-root", root, "-o", tmp_path / "pack")
        assert result.returncode == 0
        text = "shard-00000: 1 of 2 files can't be decoded, and are packed unchanged; the first one is "
        assert f"{text}{bad}: {reason}" in result.stderr
        result = run_tool("infer", "-c", trainer.output_dir, bad)
        assert result.returncode == 1
        assert f"{bad}: {reason}" in result.stderr
    finally:
        bad.unlink()
