"""Checks an ONNX file before ONNX Runtime or the package ``onnx`` reads it."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ppxcls.deploy.metadata import MAX_METADATA_BYTES
from ppxcls.deploy.onnx_operators import ONNX_DTYPES, checked_onnx_node
from ppxcls.deploy.program_check import (
    MAX_AXES,
    MAX_SIDE,
    MAX_TENSORS,
    CheckedProgram,
    Node,
    ProgramError,
    Tensor,
    check_input,
    short,
)
from ppxcls.deploy.program_shapes import followed_numbers
from ppxcls.deploy.wire_format import Field, FormatError, Schema, read_message

_MAX_NUMBERS = 1024  # of a constant whose numbers may become a shape
_OPSETS = range(11, 26)  # versions of the operators; this package writes 17
_IR_VERSIONS = range(3, 14)
_ENTRY: Schema = {1: Field("key", "text"), 2: Field("value", "text", max_bytes=MAX_METADATA_BYTES)}
_TENSOR: Schema = {
    1: Field("shape", "integer", is_repeated=True),
    2: Field("dtype", "int32"),
    4: Field("float_data", "float", is_repeated=True),
    5: Field("int32_data", "int32", is_repeated=True),
    7: Field("int64_data", "integer", is_repeated=True),
    8: Field("name", "text"),
    9: Field("raw_data", "bytes"),
    13: Field("external_data", _ENTRY, is_repeated=True),
    14: Field("location", "int32"),
}
_ATTRIBUTE: Schema = {
    1: Field("name", "text"),
    2: Field("FLOAT", "float"),
    3: Field("INT", "integer"),
    4: Field("STRING", "text"),
    5: Field("TENSOR", _TENSOR),
    7: Field("FLOATS", "float", is_repeated=True),
    8: Field("INTS", "integer", is_repeated=True),
    20: Field("kind", "int32"),
}
_KIND_NAMES = {1: "FLOAT", 2: "INT", 3: "STRING", 4: "TENSOR", 6: "FLOATS", 7: "INTS"}
_NODE: Schema = {
    1: Field("inputs", "text", is_repeated=True),
    2: Field("outputs", "text", is_repeated=True),
    3: Field("name", "text"),
    4: Field("kind", "text"),
    5: Field("attributes", _ATTRIBUTE, is_repeated=True),
    6: Field("description", "text"),
    7: Field("domain", "text"),
}
_SIDE: Schema = {1: Field("length", "integer"), 2: Field("name", "text")}
_TENSOR_TYPE: Schema = {
    1: Field("dtype", "int32"),
    2: Field("shape", {1: Field("sides", _SIDE, is_repeated=True)}),
}
_VALUE: Schema = {1: Field("name", "text"), 2: Field("type", {1: Field("tensor", _TENSOR_TYPE)})}
_GRAPH: Schema = {
    1: Field("nodes", _NODE, is_repeated=True),
    2: Field("name", "text"),
    5: Field("constants", _TENSOR, is_repeated=True),
    10: Field("description", "text"),
    11: Field("inputs", _VALUE, is_repeated=True),
    12: Field("outputs", _VALUE, is_repeated=True),
    13: Field("values", _VALUE, is_repeated=True),
}
_OPSET: Schema = {1: Field("domain", "text"), 2: Field("version", "integer")}
_MODEL: Schema = {
    1: Field("ir_version", "integer"),
    2: Field("producer", "text"),
    3: Field("producer_version", "text"),
    4: Field("domain", "text"),
    5: Field("version", "integer"),
    6: Field("description", "text"),
    7: Field("graph", _GRAPH),
    8: Field("opsets", _OPSET, is_repeated=True),
    14: Field("metadata", _ENTRY, is_repeated=True),
}
# What the fields that are refused by their numbers are, for messages.
_FOREIGN_FIELDS = {
    "field 25": "functions",
    "field 20": "a training program",
    "field 15": "sparse tensors",
    "field 6,": "texts, or operators within an operator",
    "field 11": "operators within an operator",
}
_ITEMS = {
    **{"bool": (1, "?"), "uint8": (1, "B"), "int8": (1, "b"), "int16": (2, "h"), "int32": (4, "i")},
    **{"int64": (8, "q"), "float16": (2, "e"), "float32": (4, "f"), "float64": (8, "d")},
}


@dataclass(frozen=True)
class OnnxFile:
    """A checked ONNX file.

    Attributes:
        program: its operators.
        metadata: its metadata.
    """

    program: CheckedProgram
    metadata: dict[str, str]


def read_onnx_program(data: bytes) -> OnnxFile:
    """Returns the operators and the metadata of an ONNX file.

    Raises:
        ProgramError: the file is damaged, or is not one that this package exports.
    """
    try:
        model = read_message(memoryview(data), _MODEL)
    except FormatError as error:
        raise ProgramError(_with_names(str(error)), is_foreign="not expected" in str(error)) from None
    if model.get("ir_version") not in _IR_VERSIONS or "graph" not in model:
        raise ProgramError("it does not say that it is an ONNX model", is_foreign=False)
    versions = [entry.get("version") for entry in model["opsets"] if entry.get("domain", "") == ""]
    if len(versions) != 1 or versions[0] not in _OPSETS:
        raise ProgramError(f"it has operators of the versions {short(versions)}, expected one from 11 to 25")
    metadata = {entry.get("key", ""): entry.get("value", "") for entry in model["metadata"]}
    if len(metadata) != len(model["metadata"]):
        raise ProgramError("it has an entry of its metadata twice", is_foreign=False)
    return OnnxFile(_program(model["graph"]), metadata)


def _with_names(message: str) -> str:
    notes = [note for start, note in _FOREIGN_FIELDS.items() if start in message]
    return f"{message} ({notes[0]})" if notes else message


def _program(graph: Mapping[str, Any]) -> CheckedProgram:
    constants: dict[str, Tensor] = {}
    if len(graph["constants"]) + len(graph["nodes"]) > MAX_TENSORS:
        raise ProgramError(f"it has more than {MAX_TENSORS:,} tensors")
    for entry in graph["constants"]:
        _add(constants, entry.get("name", ""), _constant(entry))
    if len(graph["inputs"]) != 1 or len(graph["outputs"]) != 1:
        raise ProgramError(
            f"it has {len(graph['inputs'])} inputs and {len(graph['outputs'])} outputs, expected 1 of each"
        )
    image_name, shape, dtype = _description(graph["inputs"][0])
    declared_shapes = {}
    for entry in [*graph["outputs"], *graph["values"]]:
        name, declared_shape, _ = _description(entry)
        declared_shapes[name] = declared_shape
    names = {image_name, *constants}
    nodes: list[Node] = []
    for entry in graph["nodes"]:
        node = _node(entry, constants)
        for name in entry["outputs"]:
            if not name or name in names:
                raise ProgramError(f"two operators write {short(name)}", is_foreign=False)
            names.add(name)
        if node is not None:
            nodes.append(node)
    output_name = graph["outputs"][0].get("name", "")
    sides = check_input(image_name, shape, dtype)
    return CheckedProgram(
        image_name, sides, dtype, output_name, constants, nodes, declared_shapes=declared_shapes
    )


def _add(constants: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    if not name or name in constants:
        raise ProgramError(f"it has the constant {short(name)} twice", is_foreign=False)
    constants[name] = tensor


def _node(entry: Mapping[str, Any], constants: dict[str, Tensor]) -> Node | None:
    """Returns an operator; None for one that gives a constant, which is added to the constants."""
    kind = entry.get("kind", "")
    if entry.get("domain", "") != "":
        raise ProgramError(f"it contains the operator {short(kind)} of {short(entry['domain'])}")
    attributes = {}
    for attribute in entry["attributes"]:
        name = attribute.get("name", "")
        if name in attributes:
            raise ProgramError(f"the operator {short(kind)} has {short(name)} twice", is_foreign=False)
        attributes[name] = _attribute(attribute, kind)
    if kind == "Constant":
        if set(attributes) != {"value"} or not isinstance(attributes["value"], dict) or entry["inputs"]:
            raise ProgramError("the operator Constant has no tensor as its value")
        for name in entry["outputs"][:1]:
            _add(constants, name, _constant(attributes["value"]))
        return None
    if kind == "Cast" and "to" in attributes:
        attributes["to"] = ONNX_DTYPES.get(attributes["to"], short(attributes["to"]))
    return checked_onnx_node(kind, entry["inputs"], entry["outputs"], attributes)


def _attribute(entry: Mapping[str, Any], kind: str) -> Any:
    """Returns the value of an attribute. Only the field that its type names may be there."""
    type_name = _KIND_NAMES.get(entry.get("kind", 0))
    fields = {name for name, value in entry.items() if name not in ("name", "kind") and value != []}
    if type_name is None or fields - {type_name} or type_name not in entry:
        raise ProgramError(
            f"the operator {short(kind)} has an attribute {short(entry.get('name', ''))} "
            "of another type than numbers or words"
        )
    return entry[type_name]


def _description(entry: Mapping[str, Any]) -> tuple[str, tuple[int, ...], str]:
    """Returns the name, shape and type of a value. A side without a fixed length is -1."""
    tensor = entry.get("type", {}).get("tensor", {})
    dtype = ONNX_DTYPES.get(tensor.get("dtype"), "unknown")
    sides = tensor.get("shape", {}).get("sides", [])
    if not entry.get("name") or dtype == "unknown" or len(sides) > MAX_AXES:
        raise ProgramError(f"the value {short(entry.get('name', ''))} is no tensor of numbers")
    lengths = [side.get("length", -1) for side in sides]
    return entry["name"], tuple(length if length >= 0 else -1 for length in lengths), dtype


def _constant(entry: Mapping[str, Any]) -> Tensor:
    """Returns what is known about a constant. Its data must be in the file, and have the right size."""
    name = short(entry.get("name", ""))
    if entry["external_data"] or entry.get("location", 0) != 0:
        raise ProgramError(f"the constant {name} lies in another file")
    dtype, shape = ONNX_DTYPES.get(entry.get("dtype", 0), ""), tuple(entry["shape"])
    if dtype not in _ITEMS:
        raise ProgramError(f"the constant {name} has the type {short(entry.get('dtype'))}")
    if len(shape) > MAX_AXES or not all(0 <= side <= MAX_SIDE for side in shape):
        raise ProgramError(f"the constant {name} has the shape {short(list(shape))}")
    count = math.prod(shape)
    size, code = _ITEMS[dtype]
    lists = {field: entry[field] for field in ("float_data", "int32_data", "int64_data") if entry[field]}
    if "raw_data" in entry:
        if lists or len(entry["raw_data"]) != count * size:
            raise ProgramError(
                f"the constant {name} has {len(entry['raw_data']):,} bytes, expected {count * size:,}",
                is_foreign=False,
            )
        numbers: tuple[float, ...] = ()
        if count <= _MAX_NUMBERS:
            numbers = struct.unpack(f"<{count}{code}", entry["raw_data"])
    else:
        field = {"float32": "float_data", "int64": "int64_data"}.get(dtype, "int32_data")
        numbers = tuple(entry[field])
        if set(lists) - {field} or len(numbers) != count or dtype == "float64":
            raise ProgramError(
                f"the constant {name} has {len(numbers):,} numbers, expected {count:,}", is_foreign=False
            )
    return Tensor(shape, dtype, followed_numbers(shape, numbers))
