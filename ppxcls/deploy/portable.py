"""Runners that can be pickled, so that a predictor can be sent to another process.

A pickle holds the weights or the exported files themselves. The other process needs no file of this one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ppxcls.checkpoints.files import CheckpointError
from ppxcls.data.device import ModelInput, device_array
from ppxcls.data.errors import DataError
from ppxcls.data.transforms import DeviceStage
from ppxcls.deploy.metadata import ExportMetadata
from ppxcls.deploy.runners import Runner, onnx_runner, paddle_runner
from ppxcls.deploy.whole_export import check_parts, has_part, read_export_part
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
    path: Path,
    stage: DeviceStage,
    *,
    preprocesses: bool,
    class_num: int,
    metadata: ExportMetadata | None = None,
    trust: bool = False,
) -> Runner:
    """Returns a runner of exported files, which can be pickled.

    The bytes that are compared with the digests of the export are the bytes that are loaded. The other files
    of an exported folder are compared too.

    Args:
        path: exported folder, or its ``.onnx`` file.
        stage: device part of the transforms.
        preprocesses: True if the exported graph does this part.
        class_num: number of classes that the outputs must have; 0 for any.
        metadata: metadata of the export, with the digests of its files; None for no check.
        trust: True to run the program of another exporter; see ``paddle_runner`` and ``onnx_runner``.

    Raises:
        CheckpointError: the files can't be used.
    """
    metadata = metadata or ExportMetadata("", "", [], [], 0)
    if path.suffix.lower() == ".onnx":
        folder, names = path.parent, [path.name]
    elif has_part(path, "inference.pdiparams", metadata):
        folder, names = path, [name for name in _PADDLE_FILES if has_part(path, name, metadata)]
    else:
        folder, names = path, ["inference.onnx"]
    if folder == path:
        check_parts(folder, metadata, without=names)

    def read() -> dict[str, bytes]:
        return {name: read_export_part(folder, name, metadata) for name in names}

    first_contents = [read()]
    digest = None if metadata.parts else _digest(first_contents[0])  # the parts have digests of their own

    def read_again() -> dict[str, bytes]:
        if first_contents:
            return first_contents.pop()
        problem = f"{path}: was changed or removed after it was loaded; load the model again"
        try:
            contents = read()
        except CheckpointError:
            raise DataError(problem) from None
        if digest is not None and _digest(contents) != digest:
            raise DataError(problem)
        return contents

    options: dict[str, Any] = {"preprocesses": preprocesses, "class_num": class_num, "trust": trust}
    runner = _loaded(read_again, folder / names[0], stage=stage, **options)
    return PortableRunner(runner, _rebuilt_runner, lambda: (read_again(), stage, options))


def _digest(contents: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(contents):
        digest.update(f"{name} {len(contents[name])} ".encode() + contents[name])
    return digest.hexdigest()


def _loaded(
    read: Callable[[], Mapping[str, bytes]],
    file: Path,
    *,
    stage: DeviceStage,
    preprocesses: bool,
    class_num: int,
    trust: bool,
) -> Runner:
    """Returns a runner of the bytes of exported files.

    Args:
        read: function that returns the bytes by file name. It may be called again later.
        file: first of the files, for messages. The constants of another exporter's ONNX file may be in other
            files of its folder.
        stage: device part of the transforms.
        preprocesses: True if the exported graph does this part.
        class_num: number of classes that the outputs must have; 0 for any.
        trust: True to run the program of another exporter.
    """
    if file.suffix.lower() == ".onnx":
        runner = onnx_runner(file, contents=read()[file.name], trust=trust)
    else:
        runner = paddle_runner(file.parent, read=read, trust=trust)
    to_input = None if preprocesses else ModelInput(stage)

    def run(images: Array) -> Array:
        outputs = runner(device_array(images) if to_input is None else to_input(images).numpy())
        is_of_classes = outputs.ndim == 2 and (not class_num or outputs.shape[1] == class_num)
        if not is_of_classes or len(outputs) != len(images) or outputs.dtype.kind != "f":
            raise DataError(
                f"{file}: expected numbers for {class_num or 'all'} classes for each of "
                f"{len(images)} images, received {outputs.dtype} {list(outputs.shape)}"
            )
        return outputs

    return run


def _rebuilt_runner(contents: Mapping[str, bytes], stage: DeviceStage, options: Mapping[str, Any]) -> Runner:
    """Returns a runner of the files of a pickle."""
    file = Path("the pickle") / next(iter(contents))
    runner = _loaded(lambda: contents, file, stage=stage, **options)
    return PortableRunner(runner, _rebuilt_runner, lambda: (contents, stage, options))
