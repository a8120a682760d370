"""Lists the names that a pickle of arrays may use and call, and checks each call.

A file can't call any function of Python or numpy itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from ppxcls.system.errors import UserError

_MAX_DIMENSIONS = 8
_MAX_DIMENSION_SIZE = 1 << 40  # limit of one dimension; the number of bytes limits it further
_TYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
GLOBALS = {
    **{(module, name): name for module in _MODULES for name in ("_reconstruct", "scalar")},
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("ml_dtypes", "bfloat16"): "bfloat16",  # the only type in it that weights have
    ("numpy.core.numeric", "_frombuffer"): "_frombuffer",
    ("numpy._core.numeric", "_frombuffer"): "_frombuffer",
    ("collections", "OrderedDict"): "OrderedDict",
    ("builtins", "tuple"): "tuple",  # Paddle pickles a tensor as a tuple of name and array
    ("_codecs", "encode"): "encode",  # protocol 2 writes bytes as encoded text
    ("__builtin__", "bytes"): "bytes",  # protocol 2 writes empty bytes as this call
}
Spend = Callable[[int], None]  # counts copied bytes, and refuses too many


class RefusedError(UserError, ValueError):
    """The pickle contains something else than arrays and plain values, or is damaged."""


@dataclass
class AllowedGlobal:
    """A name that the pickle may call."""

    name: str


@dataclass
class PendingType:
    """A numpy type under construction: its name from the table, and later its byte order."""

    name: str
    order: str = "="
    is_bfloat16: bool = False


@dataclass
class PendingArray:
    """An array under construction: empty until its state is read."""

    value: np.ndarray[Any, Any] | None = None


def _check_arguments(function_name: str, arguments: tuple[Any, ...], *kinds: type) -> None:
    """Checks the number and types of a call's arguments."""
    if len(arguments) != len(kinds) or not all(
        isinstance(a, kind) for a, kind in zip(arguments, kinds, strict=True)
    ):
        raise RefusedError(f"{function_name} is called with other arguments than numpy's writer gives")


def _dtype(spend: Spend, arguments: tuple[Any, ...]) -> PendingType:
    if arguments and isinstance(arguments[0], AllowedGlobal) and arguments[0].name == "bfloat16":
        return PendingType("u2", is_bfloat16=True)  # its bits, as in Paddle's own files
    _check_arguments("dtype", arguments, str, int, int)
    if arguments[0] not in _TYPES:
        raise RefusedError(
            f"an array has the type {arguments[0][:20]!r}; expected one of {', '.join(_TYPES)}"
        )
    return PendingType(arguments[0])


def set_type(target: PendingType, state: Any) -> None:
    """Reads the state that numpy writes for a plain type: version, byte order, and nothing else."""
    if (
        not isinstance(state, tuple)
        or len(state) != 8
        or state[2:5] != (None, None, None)
        or state[5:] != ((2, 2, 64) if target.is_bfloat16 else (-1, -1, 0))
        or state[0] != 3
    ):
        raise RefusedError("a type has a state that plain types do not have")
    if not isinstance(state[1], str) or state[1] not in ("<", ">", "|", "="):
        raise RefusedError("a type has an unknown byte order")
    target.order = state[1]


def _reconstruct(spend: Spend, arguments: tuple[Any, ...]) -> PendingArray:
    _check_arguments("_reconstruct", arguments, AllowedGlobal, tuple, object)
    if arguments[0].name != "ndarray" or arguments[1] != (0,) or bytes(_bytes(arguments[2])[:2]) != b"b":
        raise RefusedError("an array begins with something else than an empty one")
    return PendingArray()


def set_array(spend: Spend, target: PendingArray, state: Any) -> None:
    """Reads the state that numpy writes for an array: version, shape, type, column-major flag, bytes."""
    _check_arguments(
        "an array's state", state if isinstance(state, tuple) else (), int, tuple, PendingType, int, object
    )
    target.value = _array(spend, _bytes(state[4]), state[2], state[1], "F" if state[3] else "C")


def _frombuffer(spend: Spend, arguments: tuple[Any, ...]) -> PendingArray:
    """Reads an array as protocol 5 writes it: bytes, type, shape, order."""
    _check_arguments("_frombuffer", arguments, object, PendingType, tuple, str)
    array = PendingArray()
    array.value = _array(
        spend, _bytes(arguments[0]), arguments[1], arguments[2], "F" if arguments[3] == "F" else "C"
    )
    return array


def _array(
    spend: Spend, data: memoryview, kind: PendingType, shape: tuple[Any, ...], order: Any
) -> np.ndarray[Any, Any]:
    if len(shape) > _MAX_DIMENSIONS or not all(
        type(n) is int and 0 <= n < _MAX_DIMENSION_SIZE for n in shape
    ):
        raise RefusedError("an array has a shape that its bytes can't fill")
    dtype = np.dtype(kind.order + kind.name)
    if math.prod(shape) * dtype.itemsize != len(data):
        raise RefusedError(f"an array of shape {list(shape)} and type {kind.name} has {len(data):,} bytes")
    try:
        array = np.frombuffer(data, dtype).reshape(shape, order=order)
    except ValueError as error:  # an empty array with sides that numpy can't multiply
        raise RefusedError(f"an array has a shape that numpy refuses: {error}") from None
    if dtype.isnative:
        return array
    spend(array.nbytes)
    return array.astype(dtype.newbyteorder("="))


def _scalar(spend: Spend, arguments: tuple[Any, ...]) -> np.generic:
    _check_arguments("scalar", arguments, PendingType, object)
    return cast(np.generic, _array(spend, _bytes(arguments[1]), arguments[0], (), "C")[()])


def _encode(spend: Spend, arguments: tuple[Any, ...]) -> memoryview:
    _check_arguments("encode", arguments, str, str)
    spend(len(arguments[0]))
    try:
        return memoryview(arguments[0].encode("latin1"))
    except UnicodeEncodeError:
        raise RefusedError("bytes are written as characters beyond 255") from None


def _empty_bytes(spend: Spend, arguments: tuple[Any, ...]) -> memoryview:
    _check_arguments("bytes", arguments)
    return memoryview(b"")


def _tuple(spend: Spend, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    _check_arguments("tuple", arguments, object)
    if not isinstance(arguments[0], tuple | list):
        raise RefusedError("a tuple is made of something else than values")
    spend(8 * len(arguments[0]))
    return tuple(arguments[0])


def _ordered_dict(spend: Spend, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    _check_arguments("OrderedDict", arguments)
    return {}


def _bytes(value: Any) -> memoryview:
    if not isinstance(value, memoryview):
        raise RefusedError("bytes are missing")
    return value


CALLS: dict[str, Callable[[Spend, tuple[Any, ...]], Any]] = {
    "_reconstruct": _reconstruct,
    "scalar": _scalar,
    "dtype": _dtype,
    "_frombuffer": _frombuffer,
    "OrderedDict": _ordered_dict,
    "tuple": _tuple,
    "encode": _encode,
    "bytes": _empty_bytes,
}
