"""Exports a trained network for Paddle Inference and ONNX, and compares each export with the network."""

from __future__ import annotations

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
from ppxcls.deploy.metadata import METADATA_KEY, ExportMetadata, write_metadata
from ppxcls.deploy.runners import Runner, network_runner, onnx_runner, paddle_runner
from ppxcls.deploy.saved_program import save_program
from ppxcls.models.tracing import to_static
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import write_bytes
from ppxcls.system.environment import paddle_version
from ppxcls.system.json_text import json_text
from ppxcls.system.logs import logger
from ppxcls.system.tf32 import tf32_off
from ppxcls.train.paddle_inference import program_file
from ppxcls.train.predictions import NOT_FINITE

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
_TOLERANCE = 1e-4  # relative to the largest output; float32 sums depend on their order


class ExportedNetwork(nn.Layer):
    """The network with its preprocessing and softmax, as it is exported.

    Args:
        model: the network.
        stage: device part of the transforms, done in the graph on uint8 [N, H, W, 3]; None for normalised
            float32 [N, 3, H, W] as input.
        softmax: True for probabilities as output, False for logits.
    """

    def __init__(self, model: nn.Layer, stage: DeviceStage | None, *, softmax: bool) -> None:
        super().__init__()
        self.model = model
        self._has_softmax = softmax
        self._prepare = DeviceTransform(stage or DeviceStage(normalize=None, chw=True))

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Maps images [N, H, W, 3] or [N, 3, H, W] to logits or probabilities [N, class_num]."""
        logits = self.model(self._prepare(images))
        return F.softmax(logits, axis=-1) if self._has_softmax else logits


def export_model(
    model: nn.Layer,
    stage: DeviceStage,
    *,
    images: Array,
    folder: Path,
    metadata: ExportMetadata,
    formats: Sequence[str] = ("paddle", "onnx"),
    fold: bool = False,
) -> dict[str, float]:
    """Writes the exported files of a network, and compares each export with the network.

    The files are ``inference.json`` (Paddle 2: ``.pdmodel``) with ``.pdiparams``, ``inference.onnx``, and the
    metadata files. The same weights give the same bytes. Nothing is installed or downloaded.

    The comparison is in full float32: TensorFloat-32 is off, and ONNX Runtime computes on the CPU.

    Args:
        model: network in evaluation mode.
        stage: device part of the transforms that produced the images.
        images: images for the comparison, after the host's transforms, [N, ...]. The exported files accept
            batches of any size.
        folder: output folder.
        metadata: metadata of the exported files. It decides whether the graph contains the softmax and the
            normalisation.
        formats: formats to write: ``paddle``, ``onnx``.
        fold: True to fold batch norms into the convolutions before them.

    Returns:
        Largest difference from the network, by format.

    Raises:
        CheckpointError: an export differs from the network, or the package that writes it is not installed.
        OSError: a file can't be written.
    """
    with tf32_off():  # its rounding is larger than the tolerance
        return _export_and_compare(
            model, stage, images=images, folder=folder, metadata=metadata, formats=formats, fold=fold
        )


def _export_and_compare(
    model: nn.Layer,
    stage: DeviceStage,
    *,
    images: Array,
    folder: Path,
    metadata: ExportMetadata,
    formats: Sequence[str],
    fold: bool,
) -> dict[str, float]:
    expected = network_runner(model, stage)(images)
    if not np.isfinite(expected).all():
        raise CheckpointError(f"{metadata.weights}: {NOT_FINITE}, so nothing is written")
    to_input = ModelInput(stage)
    inputs = images if metadata.preprocesses else to_input(images).numpy()
    if fold:
        count = fold_batch_norms(model, to_input(images[:1]))
        logger.info(f"folded {count} batch norms into their convolutions")
    exported_network = ExportedNetwork(
        model, stage if metadata.preprocesses else None, softmax=not metadata.gives_logits
    )
    exported_network.eval()
    if not metadata.gives_logits:
        expected = F.softmax(paddle.to_tensor(expected), axis=-1).numpy()
    folder.mkdir(parents=True, exist_ok=True)
    spec = paddle.static.InputSpec([None, *inputs.shape[1:]], str(inputs.dtype), "images")
    program = to_static(exported_network, spec)
    differences = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as temporary_folder:
        staging_folder = Path(temporary_folder)
        save_program(program, exported_network, staging_folder, folder)
        if "onnx" in formats:
            _write_onnx(staging_folder, staging_folder / "inference.onnx", metadata)
            differences["onnx"] = _largest_difference(
                "ONNX Runtime",
                onnx_runner(staging_folder / "inference.onnx", on_cpu=True),
                inputs,
                expected,
            )
        if "paddle" in formats:
            differences["paddle"] = _largest_difference(
                "Paddle Inference", paddle_runner(staging_folder), inputs, expected
            )
        else:
            for file in staging_folder.glob("inference.[!o]*"):
                file.unlink()
        input_description = {"name": "images", "dtype": str(inputs.dtype), "shape": [None, *inputs.shape[1:]]}
        facts = {"input": input_description, "largest difference from the network": differences}
        write_metadata(staging_folder, metadata, facts, has_paddle_files="paddle" in formats)
        _replace_files(folder, staging_folder)
    return differences


def _replace_files(folder: Path, staging_folder: Path) -> None:
    """Moves complete, compared files into the folder, and removes those of an earlier export.

    The earlier export may be of another network.
    """
    for name in _FILES:
        if not (staging_folder / name).exists() and (folder / name).exists():
            (folder / name).unlink()
            logger.warning(f"removed {folder / name}, which an earlier export wrote")
    for file in sorted(staging_folder.iterdir()):
        file.replace(folder / file.name)


def _largest_difference(name: str, runner: Runner, images: Array, expected: Array) -> float:
    received = np.concatenate([runner(images[:1]), runner(images[1:])]) if len(images) > 1 else runner(images)
    difference = float(np.abs(received - expected).max())
    equal_count = int((received.argmax(axis=1) == expected.argmax(axis=1)).sum())
    logger.info(
        f"{name}: largest difference {difference:.2e} on {len(images)} images, top-1 equal on {equal_count}"
    )
    # NaN fails too.
    if not difference <= _TOLERANCE * float(np.abs(expected).max()) or equal_count < len(images):
        raise CheckpointError(
            f"{name} differs from the network by {difference:.2e}, "
            f"top-1 equal on {equal_count} of {len(images)} images"
        )
    return difference


def export_extra() -> str:
    """Returns the extra of this package that installs a paddle2onnx for the installed Paddle."""
    return "export" if paddle_version() >= (3, 0) else "export-paddle2"


def _write_onnx(source: Path, target: Path, metadata: ExportMetadata) -> None:
    try:
        import onnx
        import paddle2onnx
    except ImportError:
        raise CheckpointError(
            f"writing ONNX needs paddle2onnx: pip install 'ppxcls[{export_extra()}]'"
        ) from None
    except ValueError as error:  # paddle2onnx 2 rejects Paddle 2, with a message about what it needs
        raise CheckpointError(
            f"pip install 'ppxcls[{export_extra()}]': {' '.join(str(error).split())}"
        ) from None
    logging.getLogger("paddle2onnx").setLevel(logging.WARNING)
    serialized_model = paddle2onnx.export(
        str(program_file(source)),
        str(source / "inference.pdiparams"),
        # None returns the model. To write a file, the converter would run optimizers that install packages.
        None,
        opset_version=_OPSET,
        enable_optimize=False,
    )
    onnx_model = onnx.load_model_from_string(serialized_model)
    entry = onnx_model.metadata_props.add()
    entry.key = METADATA_KEY
    entry.value = json_text(metadata.as_dict())
    write_bytes(target, onnx_model.SerializeToString(deterministic=True))
