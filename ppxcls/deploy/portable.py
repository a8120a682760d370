"""Runners that can be pickled, so that a predictor can be sent to another process.

A pickle holds the weights or the exported files themselves. The other process needs no file of this one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ppxcls.data.device import ModelInput
from ppxcls.data.errors import DataError
from ppxcls.data.transforms import DeviceStage
from ppxcls.deploy.runners import Runner, onnx_runner, paddle_runner
from ppxcls.system.arrays import Array

_PADDLE_FILES = ("inference.json", "inference.pdmodel", "inference.pdiparams")


class PortableRunner:
    """A runner that is built again in the process that reads its pickle.

    Args:
        runner: runner of this process.
        build: function that builds the runner. It is pickled by its name.
        arguments: function that returns the arguments of ``build``. It is called if the runner is pickled.
    """

    def __init__(
        self, runner: Runner, build: Callable[..., Runner], arguments: Callable[[], tuple[Any, ...]]
    ) -> None:
        self._runner = runner
        self._build = build
        self._arguments = arguments

    def __call__(self, images: Array) -> Array:
        """Returns the output for a batch."""
        return self._runner(images)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._build, self._arguments()


def file_runner(
    path: Path, stage: DeviceStage, *, preprocesses: bool, class_num: int, trust: bool = False
) -> Runner:
    """Returns a runner of exported files, which can be pickled.

    Args:
        path: exported folder, or its ``.onnx`` file.
        stage: device part of the transforms.
        preprocesses: True if the exported graph does this part.
        class_num: number of classes that the outputs must have; 0 for any.
        trust: True to run the program of another exporter; see ``paddle_runner`` and ``onnx_runner``.

    Raises:
        CheckpointError: the files can't be used.
    """
    if path.suffix.lower() == ".onnx":
        files = [path]
    elif (path / "inference.pdiparams").is_file():
        files = [path / name for name in _PADDLE_FILES if (path / name).is_file()]
    else:
        files = [path / "inference.onnx"]
    states = {file: _state_of(file) for file in files}
    options: dict[str, Any] = {"preprocesses": preprocesses, "class_num": class_num, "trust": trust}

    def arguments() -> tuple[Any, ...]:
        for file, state in states.items():
            if _state_of(file) != state:
                raise DataError(f"{file}: was changed or removed after it was loaded; load the model again")
        return {file.name: file.read_bytes() for file in files}, stage, options

    return PortableRunner(_runner_of(files, stage, **options), _rebuilt_runner, arguments)


def _runner_of(
    files: list[Path], stage: DeviceStage, *, preprocesses: bool, class_num: int, trust: bool
) -> Runner:
    is_onnx = files[0].suffix.lower() == ".onnx"
    runner = onnx_runner(files[0], trust=trust) if is_onnx else paddle_runner(files[0].parent, trust=trust)
    to_input = None if preprocesses else ModelInput(stage)

    def run(images: Array) -> Array:
        outputs = runner(images if to_input is None else to_input(images).numpy())
        is_of_classes = outputs.ndim == 2 and (not class_num or outputs.shape[1] == class_num)
        if not is_of_classes or len(outputs) != len(images) or outputs.dtype.kind != "f":
            raise DataError(
                f"{files[0]}: expected numbers for {class_num or 'all'} classes for each of "
                f"{len(images)} images, received {outputs.dtype} {list(outputs.shape)}"
            )
        return outputs

    return run


def _rebuilt_runner(contents: Mapping[str, bytes], stage: DeviceStage, options: Mapping[str, Any]) -> Runner:
    """Returns a runner of the files of a pickle. They are needed on a disk only while they are loaded."""
    with tempfile.TemporaryDirectory(prefix="ppxcls-") as folder:
        files = [Path(folder) / name for name in contents]
        for file in files:
            file.write_bytes(contents[file.name])
        runner = _runner_of(files, stage, **options)
    return PortableRunner(runner, _rebuilt_runner, lambda: (contents, stage, options))


def _state_of(file: Path) -> tuple[int, int] | None:
    """Returns the size and time of a file, which tell whether it was changed; None if it does not exist."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
