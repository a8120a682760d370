"""Checks a program in Paddle 3's format, ``inference.json``, before Paddle reads it."""

from __future__ import annotations

import codecs
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ppxcls.deploy.paddle_operators import PLACE, checked_node, operator_of
from ppxcls.deploy.program_check import (
    LABEL,
    MAX_AXES,
    MAX_OPERATORS,
    MAX_TENSORS,
    CheckedProgram,
    Node,
    ProgramError,
    Tensor,
    check_attributes,
    check_input,
    integer,
    integers,
    is_integer,
    short,
    word,
)
from ppxcls.system.json_text import read_json

_MAX_VERSION = 99  # of the format; Paddle 3.3 writes 4
_PARAMETER, _COMBINE, _SPLIT, _INPUT, _OUTPUT = "p", "0.combine", "0.split", "1.data", "1.fetch"
_DTYPES = {
    **{"0.t_bool": "bool", "0.t_ui8": "uint8", "0.t_i8": "int8", "0.t_i16": "int16", "0.t_i32": "int32"},
    **{"0.t_i64": "int64", "0.t_f16": "float16", "0.t_f32": "float32", "0.t_f64": "float64"},
}
_REAL_WORDS = {"INF": math.inf, "-INF": -math.inf}
_OUTPUT_RULES = {"name": LABEL, "col": integer(0, 0)}


def read_pir_program(data: bytes) -> tuple[CheckedProgram, dict[str, Tensor]]:
    """Returns a program of Paddle 3, and the weights that it reads, by name.

    Raises:
        ProgramError: the program is damaged, or is not one that this package exports.
    """
    if data.startswith(codecs.BOM_UTF8):
        raise ProgramError("it begins with a mark of the byte order", is_foreign=False)
    try:
        content = read_json(data)
    except ValueError as error:
        raise ProgramError(str(error), is_foreign=False) from None
    try:
        _check_keys(content, "base_code", "program")
        base = content["base_code"]
        _check_keys(base, "magic", "trainable", "version")
        if base["magic"] != "pir" or not isinstance(base["trainable"], bool):
            raise ProgramError("it does not say that it is a program", is_foreign=False)
        if not is_integer(base["version"]) or not 0 <= base["version"] <= _MAX_VERSION:
            raise ProgramError(f"it has the version {short(base['version'])}", is_foreign=False)
        _check_keys(content["program"], "regions")
        (region,) = content["program"]["regions"]
        _check_keys(region, "#", "blocks")
        (block,) = region["blocks"]
        _check_keys(block, "#", "args", "ops")
        if block["args"] != [] or (region["#"], block["#"]) != ("region_0", "block_0"):
            raise ProgramError("its block of operators has arguments or another name")
        return _Block().read(block["ops"])
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError):
        raise ProgramError("its objects have another form than Paddle's", is_foreign=False) from None


def _check_keys(entry: Any, *names: str) -> None:
    if not isinstance(entry, dict) or set(entry) != set(names):
        keys = list(entry)[:MAX_AXES] if isinstance(entry, dict) else type(entry).__name__
        raise ProgramError(f"an object has the keys {short(keys)}, expected {', '.join(names)}")


class _Block:
    """Reads the operators of a program."""

    def __init__(self) -> None:
        self._values: set[str] = set()
        self._lists: dict[str, list[str]] = {}  # values of the lists, by the value of the list
        self._weights: dict[str, Tensor] = {}
        self._constants: dict[str, Tensor] = {}
        self._inputs: list[tuple[str, Tensor]] = []
        self._outputs: list[str] = []
        self._nodes: list[Node] = []
        self._node_numbers: dict[str, int] = {}  # positions of the nodes by their first outputs

    def read(self, entries: Sequence[Any]) -> tuple[CheckedProgram, dict[str, Tensor]]:
        """Returns the program of these operators, and its weights by name."""
        if len(entries) > MAX_TENSORS:
            raise ProgramError(f"it has {len(entries):,} operators, more than {MAX_TENSORS:,}")
        for entry in entries:
            if entry["#"] == _PARAMETER:
                self._read_parameter(entry)
            else:
                _check_keys(entry, "#", "A", "I", "O", "OA")
                self._read_operator(entry)
        if len(self._inputs) != 1 or len(self._outputs) != 1:
            raise ProgramError(
                f"it has {len(self._inputs)} inputs and {len(self._outputs)} outputs, expected 1 of each"
            )
        ((name, image),) = self._inputs
        shape = check_input(name, image.shape, image.dtype)
        (output,) = self._outputs
        return CheckedProgram(name, shape, image.dtype, output, self._constants, self._nodes), self._weights

    def _read_parameter(self, entry: Any) -> None:
        _check_keys(entry, "#", "A", "DA", "O", "OA", "QA")
        *flags, name = entry["A"]
        value, tensor = self._output(entry["O"])
        is_plain = entry["DA"] == entry["QA"] == [] and all(is_integer(f) for f in [*flags, *entry["OA"]])
        if not is_plain or not isinstance(name, str) or name in self._weights or tensor is None:
            raise ProgramError(f"the weight {short(name)} is not written as Paddle writes it")
        if not all(side >= 1 for side in tensor.shape):
            raise ProgramError(f"the weight {short(name)} has the shape {short(list(tensor.shape))}")
        self._weights[name] = self._constants[value] = tensor

    def _read_operator(self, entry: Mapping[str, Any]) -> None:
        kind = entry["#"]
        inputs = [self._input(value) for value in entry["I"]]
        outputs = [self._output(value) for value in entry["O"]]
        names = [name for name, _ in outputs]
        attributes = {}
        for attribute in entry["A"]:
            _check_keys(attribute, "AT", "N")
            if attribute["N"] in attributes:
                raise ProgramError(f"the operator {short(kind)} has {short(attribute['N'])} twice")
            attributes[attribute["N"]] = _attribute_value(attribute["AT"])
        for attribute in entry["OA"]:
            self._check_output_attribute(attribute)
        if kind == _INPUT:
            self._read_input(attributes, outputs)
        elif kind == _OUTPUT:
            check_attributes("fetch", attributes, _OUTPUT_RULES)
            self._outputs += [name for name in inputs if name is not None]
        elif kind in (_COMBINE, _SPLIT):
            self._read_list(kind, inputs, outputs, attributes)
        else:
            if len(self._nodes) >= MAX_OPERATORS:
                raise ProgramError(f"it has more than {MAX_OPERATORS:,} operators")
            self._node_numbers[names[0] if names else ""] = len(self._nodes)
            self._nodes.append(self._node(kind, inputs, names, attributes))

    def _read_input(self, attributes: Mapping[str, Any], outputs: list[tuple[str, Tensor | None]]) -> None:
        rules = {
            "name": LABEL,
            "shape": integers(-1),
            "dtype": word("uint8", "float32"),
            "place": PLACE,
        }
        check_attributes("data", attributes, rules)
        ((value, _),) = outputs
        self._inputs.append((value, Tensor(tuple(attributes["shape"]), attributes["dtype"])))

    def _read_list(
        self,
        kind: str,
        inputs: list[str | None],
        outputs: list[tuple[str, Tensor | None]],
        attributes: Mapping[str, Any],
    ) -> None:
        """Reads an operator that collects values to a list, or takes a list apart."""
        check_attributes(kind, attributes, operator_of("relu").rules)
        if kind == _COMBINE:
            ((value, _),) = outputs
            self._lists[value] = [name for name in inputs if name is not None]
            return
        (value_of_list,) = inputs
        number = self._node_numbers.pop(value_of_list or "", None)
        node = None if number is None else self._nodes[number]
        if number is None or node is None or list(node.outputs) != [value_of_list]:
            raise ProgramError("a list is taken apart that no operator gives")
        self._nodes[number] = replace(node, outputs=[name for name, _ in outputs])

    def _node(
        self, kind: str, inputs: list[str | None], outputs: list[str], attributes: dict[str, Any]
    ) -> Node:
        name = kind.removeprefix("1.").removesuffix("_")
        if not kind.startswith("1."):
            raise ProgramError(f"it contains the operator {short(kind)}")
        arguments = operator_of(name).arguments
        if len(inputs) > len(arguments):
            raise ProgramError(f"the operator {short(name)} has {len(inputs)} inputs")
        named_inputs = {
            argument: self._lists.get(value, [value])
            for argument, value in zip(arguments, inputs, strict=False)
            if value is not None
        }
        return checked_node(name, named_inputs, outputs, attributes)

    def _input(self, entry: Any) -> str | None:
        """Returns the name of a value that an operator reads; None for an input that is left out."""
        _check_keys(entry, "%")
        if entry["%"] == 0:
            return None
        name = _value_name(entry["%"])
        if name not in self._values:
            raise ProgramError("an operator reads a value that no earlier one writes", is_foreign=False)
        return name

    def _output(self, entry: Any) -> tuple[str, Tensor | None]:
        """Returns the name of a value that an operator writes, and its tensor; None for a list."""
        if entry == {"%": 0, "TT": {"#": "NULL"}} or (entry["%"] == 0 and "NULL" in str(entry["TT"])):
            return "", None
        _check_keys(entry, "%", "TT")
        name = _value_name(entry["%"])
        if name in self._values or len(self._values) > MAX_TENSORS:
            raise ProgramError("two operators write the same value", is_foreign=False)
        self._values.add(name)
        return name, _tensor(entry["TT"])

    @staticmethod
    def _check_output_attribute(entry: Any) -> None:
        _check_keys(entry, "AT", "N")
        if entry["N"] not in ("stop_gradient", "persistable"):
            raise ProgramError(f"an output has the attribute {short(entry['N'])}")
        if not all(isinstance(flag, bool) for flag in _attribute_value(entry["AT"])):
            raise ProgramError(f"an output has an invalid {entry['N']}", is_foreign=False)


def _value_name(number: Any) -> str:
    if not is_integer(number) or not 0 < number < 1 << 31:
        raise ProgramError(f"a value has the number {short(number)}", is_foreign=False)
    return f"%{number}"


def _tensor(entry: Any) -> Tensor | None:
    """Returns the tensor that a type describes; None for a list of tensors."""
    _check_keys(entry, "#", "D")
    if entry["#"] == "0.t_vec":
        for part in entry["D"]:
            if _tensor(part) is None:
                raise ProgramError("a list contains a list")
        return None
    if entry["#"] != "0.t_dtensor":
        raise ProgramError(f"a value has the type {short(entry['#'])}")
    kind, shape, _, levels, offset = entry["D"]
    _check_keys(kind, "#")
    if kind["#"] not in _DTYPES or levels != [] or offset != 0:
        raise ProgramError(f"a tensor has the type {short(kind['#'])}")
    if len(shape) > MAX_AXES or not all(is_integer(side) for side in shape):
        raise ProgramError(f"a tensor has the shape {short(shape)}")
    return Tensor(tuple(shape), _DTYPES[kind["#"]])


def _attribute_value(entry: Any) -> Any:
    """Returns the value of an attribute. Its type must be the one that its name says."""
    kind = entry["#"]
    if "VD" in entry:  # an infinite number
        _check_keys(entry, "#", "VD")
        if kind not in ("0.a_f32", "0.a_f64") or entry["VD"] not in _REAL_WORDS:
            raise ProgramError(f"an attribute has the value {short(entry['VD'])}")
        return _REAL_WORDS[entry["VD"]]
    _check_keys(entry, "#", "D")
    value = entry["D"]
    if kind == "0.a_array":
        return [_attribute_value(part) for part in value]
    is_valid = {
        "0.a_str": isinstance(value, str),
        "0.a_bool": isinstance(value, bool),
        "0.a_i32": is_integer(value) and -(1 << 31) <= value < 1 << 31,  # Paddle would cut off the rest
        "0.a_i64": is_integer(value),
        "0.a_f32": isinstance(value, float) or is_integer(value),
        "0.a_f64": isinstance(value, float) or is_integer(value),
        "1.a_dtype": isinstance(value, str),
        "1.a_intarray": isinstance(value, list) and all(map(is_integer, value)),
        "1.a_place": isinstance(value, list),
    }.get(kind)
    if not is_valid:
        raise ProgramError(f"an attribute has the type {short(kind)} with the value {short(value)}")
    return value
