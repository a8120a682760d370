"""``ppxcls check`` on data with every kind of fault, and the limits on input sizes."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from ppxcls.data.check import ERRORS, check_lists
from ppxcls.data.dataset import Dataset, ImageNetDataset
from ppxcls.data.decode import decode_image
from tests.conftest import ROOT, SHARED, needs_shared, run_tool, write_images


@pytest.fixture
def config(write_config: Callable[..., Path], tmp_path: Path) -> Path:
    folder = write_images(tmp_path / "data", 12)
    write_images(folder, 5, seed=1, name="val")
    roots = {f"DataLoader.{mode}.dataset.image_root": str(folder) for mode in ("Train", "Eval")}
    for mode, name in (("Train", "train"), ("Eval", "val")):
        roots[f"DataLoader.{mode}.dataset.cls_label_path"] = str(folder / f"{name}_list.txt")
    return write_config(**roots)


def test_good_data(config: Path, tmp_path: Path) -> None:
    result = run_tool("check", "-c", config)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "no errors"
    assert "samples 12, classes 3, samples of the smallest class 4" in result.stdout
    assert "shorter side, pixels: smallest 80, median 80.0, largest side 82" in result.stdout


def test_names_of_classes_that_look_alike(config: Path, tmp_path: Path) -> None:
    (tmp_path / "data/class_names.txt").write_text("0 Cat\n1 dog\n2 cat\n", encoding="utf-8")
    result = run_tool("check", "-c", config)
    assert result.returncode == 0, "a note is no error"
    assert "the names of the classes 0 and 2 look alike: 'Cat' and 'cat'" in result.stdout


def test_every_fault_is_found(config: Path, tmp_path: Path) -> None:
    train, val = tmp_path / "data/train", tmp_path / "data/val"
    (train / "0000.png").unlink()
    (train / "0001.png").write_bytes(b"")
    picture = np.random.default_rng(0).integers(0, 256, (90, 80, 3), np.uint8)
    (train / "0002.png").write_bytes(cv2.imencode(".jpg", picture)[1].tobytes()[:-400])
    (train / "0003.png").write_text("<html>not found</html>")
    shutil.copy(train / "0004.png", train / "0005.png")  # labels 1 and 2
    shutil.copy(train / "0006.png", val / "0003.png")  # label 0 in both
    shutil.copy(train / "0007.png", train / "0010.png")  # label 1 twice
    (train / "0008.png").unlink()
    (train / "0008.png").mkdir()
    report = tmp_path / "report.json"
    result = run_tool("check", "-c", config, "--json", report, "-o", "Arch.class_num=4")
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == "7 errors"
    found = json.loads(report.read_text())["found"]
    listed = f"{tmp_path}/data/train_list.txt"
    assert found["missing"] == [f"{listed}:1 train/0000.png: no such file"]
    assert found["empty"] == [f"{listed}:2 train/0001.png: 0 bytes"]
    assert found["truncated"] == [f"{listed}:3 train/0002.png: truncated JPEG"]
    assert found["not an image"] == [
        f"{listed}:4 train/0003.png: not an image, but an HTML page, such as an error page of a download"
    ]
    assert found["unreadable"] == [f"{listed}:9 train/0008.png: Is a directory"]
    assert found["two labels"] == [f"{listed}:5 train/0004.png = {listed}:6 train/0005.png: labels 1, 2"]
    assert found["in training and evaluation"] == [
        f"{listed}:7 train/0006.png = {tmp_path}/data/val_list.txt:4 val/0003.png"
    ]
    assert found["duplicate"] == [f"{listed}:8 train/0007.png = {listed}:11 train/0010.png"]
    assert found["class without samples"] == [
        f"{listed}: 1 of 4: 3",
        f"{tmp_path}/data/val_list.txt: 1 of 4: 3",
    ]
    assert json.loads(report.read_text())["lists"][listed]["of the largest"] == 4


def test_twelve_bits_in_sixteen_are_a_category_and_a_line_at_training(config: Path, tmp_path: Path) -> None:
    for i in (3, 4):
        values = np.random.default_rng(i).integers(0, 4096, (80, 80, 3)).astype(np.uint16)
        cv2.imwrite(str(tmp_path / f"data/train/{i:04d}.png"), values)
    checked = run_tool("check", "-c", config)
    assert checked.returncode == 0, checked.stderr
    assert "almost black: 2" in checked.stdout
    assert "train/0003.png: 16 bits per channel, values up to 4,09" in checked.stdout
    trained = run_tool("tools/train.py", "-c", config)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.count("so it decodes to almost black; ppxcls check lists such files") == 1


@pytest.mark.parametrize(
    ("scale", "is_noted"), [("1.0/255.0", True), ("1.0/65535.0", True), ("1.0/4095.0", False)]
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_twelve_bits_are_noted_unless_the_scale_fits(
    channels: int, scale: str, is_noted: bool, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((9, 9, 3), 4000, np.uint16))
    cv2.imwrite(str(tmp_path / "b.png"), np.full((9, 9, 3), 9, np.uint8))
    (tmp_path / "list.txt").write_text("a.png 0\nb.png 1\n")
    constants = {"mean": [0.5] * channels, "std": [0.5] * channels, "order": ""}
    bits = 8 if scale == "1.0/255.0" else 16
    ops = [
        {"DecodeImage": {"channels": channels, "bits": bits}},
        {"NormalizeImage": {"scale": scale, **constants}},
    ]
    dataset = ImageNetDataset(str(tmp_path), str(tmp_path / "list.txt"), transform_ops=ops)
    notes = check_lists([dataset], 2).findings["almost black"]
    assert len(notes) == is_noted
    assert all("a.png: 16 bits per channel, values up to 4,000 of 65,535" in note for note in notes)


def test_a_folder_that_is_not_there(config: Path) -> None:
    """Every file of both lists is missing, and each line is reported."""
    nowhere = [
        part for mode in ("Train", "Eval") for part in ("-o", f"DataLoader.{mode}.dataset.image_root=nowhere")
    ]
    result = run_tool("check", "-c", config, *nowhere)
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == "17 errors"
    assert "missing: 17" in result.stdout
    assert "train_list.txt:12 train/0011.png: no such file" in result.stdout
    assert "Traceback" not in result.stderr


def test_a_list_that_can_not_be_used(config: Path) -> None:
    result = run_tool("check", "-c", config, "-o", "Arch.class_num=2")
    assert result.returncode == 1
    assert "the label 2 is outside class_num = 2" in result.stderr
    assert run_tool("check", "-c", config, "-o", "DataLoader=null").returncode == 2


@needs_shared
def test_real_images(write_config: Callable[..., Path]) -> None:
    folder = SHARED / "imagenet-sample"
    roots = {f"DataLoader.{mode}.dataset.image_root": str(folder) for mode in ("Train", "Eval")}
    lists = {
        "DataLoader.Train.dataset.cls_label_path": str(folder / "train_list.txt"),
        "Arch.class_num": 1000,
    }
    file = write_config(
        **roots, **lists, **{"DataLoader.Eval.dataset.cls_label_path": str(folder / "val_list.txt")}
    )
    result = run_tool("check", "-c", file)
    assert result.returncode == 0, result.stdout
    assert "samples 180, classes 180" in result.stdout


def png_of(width: int, height: int) -> bytes:
    """Returns a small file with a large size in its header. The header is valid, but the rows are missing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def jpeg_of(width: int, height: int) -> bytes:
    data = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes()
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def test_decompression_bombs_are_refused_by_their_header() -> None:
    with pytest.raises(ValueError, match="60000 x 50000 pixels; an image may have at most 178,956,970"):
        decode_image(png_of(60_000, 50_000))
    with pytest.raises(ValueError, match="65000 x 65000 pixels; an image may have at most 178,956,970"):
        decode_image(jpeg_of(65_000, 65_000))
    bitmap = cv2.imencode(".bmp", np.zeros((16, 16, 3), np.uint8))[1].tobytes()
    with pytest.raises(ValueError, match="pixels; an image may have at most 178,956,970"):
        decode_image(bitmap[:18] + struct.pack("<ii", 30_000, 30_000) + bitmap[26:])


@pytest.mark.parametrize(
    "counts",
    [
        "--images 600 --lists 200 --names 150 --maps 300",
        "--configs 150",
        "--checkpoints 200 --pickles 2000 --safetensors 500",
    ],
)
def test_fuzzing(counts: str) -> None:
    """A short version of the fuzzing described in ``python scripts/fuzz.py --help``."""
    command = [sys.executable, "scripts/fuzz.py", *counts.split(), "--seed", "7"]
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=250)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "'named error': " in result.stdout
    assert "'worked': " in result.stdout
    assert result.stdout.splitlines()[-1] == "0 findings"


def test_unbalanced_training_data_are_noted_with_the_key() -> None:
    class Colours(Dataset):
        def read(self, index: int) -> np.ndarray:
            return np.full((4, 4, 3), index, np.uint8)

    names = ["ant", "bee"]
    datasets = [Colours([0] * 20 + [1] * 2), Colours([0] * 11 + [1])]
    key = "Loss.Train.0.CELoss.class_weight"
    report = check_lists(datasets, 2, names=names, class_weight_key=key)
    (note,) = report.findings["unbalanced classes"]
    assert note.startswith("Colours: ant has 20 training images, 10 times as many as bee (2); ")
    assert f"-o {key}=balanced" in note
    assert check_lists([Colours([0] * 19 + [1] * 2)], 2).findings["unbalanced classes"] == []
    assert "unbalanced classes" not in ERRORS
