"""Reads the files of exported programs, checks them, and gives the checked bytes to Paddle or ONNX Runtime.

Paddle reads files by their names. Another process may replace a file after it was checked. So Paddle gets
copies that only this user can write.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ppxcls.checkpoints.files import CheckpointError
from ppxcls.checkpoints.wrong_files import wrong_kind
from ppxcls.deploy.onnx_check import OnnxFile, read_onnx_program
from ppxcls.deploy.onnx_external import check_external_data
from ppxcls.deploy.paddle2_check import read_paddle2_program
from ppxcls.deploy.paddle_weights import check_weight_bytes, check_weights
from ppxcls.deploy.pir_check import read_pir_program
from ppxcls.deploy.program_check import TRUST_HINT, CheckedProgram, ProgramError, Tensor
from ppxcls.deploy.program_shapes import check_sizes
from ppxcls.system.atomic_files import open_regular, read_regular, reason_of
from ppxcls.system.shared_memory import HAS_SHARED_MEMORY
from ppxcls.system.temporary_folder import temporary_folder
from ppxcls.train.paddle_inference import PROGRAM_NAMES, program_file

WEIGHTS_FILE = "inference.pdiparams"
_MAX_PROGRAM_BYTES = 8 << 20  # of Paddle's programs; the largest network here has 1 MB
_MAX_ONNX_BYTES = (1 << 31) - 1  # limit of the format
_HEADER_BYTES = 4096  # bytes that tell the kind of a file
_COPY_BYTES = 8 << 20


@dataclass(frozen=True)
class PaddleFiles:
    """Files of a checked program.

    Attributes:
        model: program file of the export, for messages.
        model_copy: program file to load.
        weights_copy: file of weights to load.
        program: the checked program; None for one of another exporter.
    """

    model: Path
    model_copy: Path
    weights_copy: Path
    program: CheckedProgram | None


def read_onnx(
    file: Path, *, contents: bytes | None = None, trust: bool = False
) -> tuple[bytes, OnnxFile | None]:
    """Returns the bytes of an ONNX file, and its checked content; None for one of another exporter.

    Args:
        file: ONNX file.
        contents: bytes of the file, if they were read before.
        trust: True to accept the program of another exporter.

    Raises:
        CheckpointError: the file can't be read, is no ONNX file, or is not one that this package exports.
    """
    if contents is None and not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    data = contents if contents is not None else _read(file, _MAX_ONNX_BYTES)
    try:
        content = read_onnx_program(data)
        check_sizes(content.program)
    except ProgramError as error:
        if (kind := wrong_kind(data[:_HEADER_BYTES], file.suffix)) is not None:
            raise CheckpointError(f"{file}: not an ONNX model, but {kind}") from None
        if not trust:
            raise _refusal(file, error, "an ONNX model") from None
    else:
        return data, content
    try:
        check_external_data(data, file.parent)
    except ProgramError as error:
        raise CheckpointError(f"{file}: {error}") from None
    return data, None


def reason_for_trust(path: Path) -> str | None:
    """Returns why exported files need ``--trust`` to be loaded; None if they need none.

    Args:
        path: folder with Paddle's files, or ONNX file.
    """
    try:
        if path.is_dir():
            with paddle_files(path):
                return None
        read_onnx(path)
    except CheckpointError as error:
        return str(error).removesuffix(f"; {TRUST_HINT}")
    return None


@contextlib.contextmanager
def paddle_files(
    folder: Path, *, contents: Mapping[str, bytes] | None = None, trust: bool = False
) -> Iterator[PaddleFiles]:
    """Yields the files of a Paddle program, as copies of what was checked.

    The copies exist until the context ends, and need no space on a disk on Linux. If the bytes were not read
    before, a program of another exporter is not copied.

    Args:
        folder: folder with ``inference.pdiparams``, and ``inference.json`` or ``inference.pdmodel``.
        contents: bytes of these files by name, if they were read before.
        trust: True to accept the program of another exporter.

    Raises:
        CheckpointError: a file is missing or can't be read, or the program is not one that this package
            exports.
    """
    model, weights = _file_names(folder, contents)
    data = _read(model, _MAX_PROGRAM_BYTES) if contents is None else contents[model.name]
    try:
        read = read_pir_program if model.suffix == ".json" else read_paddle2_program
        program, declared_weights = read(data)
        check_sizes(program)
    except ProgramError as error:
        if not trust:
            raise _refusal(model, error, "an exported model") from None
        if contents is None:
            yield PaddleFiles(model, model, weights, None)
            return
        with _private_folder() as private_folder:
            for name, part in contents.items():
                (private_folder / name).write_bytes(part)
            yield PaddleFiles(model, private_folder / model.name, private_folder / weights.name, None)
        return
    with contextlib.ExitStack() as stack:
        private_folder = stack.enter_context(_private_folder())
        if contents is None:
            try:
                source: BinaryIO = stack.enter_context(open_regular(weights))
            except OSError as error:
                raise CheckpointError(f"{weights}: {reason_of(error)}") from None
        else:
            source = io.BytesIO(contents[weights.name])
        weights_copy = stack.enter_context(
            _checked_weights(weights, source, declared_weights, folder=private_folder)
        )
        model_copy = private_folder / model.name
        model_copy.write_bytes(data)
        yield PaddleFiles(model, model_copy, weights_copy, program)


def _file_names(folder: Path, contents: Mapping[str, bytes] | None) -> tuple[Path, Path]:
    """Returns the program file and the file of weights of an export. Raises CheckpointError."""
    weights = folder / WEIGHTS_FILE
    if contents is None:
        model = program_file(folder)
        if not weights.is_file():
            raise CheckpointError(f"{weights}: no such file")
        return model, weights
    model_names = [name for name in PROGRAM_NAMES if name in contents]
    if not model_names:
        raise CheckpointError(f"{folder}: neither {' nor '.join(PROGRAM_NAMES)}")
    if WEIGHTS_FILE not in contents:
        raise CheckpointError(f"{weights}: no such file")
    return folder / model_names[0], weights


def _refusal(file: Path, error: ProgramError, kind: str) -> CheckpointError:
    if error.is_foreign:
        return CheckpointError(f"{file}: {error}; {TRUST_HINT}")
    return CheckpointError(f"{file}: not {kind}: {error}")


def _read(file: Path, max_bytes: int) -> bytes:
    try:
        return read_regular(file, max_bytes)
    except (OSError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{file}: {reason_of(error)}") from None


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """Yields a temporary folder that only this user can use. Raises CheckpointError if there is no place."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(temporary_folder())
        except OSError as error:
            raise CheckpointError(f"the program can't be copied: {reason_of(error)}") from None
        yield folder


@contextlib.contextmanager
def _checked_weights(
    file: Path, source: BinaryIO, weights: Mapping[str, Tensor], *, folder: Path
) -> Iterator[Path]:
    """Yields a copy of a file of weights that holds what its program declares.

    On Linux the copy is in memory, because a container may have little space for temporary files.

    Args:
        file: name of the file, for messages.
        source: its content.
        weights: weights that the program declares.
        folder: private folder for the copy.
    """
    with contextlib.ExitStack() as stack:
        try:
            size = source.seek(0, os.SEEK_END)
            source.seek(0)
            check_weight_bytes(size, weights)
            descriptor = os.memfd_create("ppxcls-weights") if _has_named_memory() else None
            copy = folder / WEIGHTS_FILE if descriptor is None else Path(f"/proc/self/fd/{descriptor}")
            target = stack.enter_context(open(copy if descriptor is None else descriptor, "w+b"))
            while size > target.tell() and (part := source.read(min(_COPY_BYTES, size - target.tell()))):
                target.write(part)
            target.flush()
            check_weights(target, size, weights)
        except ProgramError as error:
            raise CheckpointError(f"{file}: not the weights of its program: {error}") from None
        except OSError as error:
            raise CheckpointError(f"{file}: {reason_of(error)}") from None
        yield copy


def _has_named_memory() -> bool:
    return HAS_SHARED_MEMORY and Path("/proc/self/fd").is_dir()
