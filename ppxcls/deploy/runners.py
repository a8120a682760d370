"""Runners: the network itself, or exported files under Paddle Inference or ONNX Runtime.

A runner takes and returns a numpy array.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppxcls.checkpoints.files import CheckpointError
from ppxcls.checkpoints.wrong_files import wrong_kind
from ppxcls.data.device import ModelInput
from ppxcls.data.transforms import DeviceStage
from ppxcls.system.arrays import Array
from ppxcls.system.environment import paddle_version, usable_cores
from ppxcls.system.logs import logger
from ppxcls.system.packages import import_problem
from ppxcls.train.paddle_inference import EvaluatedNetwork, InferenceProgram, program_file

EXPORT_HINT = "pip install 'ppxcls[export]'"
_HEADER_BYTES = 4096  # bytes that tell the kind of a file
Runner = Callable[[Array], Array]


def network_runner(model: nn.Layer, stage: DeviceStage, image_count: int = 0) -> Runner:
    """Returns a runner of the network.

    It takes images after the host's transforms, and returns logits, float32 [N, class_num].

    Args:
        model: the network.
        stage: device part of the transforms.
        image_count: number of images to predict, if known; see ``EvaluatedNetwork``.
    """
    to_input = ModelInput(stage)
    model.eval()
    network = EvaluatedNetwork(model, image_count)

    def run(images: Array) -> Array:
        with paddle.no_grad():
            return network(to_input(images)).numpy()

    return run


def paddle_runner(
    folder: Path,
    threads: int | None = None,
    *,
    read: Callable[[], AbstractContextManager[list[Path]]] | None = None,
) -> Runner:
    """Returns a runner of an exported folder under Paddle Inference.

    It runs on the current device of Paddle if that is a GPU, else on the CPU with oneDNN.

    Args:
        folder: folder with ``inference.pdiparams``, and ``inference.json`` of Paddle 3 or
            ``inference.pdmodel`` of Paddle 2.
        threads: number of threads on the CPU; None for one per core.
        read: function that returns a context with the files at another place, if they are in the folder only
            now; None if they stay.

    Raises:
        CheckpointError: the files are missing or are not exported models.
    """
    model, weights = program_file(folder), folder / "inference.pdiparams"
    if not weights.is_file():
        raise CheckpointError(f"{weights}: no such file")
    if model.suffix == ".json" and paddle_version() < (3, 0):
        raise CheckpointError(
            f"{model}: written by Paddle 3, which Paddle {paddle.__version__} can't read; "
            "export again with this version"
        )
    threads = threads or usable_cores()
    predictor = InferenceProgram(model, weights, threads=threads, with_onednn=True)

    def run(images: Array) -> Array:
        nonlocal predictor
        try:
            return predictor(images)
        except (RuntimeError, NotImplementedError) as error:
            if "ConvertPirAttribute2RuntimeAttribute" not in str(error):  # a bug of Paddle 3.3
                raise
            logger.warning(
                f"Paddle {paddle.__version__} can't run {model} with oneDNN; "
                "it runs without oneDNN, more slowly"
            )
            with read() if read else nullcontext([model, weights]) as files:
                place = files[0].parent
                predictor = InferenceProgram(
                    place / model.name, place / weights.name, threads=threads, with_onednn=False
                )
            return predictor(images)

    return run


def onnx_metadata(file: Path) -> dict[str, str]:
    """Reads the metadata of an exported ``.onnx`` file.

    Raises:
        CheckpointError: as in ``onnx_runner``.
    """
    return dict(_onnx_session(file, None, on_cpu=True).get_modelmeta().custom_metadata_map)


def onnx_runner(file: Path, threads: int | None = None, *, on_cpu: bool = False) -> Runner:
    """Returns a runner of an exported ``.onnx`` file under ONNX Runtime.

    Args:
        file: ONNX file.
        threads: number of threads on the CPU; None for one per core.
        on_cpu: True to use the CPU, although ONNX Runtime supports another device.

    Raises:
        CheckpointError: ONNX Runtime is not installed, or the file is not an ONNX model.
    """
    session = _onnx_session(file, threads, on_cpu=on_cpu)
    input_name = session.get_inputs()[0].name

    def run(images: Array) -> Array:
        return session.run(None, {input_name: np.ascontiguousarray(images)})[0]

    return run


def _onnx_session(file: Path, threads: int | None, *, on_cpu: bool) -> Any:
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    if problem := import_problem("onnxruntime", EXPORT_HINT):
        raise CheckpointError(f"{file}: running it needs {problem}")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    providers = ["CPUExecutionProvider"] if on_cpu else onnxruntime.get_available_providers()
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # ONNX Runtime's error classes have no common base class
        with open(file, "rb") as stream:
            kind = wrong_kind(stream.read(_HEADER_BYTES), file.suffix)
        if kind:
            raise CheckpointError(f"{file}: not an ONNX model, but {kind}") from None
        raise CheckpointError(f"{file}: not an ONNX model: {' '.join(str(error).split())[:200]}") from None
