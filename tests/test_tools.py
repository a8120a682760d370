"""The tools as users run them, including common errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import ppxcls
from ppxcls.cli.verbs import VERBS
from tests.conftest import ROOT, run_tool, write_images


def one_line(stderr: str) -> str:
    assert "Traceback" not in stderr
    (line,) = stderr.strip().splitlines()
    return line


def test_train_resume_evaluate(write_config: Callable[..., Path], tmp_path: Path) -> None:
    file = write_config()
    prefix = tmp_path / "output/Xception41"
    result = run_tool("tools/train.py", "-c", file, "-p")
    assert result.returncode == 0, result.stderr
    assert "class_num: 3" in result.stdout
    assert "[Train][Epoch 1/1][Iter: 2/3]" in result.stdout
    assert "\r" not in result.stderr  # the progress bar is shown on terminals only
    result = run_tool(
        "tools/train.py", "-c", file, "-o", "Global.epochs=2", "-o", f"Global.checkpoints={prefix}/latest"
    )
    assert result.returncode == 0, result.stderr
    assert "Resumed" in result.stdout
    assert "[Train][Epoch 1/" not in result.stdout
    assert "[Train][Epoch 2/2]" in result.stdout
    result = run_tool("tools/eval.py", "-c", file, "-o", f"Global.pretrained_model={prefix}/best_model")
    assert result.returncode == 0, result.stderr
    results = json.loads((prefix / "eval.json").read_text())
    assert f"[Eval][Avg]top1: {results['top1']:.5f}" in result.stdout.strip().splitlines()[-1]
    assert results["num_samples"] == 7


def test_eval_needs_weights(write_config: Callable[..., Path]) -> None:
    result = run_tool("tools/eval.py", "-c", write_config())
    assert result.returncode == 2
    assert (
        "Global.pretrained_model: expected the weights to evaluate, received null, and there is no "
        in one_line(result.stderr)
    )
    result = run_tool(
        "tools/eval.py", "-c", write_config(), "-o", "Global.pretrained_model=nowhere/best_model"
    )
    assert result.returncode == 1
    assert one_line(result.stderr) == "error: nowhere/best_model.pdparams: no such file of weights"


@pytest.mark.parametrize("check", [True, False])
def test_missing_image(check: bool, write_config: Callable[..., Path], tmp_path: Path, images: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(images, data)
    (data / "train/0007.png").unlink()
    file = write_config(**{"DataLoader.Train.dataset.image_root": str(data)})
    result = run_tool("tools/train.py", "-c", file, "-o", f"Global.check_data={check}")
    assert result.returncode == 1
    line = one_line(result.stderr)
    assert "train/0007.png" in line
    assert "train_list.txt:8" in line
    assert line.startswith("error: 1 of 12 listed files are missing") == check
    assert ("Iter: 0/" not in result.stdout) or not check


def test_missing_validation_image_is_found_before_training(
    write_config: Callable[..., Path], tmp_path: Path, images: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(images, data)
    (data / "val/0002.png").unlink()
    file = write_config(**{"DataLoader.Eval.dataset.image_root": str(data)})
    result = run_tool("tools/train.py", "-c", file, "-o", "Global.check_data=True")
    assert result.returncode == 1
    assert "val/0002.png" in one_line(result.stderr)
    assert "Iter: 0/" not in result.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the list has no samples"),
        ("train/0000.png\n", ":1: expected"),
        ("train/0000.png 3\n", ":1: the label 3 is outside"),
    ],
)
def test_bad_list(content: str, message: str, write_config: Callable[..., Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_text(content)
    result = run_tool(
        "tools/train.py", "-c", write_config(), "-o", f"DataLoader.Train.dataset.cls_label_path={bad}"
    )
    assert result.returncode == 1
    assert f"error: {bad}{message if message[0] == ':' else ': ' + message}" in one_line(result.stderr)


def test_output_that_can_not_be_written(write_config: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run_tool(
        "tools/train.py", "-c", write_config(), "-o", f"Global.output_dir={tmp_path}/file/output"
    )
    assert result.returncode == 1
    assert one_line(result.stderr).startswith("error: [Errno 20] Not a directory")


def test_ctrl_c_ends_within_a_step(write_config: Callable[..., Path], tmp_path: Path) -> None:
    file = write_config(**{"Global.epochs": 500, "Global.save_interval": 1000})
    command = [sys.executable, "tools/train.py", "-c", str(file)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    manifest = tmp_path / "output/Xception41/latest.json"
    while not manifest.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in one_line(stderr)
    config = ppxcls.load_config(file, [f"Global.checkpoints={manifest.with_suffix('')}"])
    assert ppxcls.build_trainer(config).progress.epoch >= 2


def test_as_a_library_from_another_folder(tmp_path: Path) -> None:
    """Runs the README's lines in a process that can import only the package, not the repository."""
    data = write_images(tmp_path / "data", 6)
    write_images(data, 4, name="val", seed=1)
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import ppxcls
assert "paddle" not in sys.modules and "cv2" not in sys.modules
assert "Xception41" in ppxcls.list_models()
model = ppxcls.build_model("Xception41", class_num=3)
import paddle
paddle.save(model.state_dict(), "Xception41_pretrained.pdparams")
ppxcls.load_weights(model, "Xception41_pretrained.pdparams")
config = ppxcls.load_config({str(ROOT / "configs/Xception41.yaml")!r}, overrides=["Arch.class_num=3", "Global.device=cpu",
    "Global.epochs=1",
    "DataLoader.Train.dataset.image_root=data", "DataLoader.Train.dataset.cls_label_path=data/train_list.txt",
    "DataLoader.Eval.dataset.image_root=data", "DataLoader.Eval.dataset.cls_label_path=data/val_list.txt",
    "DataLoader.Train.dataset.transform_ops.RandCropImage.size=71", "DataLoader.Eval.dataset.transform_ops.CropImage.size=71"])
transform = ppxcls.build_transforms(config.DataLoader.Eval.dataset.transform_ops)
array = transform(open("data/val/0000.png", "rb").read())
assert array.shape == (71, 71, 3) and array.dtype == "float32"
lr_at = ppxcls.build_lr_schedule({{"name": "Cosine", "learning_rate": 0.045}}, epochs=120, steps_per_epoch=2503)
assert lr_at(0) == 0.045
trainer = ppxcls.build_trainer(config)
trainer.fit()
results = ppxcls.evaluate(config)
assert set(results) == {{"top1", "top5", "CELoss", "loss", "num_samples"}} and results["num_samples"] == 4
"""
    result = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=tmp_path, timeout=200
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            None,
            "ppxcls needs PaddlePaddle, which is not installed: "
            "pip install 'ppxcls[cpu]', or the build for your GPU",
        ),
        ("__version__ = '2.5.2'", "ppxcls needs PaddlePaddle 2.6 or newer; 2.5.2 is installed"),
        (
            "raise OSError('libcudart.so:\\n no such file')",
            "PaddlePaddle is installed and can't be imported: OSError: libcudart.so: no",
        ),
    ],
)
def test_a_paddle_that_can_not_be_used_is_one_line(module: str | None, message: str, tmp_path: Path) -> None:
    if module is None:
        (tmp_path / "sitecustomize.py").write_text(
            "import importlib.util\nfind = importlib.util.find_spec\n"
            "importlib.util.find_spec = lambda name, *a: None if name == 'paddle' else find(name, *a)\n"
        )
    else:
        (tmp_path / "paddle.py").write_text(module)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    for command in (
        ["tools/train.py", "-c", "configs/quickstart.yaml"],
        ["tools/infer.py", "--exported", "inference", "image.jpg"],
    ):
        result = run_tool(*command, env=environment)
        assert result.returncode == 1
        assert result.stderr.startswith(message)
        assert result.stderr.count("\n") == 1
    command = [sys.executable, "-c", "import ppxcls; ppxcls.build_model"]
    result = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert result.stderr.splitlines()[-1].startswith(f"ppxcls.system.environment.PaddleError: {message}")


@pytest.mark.parametrize(
    "tool", [*sorted(f"tools/{path.name}" for path in (ROOT / "tools").glob("*.py")), *VERBS]
)
def test_help_does_not_wait_for_paddle(tool: str, tmp_path: Path) -> None:
    for module in ("paddle", "numpy"):  # the doctor must run even if they are broken
        (tmp_path / f"{module}.py").write_text(f"raise SystemExit('{module} was imported')")
    result = run_tool(tool, "--help", env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: ")


def test_paddleclas_command_works_as_it_is_typed_there(tmp_path: Path, images: Path) -> None:
    """PaddleClas's YAML path does not exist here. This repository's YAML is used, and a line reports it."""
    path = "./ppcls/configs/ImageNet/Xception/Xception41.yaml"
    overrides = [
        "Global.device=cpu",
        "Arch.class_num=3",
        "Global.epochs=1",
        f"Global.output_dir={tmp_path}/output",
    ]
    for mode, name in (("Train", "train"), ("Eval", "val")):
        overrides += [
            f"DataLoader.{mode}.dataset.image_root={images}",
            f"DataLoader.{mode}.sampler.batch_size=6",
        ]
        overrides += [f"DataLoader.{mode}.dataset.cls_label_path={images}/{name}_list.txt"]
    overrides += ["DataLoader.Train.dataset.transform_ops.RandCropImage.size=71"]
    overrides += [
        f"DataLoader.Eval.dataset.transform_ops.{step}"
        for step in ("ResizeImage.resize_short=75", "CropImage.size=71")
    ]
    result = run_tool("tools/train.py", "-c", path, *[word for o in overrides for word in ("-o", o)])
    assert result.returncode == 0, result.stderr
    assert result.stderr == f"{path} does not exist; {ROOT}/configs/Xception41.yaml is used\n"
    assert (tmp_path / "output/Xception41/best_model.pdparams").is_file()
    wrong = run_tool("tools/train.py", "-c", "ppcls/configs/ImageNet/ResNet/ResNet50.yaml")
    assert wrong.returncode == 2
    assert "no such config file" in wrong.stderr
