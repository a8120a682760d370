"""Reads weights of torch and Keras, and converts their keys and shapes."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppxcls.checkpoints.file_formats import format_extension
from ppxcls.checkpoints.files import MAX_FILE_BYTES, WEIGHTS, CheckpointError, State, read_state
from ppxcls.checkpoints.pickle_whitelist import RefusedError
from ppxcls.checkpoints.safe_states import INSTALL_HINT
from ppxcls.checkpoints.torch_reader import read_torch
from ppxcls.checkpoints.wrong_files import wrong_kind
from ppxcls.models.keras_layers import open_layers
from ppxcls.models.keras_trunk import classifier, head_text, layer_state, trunk_and_head
from ppxcls.models.network_keys import WeightsSource
from ppxcls.models.torch_weights import from_torch, is_of_paddle
from ppxcls.models.weight_parts import network_part
from ppxcls.system.atomic_files import check_regular, read_regular, reason_of

# torch's files have no fixed name: timm writes .pth.tar, Lightning .ckpt.
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt", ".h5", ".hdf5", ".keras")
KERAS_SUFFIXES = (".h5", ".hdf5", ".keras")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.")
_HEADER_BYTES = 4096  # bytes that tell the kind of a file


@dataclass(frozen=True)
class ForeignWeights:
    """Weights of another program.

    Attributes:
        state: arrays by this package's state keys.
        head: description of the layers after the network that are no linear classifier; empty without such.
        source: program that wrote the file.
    """

    state: State
    head: str = ""
    source: WeightsSource = "paddle"


def weights_extension(file: Path) -> str:
    """Returns the extension of a file of weights in small letters.

    If it is none of the known ones, the content tells the format. A file of unknown format counts as
    ``.pdparams``, whose reader tells what it is.
    """
    extension = file.suffix.lower()
    if extension in (WEIGHTS, *SUFFIXES):
        return extension
    return format_extension(file) or WEIGHTS


def read_foreign_weights(file: Path) -> State:
    """Returns the arrays of ``foreign_weights`` by state key."""
    return foreign_weights(file).state


def foreign_weights(file: Path) -> ForeignWeights:
    """Reads weights of torch or Keras, or of this package in the format of torch's world.

    Args:
        file: weights file: ``.safetensors``, ``.h5`` or ``.keras`` (Keras's Xception), or any other of
            ``SUFFIXES`` (as torch writes them). If it has another extension, its content tells the format.

    Raises:
        CheckpointError: the file is missing or has another format, or the package that reads it is not
            installed.
    """
    with reading(file):
        suffix = weights_extension(file)
        if suffix in KERAS_SUFFIXES:
            return _keras_weights(file, suffix)
        if suffix in (WEIGHTS, ".safetensors"):
            tree: Any = read_state(file, suffix)
        else:
            tree = read_torch(read_regular(file, MAX_FILE_BYTES))
        state = network_part(tree, file)
        if suffix == WEIGHTS:
            return ForeignWeights(state)
        return ForeignWeights(from_torch(state), source="paddle" if is_of_paddle(state) else "torch")


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Checks that a file can be one of weights, and turns errors of its reader into CheckpointErrors.

    Raises:
        CheckpointError: as ``foreign_weights``.
    """
    if match := _SHARD.search(file.name):
        raise CheckpointError(
            f"{file}: one of {int(match[2])} parts of a model; parts are not joined, so save it as one file"
        )
    try:
        check_regular(os.stat(file), MAX_FILE_BYTES)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: can't be read: {reason_of(error)}") from None
    try:
        yield
    except CheckpointError:
        raise
    except ImportError as error:
        raise CheckpointError(f"{file}: reading it needs {error.name}, {INSTALL_HINT}") from None
    except Exception as error:  # each library has its own errors
        if kind := kind_instead(file):
            raise CheckpointError(f"{file}: not a file of weights, but {kind}") from None
        if isinstance(error, RefusedError):
            raise CheckpointError(f"{file}: refused, not a file of weights: {error}") from None
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{file}: not a file of weights, or damaged: {type(error).__name__}: {reason}"
        ) from None


def kind_instead(file: Path) -> str | None:
    """Describes a file that has no weights; None if its kind is unknown, or if it can't be read."""
    try:
        with open(file, "rb") as stream:
            header = stream.read(_HEADER_BYTES)
    except OSError:
        return None
    return wrong_kind(header, weights_extension(file))


def _keras_weights(file: Path, extension: str) -> ForeignWeights:
    with open_layers(file, extension) as layers:
        trunk, head = trunk_and_head(layers, file)
        last_layer = classifier(head)
        state: State = {}
        for key, layer in trunk.items():
            state |= layer_state(key, layer)
        if last_layer is not None:
            return ForeignWeights(state | layer_state("fc", last_layer), source="keras")
        if not trunk:
            raise CheckpointError(f"{file}: expected Keras's Xception, received the layers {head_text(head)}")
        return ForeignWeights(state, head_text(head), "keras")
