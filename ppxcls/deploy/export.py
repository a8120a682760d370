"""Exports a trained network for Paddle Inference and ONNX, and compares each export with the network."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from ppxcls.checkpoints.files import CheckpointError
from ppxcls.data.device import DeviceTransform, ModelInput, device_array
from ppxcls.data.transforms import DeviceStage
from ppxcls.deploy.fold import fold_batch_norms
from ppxcls.deploy.metadata import METADATA_KEY, ExportMetadata, write_paddlex_file
from ppxcls.deploy.program import read_program
from ppxcls.deploy.program_files import reason_for_trust
from ppxcls.deploy.runners import Runner, network_runner, onnx_runner, paddle_runner
from ppxcls.deploy.saved_program import save_program
from ppxcls.deploy.whole_export import commit_export, staging_folder
from ppxcls.models.tracing import to_static
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import write_bytes
from ppxcls.system.json_text import json_text
from ppxcls.system.logs import logger
from ppxcls.system.tf32 import tf32_off
from ppxcls.train.predictions import NOT_FINITE

_RUNNER_NAMES = {"onnx": "ONNX Runtime", "paddle": "Paddle Inference"}
_MAX_ERROR_CHARACTERS = 500  # of an error that is only logged; Paddle's contain whole pages
_SMALLEST_PROBABILITY = 1e-30  # smaller ones lose digits in float32
_TOLERANCE = 1e-4  # relative to the largest output; float32 sums depend on their order


class ExportedNetwork(nn.Layer):
    """The network with its preprocessing and softmax, as it is exported.

    Args:
        model: the network.
        stage: device part of the transforms, done in the graph on uint8 [N, H, W, C], or on float32 for
            values of 16 bits; None for normalised float32 [N, C, H, W] as input.
        softmax: True for probabilities as output, False for logits.
        temperature: divisor of the logits before the softmax.
    """

    def __init__(
        self, model: nn.Layer, stage: DeviceStage | None, *, softmax: bool, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.model = model
        self._has_softmax = softmax
        self._temperature = temperature
        self.preprocessing = DeviceTransform(stage or DeviceStage(normalize=None, chw=True))

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Maps images [N, H, W, C] or [N, C, H, W] to logits or probabilities [N, class_num]."""
        logits = self.model(self.preprocessing(images))
        if not self._has_softmax:
            return logits
        if self._temperature != 1:
            logits = logits / self._temperature
        return F.softmax(logits, axis=-1)


def export_model(
    model: nn.Layer,
    stage: DeviceStage,
    *,
    images: Array,
    folder: Path,
    metadata: ExportMetadata,
    formats: Sequence[str] = ("paddle", "onnx"),
    fold: bool = False,
    quantise: Callable[[Path], object] | None = None,
) -> dict[str, float]:
    """Writes the exported files of a network, and compares each export with the network.

    The files are ``inference.json`` (Paddle 2: ``.pdmodel``) with ``.pdiparams``, ``inference.onnx``, and the
    metadata files. The same weights give the same bytes.

    The export is whole or not at all, see ``whole_export``. If a format can't be written, or differs from the
    network, the others are still written. Then the error is raised.

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
        quantise: function that adds an 8-bit file to a folder with ``inference.onnx``; None for no such file.

    Returns:
        Largest difference from the network, by format.

    Raises:
        CheckpointError: an export differs from the network, or the package that writes it is not installed.
        OSError: a file can't be written.
    """
    with tf32_off():  # its rounding is larger than the tolerance
        return _export_and_compare(
            model,
            stage,
            images=images,
            folder=folder,
            metadata=metadata,
            formats=formats,
            fold=fold,
            quantise=quantise,
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
    quantise: Callable[[Path], object] | None,
) -> dict[str, float]:
    logits = network_runner(model, stage)(images)
    if not np.isfinite(logits).all():
        raise CheckpointError(f"{metadata.weights}: {NOT_FINITE}, so nothing is written")
    to_input = ModelInput(stage)
    inputs = device_array(images) if metadata.preprocesses else to_input(images).numpy()
    if fold:
        count = fold_batch_norms(model, to_input(images[:1]))
        logger.info(f"folded {count} batch norms into their convolutions")
    exported_network = ExportedNetwork(
        model,
        stage if metadata.preprocesses else None,
        softmax=not metadata.gives_logits,
        temperature=metadata.graph_temperature,
    )
    exported_network.eval()
    spec = paddle.static.InputSpec([None, *inputs.shape[1:]], str(inputs.dtype), "images")
    traced_network = to_static(exported_network, spec)
    export = _Export(
        exported_network,
        metadata,
        traced_network=traced_network,
        folder=folder,
        example=(inputs, logits / metadata.graph_temperature),
    )
    with staging_folder(folder) as staging:
        for name in sorted(formats):
            export.try_format(name, partial(export.write, name, staging))
        if quantise and "onnx" in export.differences:
            export.try_format("int8", partial(quantise, staging))
        if export.differences:
            description = {"name": "images", "dtype": str(inputs.dtype), "shape": [None, *inputs.shape[1:]]}
            facts = {"input": description, "largest difference from the network": export.differences}
            if "paddle" in export.differences and not metadata.preprocesses:
                write_paddlex_file(staging, metadata)
            commit_export(folder, staging, {**metadata.as_dict(), **facts})
    export.raise_first_error()
    return export.differences


class _Export:
    """Writes one traced network in several formats, and compares each with the network.

    Attributes:
        differences: largest difference from the network, by format.

    Args:
        network: the network, in evaluation mode.
        metadata: metadata of the exported files.
        traced_network: result of ``to_static`` for the network.
        folder: output folder, for messages.
        example: inputs for the comparison, and the network's logits for them, [N, C], divided by the
            temperature of the graph.
    """

    def __init__(
        self,
        network: nn.Layer,
        metadata: ExportMetadata,
        *,
        traced_network: Any,
        folder: Path,
        example: tuple[Array, Array],
    ) -> None:
        self.differences: dict[str, float] = {}
        self._network = network
        self._traced_network = traced_network
        self._metadata = metadata
        self._folder = folder
        self._example = example
        self._errors: dict[str, Exception] = {}

    def try_format(self, name: str, write: Callable[[], object]) -> None:
        """Calls a function that writes a format, and keeps its error, so that others are still written."""
        try:
            write()
        except Exception as error:  # of any kind, because a user's network may make Paddle fail in any way
            self._errors[name] = error

    def raise_first_error(self) -> None:
        """Raises the first error, if there is one. Logs the others, and what is written all the same."""
        errors = list(self._errors.items())
        for name, error in errors[1:]:
            logger.error(f"{name} is not written: {' '.join(str(error).split())[:_MAX_ERROR_CHARACTERS]}")
        if errors:
            if self.differences:
                names = ", ".join(name for name, _ in errors)
                good_names = ", ".join(self.differences)
                logger.warning(f"not written: {names}; written to {self._folder}: {good_names}")
            raise errors[0][1]

    def write(self, name: str, folder: Path) -> None:
        """Writes a format to a folder, and compares it. After an error, no file of the format is there.

        Args:
            name: ``paddle`` or ``onnx``.
            folder: folder for the files.

        Raises:
            CheckpointError: a package is missing, the network can't be written in this format, or the file
                differs from the network.
            OSError: a file can't be written.
        """
        with tempfile.TemporaryDirectory(dir=folder) as path:
            runner = (self._write_paddle if name == "paddle" else self._write_onnx)(Path(path))
            inputs, logits = self._example
            difference = _largest_difference(
                _RUNNER_NAMES[name],
                runner,
                images=inputs,
                logits=logits,
                gives_logits=self._metadata.gives_logits,
            )
            self._warn_of_trust(name, Path(path))
            for file in Path(path).iterdir():
                file.replace(folder / file.name)
        self.differences[name] = difference

    def _warn_of_trust(self, name: str, folder: Path) -> None:
        """Warns if the network has operators that are not known to be harmless. It is the user's own one."""
        reason = reason_for_trust(folder if name == "paddle" else folder / "inference.onnx")
        if reason is not None:
            reason = reason.replace(str(folder), str(self._folder))
            logger.warning(f"{reason}; so whoever loads this export needs --trust (trust=True)")

    def _write_paddle(self, folder: Path) -> Runner:
        save_program(self._traced_network, self._network, folder, self._folder)
        return paddle_runner(folder, trust=True)  # it was written here

    def _write_onnx(self, folder: Path) -> Runner:
        for package in ("onnx", "onnxruntime"):
            if importlib.util.find_spec(package) is None:
                raise CheckpointError(f"writing ONNX needs {package}: pip install 'ppxcls[export]'")
        from ppxcls.deploy.onnx_graph import onnx_model

        tensors = [*self._network.named_parameters(), *self._network.named_buffers()]
        program = read_program(
            self._traced_network, {key.removeprefix("model."): tensor for key, tensor in tensors}
        )
        output_name = "logits" if self._metadata.gives_logits else "probabilities"
        model = onnx_model(program, input_name="images", output_name=output_name)
        entry = model.metadata_props.add()
        entry.key = METADATA_KEY
        entry.value = json_text(self._metadata.as_dict())
        file = folder / "inference.onnx"
        try:
            write_bytes(file, model.SerializeToString(deterministic=True))
        except OSError as error:
            error.filename = str(self._folder / file.name)  # a user does not know the temporary folder
            raise
        return onnx_runner(file, on_cpu=True, trust=True)


def _largest_difference(
    name: str, runner: Runner, *, images: Array, logits: Array, gives_logits: bool
) -> float:
    """Returns the largest difference between the outputs of exported files and of the network.

    Probabilities of a confident network are near 0 and 1 for any logits. So their logarithms are compared
    too, which show the differences between the logits.

    Args:
        name: name of the runtime, for messages.
        runner: function that runs the exported files.
        images: inputs.
        logits: logits of the network, [N, C].
        gives_logits: True if the exported files give logits; False for probabilities.

    Raises:
        CheckpointError: the outputs differ.
    """
    received = np.concatenate([runner(images[:1]), runner(images[1:])]) if len(images) > 1 else runner(images)
    logits = logits.astype(np.float64)
    log_probabilities = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    expected = logits if gives_logits else np.exp(log_probabilities)
    difference = logit_difference = float(np.abs(received - expected).max())
    if not gives_logits:
        is_visible = log_probabilities > np.log(_SMALLEST_PROBABILITY)
        if is_visible.sum(axis=1).max() < 2:
            logger.warning(f"{name}: only probabilities of 0 and 1 are compared; --logits compares more")
        log_received = np.log(np.maximum(received, _SMALLEST_PROBABILITY / 1e6))
        logit_difference = float(np.abs(log_received - log_probabilities)[is_visible].max())
    equal_count = int((received.argmax(axis=1) == expected.argmax(axis=1)).sum())
    logger.info(
        f"{name}: largest difference {difference:.2e} on {len(images)} images, top-1 equal on {equal_count}"
    )
    scale = float(np.abs(logits).max())
    # NaN fails too.
    is_equal = difference <= _TOLERANCE * float(np.abs(expected).max())
    if not (is_equal and logit_difference <= _TOLERANCE * max(scale, 1.0)) or equal_count < len(images):
        raise CheckpointError(
            f"{name} differs from the network by {difference:.2e} (its logits by {logit_difference:.2e}), "
            f"top-1 equal on {equal_count} of {len(images)} images"
        )
    return difference
