"""Reads the keys of a file of weights, and as little else as its format allows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppxcls.checkpoints.files import MAX_FILE_BYTES, WEIGHTS, read_state
from ppxcls.checkpoints.safe_states import safetensors_keys
from ppxcls.checkpoints.torch_reader import read_torch
from ppxcls.models.foreign_weights import KERAS_SUFFIXES, reading, weights_extension
from ppxcls.models.keras_layers import open_layers
from ppxcls.models.keras_trunk import TRUNK, trunk_and_head
from ppxcls.models.network_keys import WeightsSource
from ppxcls.models.torch_weights import is_of_paddle
from ppxcls.models.weight_parts import network_part
from ppxcls.system.atomic_files import open_regular, read_regular


@dataclass(frozen=True)
class WeightsKeys:
    """Keys of a file.

    Attributes:
        keys: keys as they are in the file; for Keras's files, this package's state keys.
        source: program whose names the keys are.
    """

    keys: Collection[str]
    source: WeightsSource


def weights_keys(file: Path) -> WeightsKeys:
    """Returns the keys of a file of weights.

    Raises:
        CheckpointError: the file is missing or can't be used.
    """
    with reading(file):
        suffix = weights_extension(file)
        if suffix in KERAS_SUFFIXES:
            return WeightsKeys(_keras_keys(file, suffix), "keras")
        if suffix == ".safetensors":
            with open_regular(file) as stream:
                keys: Collection[str] = safetensors_keys(stream)
        elif suffix == WEIGHTS:
            keys = network_part(read_state(file), file).keys()
        else:
            keys = network_part(_torch_tree(file), file).keys()
        return WeightsKeys(keys, "paddle" if is_of_paddle(keys) else "torch")


def _keras_keys(file: Path, extension: str) -> list[str]:
    with open_layers(file, extension) as layers:
        trunk, _ = trunk_and_head(layers, file)
        kinds = {layer.key: layer.kind for layer in TRUNK}
        return [f"{key}.pointwise.weight" if kinds[key] == "separable" else key for key in trunk]


def _torch_tree(file: Path) -> Any:
    return read_torch(read_regular(file, MAX_FILE_BYTES), has_numbers=False)
