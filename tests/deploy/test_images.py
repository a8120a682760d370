"""Everything that a predictor accepts as an image, and what it says about anything else."""

from __future__ import annotations

import io
import mmap
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import ppxcls
from ppxcls.data.transforms import build_transforms
from ppxcls.deploy.images import to_rgb
from ppxcls.deploy.predict import Prediction, Predictor
from tests.conftest import ROOT, SMALL_NETWORK, run_tool

PIXELS = np.full((40, 30, 3), (200, 100, 50), np.uint8)


def png(pixels: np.ndarray = PIXELS) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def predictor() -> Predictor:
    """Its scores are the means of the three channels."""
    ops = [{"DecodeImage": {}}, {"ResizeImage": {"size": 8}}]
    return Predictor(
        build_transforms(ops),
        lambda images: images.mean(axis=(1, 2)).astype(np.float32),
        names=["r", "g", "b"],
        gives_logits=False,
        description="means",
    )


def means(prediction: Prediction) -> list[float]:
    assert not prediction.error, prediction.error
    scores = dict(zip(prediction.label_names, prediction.scores, strict=True))
    return [scores[name] for name in "rgb"]


SINGLE_IMAGES: dict[str, Callable[[Path], Any]] = {
    "path": lambda file: file,
    "text": str,
    "bytes": lambda file: file.read_bytes(),
    "bytearray": lambda file: bytearray(file.read_bytes()),
    "memoryview": lambda file: memoryview(file.read_bytes()),
    "BytesIO": lambda file: io.BytesIO(file.read_bytes()),
    "open file": lambda file: file.open("rb"),
    "unbuffered file": lambda file: file.open("rb", buffering=0),
    "opened by PIL": Image.open,
    "PIL": lambda _: Image.fromarray(PIXELS),
    "PIL with alpha": lambda _: Image.fromarray(PIXELS).convert("RGBA"),
    "array": lambda _: PIXELS,
    "array with alpha": lambda _: np.dstack([PIXELS, np.zeros((40, 30), np.uint8)]),
    "not contiguous": lambda _: PIXELS[::2, ::-1],
    "0 to 1": lambda _: PIXELS / 255,
    "float32": lambda _: (PIXELS / 255).astype(np.float32),
    "int64": lambda _: PIXELS.astype(np.int64),
    "uint16": lambda _: PIXELS.astype(np.uint16) * 257,
    "integers of 16 bits": lambda _: PIXELS.astype(np.int32) * 257,
    "big-endian of 16 bits": lambda _: PIXELS.astype(">u2") * 257,
    "uint16 of 8 bits": lambda _: PIXELS.astype(np.uint16),
    "big-endian of 8 bits": lambda _: PIXELS.astype(">u2"),
    "rounded": lambda _: np.where(PIXELS == 200, 200 / 255, PIXELS / 255 + 1e-6).astype(np.float32),
    "no seek": lambda file: OnlyRead(file.read_bytes()),
    "folder": lambda file: file.parent,
    "pattern": lambda file: str(file.parent / "*.png"),
    "array of arrays": lambda _: PIXELS[None],
    "list": lambda file: [file],
    "tuple": lambda _: (PIXELS,),
    "generator": lambda file: (path for path in [file]),
    "array of paths": lambda file: np.array([str(file)]),
    "written just now": lambda _: written(),
}


class OnlyRead:
    """A file of a library, which can't be set back to its beginning."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def read(self) -> Any:
        return self.data


class AsyncFile:
    """A file of a web framework."""

    async def read(self) -> bytes:
        return png()

    async def seek(self, position: int) -> None:
        pass


class AwaitedFile:
    """A file with a function that returns a coroutine."""

    def read(self) -> Any:
        return AsyncFile().read()


def written() -> io.BytesIO:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "PNG")
    return stream  # its position is at the end


@pytest.mark.parametrize("name", SINGLE_IMAGES)
def test_one_image_in_any_form(name: str, predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (prediction,) = predictor.predict(SINGLE_IMAGES[name](tmp_path / "a.png"))
    assert means(prediction) == [200, 100, 50]


def test_grey_images(predictor: Predictor, tmp_path: Path) -> None:
    grey = np.full((40, 30), 70, np.uint8)
    cv2.imwrite(str(tmp_path / "grey16.png"), grey.astype(np.uint16) * 257)
    images = [
        *(grey, grey[..., None], grey / 255, grey > 9, Image.fromarray(grey)),
        *(Image.fromarray(grey.astype(np.uint16) * 257), tmp_path / "grey16.png"),
        Image.fromarray((grey / 255).astype(np.float32)),
    ]
    expected = [70, 70, 70, 255, 70, 70, 70, 70]
    assert [means(p) for p in predictor.predict(images)] == [[number] * 3 for number in expected]


def test_pictures_of_16_bits_are_read_as_their_files(predictor: Predictor) -> None:
    for number in (70, 1):
        values = np.full((40, 30), number * 100, np.uint16)
        big_endian, png_file = io.BytesIO(), io.BytesIO()
        Image.fromarray(values.astype(">u2")).save(big_endian, "TIFF")
        Image.fromarray(values).save(png_file, "PNG")
        images = [png_file.getvalue(), Image.open(png_file), big_endian.getvalue(), Image.open(big_endian)]
        assert [means(p)[0] for p in predictor.predict(images)] == [number * 100 // 256] * 4
    values = np.full((40, 30), 70 * 257, np.int32)
    pictures = [
        Image.fromarray(values),
        Image.fromarray(values.astype(">u2")),
        Image.fromarray(values // 257),
    ]
    assert [picture.mode for picture in pictures] == ["I", "I;16B", "I"]
    assert [means(p)[0] for p in predictor.predict(pictures)] == [70] * 3


def test_numbers_just_outside_of_0_to_1_are_clipped() -> None:
    values = np.full((2, 2, 3), 1.000001, np.float32)
    values[0] = -0.000001
    assert to_rgb(values)[:, 0, 0].tolist() == [0, 255]
    with pytest.raises(ValueError, match=r"received float32 \[2, 2, 3\] from -1e-06 to 1.0012$"):
        to_rgb(np.where(values > 0, np.float32(1.0012), values))


def test_a_file_for_writing_keeps_its_position(predictor: Predictor, tmp_path: Path) -> None:
    with open(tmp_path / "a.png", "wb") as file:
        file.write(b"abc")
        (prediction,) = predictor.predict(file)
        assert file.tell() == 3
    assert prediction.error == "the file is opened for writing; open it with 'rb'"


def test_a_binary_file_opened_as_text(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    with open(tmp_path / "a.png", encoding="utf-8") as file:
        (prediction,) = predictor.predict(file)
    assert prediction.error == "the file is opened as text; open it with 'rb'"


def test_many_images_at_once_keep_their_order(predictor: Predictor, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i, file in enumerate(("b.png", "a.png", "more/c.png")):
        (folder / file).write_bytes(png(np.full((9, 9, 3), i, np.uint8)))
    (folder / "notes.txt").write_text("x")
    batch = np.stack([np.full((5, 6, 3), i, np.uint8) for i in (10, 11)])
    predictions = predictor.predict([PIXELS, folder, batch, str(folder / "a.png"), png()], batch_size=2)
    assert [p.file for p in predictions] == [
        *("image 0", f"{folder}/a.png", f"{folder}/b.png", f"{folder}/more/c.png"),
        *("image 4", "image 5", f"{folder}/a.png", "image 7"),
    ]
    assert [means(p)[0] for p in predictions] == [200, 1, 0, 2, 10, 11, 1, 200]
    assert predictor.predict([]) == predictor.predict(iter(())) == []


def test_a_generator_may_close_its_files(predictor: Predictor, tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(np.full((9, 9, 3), i, np.uint8)))

    def opened() -> Iterator[Any]:
        for i in range(3):
            with open(tmp_path / f"{i}.png", "rb") as file:
                yield file
            with Image.open(tmp_path / f"{i}.png") as picture:
                yield picture

    predictions = predictor.predict(opened(), batch_size=2)
    assert [means(p)[0] for p in predictions] == [0, 0, 1, 1, 2, 2]
    assert {p.file for p in predictions} == {f"{tmp_path}/{i}.png" for i in range(3)}


@pytest.mark.parametrize("form", ["PIL", "open file", "array", "path"])
def test_a_generator_is_read_a_few_batches_ahead(form: str, predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(PIXELS[:4, :4]))
    count = 0

    def images() -> Iterator[Any]:
        nonlocal count
        for _ in range(10_000):
            count += 1
            yield SINGLE_IMAGES[form](tmp_path / "a.png")

    stream = predictor.stream(images(), batch_size=8)
    assert count == 0
    most_ahead = max(count - done for done, _ in enumerate(islice(stream, 200)))
    assert most_ahead <= 4 * 8
    assert count < 300


def test_a_wrong_image_of_a_generator(predictor: Predictor) -> None:
    stream = predictor.stream(PIXELS if i < 100 else 7 for i in range(101))  # type: ignore[misc]
    assert means(next(stream)) == [200, 100, 50]
    with pytest.raises(ppxcls.DataError, match="image 100: expected .*; received int"):
        list(stream)
    with pytest.raises(ppxcls.DataError, match="image 1: expected .*; received int"):
        predictor.stream([PIXELS, 7])  # type: ignore[list-item]


def test_a_photograph_of_pil_is_turned_upright(predictor: Predictor) -> None:
    pixels = np.zeros((40, 20, 3), np.uint8)
    pixels[:20] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", exif=exif)
    (from_file,) = predictor.predict(stream.getvalue())
    (from_pil,) = predictor.predict(Image.open(stream))
    assert from_file.scores == from_pil.scores


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "received None"),
        (3, "received int"),
        ({"a.png": 1}, "received dict"),
        ({"a.png"}, "received set"),
        ([PIXELS, None], "image 1: expected .*; received None"),
        ([["a.png"]], "image 0: expected .*; received list"),
        ([PIXELS, 7], "image 1: expected .*; received int"),
    ],
)
def test_other_types_are_one_line_that_says_what_is_accepted(
    images: Any, message: str, predictor: Predictor
) -> None:
    with pytest.raises(ppxcls.DataError, match=message) as caught:
        predictor.predict(images)
    assert "a path, a folder, the bytes of an image file, a file opened with 'rb', a PIL" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["3", None, 2.5, 0, -1, True, float("nan"), np.float64(2)])
@pytest.mark.parametrize("name", ["topk", "batch_size"])
def test_counts_are_integers_of_at_least_1(name: str, value: Any, predictor: Predictor) -> None:
    for function in (predictor.predict, predictor.stream):
        with pytest.raises(ppxcls.DataError) as caught:
            function(PIXELS, **{name: value})
        assert str(caught.value) == f"{name}: expected an integer of at least 1, received {value!r}"


def test_counts_of_numpy(predictor: Predictor) -> None:
    (prediction,) = predictor.predict(PIXELS, topk=np.int64(2), batch_size=np.uint8(1))
    assert prediction.label_names == ["r", "g"]


def text_file() -> io.StringIO:
    return io.StringIO("text")


def closed_file() -> io.BytesIO:
    stream = io.BytesIO(png())
    stream.close()
    return stream


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (text_file(), "the file is opened as text; open it with 'rb'"),
        (closed_file(), "I/O operation on closed file"),
        (AsyncFile(), r"the file is asynchronous; pass its bytes: await file.read\(\)"),
        (AwaitedFile(), "the file is asynchronous"),
        (OnlyRead("text"), "the file is opened as text; open it with 'rb'"),
        (OnlyRead(None), r"expected bytes from read\(\), received None"),
        (b"", "the file is empty"),
        (io.BytesIO(b"<html>"), "not an image, but an HTML page"),
        ("https://example.org/a.jpg", "expected a file, received a URL; download it first: https://example.org"),
        ("nowhere.png", "No such file or directory"),
        ("nowhere/*.png", "No such file or directory"),
        (np.zeros((3, 40, 30), np.uint8), r"received uint8 \[3, 40, 30\]; the channels must come last: array.tra"),
        (np.zeros(9), r"expected an image \[H, W, 3\], \[H, W, 4\] or \[H, W\], received float64 \[9\]"),
        (np.zeros((0, 5, 3), np.uint8), r"received uint8 \[0, 5, 3\]"),
        (np.full((4, 4, 3), 200.0), r"expected .* from 0 to 1, or uint8 .*, received float64 \[4, 4, 3\] from 200"),
        (np.full((4, 4, 3), np.nan), "expected floating-point numbers from 0 to 1"),
        (np.full((4, 4, 3), -1), r"expected numbers from 0 to 255, or .* received int64 \[4, 4, 3\] from -1 to -1"),
        (np.full((4, 4, 3), 1j), "expected numbers from 0 to 255, or .* received complex128"),
        (np.float64(3), r"received float64 \[\]"),
        (Image.open(io.BytesIO(png()[:60])), "truncated|image file is"),
    ],
)  # fmt: skip
def test_an_image_that_can_not_be_used_does_not_stop_the_others(
    image: Any, message: str, predictor: Predictor
) -> None:
    import re

    first, second = predictor.predict([image, PIXELS])
    assert re.search(message, first.error), first.error
    assert means(second) == [200, 100, 50]


def test_a_folder_without_images(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ppxcls.DataError, match=r"no images in this folder; skipped: 1 not images \(.txt\)"):
        predictor.predict(tmp_path)


def test_alpha_is_dropped_as_from_a_file() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 4), np.uint8)
    data = cv2.imencode(".png", pixels[..., [2, 1, 0, 3]])[1].tobytes()
    assert np.array_equal(to_rgb(pixels), cv2.imdecode(np.frombuffer(data, np.uint8), 1)[..., ::-1])


def test_a_pickled_predictor_runs_no_plugin_that_was_changed_since(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    plugin = tmp_path / "my_network.py"
    plugin.write_text(Path(SMALL_NETWORK).read_text().replace("SmallNetwork", "MyNetwork"))
    config = small(**{"Arch": {"name": "MyNetwork"}, "Global.plugins": [str(plugin)]})
    program = f"""
import pickle, sys, ppxcls
trainer = ppxcls.build_trainer(ppxcls.load_config({str(config)!r}, trust=True))
trainer.fit()
print("pickle:", pickle.dumps(ppxcls.load(trainer.output_dir)).hex())
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    file = tmp_path / "predictor.pickle"
    file.write_bytes(bytes.fromhex(result.stdout.rsplit("pickle: ", 1)[1]))
    with open(plugin, "a") as stream:
        stream.write(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    image = tmp_path / "image.png"
    image.write_bytes(png())
    command = [sys.executable, "-c", PROGRAM, str(file), str(image)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode != 0
    assert "the plugin was changed after the predictor was pickled" in result.stderr
    assert not (tmp_path / "canary").exists()


def test_a_mapped_file(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    with (
        open(tmp_path / "a.png", "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        (prediction,) = predictor.predict(mapped)
    assert means(prediction) == [200, 100, 50]


PROGRAM = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    predictor = pickle.load(file)
(prediction,) = predictor.predict(sys.argv[2])
again = pickle.loads(pickle.dumps(predictor)).predict(sys.argv[2])[0]
assert again == prediction
print(prediction.class_ids, prediction.scores, prediction.label_names)
"""


@pytest.mark.parametrize("kind", ["run", "paddle", "onnx", "onnx file", "float input"])
def test_a_predictor_works_in_another_process_without_its_files(
    kind: str, small: Callable[..., Path], tmp_path: Path
) -> None:
    trainer = ppxcls.build_trainer(ppxcls.load_config(small()))
    trainer.fit()
    folder = trainer.output_dir
    if kind != "run":
        form = "paddle" if kind in ("paddle", "float input") else "onnx"
        if form == "onnx":
            pytest.importorskip("onnx")
            pytest.importorskip("onnxruntime")
        options = ["--float-input"] if kind == "float input" else []
        folder = tmp_path / "inference"
        override = f"Global.save_inference_dir={folder}"
        result = run_tool("export", "-c", trainer.output_dir, "--format", form, "-o", override, *options)
        assert result.returncode == 0, result.stderr
    predictor = ppxcls.load(folder / "inference.onnx" if kind == "onnx file" else folder)
    image = tmp_path / "image.png"
    image.write_bytes(png(np.random.default_rng(0).integers(0, 256, (99, 90, 3), np.uint8)))
    (expected,) = predictor.predict(image)
    file = tmp_path / "predictor.pickle"
    file.write_bytes(pickle.dumps(predictor))
    for path in (trainer.output_dir, tmp_path / "inference"):
        shutil.rmtree(path, ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(file), str(image)],
        check=False, capture_output=True, text=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"{expected.class_ids} {expected.scores} {expected.label_names}"
    if kind != "run":
        with pytest.raises(ppxcls.DataError, match="was changed or removed after it was loaded"):
            pickle.dumps(predictor)
