"""Types of numbers in files of weights, and their conversion."""

from __future__ import annotations

from typing import Any

import numpy as np

from ppxcls.system.arrays import Array

_BFLOAT16_BITS = np.dtype(np.uint16)  # type of Paddle's arrays of bfloat16


def is_convertible(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    """True if numbers of one type stand for the same numbers in the other."""
    if target.kind == "f":
        return source.kind == "f" or source == _BFLOAT16_BITS
    return source.kind in "iu" and target.kind in "iu"


def as_float32_array(value: Any) -> Array:
    """Returns floating-point numbers of any type as float32, and other numbers unchanged.

    Arrays of uint16 are the bits of bfloat16 numbers.
    """
    array = np.asarray(value)
    expected_type = np.dtype(np.float32)
    return converted(array, expected_type) if is_convertible(array.dtype, expected_type) else array


def converted(value: Array, expected_type: np.dtype[Any]) -> Array:
    """Returns numbers in another type, to which they are convertible."""
    if expected_type.kind == "f" and value.dtype == _BFLOAT16_BITS:
        value = (value.astype(np.uint32) << 16).view(np.float32)  # the upper half of a float32
    with np.errstate(over="ignore"):  # a number that is too large becomes infinite, which is refused
        return value.astype(expected_type, copy=False)


def numpy_type_name(dtype: np.dtype[Any]) -> str:
    """Returns the name of a type of numbers for messages."""
    return "bfloat16" if dtype == _BFLOAT16_BITS else str(dtype)
