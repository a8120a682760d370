"""Runners: the network itself, or exported files under Paddle Inference or ONNX Runtime.

A runner takes and returns a numpy array.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppxcls.checkpoints.files import CheckpointError
from ppxcls.data.device import ModelInput
from ppxcls.data.errors import DataError
from ppxcls.data.transforms import DeviceStage
from ppxcls.deploy.onnx_external import has_external_data
from ppxcls.deploy.program_check import CheckedProgram
from ppxcls.deploy.program_files import paddle_files, read_onnx
from ppxcls.system.arrays import Array
from ppxcls.system.environment import paddle_version, usable_cores
from ppxcls.system.logs import logger
from ppxcls.system.packages import import_problem
from ppxcls.train.paddle_inference import EvaluatedNetwork, InferenceProgram

EXPORT_HINT = "pip install 'ppxcls[export]'"
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
    read: Callable[[], Mapping[str, bytes]] | None = None,
    trust: bool = False,
) -> Runner:
    """Returns a runner of an exported folder under Paddle Inference.

    It runs on the current device of Paddle if that is a GPU, else on the CPU with oneDNN.

    Args:
        folder: folder with ``inference.pdiparams``, and ``inference.json`` of Paddle 3 or
            ``inference.pdmodel`` of Paddle 2.
        threads: number of threads on the CPU; None for one per core.
        read: function that returns the bytes of the files by name; None to read them from the folder.
        trust: True to run the program of another exporter, which may do anything.

    Raises:
        CheckpointError: the files are missing, or are not exported models.
    """

    def load(*, with_onednn: bool) -> tuple[Runner, CheckedProgram | None, Path]:
        contents = read() if read else None
        with paddle_files(folder, contents=contents, trust=trust) as files:
            del contents
            if files.model.suffix == ".json" and paddle_version() < (3, 0):
                raise CheckpointError(
                    f"{files.model}: written by Paddle 3, which Paddle {paddle.__version__} can't read; "
                    "export again with this version"
                )
            try:
                loaded_program = InferenceProgram(
                    files.model_copy,
                    files.weights_copy,
                    threads=threads or usable_cores(),
                    with_onednn=with_onednn,
                )
            except CheckpointError as error:  # it names the copy, which a user does not know
                raise CheckpointError(str(error).replace(str(files.model_copy), str(files.model))) from None
            return loaded_program, files.program, files.model

    predictor, program, model = load(with_onednn=True)

    def run(images: Array) -> Array:
        nonlocal predictor
        check_images(images, program, model)
        try:
            return predictor(images)
        except (RuntimeError, NotImplementedError) as error:
            if "ConvertPirAttribute2RuntimeAttribute" not in str(error):  # a bug of Paddle 3.3
                raise
            logger.warning(
                f"Paddle {paddle.__version__} can't run {model} with oneDNN; "
                "it runs without oneDNN, more slowly"
            )
            predictor, *_ = load(with_onednn=False)
            return predictor(images)

    return run


def onnx_metadata(file: Path, *, trust: bool = False) -> dict[str, str]:
    """Reads the metadata of an exported ``.onnx`` file.

    Raises:
        CheckpointError: as in ``onnx_runner``.
    """
    data, content = read_onnx(file, trust=trust)
    if content is not None:
        return content.metadata
    session = _onnx_session(file, data, None, on_cpu=True)
    return dict(session.get_modelmeta().custom_metadata_map)


def onnx_runner(
    file: Path,
    threads: int | None = None,
    *,
    on_cpu: bool = False,
    contents: bytes | None = None,
    trust: bool = False,
) -> Runner:
    """Returns a runner of an exported ``.onnx`` file under ONNX Runtime.

    Args:
        file: ONNX file.
        threads: number of threads on the CPU; None for one per core.
        on_cpu: True to use the CPU, although ONNX Runtime supports another device.
        contents: bytes of the file, if they were read and checked before.
        trust: True to run the program of another exporter. Its constants must lie in the file's folder.

    Raises:
        CheckpointError: ONNX Runtime is not installed, or the file is not an ONNX model of this package.
    """
    data, content = read_onnx(file, contents=contents, trust=trust)
    del contents
    program = content.program if content else None
    session = _onnx_session(file, data, threads, on_cpu=on_cpu)
    del data
    input_name = session.get_inputs()[0].name

    def run(images: Array) -> Array:
        check_images(images, program, file)
        return session.run(None, {input_name: np.ascontiguousarray(images)})[0]

    return run


def check_images(images: Array, program: CheckedProgram | None, file: Path) -> None:
    """Checks that images are what a program takes. Paddle itself would compute with any shape.

    Args:
        images: batch of images.
        program: the checked program; None for one of another exporter.
        file: file of the program, for the message.

    Raises:
        DataError: the images have another shape or type.
    """
    if program is None:
        return
    if images.shape[1:] != program.input_shape or images.dtype != program.input_dtype:
        raise DataError(
            f"{file}: expected images {program.input_dtype} {list(program.input_shape)}, "
            f"received {images.dtype} {list(images.shape[1:])}: the transforms do not fit the program"
        )


def _onnx_session(file: Path, data: bytes, threads: int | None, *, on_cpu: bool) -> Any:
    if problem := import_problem("onnxruntime", EXPORT_HINT):
        raise CheckpointError(f"{file}: running it needs {problem}")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    providers = ["CPUExecutionProvider"] if on_cpu else onnxruntime.get_available_providers()
    # By name only if it needs other files, which are in its folder.
    source = str(file) if has_external_data(data) else data
    try:
        session = onnxruntime.InferenceSession(source, options, providers=providers)
    except Exception as error:  # ONNX Runtime's error classes have no common base class
        raise CheckpointError(f"{file}: not an ONNX model: {' '.join(str(error).split())[:200]}") from None
    if providers == ["CPUExecutionProvider"] and hasattr(session, "_model_bytes"):
        # It keeps the file's bytes, as many as the weights, to load them again if a GPU fails.
        session._model_bytes = None  # noqa: SLF001  it has no public name
    return session
