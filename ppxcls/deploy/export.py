"""Exports a trained network for Paddle Inference and ONNX, and compares each export with the network."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from ppxcls.checkpoints.files import CheckpointError
from ppxcls.data.device import DeviceTransform, ModelInput
from ppxcls.data.transforms import DeviceStage
from ppxcls.deploy.fold import fold_batch_norms
from ppxcls.deploy.runners import Array, Runner, network_runner, onnx_runner, paddle_runner
from ppxcls.deploy.side_file import METADATA_KEY, Exported, write_side_files
from ppxcls.models.tracing import to_static
from ppxcls.system.environment import paddle_version
from ppxcls.system.logs import logger
from ppxcls.system.whole_files import write_bytes
from ppxcls.train.paddle_inference import program_file

_OPSET = 17
_FILES = (
    *(
        "inference.json",
        "inference.pdmodel",
        "inference.pdiparams",
        "inference.pdiparams.info",
        "inference.onnx",
    ),
    *("inference.yml", "inference_config.json", "inference.int8.onnx"),
)
_TOLERANCE = 1e-4  # relative to the largest output; float32 sums differ with their order


class Deployed(nn.Layer):
    """The network with its preprocessing and its softmax.

    Args:
        model: the network.
        stage: what is left to the device, done in the graph on uint8 [N, H, W, 3]; None takes normalised
            float32 [N, 3, H, W].
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
    exported: Exported,
    formats: Sequence[str] = ("paddle", "onnx"),
    fold: bool = False,
) -> dict[str, float]:
    """Write ``inference.json`` (Paddle 2: ``.pdmodel``) with ``.pdiparams``, ``inference.onnx``, and the side
    files.

    The same weights give the same bytes, and nothing is installed or fetched.

    Args:
        model: in evaluation mode.
        stage: of the transforms that made the images.
        images: to compare on, after the host's transforms, [N, ...]. The exported files take batches of any
            size.
        folder: for the files.
        exported: what the files say of themselves; it decides about softmax, and about normalisation in the
            graph.
        formats: ``paddle``, ``onnx``.
        fold: fold batch norms into the convolutions before them.

    Returns:
        Largest difference from the network, by format.

    Raises:
        CheckpointError: an export differs from the network, or the package that writes it is not installed.
        OSError: a file can't be written.
    """
    expected = network_runner(model, stage)(images)
    to_input = ModelInput(stage)
    inputs = images if exported.preprocesses else to_input(images).numpy()
    if fold:
        count = fold_batch_norms(model, to_input(images[:1]))
        logger.info(f"folded {count} batch norms into their convolutions")
    deployed = Deployed(model, stage if exported.preprocesses else None, softmax=not exported.gives_logits)
    deployed.eval()
    if not exported.gives_logits:
        expected = F.softmax(paddle.to_tensor(expected), axis=-1).numpy()
    folder.mkdir(parents=True, exist_ok=True)
    spec = paddle.static.InputSpec([None, *inputs.shape[1:]], str(inputs.dtype), "images")
    program = to_static(deployed, spec)
    differences = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as temporary:
        ready = Path(temporary)
        paddle.jit.save(program, f"{ready}/inference")
        if "onnx" in formats:
            _write_onnx(ready, ready / "inference.onnx", exported)
            differences["onnx"] = _compared(
                "ONNX Runtime", onnx_runner(ready / "inference.onnx"), inputs, expected
            )
        if "paddle" in formats:
            differences["paddle"] = _compared("Paddle Inference", paddle_runner(ready), inputs, expected)
        else:
            for file in ready.glob("inference.[!o]*"):
                file.unlink()
        about = {"name": "images", "dtype": str(inputs.dtype), "shape": [None, *inputs.shape[1:]]}
        facts = {"input": about, "largest difference from the network": differences}
        write_side_files(ready, exported, facts, "paddle" in formats)
        _replace(folder, ready)
    return differences


def _replace(folder: Path, ready: Path) -> None:
    """Move whole, compared files into the folder, and remove those of an earlier export, which may be another network's."""
    for name in _FILES:
        if not (ready / name).exists() and (folder / name).exists():
            (folder / name).unlink()
            logger.warning(f"removed {folder / name}, which an earlier export wrote")
    for file in sorted(ready.iterdir()):
        file.replace(folder / file.name)


def _compared(name: str, runner: Runner, images: Array, expected: Array) -> float:
    received = np.concatenate([runner(images[:1]), runner(images[1:])]) if len(images) > 1 else runner(images)
    difference = float(np.abs(received - expected).max())
    same = int((received.argmax(axis=1) == expected.argmax(axis=1)).sum())
    logger.info(f"{name}: largest difference {difference:.2e} on {len(images)} images, top-1 equal on {same}")
    if not difference <= _TOLERANCE * float(np.abs(expected).max()) or same < len(
        images
    ):  # NaN is no agreement
        raise CheckpointError(
            f"{name} differs from the network by {difference:.2e}, top-1 equal on {same} of {len(images)} images"
        )
    return difference


def export_extra() -> str:
    """The extra of this package that installs a paddle2onnx for the installed Paddle."""
    return "export" if paddle_version() >= (3, 0) else "export-paddle2"


def _write_onnx(source: Path, target: Path, exported: Exported) -> None:
    try:
        import onnx
        import paddle2onnx
    except ImportError:
        raise CheckpointError(
            f"to write ONNX needs paddle2onnx: pip install 'ppxcls[{export_extra()}]'"
        ) from None
    except ValueError as error:  # paddle2onnx 2 refuses Paddle 2, and says what it wants
        raise CheckpointError(
            f"pip install 'ppxcls[{export_extra()}]': {' '.join(str(error).split())}"
        ) from None
    logging.getLogger("paddle2onnx").setLevel(logging.WARNING)
    model = paddle2onnx.export(
        str(program_file(source)),
        str(source / "inference.pdiparams"),
        None,  # returns the model; to write it, the converter would run optimizers that install packages at run time
        opset_version=_OPSET,
        enable_optimize=False,
    )
    parsed = onnx.load_model_from_string(model)
    entry = parsed.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(exported.as_dict(), ensure_ascii=False)
    write_bytes(target, parsed.SerializeToString(deterministic=True))
