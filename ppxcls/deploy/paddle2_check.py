"""Checks a program in Paddle 2's format, ``inference.pdmodel``, before Paddle reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ppxcls.deploy.paddle_operators import checked_node
from ppxcls.deploy.program_check import (
    MAX_AXES,
    MAX_TENSORS,
    CheckedProgram,
    Node,
    ProgramError,
    Tensor,
    check_input,
    short,
)
from ppxcls.deploy.program_paddle2 import ATTRIBUTES, ATTRIBUTES_BY_KIND, KINDS, argument_name
from ppxcls.deploy.wire_format import Field, FormatError, Schema, read_message

_TENSOR: Schema = {1: Field("dtype", "int32"), 2: Field("shape", "integer", is_repeated=True)}
_DENSE: Schema = {1: Field("tensor", _TENSOR), 2: Field("lod_level", "int32")}
_VARIABLE_TYPE: Schema = {1: Field("kind", "int32"), 3: Field("dense", _DENSE)}
_VARIABLE: Schema = {
    1: Field("name", "text"),
    2: Field("type", _VARIABLE_TYPE),
    3: Field("is_persistable", "int32"),
    4: Field("is_fed", "int32"),
    5: Field("is_parameter", "int32"),
    6: Field("stops_gradient", "int32"),
}
_SCALAR: Schema = {
    1: Field("kind", "int32"),
    2: Field("flag", "int32"),
    3: Field("integer", "integer"),
    4: Field("real", "double"),
}
_ATTRIBUTE: Schema = {
    1: Field("name", "text"),
    2: Field("kind", "int32"),
    3: Field("INT", "int32"),
    4: Field("FLOAT", "float"),
    5: Field("STRING", "text"),
    6: Field("INTS", "int32", is_repeated=True),
    7: Field("FLOATS", "float", is_repeated=True),
    8: Field("STRINGS", "text", is_repeated=True),
    10: Field("BOOLEAN", "int32"),
    11: Field("BOOLEANS", "int32", is_repeated=True),
    12: Field("BLOCK", "int32"),
    13: Field("LONG", "integer"),
    15: Field("LONGS", "integer", is_repeated=True),
    16: Field("FLOAT64S", "double", is_repeated=True),
    19: Field("FLOAT64", "double"),
    20: Field("SCALAR", _SCALAR),
    21: Field("SCALARS", _SCALAR, is_repeated=True),
}
_KIND_NAMES = {
    **{0: "INT", 1: "FLOAT", 2: "STRING", 3: "INTS", 4: "FLOATS", 5: "STRINGS", 6: "BOOLEAN"},
    **{7: "BOOLEANS", 8: "BLOCK", 9: "LONG", 11: "LONGS", 12: "FLOAT64S", 15: "FLOAT64"},
    **{16: "SCALAR", 17: "SCALARS"},
}
_SLOT: Schema = {1: Field("name", "text"), 2: Field("variables", "text", is_repeated=True)}
_OPERATOR: Schema = {
    1: Field("inputs", _SLOT, is_repeated=True),
    2: Field("outputs", _SLOT, is_repeated=True),
    3: Field("type", "text"),
    4: Field("attributes", _ATTRIBUTE, is_repeated=True),
    5: Field("is_target", "int32"),
}
_BLOCK: Schema = {
    1: Field("index", "int32"),
    2: Field("parent", "int32"),
    3: Field("variables", _VARIABLE, is_repeated=True),
    4: Field("operators", _OPERATOR, is_repeated=True),
    5: Field("forward", "int32"),
}
_OPERATOR_VERSION: Schema = {
    1: Field("name", "text"),
    2: Field("version", {1: Field("version", "integer")}),
}
_PROGRAM: Schema = {
    1: Field("blocks", _BLOCK, is_repeated=True),
    4: Field("version", {1: Field("version", "integer")}),
    5: Field("operator_versions", {1: Field("pairs", _OPERATOR_VERSION, is_repeated=True)}),
}
PADDLE_DTYPES = {
    **{0: "bool", 1: "int16", 2: "int32", 3: "int64", 4: "float16", 5: "float32", 6: "float64"},
    **{20: "uint8", 21: "int8"},
}
_DENSE_KIND, _FEED_KIND, _FETCH_KIND = 7, 9, 10  # kinds of variables
_MAIN_OUTPUTS = ("Out", "Output", "Y")
_INPUT_NAMES = {"input": "x", "size": "size_tensor"}
_DTYPE_ATTRIBUTES = ("dtype", "in_dtype")


def read_paddle2_program(data: bytes) -> tuple[CheckedProgram, dict[str, Tensor]]:
    """Returns a program of Paddle 2, and the weights that it reads, by name.

    Raises:
        ProgramError: the program is damaged, or is not one that this package exports.
    """
    try:
        content = read_message(memoryview(data), _PROGRAM)
    except FormatError as error:
        raise ProgramError(str(error), is_foreign=False) from None
    if len(content["blocks"]) != 1:
        raise ProgramError(f"it has {len(content['blocks'])} blocks of operators, expected 1")
    block = content["blocks"][0]
    if block.get("index", 0) != 0 or block.get("parent", -1) != -1:
        raise ProgramError("its block is part of another one")
    variables = _variables(block["variables"])
    nodes: list[Node] = []
    side_names: list[str] = []
    inputs, outputs = [], []
    for operator in block["operators"]:
        kind = operator.get("type", "")
        slots = _slots(operator, "inputs"), _slots(operator, "outputs")
        if kind == "feed":
            inputs += slots[1].get("Out", [])
            _attributes(operator, kind, {"col": 0})
        elif kind == "fetch":
            outputs += slots[0].get("X", [])
            _attributes(operator, kind, {"col": 0})
        else:
            node = _node(operator, kind, *slots)
            nodes.append(node)
            side_names += _side_outputs(node, slots[1])
    if len(inputs) != 1 or len(outputs) != 1:
        raise ProgramError(f"it has {len(inputs)} inputs and {len(outputs)} outputs, expected 1 of each")
    _check_written_names(variables, nodes, side_names)
    return _program(variables, nodes, inputs[0], outputs[0])


def _side_outputs(node: Node, slots: Mapping[str, list[str]]) -> list[str]:
    """Returns the outputs of an operator besides the main ones, such as the shape before a reshape.

    A batch norm writes its statistics over themselves. In evaluation, they do not change.
    """
    main_names = set(node.outputs)
    names = [name for slot in slots.values() for name in slot if name not in main_names]
    own_statistics = {*node.inputs.get("mean", []), *node.inputs.get("variance", [])}
    return [name for name in names if node.kind != "batch_norm" or name not in own_statistics]


def _check_written_names(
    variables: Mapping[str, tuple[Tensor, bool]], nodes: list[Node], side_names: list[str]
) -> None:
    """Raises ProgramError if an operator writes over a weight, or gives another one a tensor of any shape."""
    read_names = {name for node in nodes for names in node.inputs.values() for name in names}
    for name in side_names:
        if name in read_names:
            raise ProgramError(f"an operator reads {short(name)}, which is not a main output")
    for name in [*side_names, *(name for node in nodes for name in node.outputs)]:
        if name in variables and variables[name][1]:
            raise ProgramError(f"an operator writes over the weight {short(name)}")


def _program(
    variables: Mapping[str, tuple[Tensor, bool]], nodes: list[Node], image_name: str, output_name: str
) -> tuple[CheckedProgram, dict[str, Tensor]]:
    if image_name not in variables:
        raise ProgramError("it does not describe its input", is_foreign=False)
    weights = {name: tensor for name, (tensor, is_weight) in variables.items() if is_weight}
    for name, tensor in weights.items():
        if not all(side >= 1 for side in tensor.shape):
            raise ProgramError(f"the weight {short(name)} has the shape {short(list(tensor.shape))}")
    image = variables[image_name][0]
    shape = check_input(image_name, image.shape, image.dtype)
    return CheckedProgram(image_name, shape, image.dtype, output_name, weights, nodes), weights


def _variables(entries: list[dict[str, Any]]) -> dict[str, tuple[Tensor, bool]]:
    """Returns the tensors of a block by name, and True for a weight."""
    variables: dict[str, tuple[Tensor, bool]] = {}
    if len(entries) > MAX_TENSORS:
        raise ProgramError(f"it has {len(entries):,} variables, more than {MAX_TENSORS:,}")
    for entry in entries:
        name, kind = entry.get("name", ""), entry.get("type", {}).get("kind")
        if (kind, name) in ((_FEED_KIND, "feed"), (_FETCH_KIND, "fetch")):
            continue
        if kind != _DENSE_KIND or not name or name in variables or name in ("feed", "fetch"):
            raise ProgramError(f"it has a variable {short(name)} of the kind {short(kind)}")
        tensor = entry["type"].get("dense", {}).get("tensor", {"shape": []})
        if entry["type"].get("dense", {}).get("lod_level", 0) != 0:
            raise ProgramError(f"the variable {short(name)} has levels")
        dtype = PADDLE_DTYPES.get(tensor.get("dtype"), "unknown")
        is_weight = bool(entry.get("is_persistable", 0))
        if is_weight and dtype == "unknown":
            raise ProgramError(f"the weight {short(name)} has the type {short(tensor.get('dtype'))}")
        if len(tensor["shape"]) > MAX_AXES:
            raise ProgramError(f"the variable {short(name)} has {len(tensor['shape']):,} axes")
        variables[name] = Tensor(tuple(tensor["shape"]), dtype), is_weight
    return variables


def _slots(operator: Mapping[str, Any], direction: str) -> dict[str, list[str]]:
    slots: dict[str, list[str]] = {}
    for slot in operator[direction]:
        name = slot.get("name", "")
        if name in slots:
            raise ProgramError(f"an operator has the {direction[:-1]} {short(name)} twice", is_foreign=False)
        slots[name] = slot["variables"]
    return slots


def _node(
    operator: Mapping[str, Any], type_name: str, inputs: dict[str, list[str]], outputs: dict[str, list[str]]
) -> Node:
    kind = KINDS.get(type_name, type_name)
    arguments: dict[str, list[str]] = {}
    for slot, names in inputs.items():
        if names:
            argument = argument_name(slot)
            arguments[_INPUT_NAMES.get(argument, argument)] = names
    slots = sorted(outputs, key=lambda slot: slot not in _MAIN_OUTPUTS)
    main_outputs = outputs[slots[0]] if slots else []
    attributes = _attributes(operator, kind, None)
    for name in arguments:  # an input replaces the attribute of the same name
        attributes.pop(name, None)
    node = checked_node(kind, arguments, main_outputs, attributes)
    return _with_constants(node)


def _attributes(operator: Mapping[str, Any], kind: str, expected: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the attributes of an operator under their names in Paddle 3.

    Args:
        operator: content of the operator.
        kind: name of the operator in Paddle 3.
        expected: only values that an attribute may have, for an operator that computes nothing; None for any.
    """
    names = ATTRIBUTES | ATTRIBUTES_BY_KIND.get(kind, {})
    attributes: dict[str, Any] = {}
    for entry in operator["attributes"]:
        own_name = entry.get("name", "")
        name = names.get(own_name, own_name)
        if name in attributes:
            raise ProgramError(f"the operator {short(kind)} has {short(name)} twice", is_foreign=False)
        attributes[name] = _value(entry, kind)
    for name in _DTYPE_ATTRIBUTES:
        if name in attributes:
            number = attributes[name]
            attributes[name] = "" if number == -1 else PADDLE_DTYPES.get(number, short(number))
    if expected is not None:
        for name, value in expected.items():
            if attributes.get(name, value) != value:
                raise ProgramError(f"the operator {short(kind)} has {name} = {short(attributes[name])}")
    return attributes


def _value(entry: Mapping[str, Any], kind: str) -> Any:
    """Returns the value of an attribute. Only the field that its type names may be there."""
    type_name = _KIND_NAMES.get(entry.get("kind", -1))
    fields = {name for name, value in entry.items() if name not in ("name", "kind") and value != []}
    if type_name is None or fields - {type_name}:
        raise ProgramError(f"the operator {short(kind)} has an attribute of another type than it says")
    if type_name == "BLOCK":
        raise ProgramError(f"the operator {short(kind)} has a block of operators")
    if type_name == "SCALAR":
        return _scalar(entry[type_name])
    if type_name == "SCALARS":
        return [_scalar(scalar) for scalar in entry[type_name]]
    if type_name not in entry:
        raise ProgramError(f"the operator {short(kind)} has an attribute without a value", is_foreign=False)
    if type_name == "BOOLEAN":
        return bool(entry[type_name])
    return entry[type_name]


def _scalar(entry: Mapping[str, Any]) -> int | float:
    numbers = [value for name, value in entry.items() if name != "kind"]
    if len(numbers) != 1:
        raise ProgramError("a constant has no single value", is_foreign=False)
    return numbers[0]


def _with_constants(node: Node) -> Node:
    """Returns the node with the values that Paddle 2 writes under several names."""
    attributes = dict(node.attributes)
    if node.kind == "full" and attributes.get("str_value"):
        attributes["value"] = float(attributes["str_value"])
    if node.kind == "split" and attributes.get("num"):
        attributes["sections"] = []
    if node.kind == "shape64":
        attributes["dtype"] = "int32"
    if node.kind == "assign_value":
        lists = [value for name, value in attributes.items() if name.endswith("values") and value]
        attributes["values"] = lists[0] if lists else []
    return Node(node.kind, node.rule, node.inputs, node.outputs, attributes)
