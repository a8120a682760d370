"""Hostile ONNX files, by what is hostile about them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from hostility.builders import onnx
from hostility.builders.protobuf import field, varint

_BODY = onnx.graph()
# Operators that do more than bounded arithmetic, with their attributes.
_FORBIDDEN: dict[str, dict[str, object]] = {
    "Loop": {"body": _BODY},
    "If": {"then_branch": _BODY, "else_branch": _BODY},
    "Scan": {"body": _BODY, "num_scan_inputs": 1},
    "SequenceMap": {"body": _BODY},
    **{
        kind: {}
        for kind in (
            *("SequenceConstruct", "SequenceAt", "SequenceInsert", "SplitToSequence", "ConcatFromSequence"),
            *("TfIdfVectorizer", "StringNormalizer", "StringConcat", "StringSplit", "RegexFullMatch"),
            *("RandomNormal", "RandomUniformLike", "Multinomial", "Bernoulli", "Range", "ConstantOfShape"),
            *("NonMaxSuppression", "Optional", "OptionalGetElement", "ImageDecoder", "LSTM", "GRU", "RNN"),
            *("Einsum", "Unique", "Compress", "NonZero", "Mod", "DFT", "MelWeightMatrix", "ScatterND"),
            *("GatherND", "OneHot", "TopK", "EyeLike", "Det", "Upsample", "ATen", "PythonOp", "Call"),
        )
    },
}


def files(metadata: str) -> Iterator[tuple[str, bytes]]:
    """Yields a description and the bytes of each file.

    Args:
        metadata: metadata of a good file.
    """
    for name, content in _graphs():
        yield name, onnx.model(content, metadata)
    good = onnx.model(_BODY, metadata)
    for part in range(1, 8):
        yield f"the first {part}/8", good[: len(good) * part // 8]
    opset = field(1, "ai.stranger") + field(2, 1)
    function = field(1, "Softmax") + field(7, onnx.NODES[0]) + field(10, "")
    for name, more in {
        "functions": field(25, function),
        "a training program": field(20, field(1, _BODY)),
        "an unknown field": field(99, "x"),
        "a second graph": field(7, _BODY),
        "a second version of the operators": field(8, field(2, 16)),
        "metadata twice": field(14, field(1, "ppxcls") + field(2, "{}")),
        "metadata that is not UTF-8": field(14, field(1, b"\xff") + field(2, b"\xfe")),
        "a number of 11 bytes": varint(5 << 3) + b"\xff" * 10 + b"\x01",
        "a length beyond the end": varint(6 << 3 | 2) + varint(1 << 62),
        "a description of 1 MB": field(6, "x" * 1_000_000),
    }.items():
        yield name, onnx.model(_BODY, metadata, more=more)
    yield (
        "operators of a stranger",
        onnx.model(
            onnx.with_nodes(onnx.node("Evil", ["logits"], ["e"], domain="ai.stranger")), more=field(8, opset)
        ),
    )
    for version in (1, 10, 99, -1):
        yield f"operators of the version {version}", onnx.model(_BODY, metadata, opset=version)
    yield "another version of the format", onnx.model(_BODY, metadata, ir_version=1000)
    yield "metadata that is no JSON", onnx.model(_BODY, "{")
    yield "metadata that is nested", onnx.model(_BODY, "[" * 100_000)
    yield "metadata that is a number", onnx.model(_BODY, "1")
    yield "nothing", b""
    yield "zeros", bytes(1 << 20)
    yield "a pickle", b"\x80\x04cos\nsystem\n."
    yield "a ZIP archive", b"PK\x03\x04" + bytes(100)


def _graphs() -> Iterator[tuple[str, bytes]]:
    for kind, attributes in _FORBIDDEN.items():
        yield f"operator {kind}", onnx.with_nodes(onnx.node(kind, ["logits"], ["extra"], **attributes))
    for domain in ("com.microsoft", "ai.onnx.ml", "com.microsoft.nchwc", "org.pytorch.aten", "x" * 10_000):
        yield f"domain {domain[:20]}", onnx.with_nodes(onnx.node("Relu", ["logits"], ["e"], domain=domain))
    for name, location in {
        "an absolute path": "/etc/passwd",
        "a path out of the folder": "../../../../etc/passwd",
        "a path through a folder": "a/../../etc/passwd",
        "a path of Windows": "..\\..\\secret",
        "a file in the folder": "weights.bin",
        "an address in memory": "*/_ORT_MEM_ADDR_/*",
        "a URL": "http://127.0.0.1:1/x",
        "an empty path": "",
        "a path with a NUL": "a\0b",
    }.items():
        constant = onnx.tensor("w", [48, 2], None, more=onnx.external(location, offset="0", length="384"))
        yield f"data in another file: {name}", onnx.graph(constants=[constant])
    entry_only = onnx.tensor(
        "w", [48, 2], onnx.WEIGHTS, more=field(13, field(1, "location") + field(2, "/x"))
    )
    yield "data here and in another file", onnx.graph(constants=[entry_only])
    tensor = onnx.tensor("v", [1], None, more=onnx.external("/etc/passwd"))
    constant = (
        field(2, "c") + field(4, "Constant") + field(5, field(1, "value") + field(5, tensor) + field(20, 4))
    )
    yield "data of an attribute in another file", onnx.with_nodes(constant)
    yield from _tensors()
    yield from _sizes()
    yield from _values()


def _tensors() -> Iterator[tuple[str, bytes]]:
    for name, constant in {
        "a constant that is shorter than it says": onnx.tensor("w", [48, 2], onnx.WEIGHTS[:-4]),
        "a constant that is longer than it says": onnx.tensor("w", [48, 2], onnx.WEIGHTS + b"x"),
        "a constant of 2^60 elements": onnx.tensor("w", [1 << 30, 1 << 30], onnx.WEIGHTS),
        "a constant of a negative size": onnx.tensor("w", [-48, -2], onnx.WEIGHTS),
        "a constant without data": onnx.tensor("w", [48, 2], None),
        "a constant of texts": onnx.tensor("w", [1], None, onnx.STRING, more=field(6, "x")),
        "a constant of complex numbers": onnx.tensor("w", [48], onnx.WEIGHTS, 14),
        "a constant of an unknown type": onnx.tensor("w", [48, 2], onnx.WEIGHTS, 99),
        "a constant in segments": onnx.tensor("w", [48, 2], onnx.WEIGHTS, more=field(3, field(1, 0))),
        "a constant with data twice": onnx.tensor("w", [48, 2], onnx.WEIGHTS, more=field(4, 1.0)),
        "a constant of many axes": onnx.tensor("w", [1] * 5000, onnx.WEIGHTS[:4]),
        "a constant without a name": onnx.tensor("", [48, 2], onnx.WEIGHTS),
    }.items():
        yield name, onnx.graph(constants=[constant])
    yield "a constant twice", onnx.graph(constants=[onnx.WEIGHT, onnx.WEIGHT])
    yield "sparse constants", onnx.graph(more=field(15, field(1, onnx.WEIGHT)))
    yield "a note on quantisation", onnx.graph(more=field(14, field(1, "w")))
    yield (
        "an operator with a program",
        onnx.with_nodes(onnx.node("Relu", ["logits"], ["e"], more=field(5, onnx.attribute("body", _BODY)))),
    )


def _sizes() -> Iterator[tuple[str, bytes]]:
    huge = onnx.integers("n", 1, 1 << 40)
    for kind in ("Expand", "Tile", "Reshape"):
        yield f"a huge {kind}", onnx.with_nodes(onnx.node(kind, ["logits", "n"], ["e"]), constants=[huge])
    pads = onnx.integers("n", 0, 0, 0, 1 << 40)
    yield "a huge Pad", onnx.with_nodes(onnx.node("Pad", ["logits", "n"], ["e"]), constants=[pads])
    cuts = onnx.integers("n", 0, 0, 0, -9)
    yield "a Pad that cuts", onnx.with_nodes(onnx.node("Pad", ["logits", "n"], ["e"]), constants=[cuts])
    scales = onnx.tensor("n", [4], struct.pack("<4f", 1, 1e6, 1e6, 1))
    resize = onnx.node("Resize", ["real", "", "n"], ["e"], mode="nearest")
    yield "a huge Resize", onnx.with_nodes(resize, constants=[scales])
    yield "a Resize by the image", onnx.with_nodes(onnx.node("Resize", ["real", "", "flat"], ["e"]))
    yield "a Resize of a region", onnx.with_nodes(onnx.node("Resize", ["real", "w", "w"], ["e"]))
    joins = [onnx.node("Concat", ["logits", "logits"], ["x0"], axis=1)]
    joins += [onnx.node("Concat", [f"x{i}"] * 2, [f"x{i + 1}"], axis=1) for i in range(60)]
    yield "60 joins of a tensor with itself", onnx.with_nodes(*joins)
    side = onnx.integers("n", 1 << 13, 1 << 13)
    row = onnx.tensor("row", [1, 1], struct.pack("<f", 1))
    tables = [onnx.node("Expand", ["row", "n"], [f"t{i}"]) for i in range(2)]
    yield "two large tables that are folded", onnx.with_nodes(*tables, constants=[side, row])
    row = onnx.integers("row", -1, 1, 1)
    table = [onnx.node("Reshape", ["logits", "row"], ["r"]), onnx.node("Expand", ["r", "m"], ["t"])]
    maxima = [onnx.node("ReduceMax", ["t"], [f"m{i}"], axes=[1, 2], keepdims=1) for i in range(200)]
    width = onnx.integers("m", 1, 1 << 12, 1 << 13)
    yield "200 maxima of a large table", onnx.with_nodes(*table, *maxima, constants=[row, width])
    copies = [onnx.node("Relu", ["logits"], [f"r{i}"]) for i in range(20_001)]
    yield "20,001 operators", onnx.with_nodes(*copies)
    zero = onnx.integers("n", 0)
    cast = onnx.node("Cast", ["logits"], ["i"], to=onnx.INT64)
    yield (
        "a division of integers by 0",
        onnx.with_nodes(cast, onnx.node("Div", ["i", "n"], ["e"]), constants=[zero]),
    )
    far = onnx.integers("n", 1 << 40)
    yield (
        "an index far outside",
        onnx.with_nodes(onnx.node("Gather", ["logits", "n"], ["e"], axis=1), constants=[far]),
    )
    yield "an index from the image", onnx.with_nodes(cast, onnx.node("Gather", ["w", "i"], ["e"]))
    for name, attributes in {
        "a pool of no size": {"kernel_shape": [0, 0]},
        "a pool of 2^40": {"kernel_shape": [1 << 40] * 2},
        "a pool with huge borders": {"kernel_shape": [2, 2], "pads": [1 << 40] * 4},
        "a pool with steps of 0": {"kernel_shape": [2, 2], "strides": [0, 0]},
        "a pool of one side": {"kernel_shape": [2]},
    }.items():
        yield name, onnx.with_nodes(onnx.node("MaxPool", ["real"], ["e"], **attributes))


def _values() -> Iterator[tuple[str, bytes]]:
    yield (
        "an image of 2^40 pixels",
        onnx.graph(inputs=[onnx.described("images", ["N", 1 << 20, 1 << 20, 3], onnx.UINT8)]),
    )
    yield (
        "an image of any size",
        onnx.graph(inputs=[onnx.described("images", ["N", "H", "W", 3], onnx.UINT8)]),
    )
    yield "an image of a fixed batch", onnx.graph(inputs=[onnx.described("images", [8, 4, 4, 3], onnx.UINT8)])
    yield "an image of texts", onnx.graph(inputs=[onnx.described("images", ["N"], onnx.STRING)])
    yield (
        "an image that is a sequence",
        onnx.graph(inputs=[field(1, "images") + field(2, field(4, field(1, b"")))]),
    )
    yield "two images", onnx.graph(inputs=[onnx.IMAGES, onnx.described("b", ["N", 4], 1)])
    yield "no image", onnx.graph(inputs=[])
    yield "two outputs", onnx.graph(outputs=[onnx.OUTPUT, onnx.described("logits", ["N", 2])])
    yield "an output that nobody writes", onnx.graph(outputs=[onnx.described("x", ["N", 2])])
    yield "an output of another shape", onnx.graph(outputs=[onnx.described("probabilities", ["N", 2000])])
    yield "a value of another shape", onnx.graph(more=field(13, onnx.described("logits", ["N", 1 << 40])))
    yield "an output that two write", onnx.with_nodes(onnx.node("Relu", ["logits"], ["flat"]))
    yield "an output over a weight", onnx.with_nodes(onnx.node("Relu", ["logits"], ["w"]))
    yield "an input from later on", onnx.with_nodes(onnx.node("Relu", ["probabilities"], ["e"]))
    yield "an unknown attribute", onnx.with_nodes(onnx.node("Relu", ["logits"], ["e"], callback=1))
    yield "an operator without outputs", onnx.with_nodes(field(1, "logits") + field(4, "Relu"))
