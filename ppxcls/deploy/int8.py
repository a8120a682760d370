"""Quantises an exported ONNX file to 8 bits, and measures what that costs in accuracy and gives in speed."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppxcls.checkpoints.files import CheckpointError
from ppxcls.data.dataset import Dataset
from ppxcls.data.device import ModelInput
from ppxcls.data.errors import DataError
from ppxcls.deploy.runners import Array, Runner, onnx_runner
from ppxcls.deploy.side_file import METADATA_KEY, Exported
from ppxcls.system.logs import logger
from ppxcls.system.whole_files import write_bytes

FILE = "inference.int8.onnx"
_CHANCE = 3  # images that may be lost, however few there are
_CALIBRATED_ON, _MEASURED_ON, _BATCH = 128, 1000, 8  # images


@dataclass(frozen=True)
class Quantised:
    """What 8 bits cost and give.

    Attributes:
        images: number of evaluated images.
        top1: share that the float32 file predicts right.
        int8_top1: the same of the 8-bit file.
        speed: images/s of the 8-bit file over those of the float32 file, on this machine.
        size: bytes of the 8-bit file over those of the float32 file.
    """

    images: int
    top1: float
    int8_top1: float
    speed: float
    size: float

    def __str__(self) -> str:
        loss = 100 * (self.top1 - self.int8_top1)
        return (
            f"INT8: top-1 {self.int8_top1:.4f} after {self.top1:.4f} of float32 on {self.images} images ({loss:+.2f} points lost); "
            f"{self.speed:.2f} times as fast here, {self.size:.2f} times the size"
        )


def quantise(
    folder: Path, exported: Exported, calibration: Dataset, evaluation: Dataset, most_loss: float = 0.01
) -> Quantised:
    """Write ``inference.int8.onnx`` beside ``inference.onnx``: weights in 8 bits by channel, activations in 8
    bits.

    The ranges of the activations come from up to 128 images of the calibration data. Both files predict up to
    1,000 images of the evaluation data.

    Args:
        folder: with ``inference.onnx``.
        exported: what the file says of itself.
        calibration: images like those that will come.
        evaluation: images with labels, which were not trained on.
        most_loss: largest loss of top-1, as a share; with more, and more than three images, nothing is
            written.

    Raises:
        CheckpointError: a package is missing, or the loss is larger.
        DataError: no image can be read.
        OSError: the file can't be written.
    """
    source, target = folder / "inference.onnx", folder / FILE
    with tempfile.TemporaryDirectory(dir=folder, prefix=".int8-") as name:
        made = Path(name) / FILE
        to_input = None if exported.preprocesses else ModelInput(evaluation.device_stage)
        with _quiet():
            quantise_file(source, made, list(_batches(calibration, _CALIBRATED_ON, to_input)), Path(name))
            found = _measured(source, made, _batches(evaluation, _MEASURED_ON, to_input))
        logger.info(str(found))
        if found.top1 - found.int8_top1 > max(most_loss, _CHANCE / found.images):
            lost = f"{100 * (found.top1 - found.int8_top1):.2f} points of top-1"
            raise CheckpointError(
                f"INT8 loses {lost} on {found.images} images, more than {100 * most_loss:g}: it is not written"
            )
        _write(made, target, exported, found)
    return found


def _batches(dataset: Dataset, most: int, to_input: ModelInput | None) -> Iterator[tuple[Array, Array]]:
    """Inputs of the file and labels, evenly from the whole list; those that can't be read are left out."""

    def batch() -> tuple[Array, Array]:
        stacked = np.stack(images)
        return stacked if to_input is None else to_input(stacked).numpy(), np.array(labels)

    images: list[Array] = []
    labels: list[int] = []
    for i in np.linspace(0, len(dataset) - 1, min(most, len(dataset))).astype(int).tolist():
        try:
            image = dataset.load(i)
        except DataError as error:
            logger.warning(str(error))
            continue
        if images and image.shape != images[0].shape:
            continue
        images.append(image)
        labels.append(int(dataset.labels[i]))
        if len(images) == _BATCH:
            yield batch()
            images, labels = [], []
    if images:
        yield batch()


class _Calibration:
    """ONNX Runtime's reader of calibration data."""

    def __init__(self, name: str, batches: Sequence[tuple[Array, Array]]) -> None:
        self._rest = iter([{name: np.ascontiguousarray(images)} for images, _ in batches])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._rest, None)


def check_packages() -> None:
    """Raises CheckpointError if a package is missing."""
    try:
        from onnxruntime.quantization import shape_inference  # noqa: F401
    except ImportError as error:
        raise CheckpointError(f"to quantise needs {error.name}: pip install 'ppxcls[export]'") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without ONNX Runtime's advice to prepare the model, which is done, and its warnings of what it removes."""
    import onnxruntime

    def is_other(record: logging.LogRecord) -> bool:
        return "pre-process" not in record.getMessage()

    logging.getLogger().addFilter(is_other)
    onnxruntime.set_default_logger_severity(3)  # errors
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)
        logging.getLogger().removeFilter(is_other)


def quantise_file(source: Path, target: Path, batches: Sequence[tuple[Array, Array]], folder: Path) -> None:
    """Write an 8-bit ONNX file.

    The ranges of the activations come from batches of images; the labels are not used.

    Raises:
        DataError: there are no batches.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if not batches:
        raise DataError("none of the images to calibrate on can be read")
    prepared = folder / "prepared.onnx"
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)  # folds batch norms
    name = onnx.load(str(prepared)).graph.input[0].name
    quantization.quantize_static(
        str(prepared),
        str(target),
        _Calibration(name, batches),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool", "GlobalAveragePool"],
    )


def _measured(source: Path, target: Path, batches: Iterable[tuple[Array, Array]]) -> Quantised:
    runners: list[Runner] = [onnx_runner(source), onnx_runner(target)]
    right, seconds, count = [0, 0], [0.0, 0.0], 0
    for images, labels in batches:  # in turns, so that both meet the same load of the machine
        for runner in runners if not count else ():
            runner(images)  # warms up
        count += len(labels)
        for i, runner in enumerate(runners):
            start = time.perf_counter()
            outputs = runner(images)
            seconds[i] += time.perf_counter() - start
            right[i] += int((outputs.argmax(1) == labels).sum())
    if not count:
        raise DataError("none of the images to evaluate on can be read")
    size = target.stat().st_size / source.stat().st_size
    return Quantised(count, right[0] / count, right[1] / count, seconds[0] / seconds[1], size)


def _write(made: Path, target: Path, exported: Exported, found: Quantised) -> None:
    import onnx

    model = onnx.load(str(made))
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    facts = {
        **exported.as_dict(),
        "int8": {"images": found.images, "top1": found.top1, "int8_top1": found.int8_top1},
    }
    entry.key, entry.value = METADATA_KEY, json.dumps(facts, ensure_ascii=False)
    write_bytes(target, model.SerializeToString(deterministic=True))
