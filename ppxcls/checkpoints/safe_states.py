"""States as ``.safetensors``: arrays by key, and Paddle's names of the parameters in the header's metadata."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

NAMES = "StructuredToParameterName@@"  # key of the parameters' names in Paddle's saved state dicts
INSTALL = "which is not installed: pip install 'ppxcls[convert]'"
_LENGTH = 8  # bytes of the header's length, at the beginning


def pack(state: Mapping[str, Any]) -> bytes:
    """The bytes of a ``.safetensors`` file.

    Args:
        state: arrays by key; under ``NAMES``, a dict of names if there is one.

    Raises:
        ImportError: safetensors is not installed.
    """
    from safetensors.numpy import save

    names = state.get(NAMES)
    arrays = {key: np.asarray(value, order="C") for key, value in state.items() if key != NAMES}
    return save(arrays, {NAMES: json.dumps(names)} if names is not None else None)


def unpack(data: bytes) -> dict[str, Any]:
    """The state in the bytes of a ``.safetensors`` file; the inverse of ``pack``.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        state: dict[str, Any] = dict(load(data))
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    (length,) = struct.unpack("<Q", data[:_LENGTH])
    names = json.loads(data[_LENGTH : _LENGTH + length]).get("__metadata__", {}).get(NAMES)
    if names is not None:
        state[NAMES] = json.loads(names)
    return state
