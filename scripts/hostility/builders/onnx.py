"""Writes ONNX files."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from hostility.builders.protobuf import field

FLOAT32, UINT8, INT64, STRING = 1, 2, 7, 8
WEIGHTS = np.linspace(-1, 1, 96).astype(np.float32).tobytes()


def attribute(name: str, value: Any) -> bytes:
    """Returns an attribute; bytes are a graph."""
    number, kind, values = 3, 2, [value]
    if isinstance(value, float):
        number, kind = 2, 1
    elif isinstance(value, str):
        number, kind = 4, 3
    elif isinstance(value, bytes):
        number, kind = 6, 5
    elif isinstance(value, list):
        number, kind, values = 8, 7, value
    return field(1, name) + field(number, *values) + field(20, kind)


def node(
    kind: str, inputs: Sequence[str], outputs: Sequence[str], *, domain: str = "", more: bytes = b"", **a: Any
) -> bytes:
    """Returns an operator with its attributes."""
    attributes = field(5, *(attribute(name, value) for name, value in a.items()))
    names = field(1, *inputs) + field(2, *outputs) + field(3, f"{kind}_{outputs[0]}") + field(4, kind)
    return names + attributes + (field(7, domain) if domain else b"") + more


def tensor(
    name: str, shape: Sequence[int], data: bytes | None, dtype: int = FLOAT32, more: bytes = b""
) -> bytes:
    """Returns a constant."""
    return (
        field(1, *shape)
        + field(2, dtype)
        + field(8, name)
        + (field(9, data) if data is not None else b"")
        + more
    )


def integers(name: str, *numbers: int) -> bytes:
    """Returns a constant vector of integers."""
    return tensor(name, [len(numbers)], struct.pack(f"<{len(numbers)}q", *numbers), INT64)


def external(location: str, **entries: str) -> bytes:
    """Returns the part of a constant that says that its data lies in another file."""
    pairs = {"location": location, **entries}
    return field(13, *(field(1, key) + field(2, value) for key, value in pairs.items())) + field(14, 1)


def described(name: str, shape: Sequence[int | str], dtype: int = FLOAT32) -> bytes:
    """Returns the description of an input or output; a side may have a name."""
    sides = field(1, *(field(2, side) if isinstance(side, str) else field(1, side) for side in shape))
    return field(1, name) + field(2, field(1, field(1, dtype) + field(2, sides)))


NODES = (
    node("Cast", ["images"], ["real"], to=FLOAT32),
    node("Flatten", ["real"], ["flat"], axis=1),
    node("MatMul", ["flat", "w"], ["logits"]),
    node("Softmax", ["logits"], ["probabilities"], axis=-1),
)
IMAGES = described("images", ["N", 4, 4, 3], UINT8)
OUTPUT = described("probabilities", ["N", 2])
WEIGHT = tensor("w", [48, 2], WEIGHTS)


def graph(
    nodes: Sequence[bytes] = NODES,
    constants: Sequence[bytes] = (WEIGHT,),
    inputs: Sequence[bytes] = (IMAGES,),
    outputs: Sequence[bytes] = (OUTPUT,),
    more: bytes = b"",
) -> bytes:
    """Returns a graph; the default one gives two scores for an image uint8 [4, 4, 3]."""
    return (
        field(1, *nodes)
        + field(2, "g")
        + field(5, *constants)
        + field(11, *inputs)
        + field(12, *outputs)
        + more
    )


def model(
    content: bytes, metadata: str | None = None, *, opset: int = 17, ir_version: int = 8, more: bytes = b""
) -> bytes:
    """Returns an ONNX file with a graph, and the metadata of this package."""
    entry = b"" if metadata is None else field(14, field(1, "ppxcls") + field(2, metadata))
    opsets = field(8, field(1, "") + field(2, opset))
    return field(1, ir_version) + field(2, "ppxcls") + field(7, content) + opsets + entry + more


def with_nodes(*nodes: bytes, constants: Sequence[bytes] = ()) -> bytes:
    """Returns the usual graph with more operators before its softmax."""
    return graph((*NODES[:3], *nodes, NODES[3]), (WEIGHT, *constants))
