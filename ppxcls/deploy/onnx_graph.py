"""Builds an ONNX graph from the operators of a traced network.

``onnx_layers``, ``onnx_functions`` and ``onnx_tensors`` translate the operators, one function for each kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ppxcls.checkpoints.files import CheckpointError
from ppxcls.deploy.program import Operator, Program, Value, dtype_name
from ppxcls.system.arrays import Array

OPSET = 17
_IR_VERSION = 8  # of the same release of ONNX as the opset, so that runtimes of that age read the file
_BATCH_AXIS = "N"  # name of the axis that may have any size

Translation = Callable[["OnnxGraph", Operator], None]
TRANSLATIONS: dict[str, Translation] = {}  # by the kind of the operator


def translates(*kinds: str) -> Callable[[Translation], Translation]:
    """Registers a function that writes the nodes for operators of these kinds."""

    def register(function: Translation) -> Translation:
        for kind in kinds:
            assert kind not in TRANSLATIONS, kind
            TRANSLATIONS[kind] = function
        return function

    return register


class OnnxGraph:
    """An ONNX graph in construction.

    A value of the program is a tensor of the graph, or an array if it is the same for all images. Arrays are
    only written to the file if a node reads them.

    Args:
        program: operators of the network.
        input_name: name of the graph's input.
    """

    def __init__(self, program: Program, input_name: str) -> None:
        self._program = program
        self._tensors: dict[Hashable, str] = {program.image.key: input_name}
        self._value_counts: Counter[str] = Counter([input_name])  # values of the program, by their tensor
        self._arrays: dict[Hashable, Array] = {}
        self._array_names: dict[int, str] = {}  # state keys by the id of the array
        self._nodes: list[Any] = []
        self._nodes_by_output: dict[str, Any] = {}
        self._initializers: dict[str, Any] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._name_counts: Counter[str] = Counter([input_name])
        rows = [row for operator in program.operators for row in operator.inputs.values()]
        self._reader_counts = Counter(value.key for value in [*chain(*rows), program.output])
        for key, (name, array) in program.parameters.items():
            self._arrays[key] = array
            self._array_names[id(array)] = self._unique_name(name)

    # Values

    def array(self, value: Value) -> Array | None:
        """Returns the array of a value that is the same for all images, or else None."""
        return self._arrays.get(value.key)

    def tensor(self, value: Value | Array, hint: str = "constant") -> str:
        """Returns the name of a tensor. An array becomes an initializer of the graph.

        Args:
            value: value of the program, or array.
            hint: wish for the name of an array that is no parameter of the network.
        """
        if isinstance(value, Value):
            if value.key in self._tensors:
                return self._tensors[value.key]
            if value.key not in self._arrays:
                raise CheckpointError("the network reads a tensor that is neither a parameter nor a buffer")
            value = self._arrays[value.key]
        name = self._array_names.get(id(value))
        if name is None:
            key = str(value.dtype), value.shape, value.tobytes()
            if key not in self._constants:
                self._constants[key] = self._unique_name(hint)
            name = self._constants[key]
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(value, name)
        return name

    def set_array(self, value: Value, array: Array) -> None:
        """Sets the array of a value that is the same for all images."""
        self._arrays[value.key] = array
        self._tensors.pop(value.key, None)

    def set_tensor(self, value: Value, name: str) -> None:
        """Sets the tensor of a value."""
        self._tensors[value.key] = name
        self._value_counts[name] += 1
        self._arrays.pop(value.key, None)

    def alias(self, value: Value, source: Value) -> None:
        """Makes a value the same as another one."""
        array = self.array(source)
        if array is None:
            self.set_tensor(value, self.tensor(source))
        else:
            self.set_array(value, array)

    def argument(self, operator: Operator, name: str, default: Any = None) -> Any:
        """Returns an argument of an operator that must be the same for all images.

        Paddle has such arguments as attributes and as inputs.

        Args:
            operator: operator of the program.
            name: name of the argument.
            default: result if the operator has no such argument.

        Returns:
            A number, a string, or a list of numbers.

        Raises:
            CheckpointError: the argument depends on the images.
        """
        if name not in operator.inputs:
            value = operator.attributes.get(name, default)
            return list(value) if isinstance(value, (list, tuple)) else value
        arrays = [self.array(value) for value in operator.inputs[name]]
        if any(array is None for array in arrays):
            raise unsupported(operator, f"{name} that depends on the images")
        numbers = [number for array in arrays for number in np.ravel(array).tolist()]  # type: ignore[arg-type]
        return numbers[0] if len(numbers) == 1 and not arrays[0].shape else numbers  # type: ignore[union-attr]

    def number(self, operator: Operator, name: str, default: Any = None) -> Any:
        """Returns an argument that is one number; see ``argument``."""
        value = self.argument(operator, name, default)
        return value[0] if isinstance(value, list) else value

    # Nodes

    def node(
        self, kind: str, inputs: Sequence[str], *, hint: str = "", count: int = 1, **attributes: Any
    ) -> Any:
        """Adds a node.

        Args:
            kind: operator of ONNX.
            inputs: names of the input tensors; empty for an input that is left out.
            hint: wish for the node's name; empty for its kind.
            count: number of outputs.
            attributes: attributes of the node. Those that are None are left out.

        Returns:
            The name of the output tensor; a list of names if ``count`` is not 1.
        """
        name = self._unique_name(hint or kind)
        outputs = [name] if count == 1 else [f"{name}.{i}" for i in range(count)]
        attributes = {key: value for key, value in attributes.items() if value is not None}
        node = helper.make_node(kind, list(inputs), outputs, name=name, **attributes)
        self._nodes.append(node)
        self._nodes_by_output.update(dict.fromkeys(outputs, node))
        return outputs[0] if count == 1 else outputs

    def producer(self, value: Value) -> Any | None:
        """Returns the node of a tensor that only one operator reads, so that it may be changed; or None.

        A tensor may be several values, such as the input and the output of a dropout. Then other operators
        may read it as another value.
        """
        name = self._tensors.get(value.key)
        if name is None or self._reader_counts[value.key] != 1 or self._value_counts[name] != 1:
            return None
        return self._nodes_by_output.get(name)

    def layer_name(self, value: Value) -> str:
        """Returns the name of the layer that owns a parameter; empty for another value."""
        array = self.array(value)
        return self._array_names.get(id(array), "").rpartition(".")[0]

    def _unique_name(self, name: str) -> str:
        self._name_counts[name] += 1
        count = self._name_counts[name]
        return name if count == 1 else self._unique_name(f"{name}_{count}")

    # The file

    def translate(self, operator: Operator) -> None:
        """Adds the nodes for an operator.

        Raises:
            CheckpointError: the operator, or one of its settings, is not known.
        """
        if operator.kind not in TRANSLATIONS:
            raise unsupported(operator)
        TRANSLATIONS[operator.kind](self, operator)

    def model(self, output_name: str) -> Any:
        """Returns the model, whose output tensor has the given name."""
        image, output = self._program.image, self._program.output
        self.node("Identity", [self.tensor(output)], hint=output_name)
        last_node = self._nodes[-1]
        node = self._nodes_by_output.get(last_node.input[0])
        reader_count = sum(list(reader.input).count(last_node.input[0]) for reader in self._nodes)
        if node is not None and len(node.output) == 1 and reader_count == 1:
            node.output[0] = last_node.output[0]
            self._nodes.pop()
        inputs = [_description(self._tensors[image.key], image)]
        outputs = [_description(last_node.output[0], output)]
        graph = helper.make_graph(
            self._nodes, "ppxcls", inputs, outputs, initializer=list(self._initializers.values())
        )
        return helper.make_model(
            graph,
            producer_name="ppxcls",
            ir_version=_IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )


def onnx_model(program: Program, *, input_name: str, output_name: str) -> Any:
    """Returns the ONNX model of a traced network.

    Nodes have the names of the network's layers, and weights have their state keys.

    Args:
        program: operators of the network.
        input_name: name of the input.
        output_name: name of the output.

    Raises:
        CheckpointError: an operator, or one of its settings, is not known.
    """
    from ppxcls.deploy import onnx_functions, onnx_layers, onnx_tensors  # noqa: F401  they register themselves

    graph = OnnxGraph(program, input_name)
    for operator in program.operators:
        graph.translate(operator)
    model = graph.model(output_name)
    onnx.checker.check_model(model, full_check=True)
    return model


def channels_first(graph: OnnxGraph, operator: Operator) -> str:
    """Returns the tensor of the operator's first argument, with the channels on axis 1.

    Raises:
        CheckpointError: the operator computes on images with the channels last.
    """
    if str(operator.attributes.get("data_format", "NC"))[:2] not in ("NC", "An"):  # such as AnyLayout
        raise unsupported(operator, f"data_format {operator.attributes['data_format']}")
    return graph.tensor(operator.first)


def unsupported(operator: Operator, detail: str = "") -> CheckpointError:
    """Returns the error for an operator, or a setting of it, that can't be written to ONNX."""
    place = f" in {operator.layer}" if operator.layer else ""
    setting = f" with {detail}" if detail else ""
    return CheckpointError(f"ONNX: the operator {operator.kind}{setting}{place} is not supported")


def onnx_dtype(dtype: Any) -> int:
    """Returns ONNX's number of a dtype.

    Args:
        dtype: name as in numpy, or a dtype of Paddle.
    """
    name = dtype if isinstance(dtype, str) else dtype_name(dtype)
    try:
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(name)))
    except TypeError:
        raise CheckpointError(f"ONNX: the data type {name} is not supported") from None


def _description(name: str, value: Value) -> Any:
    shape = [size if size >= 0 else f"{_BATCH_AXIS}{axis or ''}" for axis, size in enumerate(value.shape)]
    return helper.make_tensor_value_info(name, onnx_dtype(value.dtype), shape)
