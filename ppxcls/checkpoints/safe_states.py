"""Converts states to and from ``.safetensors``.

A file contains the arrays by key. The header's metadata contains Paddle's names of the parameters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from ppxcls.system.arrays import Array
from ppxcls.system.json_text import read_json

PARAMETER_NAMES_KEY = (
    "StructuredToParameterName@@"  # key of the parameter names in Paddle's saved state dicts
)
INSTALL_HINT = "which is not installed: pip install 'ppxcls[convert]'"
_MAX_HEADER_BYTES = 1 << 24  # a network with 10,000 tensors has 2 MB
_LENGTH_BYTES = 8  # bytes at the beginning of a file that contain the length of the header
# numpy's types by safetensors's names. numpy has no bfloat16: its bits are kept, as in Paddle's files.
_TYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "|b1"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1"},
    **{"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1"},
}


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

    A bfloat16 array is returned as its bits, uint16, as in Paddle's own files.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: the data is damaged, or an array has a type that numpy does not have.
    """
    from safetensors import SafetensorError, deserialize

    header_bytes = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if header_bytes > _MAX_HEADER_BYTES:
        raise ValueError(f"a header of {header_bytes:,} bytes; at most {_MAX_HEADER_BYTES:,} are read")
    try:
        entries = deserialize(data)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    state: dict[str, Any] = {key: _array(key, entry) for key, entry in entries}
    metadata = read_json(data[_LENGTH_BYTES : _LENGTH_BYTES + header_bytes]).get("__metadata__")
    names = (metadata or {}).get(PARAMETER_NAMES_KEY)
    if names is not None:
        state[PARAMETER_NAMES_KEY] = json.loads(names)
    return state


def safetensors_keys(stream: BinaryIO) -> list[str]:
    """Returns the keys of the arrays in a ``.safetensors`` file. Reads its header only.

    Raises:
        ValueError: the header is damaged.
    """
    length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length:,} bytes; at most {_MAX_HEADER_BYTES:,} are read")
    header = read_json(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("the header is no object of JSON")
    return [key for key in header if key != "__metadata__"]


def _array(key: str, entry: Mapping[str, Any]) -> Array:
    if entry["dtype"] not in _TYPES:
        raise ValueError(f"{key} has the type {entry['dtype']}; expected one of {', '.join(_TYPES)}")
    array = np.frombuffer(entry["data"], _TYPES[entry["dtype"]]).reshape(entry["shape"])
    # These integers would be taken for the bits of bfloat16.
    return array.astype(np.uint32) if entry["dtype"] == "U16" else array
