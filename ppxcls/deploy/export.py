"""Exports a trained network for Paddle Inference and ONNX, and compares each export with the network."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from ppxcls.checkpoints.files import CheckpointError
from ppxcls.data.device import DeviceTransform, ModelInput
from ppxcls.data.transforms import DeviceStage
from ppxcls.deploy.fold import fold_batch_norms
from ppxcls.deploy.runners import Array, Runner, network_runner, onnx_runner, paddle_runner
from ppxcls.system.logs import logger

_OPSET = 17
_TOLERANCE = 1e-4  # relative to the largest output; float32 sums differ with their order


class Deployed(nn.Layer):
    """The network with its preprocessing and its softmax.

    Args:
        model: the network.
        stage: what is left to the device, done in the graph on uint8 [N, H, W, 3]; None takes normalised float32 [N, 3, H, W].
        softmax: probabilities instead of logits.
    """

    def __init__(self, model: nn.Layer, stage: DeviceStage | None, softmax: bool) -> None:
        super().__init__()
        self.model = model
        self._softmax = softmax
        self._prepare = DeviceTransform(stage or DeviceStage(normalize=None, chw=True))

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """[N, H, W, 3] or [N, 3, H, W] to [N, class_num]."""
        logits = self.model(self._prepare(images))
        return F.softmax(logits, axis=-1) if self._softmax else logits


def export_model(
    model: nn.Layer,
    stage: DeviceStage,
    images: Array,
    folder: Path,
    facts: dict[str, Any],
    formats: Sequence[str] = ("paddle", "onnx"),
    softmax: bool = True,
    preprocess: bool = True,
    fold: bool = False,
) -> dict[str, float]:
    """Write ``inference.json`` with ``.pdiparams``, ``inference.onnx``, and the side file ``inference_config.json``.

    Args:
        model: in evaluation mode.
        stage: of the transforms that made the images.
        images: real images after the host's transforms, [N, ...]. The exported files take batches of any size.
        folder: for the files.
        facts: for the side file: transforms, class names.
        formats: ``paddle``, ``onnx``.
        softmax: give probabilities instead of logits.
        preprocess: put normalisation into the graph, so that its input is uint8 [N, H, W, 3].
        fold: fold batch norms into the convolutions before them.

    Returns:
        Largest difference from the network, by format.

    Raises:
        CheckpointError: an export differs from the network, or the package that writes it is not installed.
        OSError: a file can't be written.
    """
    expected = network_runner(model, stage)(images)
    to_input = ModelInput(stage)
    inputs = images if preprocess else to_input(images).numpy()
    if fold:
        count = fold_batch_norms(model, to_input(images[:1]))
        logger.info(f"folded {count} batch norms into their convolutions")
    deployed = Deployed(model, stage if preprocess else None, softmax)
    deployed.eval()
    if softmax:
        expected = F.softmax(paddle.to_tensor(expected), axis=-1).numpy()
    folder.mkdir(parents=True, exist_ok=True)
    spec = paddle.static.InputSpec([None, *inputs.shape[1:]], str(inputs.dtype), "images")
    paddle.jit.save(paddle.jit.to_static(deployed, input_spec=[spec], full_graph=True), str(folder / "inference"))
    differences = {}
    if "paddle" in formats:
        differences["paddle"] = _compared("Paddle Inference", paddle_runner(folder), inputs, expected)
    if "onnx" in formats:
        _write_onnx(folder)
        differences["onnx"] = _compared("ONNX Runtime", onnx_runner(folder / "inference.onnx"), inputs, expected)
    side = {
        **facts,
        "input": {"name": "images", "dtype": str(inputs.dtype), "shape": [None, *inputs.shape[1:]]},
        "output": "probabilities" if softmax else "logits",
        "preprocessing in the graph": preprocess,
        "largest difference from the network": differences,
    }
    text = json.dumps(side, indent=1, ensure_ascii=False) + "\n"
    (folder / "inference_config.json").write_text(text, encoding="utf-8")
    return differences


def _compared(name: str, runner: Runner, images: Array, expected: Array) -> float:
    received = np.concatenate([runner(images[:1]), runner(images[1:])]) if len(images) > 1 else runner(images)
    difference = float(np.abs(received - expected).max())
    same = int((received.argmax(axis=1) == expected.argmax(axis=1)).sum())
    logger.info(f"{name}: largest difference {difference:.2e} on {len(images)} images, top-1 equal on {same}")
    if difference > _TOLERANCE * float(np.abs(expected).max()) or same < len(images):
        raise CheckpointError(f"{name} differs from the network by {difference:.2e}, top-1 equal on {same} of {len(images)} images")
    return difference


def _write_onnx(folder: Path) -> None:
    try:
        import paddle2onnx
    except ImportError:
        raise CheckpointError("to write ONNX needs paddle2onnx: pip install 'ppxcls[export]'") from None
    logging.getLogger("paddle2onnx").setLevel(logging.WARNING)
    paddle2onnx.export(
        str(folder / "inference.json"),
        str(folder / "inference.pdiparams"),
        str(folder / "inference.onnx"),
        opset_version=_OPSET,
        enable_optimize=False,  # it would install packages at run time
    )
