"""The public names: what exists, what type checkers see, and what the functions return."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ppxcls
from tests.conftest import ROOT, load_script

PLUGIN = """
from pathlib import Path
from typing import Any

import numpy as np
import paddle

import ppxcls
from ppxcls.ops import BatchNorm2D, DenseConv2D, DepthwiseConv2D, PointwiseConv2D, ReLU, Stack


@ppxcls.MODELS.register(published=ppxcls.Preprocessing(source="me", input_size=71, crop_share=None, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3))
def Mine(class_num: int = 3) -> paddle.nn.Layer:
    layers = (DenseConv2D(3, 4, kernel_size=3), BatchNorm2D(4), ReLU(), DepthwiseConv2D(4), PointwiseConv2D(4, class_num))
    return Stack(*layers)


@ppxcls.TRANSFORMS.register
class Darken(ppxcls.Transform):
    def __call__(self, image: Any, rng: np.random.Generator) -> Any:
        return image // 2

    def prepare(self, images: ppxcls.PreparedImages) -> ppxcls.PreparedImages:
        return images


@ppxcls.DATASETS.register
class Ones(ppxcls.Dataset):
    def __init__(self, count: int, transform_ops: ppxcls.TransformOps | None = None, class_num: int | None = None) -> None:
        super().__init__(np.zeros(count, int), transform_ops, class_num)


@ppxcls.SAMPLERS.register
class Backwards(ppxcls.DistributedBatchSampler):
    pass


@ppxcls.BATCH_TRANSFORMS.register
class Mirrored(ppxcls.BatchTransform):
    def __call__(self, images: Any, labels: Any, rng: np.random.Generator) -> Any:
        return images, labels


@ppxcls.LOSSES.register
class Quadratic(ppxcls.Loss):
    def __call__(self, logits: Any, labels: Any) -> Any:
        return logits.mean()


@ppxcls.METRICS.register
class Confidence(ppxcls.Metric):
    names = ("confidence",)

    def __call__(self, logits: Any, labels: Any) -> dict[str, Any]:
        return {"confidence": logits.max()}


@ppxcls.OPTIMIZERS.register(is_decoupled=False, state_copies=1)
def Slow(inputs: ppxcls.OptimizerInputs) -> paddle.optimizer.Optimizer:
    return paddle.optimizer.Momentum(**inputs.coupled())


@ppxcls.LR_SCHEDULES.register
def Constant(learning_rate: float) -> Any:
    return lambda t: learning_rate


@ppxcls.TRACKERS.register
class Diary(ppxcls.Tracker):
    files = ("diary.txt",)

    def log(self, kind: str, place: dict[str, int], figures: dict[str, Any]) -> None:
        pass


def use(config: ppxcls.Config) -> list[ppxcls.Prediction]:
    trainer: ppxcls.Trainer = ppxcls.build_trainer(config)
    trainer.fit()
    predictor: ppxcls.Predictor = ppxcls.load(trainer.output_dir)
    reveal_type(predictor)
    return ppxcls.infer(config, ["a.jpg"])
"""


def test_the_block_for_type_checkers_is_current() -> None:
    """``python scripts/write_public_face.py`` writes it."""
    assert (ROOT / "ppxcls/__init__.py").read_text(encoding="utf-8") == load_script(
        "write_public_face"
    ).module_text()


@pytest.mark.parametrize("name", sorted(ppxcls._MODULE_BY_NAME))
def test_every_public_name_exists_and_has_a_docstring_or_is_a_registry(name: str) -> None:
    value = getattr(ppxcls, name)
    assert name in dir(ppxcls)
    assert value is getattr(importlib.import_module(ppxcls._MODULE_BY_NAME[name]), name)
    assert name.isupper() or name == "TransformOps" or value.__doc__


def test_the_public_names_are_typed(tmp_path: Path) -> None:
    """A user's plugin passes a strict type checker, so no public name is ``Any`` to it."""
    pytest.importorskip("mypy")
    file = tmp_path / "plugin.py"
    file.write_text(PLUGIN)
    options = ["--strict", "--follow-imports=silent", "--no-incremental"]
    command = [
        sys.executable,
        "-m",
        "mypy",
        *options,
        "--config-file",
        str(ROOT / "pyproject.toml"),
        str(file),
    ]
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=280)
    assert 'Revealed type is "ppxcls.deploy.predict.Predictor"' in result.stdout, (
        result.stdout + result.stderr
    )
    errors = [line for line in result.stdout.splitlines() if ": error:" in line and "plugin.py" in line]
    assert errors == []


def test_infer_returns_predictions(small: Callable[..., Path], images: Path, tmp_path: Path) -> None:
    config = ppxcls.load_config(small())
    ppxcls.build_trainer(config).fit()
    files = [str(images / f"val/000{i}.png") for i in range(3)]
    (tmp_path / "broken.png").write_bytes(b"no image")
    predictions = ppxcls.infer(config, [*files, str(tmp_path / "broken.png")], topk=2)
    assert [prediction.file for prediction in predictions] == [*files, str(tmp_path / "broken.png")]
    assert all(len(prediction.class_ids) == len(prediction.scores) == 2 for prediction in predictions[:3])
    assert "not an image" in predictions[3].error
    assert ppxcls.infer(config, files[0], topk=1)[0].class_ids == predictions[0].class_ids[:1]
    with pytest.raises(ppxcls.DataError, match="topk: expected an integer of at least 1, received 0"):
        ppxcls.infer(config, files, topk=0)
    with pytest.raises(ppxcls.DataError, match="expected a config, or exported files"):
        ppxcls.infer(None, files)
