"""Lists, conversion, export and prediction as users run them.

From a folder of pictures to an ONNX file.
"""

from __future__ import annotations

import ast
import csv
import importlib.util
import io
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle
import pytest
import yaml
from paddle.base import core

import ppxcls
from ppxcls.checkpoints.files import read_state
from ppxcls.data.pixel_format import PixelFormat
from ppxcls.deploy import int8, runners
from ppxcls.deploy.fold import fold_batch_norms
from ppxcls.deploy.images import find_images
from ppxcls.deploy.predict import Predictor
from ppxcls.train.paddle_inference import InferenceProgram
from tests.conftest import SMALL_NETWORK, run_tool, small_config
from tests.deploy.test_programs import exported, pir

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))


def pictures(folder: Path, classes: tuple[str, ...] = ("cat", "dog", "élan"), count: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            image = rng.integers(0, 80, (90, 80, 3)).astype(np.uint8)
            image[..., i % 3] += 120
            cv2.imwrite(str(folder / name / f"{k}.jpg"), image)
    return folder


def train_on_pictures(tmp_path: Path, **keys: Any) -> Path:
    """Returns a YAML of a briefly trained network, with lists of a folder of pictures."""
    data = pictures(tmp_path / "pictures")
    ppxcls.make_lists(data, tmp_path / "lists", val_share=0.34)
    normalize = {"NormalizeImage": {"scale": "1.0/255.0", "order": ""}}
    steps = [
        {"DecodeImage": {}},
        {"ResizeImage": {"resize_short": 75}},
        {"CropImage": {"size": 71}},
        normalize,
        {"ToCHWImage": None},
    ]
    config = small_config(data, tmp_path / "output", **keys)
    for mode, name in (("Train", "train"), ("Eval", "val")):
        config["DataLoader"][mode]["dataset"]["cls_label_path"] = str(tmp_path / f"lists/{name}_list.txt")
    process = {"name": "Topk", "topk": 2, "class_id_map_file": str(tmp_path / "lists/class_names.txt")}
    config["Infer"] = {"infer_imgs": str(data), "batch_size": 4, "transforms": steps, "PostProcess": process}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    ppxcls.build_trainer(ppxcls.load_config(file)).fit()
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_pictures(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def small_trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a network whose export takes less than a second."""
    keys = {"Arch": {"name": "SmallNetwork"}, "Global.plugins": [SMALL_NETWORK]}
    return train_on_pictures(tmp_path_factory.mktemp("small_trained"), **keys)


def weights(config: Path) -> str:
    return f"Global.pretrained_model={config.parent}/output/Xception41/latest"


def test_weights_there_and_back(tmp_path: Path) -> None:
    model = ppxcls.build_model("xception41p", class_num=5)
    paddle.save(model.state_dict(), str(tmp_path / "a.pdparams"))
    for source, target in (("a.pdparams", "b.safetensors"), ("b.safetensors", "c.pdparams")):
        arguments = [tmp_path / source, "--model", "xception41p", "--class-num", "5", "-o", tmp_path / target]
        result = run_tool("convert", *arguments)
        assert result.returncode == 0, result.stderr
    state = read_state(tmp_path / "c.pdparams")
    assert all(np.array_equal(state[key], value.numpy()) for key, value in model.state_dict().items())
    result = run_tool(
        "convert", tmp_path / "b.safetensors", "--model", "xception65p", "-o", tmp_path / "d.pdparams"
    )
    assert result.returncode == 1
    assert "does not fit the model" in result.stderr
    assert not (tmp_path / "d.pdparams").exists()


@pytest.mark.parametrize(
    "name", ["Xception41", "Xception41_deeplab", "legacy_xception", "xception41", "xception41p"]
)
def test_folding_changes_nothing_but_rounding(name: str) -> None:
    paddle.seed(0)
    model = ppxcls.build_model(name, class_num=7)
    for layer in model.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            layer._mean.set_value(paddle.randn(layer._mean.shape) * 0.1)
            layer._variance.set_value(paddle.rand(layer._variance.shape) + 0.5)
    model.eval()
    images = paddle.randn([2, 3, 71, 80])
    with paddle.no_grad():
        before = model(images).numpy()
        norms = sum(isinstance(layer, paddle.nn.BatchNorm2D) for layer in model.sublayers())
        folded = fold_batch_norms(model, images)
        after = model(images).numpy()
    left = sum(isinstance(layer, paddle.nn.BatchNorm2D) for layer in model.sublayers())
    assert folded > 20
    assert left == norms - folded
    assert left == (0 if name != "xception41p" else 12)  # batch norms after a sum can't be folded
    assert np.abs(after - before).max() <= 1e-4 * np.abs(before).max()


def predictions(text: str) -> list[dict]:
    return [row for line in text.splitlines() if line.startswith("[{") for row in ast.literal_eval(line)]


@pytest.mark.parametrize("options", [[], ["--fold", "--logits"], ["--float-input"]])
def test_export_and_predict_agree(options: list[str], trained: Path, tmp_path: Path) -> None:
    formats = {"Paddle Inference": "inference"} | (
        {"ONNX Runtime": "inference/inference.onnx"} if HAS_ONNX else {}
    )
    kind = "both" if HAS_ONNX else "paddle"
    target = f"Global.save_inference_dir={tmp_path}/inference"
    result = run_tool(
        "tools/export_model.py",
        "-c",
        trained,
        "-o",
        weights(trained),
        "-o",
        target,
        "--format",
        kind,
        *options,
    )
    assert result.returncode == 0, result.stderr
    for name in formats:
        assert f"{name}: largest difference " in result.stdout
    assert result.stdout.count("top-1 equal on 8") == len(formats)
    side = json.loads((tmp_path / "inference/inference_config.json").read_text(encoding="utf-8"))
    assert side["class_names"] == {"0": "cat", "1": "dog", "2": "élan"}
    assert side["input"]["dtype"] == ("float32" if "--float-input" in options else "uint8")
    assert side["output"] == ("logits" if "--logits" in options else "probabilities")
    paddlex = tmp_path / "inference/inference.yml"  # PaddleX 3.7 gives the same scores with this file
    assert paddlex.is_file() == ("--float-input" in options)
    if paddlex.is_file():
        page = yaml.safe_load(paddlex.read_text(encoding="utf-8"))
        steps = [next(iter(op)) for op in page["PreProcess"]["transform_ops"]]
        assert steps == ["ResizeImage", "CropImage", "NormalizeImage", "ToCHWImage"]
        assert page["PostProcess"]["Topk"]["label_list"] == ["cat", "dog", "élan"]
    own = run_tool("tools/infer.py", "-c", trained, "-o", weights(trained))
    assert own.returncode == 0, own.stderr
    expected = predictions(own.stdout)
    assert len(expected) == 18
    assert expected[0]["file_name"].endswith("cat/0.jpg")
    assert expected[0].keys() == {"class_ids", "scores", "file_name", "label_names"}
    for place in formats.values():
        result = run_tool("tools/infer.py", "-c", trained, "--exported", tmp_path / place)
        assert result.returncode == 0, result.stderr
        received = predictions(result.stdout)
        assert [row["file_name"] for row in received] == [row["file_name"] for row in expected]
        for a, b in zip(received, expected, strict=True):
            assert a["scores"] == pytest.approx(b["scores"], abs=2e-5)
            assert a["class_ids"] == b["class_ids"] or abs(a["scores"][0] - a["scores"][1]) < 1e-4


def test_an_error_of_onednn_is_gone_around(
    small_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Works around an error of Paddle 3.3: creating the predictor succeeds, and its first run fails."""
    target = f"Global.save_inference_dir={tmp_path}/inference"
    ppxcls.export(ppxcls.load_config(small_trained, [target]), formats=["paddle"])
    image = str(next((small_trained.parent / "pictures/cat").iterdir()))
    expected = ppxcls.load(tmp_path / "inference").predict(image)
    asked: list[bool] = []

    def failing(_: Any) -> Any:
        raise NotImplementedError(
            "ConvertPirAttribute2RuntimeAttribute not support [pir::ArrayAttribute]\n[operator]"
        )

    def program(model: Path, weights: Path, threads: int, with_onednn: bool) -> Any:
        asked.append(with_onednn)
        return (
            failing
            if with_onednn
            else InferenceProgram(model, weights, threads=threads, with_onednn=with_onednn)
        )

    monkeypatch.setattr("ppxcls.deploy.runners.InferenceProgram", program)
    received = ppxcls.load(tmp_path / "inference").predict([image, image])
    assert asked == [True, False]
    assert received[1].scores == pytest.approx(expected[0].scores, abs=2e-5)


def test_exported_files_run_on_the_device_of_the_command_line(
    small_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device of the YAML may not exist where the files are used."""
    target = f"Global.save_inference_dir={tmp_path}/inference"
    ppxcls.export(ppxcls.load_config(small_trained, [target]), formats=["paddle"])
    image = str(next((small_trained.parent / "pictures/cat").iterdir()))
    file = tmp_path / "other.yaml"
    file.write_text(small_trained.read_text().replace("device: cpu", "device: gpu"))
    devices: list[str] = []
    monkeypatch.setattr("ppxcls.system.distributed.start", lambda device, **_: devices.append(device))
    for overrides in ([], ["Global.device=gpu:1"]):
        ppxcls.infer(ppxcls.load_config(file, overrides), images=image, exported=tmp_path / "inference")
    assert devices == ["gpu:1"]


def test_prediction_leaves_the_number_of_threads(
    small_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paddle Inference sets the number of threads to one after each run.

    Training in the same process would be slower, and would round differently.
    """
    target = f"Global.save_inference_dir={tmp_path}/inference"
    ppxcls.export(ppxcls.load_config(small_trained, [target]), formats=["paddle"])
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    asked: list[int] = []
    set_threads = paddle.base.core.set_num_threads

    def note(count: int) -> None:
        asked.append(count)
        set_threads(count)  # otherwise the following tests would run on one thread

    monkeypatch.setattr("paddle.base.core.set_num_threads", note)
    ppxcls.load(tmp_path / "inference").predict(str(next((small_trained.parent / "pictures/cat").iterdir())))
    assert asked[-1:] == [2]


def test_a_program_of_another_paddle_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ppxcls.CheckpointError, match="neither inference.json nor inference.pdmodel"):
        runners.paddle_runner(tmp_path)
    folder = exported(tmp_path / "model", json.dumps(pir.program()).encode(), "inference.json")
    monkeypatch.setattr(runners, "paddle_version", lambda: (2, 6))
    with pytest.raises(
        ppxcls.CheckpointError, match=r"inference.json: written by Paddle 3, which Paddle .* can't read"
    ):
        runners.paddle_runner(folder)


def test_output_forms_and_bad_files(trained: Path, tmp_path: Path) -> None:
    """Bad files: truncated, empty, no image, 16 bits, animated, huge.

    Each unreadable file gives one line, and the other files are predicted.
    """
    folder = tmp_path / "mixed"
    shutil.copytree(trained.parent / "pictures/cat", folder)
    rng = np.random.default_rng(0)
    whole = (folder / "0.jpg").read_bytes()
    (folder / "6.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "7.jpg").write_bytes(b"")
    (folder / "8.jpg").write_text("<html></html>")
    cv2.imwrite(str(folder / "9.png"), rng.integers(0, 65_536, (80, 80, 3)).astype(np.uint16))
    from PIL import Image

    from tests.data.test_check_data import png_of

    frames = [Image.fromarray(rng.integers(0, 256, (80, 80, 3)).astype(np.uint8)) for _ in range(2)]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])
    (folder / "b.png").write_bytes(png_of(60_000, 60_000))
    for kind in ("jsonl", "csv"):
        output = tmp_path / f"out.{kind}"
        arguments = [
            "-c",
            trained,
            "-o",
            weights(trained),
            "-o",
            f"Infer.infer_imgs={folder}",
            "--format",
            kind,
            "--output",
            output,
        ]
        result = run_tool("tools/infer.py", *arguments)
        assert result.returncode == 1
        for name, reason in (
            ("6.jpg", "truncated JPEG"),
            ("7.jpg", "the file is empty"),
            ("8.jpg", "not an image"),
            ("b.png", "60000 x"),
        ):
            assert f"{folder}/{name}: {reason}" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("8 images, ")
        assert result.stderr.splitlines()[-1].endswith("images/s, 4 could not be predicted")
        assert "Traceback" not in result.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    table = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text(encoding="utf-8"))))
    assert [Path(row["file_name"]).name for row in rows] == [
        "0.jpg",
        "1.jpg",
        "2.jpg",
        "3.jpg",
        "4.jpg",
        "5.jpg",
        "9.png",
        "a.gif",
    ]
    assert len(table) == 16
    assert {row["label_name"] for row in table} <= {"cat", "dog", "élan"}


def test_patterns_and_none(tmp_path: Path) -> None:
    data = pictures(tmp_path / "p", count=2)
    assert len(find_images(str(data))) == 6
    assert [Path(f).name for f in find_images(f"{data}/dog/*.jpg")] == ["0.jpg", "1.jpg"]
    with pytest.raises(ppxcls.DataError, match="no such image, folder of images or pattern"):
        find_images(str(tmp_path / "nothing*"))


def test_ten_thousand_files_need_no_more_memory_than_ten() -> None:
    """The number of images read ahead is bounded, for any number of files."""
    lock, alive, most = threading.Lock(), 0, 0

    class Transform:
        pixel_format = PixelFormat()

        def __call__(self, data: bytes, rng: object) -> np.ndarray:
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)
            return np.zeros((2, 2, 3), np.uint8)

    def runner(images: np.ndarray) -> np.ndarray:
        nonlocal alive
        with lock:
            alive -= len(images)
        return np.zeros((len(images), 3), np.float32)

    files = [__file__] * 500
    predictor = Predictor(Transform(), runner, names=[], gives_logits=True, description="")  # type: ignore[arg-type]
    assert sum(1 for _ in predictor.stream(files, topk=1, batch_size=4)) == 500
    assert most <= 4 * 4


def test_exported_files_take_overrides_without_a_config(small_trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    target = f"Global.save_inference_dir={tmp_path}/inference"
    ppxcls.export(ppxcls.load_config(small_trained, [target]), formats=["onnx"])
    file = tmp_path / "M.ONNX"
    (tmp_path / "inference/inference.onnx").rename(file)
    image = next((small_trained.parent / "pictures/cat").iterdir())
    result = run_tool("infer", "--exported", file, image, "-o", "Infer.PostProcess.topk=2")
    assert result.returncode == 0, result.stderr
    (row,) = predictions(result.stdout)
    assert len(row["class_ids"]) == 2
    result = run_tool("infer", "--exported", file, image, "-o", "Arch.class_num=3")
    assert result.returncode == 2
    assert "Arch.class_num: exported files have their own" in result.stderr.splitlines()[-1]
    result = run_tool("infer", image, "-o", "Infer.PostProcess.topk=2")
    assert "the following arguments are required: -c/--config" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["-o", "Infer.infer_imgs=null"],
            2,
            "Infer.infer_imgs: expected a file, a folder or a pattern, received null",
        ),
        ([], 2, "Global.pretrained_model: expected the weights to infer, received null, and there is no "),
        (["--exported", "nowhere"], 1, "error: nowhere: no such folder of an exported model"),
        (["-o", "Global.pretrained_model=HTML"], 1, "not a file of weights"),
    ],
)
def test_what_infer_refuses(
    arguments: list[str], code: int, message: str, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    data = pictures(tmp_path / "p", count=1)
    (tmp_path / "page.pdparams").write_text("<html></html>")
    file = write_config(Infer={"infer_imgs": str(data)})
    result = run_tool(
        "tools/infer.py", "-c", file, *[a.replace("HTML", f"{tmp_path}/page") for a in arguments]
    )
    assert result.returncode == code
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(not hasattr(core, "get_cublas_switch"), reason="this build has no switches")
def test_export_computes_both_sides_without_tf32(
    small_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ampere's default would round more than the tolerance, on either side."""
    switches = []

    def recorded(runner: runners.Runner) -> runners.Runner:
        def run(images: np.ndarray) -> np.ndarray:
            switches.append((core.get_cublas_switch(), core.get_cudnn_switch()))
            return runner(images)

        return run

    for name in ("network_runner", "paddle_runner"):
        make = getattr(runners, name)
        monkeypatch.setattr(
            f"ppxcls.deploy.export.{name}",
            lambda *arguments, make=make, **keys: recorded(make(*arguments, **keys)),
        )
    defaults = core.get_cublas_switch(), core.get_cudnn_switch()
    assert any(defaults)
    ppxcls.export(
        ppxcls.load_config(small_trained, [f"Global.save_inference_dir={tmp_path}"]), formats=["paddle"]
    )
    assert len(switches) >= 2
    assert set(switches) == {(False, False)}
    assert (core.get_cublas_switch(), core.get_cudnn_switch()) == defaults


@pytest.mark.parametrize("missing", ["list", "images", "section"])
def test_export_without_images_is_compared_on_random_ones(
    missing: str, small_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a PaddleClas YAML and its weights, on a machine without data."""
    overrides = [f"Global.save_inference_dir={tmp_path}/inference", "Infer.infer_imgs=null"]
    overrides += (
        [f"DataLoader.Eval.dataset.cls_label_path={tmp_path}/nowhere.txt"] if missing == "list" else []
    )
    overrides += [f"DataLoader.Eval.dataset.image_root={tmp_path}"] if missing == "images" else []
    warnings: list[str] = []
    monkeypatch.setattr("ppxcls.deploy.build_export.logger.warning", warnings.append)
    config = ppxcls.load_config(small_trained, overrides)
    if missing == "section":
        config.DataLoader.Eval = None
    differences = ppxcls.export(config, formats=["paddle"])
    assert 0 <= differences["paddle"] < 1e-4
    assert warnings[-1].startswith(
        "no real images are available, so the exported files are compared on random ones, ["
    )
    assert all("No such file" in warning for warning in warnings[:-1])
    assert bool(warnings[:-1]) == (missing == "images")


def test_export_says_what_is_wrong_with_images(
    small_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing configured images are reported, and the evaluation images are used.

    An invalid list is an error.
    """
    target = f"Global.save_inference_dir={tmp_path}/inference"
    warnings: list[str] = []
    monkeypatch.setattr("ppxcls.deploy.build_export.logger.warning", warnings.append)
    ppxcls.export(
        ppxcls.load_config(small_trained, [target, f"Infer.infer_imgs={tmp_path}/nowhere"]),
        formats=["paddle"],
    )
    assert len(warnings) == 1
    assert warnings[0].startswith("Infer.infer_imgs: ")
    (tmp_path / "wrong.txt").write_text("a.jpg cat\n")
    config = ppxcls.load_config(
        small_trained,
        [target, "Infer.infer_imgs=null", f"DataLoader.Eval.dataset.cls_label_path={tmp_path}/wrong.txt"],
    )
    with pytest.raises(ppxcls.DataError, match="wrong.txt:1: expected .path label"):
        ppxcls.export(config, formats=["paddle"])


@pytest.mark.skipif(not HAS_ONNX, reason="onnx or onnxruntime is not installed")
def test_eight_bits(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The file has a quarter of the size, contains its metadata, and its accuracy loss was measured.

    A loss that is too high is an error.
    """
    listed = trained.parent / "lists/train_list.txt"
    target = f"Global.save_inference_dir={tmp_path}/inference"
    result = run_tool(
        "tools/export_model.py",
        "-c",
        trained,
        "-o",
        target,
        "-o",
        weights(trained),
        "--format",
        "onnx",
        "--int8",
        listed,
    )
    assert result.returncode == 0, result.stderr
    assert "INT8: top-1 " in result.stdout
    assert "on 6 images" in result.stdout
    assert "[W:onnxruntime" not in result.stdout + result.stderr
    plain, short = tmp_path / "inference/inference.onnx", tmp_path / "inference" / int8.INT8_FILE
    assert 0.2 < short.stat().st_size / plain.stat().st_size < 0.35
    images = sorted(str(f) for f in (trained.parent / "pictures").rglob("*.jpg"))
    expected, received = (ppxcls.load(file).predict(images) for file in (plain, short))
    assert received[0].label_names
    assert sorted(received[0].label_names) == sorted(expected[0].label_names)
    assert np.mean([abs(a.scores[0] - b.scores[0]) for a, b in zip(expected, received, strict=True)]) < 0.1
    assert not list((tmp_path / "inference").glob(".int8*"))
    monkeypatch.setattr(int8, "_compare_files", lambda *_: int8.QuantisationResult(100, 0.9, 0.8, 2.0, 0.25))
    changes: list[int] = []  # of what the user's own sessions report
    monkeypatch.setattr("onnxruntime.set_default_logger_severity", changes.append)
    with pytest.raises(
        ppxcls.CheckpointError, match=r"INT8 loses 10\.00 points of top-1 on 100 images, more than 1"
    ):
        ppxcls.export(ppxcls.load_config(trained, [target, weights(trained)]), ["onnx"], int8=str(listed))
    assert not short.exists(), "that of the export before"
    assert plain.is_file()
    assert not changes
    with pytest.raises(ppxcls.DataError, match="INT8 is made from the ONNX file"):
        ppxcls.export(ppxcls.load_config(trained, [target]), ["paddle"], int8=str(listed))
