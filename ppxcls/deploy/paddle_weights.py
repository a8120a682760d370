"""Checks that a file of weights, ``inference.pdiparams``, holds exactly what its program declares."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import BinaryIO

from ppxcls.deploy.paddle2_check import PADDLE_DTYPES
from ppxcls.deploy.program_check import ProgramError, Tensor, short
from ppxcls.deploy.wire_format import Field, FormatError, Schema, read_message

_DESCRIPTION: Schema = {1: Field("dtype", "int32"), 2: Field("shape", "integer", is_repeated=True)}
_HEAD = struct.Struct("<IQIi")  # version, number of levels, version, bytes of the description
_MAX_DESCRIPTION_BYTES = 128
_ITEM_BYTES = {
    **{"bool": 1, "uint8": 1, "int8": 1, "int16": 2, "float16": 2, "int32": 4, "float32": 4},
    **{"int64": 8, "float64": 8},
}


def check_weight_bytes(size: int, weights: Mapping[str, Tensor]) -> None:
    """Raises ProgramError if a file of this size can't hold the weights."""
    least_size = sum(weight.size * _ITEM_BYTES[weight.dtype] for weight in weights.values())
    if not least_size <= size <= least_size + (_HEAD.size + _MAX_DESCRIPTION_BYTES) * len(weights):
        raise ProgramError(
            f"it has {size:,} bytes, but the program declares weights of {least_size:,}", is_foreign=False
        )


def check_weights(stream: BinaryIO, size: int, weights: Mapping[str, Tensor]) -> None:
    """Reads the headers of all weights.

    Paddle writes the weights one after the other, in the order of their names.

    Args:
        stream: the file, at its start.
        size: bytes of the file.
        weights: weights that the program declares, by name.

    Raises:
        ProgramError: the file holds other weights, or more or fewer bytes.
    """
    position = 0
    for name, weight in sorted(weights.items(), key=lambda item: item[0].encode()):
        stream.seek(position)
        head = stream.read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise ProgramError(f"it ends before the weight {short(name)}", is_foreign=False)
        version, level_count, second_version, count = _HEAD.unpack(head)
        if (version, level_count, second_version) != (0, 0, 0) or not 0 < count <= _MAX_DESCRIPTION_BYTES:
            raise ProgramError(f"there is no weight {short(name)} at byte {position:,}", is_foreign=False)
        tensor = _described_tensor(stream.read(count))
        if tensor != Tensor(weight.shape, weight.dtype):
            raise ProgramError(
                f"the weight {short(name)} is {tensor.dtype} {short(list(tensor.shape))}, "
                f"but the program declares {weight.dtype} {short(list(weight.shape))}",
                is_foreign=False,
            )
        position += _HEAD.size + count + tensor.size * _ITEM_BYTES[tensor.dtype]
        if position > size:
            raise ProgramError(f"it ends within the weight {short(name)}", is_foreign=False)
    if position != size:
        raise ProgramError(
            f"it has {size:,} bytes, but the program declares weights of {position:,}", is_foreign=False
        )


def _described_tensor(data: bytes) -> Tensor:
    try:
        description = read_message(memoryview(data), _DESCRIPTION)
    except FormatError as error:
        raise ProgramError(f"a weight's description is damaged: {error}", is_foreign=False) from None
    dtype = PADDLE_DTYPES.get(description.get("dtype", -1), "unknown")
    if dtype not in _ITEM_BYTES:
        raise ProgramError(f"a weight has the type {short(description.get('dtype'))}", is_foreign=False)
    return Tensor(tuple(description["shape"]), dtype)
