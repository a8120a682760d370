"""Quantises an exported ONNX file to 8 bits, and measures the loss of accuracy and the gain in speed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppxcls.checkpoints.files import CheckpointError
from ppxcls.data.dataset import Dataset
from ppxcls.data.device import ModelInput, device_array
from ppxcls.data.errors import DataError
from ppxcls.deploy.metadata import METADATA_KEY, ExportMetadata
from ppxcls.deploy.program_files import read_onnx
from ppxcls.deploy.runners import EXPORT_HINT, Runner, onnx_runner
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import write_bytes
from ppxcls.system.json_text import json_text
from ppxcls.system.logs import logger
from ppxcls.system.packages import import_problem

INT8_FILE = "inference.int8.onnx"
_TOLERATED_LOST_IMAGES = 3  # images; a loss of up to this many is always accepted
_CALIBRATION_IMAGES, _EVALUATION_IMAGES, _BATCH_IMAGES = 128, 1000, 8  # images


@dataclass(frozen=True)
class QuantisationResult:
    """Accuracy, speed and size of an 8-bit file, compared with the float32 file.

    Attributes:
        images: number of evaluated images.
        top1: top-1 accuracy of the float32 file, from 0 to 1.
        int8_top1: top-1 accuracy of the 8-bit file, from 0 to 1.
        speed: images/s of the 8-bit file divided by those of the float32 file, on this machine.
        size: bytes of the 8-bit file divided by those of the float32 file.
    """

    images: int
    top1: float
    int8_top1: float
    speed: float
    size: float

    def __str__(self) -> str:
        loss = 100 * (self.top1 - self.int8_top1)
        return (
            f"INT8: top-1 {self.int8_top1:.4f}, float32 {self.top1:.4f}, on {self.images} images "
            f"({loss:+.2f} points lost); "
            f"{self.speed:.2f} times as fast on this machine, {self.size:.2f} times the size"
        )


def quantise(
    folder: Path,
    metadata: ExportMetadata,
    *,
    calibration: Dataset,
    evaluation: Dataset,
    max_loss: float = 0.01,
) -> QuantisationResult:
    """Writes ``inference.int8.onnx`` next to ``inference.onnx``, with weights and activations in 8 bits.

    Weights are quantised by channel. The ranges of the activations come from up to 128 calibration images.
    Both files predict up to 1,000 evaluation images.

    Args:
        folder: folder that contains ``inference.onnx``, which this process has just written. So it is loaded
            whatever operators it has.
        metadata: metadata of the exported file.
        calibration: images like those to predict later.
        evaluation: images with labels, which were not used for training.
        max_loss: largest accepted loss of top-1, as a fraction. If the loss is larger, and more than three
            images, nothing is written.

    Returns:
        The measured accuracy, speed and size.

    Raises:
        CheckpointError: a package is missing, or the loss is too large.
        DataError: no image can be read.
        OSError: the file can't be written.
    """
    source, target = folder / "inference.onnx", folder / INT8_FILE
    with tempfile.TemporaryDirectory(dir=folder, prefix=".int8-") as temporary_folder:
        quantised_file = Path(temporary_folder) / INT8_FILE
        to_input = None if metadata.preprocesses else ModelInput(evaluation.device_stage)
        quantise_file(
            source,
            quantised_file,
            list(_batches(calibration, _CALIBRATION_IMAGES, to_input)),
            Path(temporary_folder),
        )
        result = _compare_files(source, quantised_file, _batches(evaluation, _EVALUATION_IMAGES, to_input))
        logger.info(str(result))
        if result.top1 - result.int8_top1 > max(max_loss, _TOLERATED_LOST_IMAGES / result.images):
            loss_text = f"{100 * (result.top1 - result.int8_top1):.2f} points of top-1"
            raise CheckpointError(
                f"INT8 loses {loss_text} on {result.images} images, more than {100 * max_loss:g}: not written"
            )
        _write_with_metadata(quantised_file, target, metadata, result)
    return result


def _batches(dataset: Dataset, max_images: int, to_input: ModelInput | None) -> Iterator[tuple[Array, Array]]:
    """Yields batches of inputs and labels, evenly spaced over the whole data set.

    Images that can't be read are skipped, and so are images with another shape than the first one.
    """

    def batch() -> tuple[Array, Array]:
        stacked_images = np.stack(images)
        inputs = device_array(stacked_images) if to_input is None else to_input(stacked_images).numpy()
        return inputs, np.array(labels)

    images: list[Array] = []
    labels: list[int] = []
    for i in np.linspace(0, len(dataset) - 1, min(max_images, len(dataset))).astype(int).tolist():
        try:
            image = dataset.load(i)
        except DataError as error:
            logger.warning(str(error))
            continue
        if images and image.shape != images[0].shape:
            continue
        images.append(image)
        labels.append(int(dataset.labels[i]))
        if len(images) == _BATCH_IMAGES:
            yield batch()
            images, labels = [], []
    if images:
        yield batch()


class _Calibration:
    """ONNX Runtime's reader of calibration data."""

    def __init__(self, name: str, batches: Sequence[tuple[Array, Array]]) -> None:
        self._remaining_inputs = iter([{name: np.ascontiguousarray(images)} for images, _ in batches])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._remaining_inputs, None)


def check_packages() -> None:
    """Raises CheckpointError if a package for quantisation is missing."""
    for name in ("onnx", "onnxruntime.quantization.shape_inference"):
        if problem := import_problem(name, EXPORT_HINT):
            raise CheckpointError(f"quantisation needs {problem}")


def quantise_file(source: Path, target: Path, batches: Sequence[tuple[Array, Array]], folder: Path) -> None:
    """Writes an 8-bit ONNX file.

    The ranges of the activations come from the images of the batches. The labels are not used.

    Args:
        source: ONNX file that this process has exported. It is loaded whatever operators it has.
        target: file to write.
        batches: images and labels.
        folder: folder for temporary files.

    Raises:
        CheckpointError: the source is not such a file.
        DataError: there are no batches.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if not batches:
        raise DataError("none of the calibration images can be read")
    data, _ = read_onnx(source, trust=True)
    checked_file, prepared_file = folder / "checked.onnx", folder / "prepared.onnx"
    checked_file.write_bytes(data)
    quant_pre_process(str(checked_file), str(prepared_file), skip_symbolic_shape=True)  # folds batch norms
    input_name = onnx.load(str(prepared_file)).graph.input[0].name
    quantization.quantize_static(
        str(prepared_file),
        str(target),
        _Calibration(input_name, batches),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool", "GlobalAveragePool"],
    )


def _compare_files(source: Path, target: Path, batches: Iterable[tuple[Array, Array]]) -> QuantisationResult:
    runners: list[Runner] = [onnx_runner(file, trust=True) for file in (source, target)]
    correct_counts = [0, 0]
    seconds = [0.0, 0.0]
    count = 0
    for images, labels in batches:  # alternates, so that both run under the same machine load
        for runner in runners if not count else ():
            runner(images)  # warm-up
        count += len(labels)
        for i, runner in enumerate(runners):
            start = time.perf_counter()
            outputs = runner(images)
            seconds[i] += time.perf_counter() - start
            correct_counts[i] += int((outputs.argmax(1) == labels).sum())
    if not count:
        raise DataError("none of the evaluation images can be read")
    size = target.stat().st_size / source.stat().st_size
    return QuantisationResult(
        count, correct_counts[0] / count, correct_counts[1] / count, seconds[0] / seconds[1], size
    )


def _write_with_metadata(
    quantised_file: Path, target: Path, metadata: ExportMetadata, result: QuantisationResult
) -> None:
    import onnx

    model = onnx.load(str(quantised_file))
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    facts = {
        **metadata.as_dict(),
        "int8": {"images": result.images, "top1": result.top1, "int8_top1": result.int8_top1},
    }
    entry.key = METADATA_KEY
    entry.value = json_text(facts)
    write_bytes(target, model.SerializeToString(deterministic=True))
