"""Converts states to and from ``.safetensors``.

A file contains the arrays by key. The header's metadata contains Paddle's names of the parameters.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

NAMES = "StructuredToParameterName@@"  # key of the parameter names in Paddle's saved state dicts
INSTALL = "which is not installed: pip install 'ppxcls[convert]'"
_LENGTH_BYTES = 8  # bytes at the beginning of a file that contain the length of the header


def pack(state: Mapping[str, Any]) -> bytes:
    """Returns the bytes of a ``.safetensors`` file.

    Args:
        state: arrays by key; optionally a dictionary of names under ``NAMES``.

    Raises:
        ImportError: safetensors is not installed.
    """
    from safetensors.numpy import save

    names = state.get(NAMES)
    arrays = {key: np.asarray(value, order="C") for key, value in state.items() if key != NAMES}
    return save(arrays, {NAMES: json.dumps(names)} if names is not None else None)


def unpack(data: bytes) -> dict[str, Any]:
    """Returns the state in the bytes of a ``.safetensors`` file; the inverse of ``pack``.

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
    names = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length]).get("__metadata__", {}).get(NAMES)
    if names is not None:
        state[NAMES] = json.loads(names)
    return state
