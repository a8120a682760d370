"""Writes programs of Paddle 2, and files of weights."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hostility.builders.protobuf import field

_FIELDS = {  # number of the type, and of the field with the value
    "int": (0, 3),
    "float": (1, 4),
    "str": (2, 5),
    "ints": (3, 6),
    "strs": (5, 8),
    "bool": (6, 10),
    "block": (8, 12),
    "long": (9, 13),
    "longs": (11, 15),
}
FLOAT32, UINT8 = 5, 20


def attribute(name: str, kind: str, value: Any) -> bytes:
    """Returns an attribute of an operator."""
    number, value_field = _FIELDS[kind]
    values = value if isinstance(value, list) else [int(value) if kind == "bool" else value]
    return field(4, field(1, name) + field(2, number) + field(value_field, *values))


def operator(
    kind: str,
    inputs: Mapping[str, Sequence[str]],
    outputs: Mapping[str, Sequence[str]],
    *attributes: tuple[str, str, Any],
) -> bytes:
    """Returns an operator; an attribute is its name, its type and its value."""
    data = b""
    for number, slots in ((1, inputs), (2, outputs)):
        for name, variables in slots.items():
            data += field(number, field(1, name) + field(2, *variables))
    data += field(3, kind)
    return data + b"".join(attribute(*each) for each in attributes)


def variable(name: str, shape: Sequence[int], dtype: int = FLOAT32, *, is_weight: bool = False) -> bytes:
    """Returns the description of a tensor."""
    tensor = field(3, field(1, field(1, dtype) + field(2, *shape)))
    return field(1, name) + field(2, field(1, 7) + tensor) + field(3, int(is_weight))


def block(operators: Sequence[bytes], variables: Sequence[bytes], index: int = 0, parent: int = -1) -> bytes:
    """Returns a block of operators."""
    return field(1, index) + field(2, parent) + field(3, *variables) + field(4, *operators)


FEED = operator("feed", {"X": ["feed"]}, {"Out": ["images"]}, ("col", "int", 0))
FETCH = operator("fetch", {"X": ["scores"]}, {"Out": ["fetch"]}, ("col", "int", 0))
NETWORK = (
    operator(
        "cast",
        {"X": ["images"]},
        {"Out": ["real"]},
        ("in_dtype", "int", UINT8),
        ("out_dtype", "int", FLOAT32),
    ),
    operator(
        "flatten_contiguous_range",
        {"X": ["real"]},
        {"Out": ["flat"]},
        ("start_axis", "int", 1),
        ("stop_axis", "int", 3),
    ),
    operator(
        "matmul_v2",
        {"X": ["flat"], "Y": ["w"]},
        {"Out": ["logits"]},
        ("trans_x", "bool", False),
        ("trans_y", "bool", False),
    ),
    operator("softmax", {"X": ["logits"]}, {"Out": ["scores"]}, ("axis", "int", -1)),
)
_HOLDERS = tuple(
    field(1, name) + field(2, field(1, kind)) + field(3, 1) for name, kind in (("feed", 9), ("fetch", 10))
)
VARIABLES = (
    *_HOLDERS,
    variable("images", [-1, 4, 4, 3], UINT8),
    variable("w", [48, 2], is_weight=True),
    *(
        variable(name, shape)
        for name, shape in (
            ("real", [-1, 4, 4, 3]),
            ("flat", [-1, 48]),
            ("logits", [-1, 2]),
            ("scores", [-1, 2]),
        )
    ),
)


def program(
    operators: Sequence[bytes] = (FEED, *NETWORK, FETCH),
    variables: Sequence[bytes] = VARIABLES,
    more: bytes = b"",
) -> bytes:
    """Returns a program; the default one gives two scores for an image uint8 [4, 4, 3]."""
    return field(1, block(operators, variables)) + more + field(4, field(1, 2006002))


def with_operator(*operators: bytes, variables: Sequence[bytes] = ()) -> bytes:
    """Returns the usual program with more operators before its softmax, and more variables."""
    return program((FEED, *NETWORK[:3], *operators, NETWORK[3], FETCH), (*VARIABLES, *variables))


def weights(
    shape: Sequence[int] = (48, 2), dtype: int = FLOAT32, *, levels: int = 0, data: bytes | None = None
) -> bytes:
    """Returns a file with one weight."""
    description = field(1, dtype) + field(2, *shape)
    if data is None:
        data = np.linspace(-1, 1, int(np.prod(shape))).astype(np.float32).tobytes()
    return struct.pack("<IQIi", 0, levels, 0, len(description)) + description + data
