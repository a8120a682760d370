"""Converts states to and from ``.safetensors``.

A file contains the arrays by key. The header's metadata contains Paddle's names of the parameters.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

PARAMETER_NAMES_KEY = (
    "StructuredToParameterName@@"  # key of the parameter names in Paddle's saved state dicts
)
INSTALL_HINT = "which is not installed: pip install 'ppxcls[convert]'"
_LENGTH_BYTES = 8  # bytes at the beginning of a file that contain the length of the header


def to_safetensors(state: Mapping[str, Any]) -> bytes:
    """Returns the bytes of a ``.safetensors`` file.

    Args:
        state: arrays by key; optionally a dictionary of names under ``PARAMETER_NAMES_KEY``.

    Raises:
        ImportError: safetensors is not installed.
    """
    from safetensors.numpy import save

    names = state.get(PARAMETER_NAMES_KEY)
    arrays = {key: np.asarray(value, order="C") for key, value in state.items() if key != PARAMETER_NAMES_KEY}
    return save(arrays, {PARAMETER_NAMES_KEY: json.dumps(names)} if names is not None else None)


def from_safetensors(data: bytes) -> dict[str, Any]:
    """Returns the state in the bytes of a ``.safetensors`` file; the inverse of ``to_safetensors``.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: the data is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        state: dict[str, Any] = dict(load(data))
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    (length,) = struct.unpack("<Q", data[:_LENGTH_BYTES])
    names = (
        json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
        .get("__metadata__", {})
        .get(PARAMETER_NAMES_KEY)
    )
    if names is not None:
        state[PARAMETER_NAMES_KEY] = json.loads(names)
    return state
