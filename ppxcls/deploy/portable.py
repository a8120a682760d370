"""Runners that can be pickled, so that a predictor can be sent to another process.

A pickle holds the weights or the exported files themselves. The other process needs no file of this one.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ppxcls.checkpoints.files import CheckpointError
from ppxcls.data.device import ModelInput
from ppxcls.data.errors import DataError
from ppxcls.data.transforms import DeviceStage
from ppxcls.deploy.metadata import ExportMetadata
from ppxcls.deploy.runners import Runner, onnx_runner, paddle_runner
from ppxcls.deploy.whole_export import has_part, read_export_part
from ppxcls.system.arrays import Array

_TEMPORARY_FOLDER = re.compile(r"\S*/ppxcls-\w+(?=/)")
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
    path: Path, stage: DeviceStage, *, preprocesses: bool, metadata: ExportMetadata | None = None
) -> Runner:
    """Returns a runner of exported files, which can be pickled.

    The bytes that are compared with the digests of the export are the bytes that are loaded.

    Args:
        path: exported folder, or its ``.onnx`` file.
        stage: device part of the transforms.
        preprocesses: True if the exported graph does this part.
        metadata: metadata of the export, with the digests of its files; None for no check.

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

    def read() -> dict[str, bytes]:
        return {name: read_export_part(folder, name, metadata) for name in names}

    first_contents = [read()]
    digest = _digest(first_contents[0])

    def read_again() -> dict[str, bytes]:
        if first_contents:
            return first_contents.pop()
        problem = f"{path}: was changed or removed after it was loaded; load the model again"
        try:
            contents = read()
        except CheckpointError:
            raise DataError(problem) from None
        if _digest(contents) != digest:
            raise DataError(problem)
        return contents

    runner = _loaded(read_again, stage, preprocesses=preprocesses, name=str(path))
    return PortableRunner(runner, _rebuilt_runner, lambda: (read_again(), stage, preprocesses))


def _digest(contents: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(contents):
        digest.update(f"{name} {len(contents[name])} ".encode() + contents[name])
    return digest.hexdigest()


def _loaded(
    read: Callable[[], Mapping[str, bytes]], stage: DeviceStage, *, preprocesses: bool, name: str
) -> Runner:
    """Returns a runner of the bytes of exported files.

    Args:
        read: function that returns the bytes by file name. It may be called again later.
        stage: device part of the transforms.
        preprocesses: True if the exported graph does this part.
        name: name of the export, for messages.
    """

    def read_files() -> contextlib.AbstractContextManager[list[Path]]:
        return _on_disk(read())

    try:
        with read_files() as files:
            is_onnx = files[0].suffix.lower() == ".onnx"
            runner = onnx_runner(files[0]) if is_onnx else paddle_runner(files[0].parent, read=read_files)
    except CheckpointError as error:
        raise CheckpointError(_TEMPORARY_FOLDER.sub(lambda _: name, str(error))) from None
    if preprocesses:
        return runner
    to_input = ModelInput(stage)
    return lambda images: runner(to_input(images).numpy())


@contextlib.contextmanager
def _on_disk(contents: Mapping[str, bytes]) -> Iterator[list[Path]]:
    """Yields files in a private folder, which has them only while they are loaded."""
    with tempfile.TemporaryDirectory(prefix="ppxcls-") as folder:
        files = [Path(folder) / file_name for file_name in contents]
        for file in files:
            file.write_bytes(contents[file.name])
        yield files


def _rebuilt_runner(contents: Mapping[str, bytes], stage: DeviceStage, preprocesses: bool) -> Runner:  # noqa: FBT001  pickles have no keyword arguments
    """Returns a runner of the files of a pickle."""
    runner = _loaded(lambda: contents, stage, preprocesses=preprocesses, name="the pickle")
    return PortableRunner(runner, _rebuilt_runner, lambda: (contents, stage, preprocesses))
