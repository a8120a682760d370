"""The operators of a traced network, in one form for all supported versions of Paddle.

Paddle 3 traces to its new intermediate representation (PIR), and Paddle 2 to a list of older operators. Names
are those of Paddle 3. The names of Paddle 2 are translated by ``program_paddle2``.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ppxcls.system.arrays import Array

# Operators that only collect values to a list, or take a list apart.
_COMBINE, _SPLIT = "builtin.combine", "builtin.split"
_PARAMETER, _INPUT = "builtin.parameter", "pd_op.data"


@dataclass(frozen=True)
class Value:
    """A tensor of the program.

    Attributes:
        key: identity of the value within its program.
        shape: sizes of the axes; -1 for a size that the program does not fix.
        dtype: element type as numpy calls it.
    """

    key: Hashable
    shape: tuple[int, ...] = ()
    dtype: str = "float32"


@dataclass(frozen=True)
class Operator:
    """An operator with its inputs, outputs and attributes.

    Attributes:
        kind: name in Paddle 3, without its prefix: ``conv2d``.
        inputs: values by the name of the argument. An argument may be a list of values.
        outputs: values of the outputs.
        attributes: all other arguments by name.
        layer: classes of the layers around the operator, if Paddle recorded them: ``/Xception/Block``.
    """

    kind: str
    inputs: dict[str, list[Value]]
    outputs: list[Value]
    attributes: dict[str, Any]
    layer: str = ""

    @property
    def first(self) -> Value:
        """The first argument, which Paddle calls ``x`` or ``input``."""
        return self.inputs["x" if "x" in self.inputs else "input"][0]


@dataclass(frozen=True)
class Program:
    """A traced network.

    Attributes:
        operators: operators in the order of execution, without those that the output does not need.
        image: value of the input.
        output: value of the output.
        parameters: state key and array of each weight and buffer, by the key of its value.
    """

    operators: list[Operator]
    image: Value
    output: Value
    parameters: dict[Hashable, tuple[str, Array]]


def read_program(traced_network: Any, tensors: Mapping[str, Any]) -> Program:
    """Returns the operators of a network with one input and one output.

    Args:
        traced_network: result of ``to_static`` for the network.
        tensors: parameters and buffers of the network by state key.
    """
    concrete_program = traced_network.forward.concrete_program
    block = concrete_program.main_program.global_block()
    image, output = concrete_program.inputs[-1], concrete_program.outputs[0]
    arrays = {tensor.name: (key, tensor.numpy()) for key, tensor in tensors.items()}
    if not hasattr(output, "get_defining_op"):  # Paddle 2
        from ppxcls.deploy.program_paddle2 import operators_of, variable_value

        operators = operators_of(block)
        image, output = (variable_value(block, variable.name) for variable in (image, output))
        return Program(_needed_operators(operators, output), image, output, dict(arrays))
    parameters = {
        _pir_value(op.result(0)).key: arrays[op.attrs()["parameter_name"]]
        for op in block.ops
        if op.name() == _PARAMETER and op.attrs()["parameter_name"] in arrays
    }
    image, output = _pir_value(image), _pir_value(output)
    return Program(_needed_operators(_pir_operators(block.ops), output), image, output, parameters)


def _needed_operators(operators: list[Operator], output: Value) -> list[Operator]:
    """Returns the operators that the output depends on. Tracing also records, for example, unused shapes."""
    needed_keys = {output.key}
    needed_operators = []
    for operator in reversed(operators):
        if any(value.key in needed_keys for value in operator.outputs):
            needed_operators.append(operator)
            needed_keys.update(value.key for values in operator.inputs.values() for value in values)
    return needed_operators[::-1]


def _pir_operators(operators: Iterable[Any]) -> list[Operator]:
    lists: dict[Hashable, list[Value]] = {}  # values of the lists, by the key of the list
    for op in operators:
        if op.name() == _COMBINE:
            lists[_pir_value(op.result(0)).key] = [_pir_value(value) for value in op.operands_source()]
        elif op.name() == _SPLIT:
            lists[_pir_value(op.operand_source(0)).key] = [_pir_value(value) for value in op.results()]
    results = []
    for op in operators:
        if op.name() in (_COMBINE, _SPLIT, _PARAMETER, _INPUT):
            continue
        values = [_pir_value(value) if value.initialized() else None for value in op.operands_source()]
        try:
            names = op.get_input_names()
        except ValueError:  # an operator that is not declared in Paddle's tables, such as control flow
            names = [str(i) for i in range(len(values))]
        inputs = {
            name: lists.get(value.key, [value])
            for name, value in zip(names, values, strict=False)
            if value is not None
        }
        outputs = [value for v in map(_pir_value, op.results()) for value in lists.get(v.key, [v])]
        attributes = op.attrs()
        layer = str(attributes.get("struct_name", "")).rstrip("/")
        kind = op.name().removeprefix("pd_op.").removesuffix("_")
        results.append(Operator(kind, inputs, outputs, attributes, layer))
    return results


def _pir_value(value: Any) -> Value:
    try:
        shape, dtype = tuple(value.shape), dtype_name(value.dtype)
    except ValueError:  # a list of values has neither
        shape, dtype = (), ""
    return Value(value.id, shape, dtype)


def dtype_name(dtype: Any) -> str:
    """Returns numpy's name of a dtype of Paddle: ``float32``."""
    return str(dtype).rpartition(".")[2].lower()
