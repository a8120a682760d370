"""Saves a program for Paddle Inference, and checks that its files are whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppxcls.system.atomic_files import named_errors
from ppxcls.train.paddle_inference import program_file

_PROBE_BYTES = 1 << 20  # bytes that are written to find out whether the disk is full


def save_program(program: Any, network: nn.Layer, folder: Path, target: Path) -> None:
    """Writes ``inference.json`` (Paddle 2: ``.pdmodel``) and ``inference.pdiparams``.

    Paddle reports no error if a disk is full, and leaves files that are not whole.

    Args:
        program: traced network.
        network: the network, for the size of its weights.
        folder: folder for the files.
        target: folder that they are moved to later, for messages.

    Raises:
        OSError: the files can't be written.
    """
    paddle.jit.save(program, f"{folder}/inference")
    weights = folder / "inference.pdiparams"
    weight_bytes = sum(
        int(np.prod(tensor.shape)) * tensor.element_size() for tensor in network.state_dict().values()
    )
    model = program_file(folder)
    if not model.stat().st_size or (model.suffix == ".json" and not _ends_with_brace(model)):
        _check_space(folder, target / model.name)
        raise OSError(errno.EIO, "Paddle has not written the whole file", str(target / model.name))
    # Paddle leaves out weights that the network does not use, so a smaller file may be whole.
    if not weights.is_file() or weights.stat().st_size < weight_bytes:
        _check_space(folder, target / weights.name)


def _ends_with_brace(file: Path) -> bool:
    with open(file, "rb") as stream:
        stream.seek(-min(file.stat().st_size, 64), os.SEEK_END)
        return stream.read().rstrip().endswith(b"}")


def _check_space(folder: Path, file: Path) -> None:
    """Raises OSError with the name of a file if nothing more can be written to a folder."""
    probe = folder / "probe"
    with named_errors(file, probe):
        try:
            probe.write_bytes(bytes(_PROBE_BYTES))
        finally:
            probe.unlink(missing_ok=True)
