"""What a pickle of arrays may name and call, and how each is checked.

Nothing of Python's or numpy's own is called by a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

_MOST_DIMENSIONS = 8
_LONGEST_SIDE = 1 << 40  # of an array; its bytes limit it further
_TYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
GLOBALS = {
    **{(module, name): name for module in _MODULES for name in ("_reconstruct", "scalar")},
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("numpy.core.numeric", "_frombuffer"): "_frombuffer",
    ("numpy._core.numeric", "_frombuffer"): "_frombuffer",
    ("collections", "OrderedDict"): "OrderedDict",
    ("builtins", "tuple"): "tuple",  # how Paddle pickles a tensor: its name and its array
    ("_codecs", "encode"): "encode",  # how protocol 2 writes bytes
    ("__builtin__", "bytes"): "bytes",  # and none
}
Spend = Callable[[int], None]  # accounts for bytes that are copied


class RefusedError(ValueError):
    """The pickle holds something else than arrays and plain values, or is damaged."""


@dataclass
class Global:
    """A name that the pickle may call."""

    name: str


@dataclass
class Type:
    """A numpy type in the making: its name from the table, and later its byte order."""

    name: str
    order: str = "="


@dataclass
class Array:
    """An array in the making: empty until its state comes."""

    value: np.ndarray[Any, Any] | None = None


def _of(names: str, arguments: tuple[Any, ...], *kinds: type) -> None:
    """Check number and types of a call's arguments."""
    if len(arguments) != len(kinds) or not all(
        isinstance(a, kind) for a, kind in zip(arguments, kinds, strict=True)
    ):
        raise RefusedError(f"{names} is called with other arguments than numpy's writer gives")


def _dtype(spend: Spend, arguments: tuple[Any, ...]) -> Type:
    _of("dtype", arguments, str, int, int)
    if arguments[0] not in _TYPES:
        raise RefusedError(
            f"an array has the type {arguments[0][:20]!r}; expected one of {', '.join(_TYPES)}"
        )
    return Type(arguments[0])


def set_type(target: Type, state: Any) -> None:
    """The state that numpy writes for a plain type: version, byte order, and nothing else."""
    if (
        not isinstance(state, tuple)
        or len(state) != 8
        or state[2:] != (None, None, None, -1, -1, 0)
        or state[0] != 3
    ):
        raise RefusedError("a type has a state that plain types do not have")
    if not isinstance(state[1], str) or state[1] not in ("<", ">", "|", "="):
        raise RefusedError("a type has an unknown byte order")
    target.order = state[1]


def _reconstruct(spend: Spend, arguments: tuple[Any, ...]) -> Array:
    _of("_reconstruct", arguments, Global, tuple, object)
    if arguments[0].name != "ndarray" or arguments[1] != (0,) or bytes(_bytes(arguments[2])[:2]) != b"b":
        raise RefusedError("an array begins with something else than an empty one")
    return Array()


def set_array(spend: Spend, target: Array, state: Any) -> None:
    """The state that numpy writes for an array: version, shape, type, whether columns come first, bytes."""
    _of("an array's state", state if isinstance(state, tuple) else (), int, tuple, Type, int, object)
    target.value = _array(spend, _bytes(state[4]), state[2], state[1], "F" if state[3] else "C")


def _frombuffer(spend: Spend, arguments: tuple[Any, ...]) -> Array:
    """How protocol 5 writes an array: bytes, type, shape, order."""
    _of("_frombuffer", arguments, object, Type, tuple, str)
    array = Array()
    array.value = _array(
        spend, _bytes(arguments[0]), arguments[1], arguments[2], "F" if arguments[3] == "F" else "C"
    )
    return array


def _array(
    spend: Spend, data: memoryview, kind: Type, shape: tuple[Any, ...], order: Any
) -> np.ndarray[Any, Any]:
    if len(shape) > _MOST_DIMENSIONS or not all(type(n) is int and 0 <= n < _LONGEST_SIDE for n in shape):
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
    _of("scalar", arguments, Type, object)
    return cast(np.generic, _array(spend, _bytes(arguments[1]), arguments[0], (), "C")[()])


def _encode(spend: Spend, arguments: tuple[Any, ...]) -> memoryview:
    _of("encode", arguments, str, str)
    spend(len(arguments[0]))
    try:
        return memoryview(arguments[0].encode("latin1"))
    except UnicodeEncodeError:
        raise RefusedError("bytes are written as characters beyond 255") from None


def _no_bytes(spend: Spend, arguments: tuple[Any, ...]) -> memoryview:
    _of("bytes", arguments)
    return memoryview(b"")


def _tuple(spend: Spend, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    _of("tuple", arguments, object)
    if not isinstance(arguments[0], tuple | list):
        raise RefusedError("a tuple is made of something else than values")
    spend(8 * len(arguments[0]))
    return tuple(arguments[0])


def _ordered(spend: Spend, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    _of("OrderedDict", arguments)
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
    "OrderedDict": _ordered,
    "tuple": _tuple,
    "encode": _encode,
    "bytes": _no_bytes,
}
