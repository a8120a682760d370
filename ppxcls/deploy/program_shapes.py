"""Computes the sizes of all tensors of a program before it runs, and refuses one that needs too much.

``program_layers`` and ``program_tensors`` contain the rules, one for each kind of operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ppxcls.deploy.program_check import (
    MAX_AXES,
    MAX_OPERATORS,
    CheckedProgram,
    Node,
    ProgramError,
    Tensor,
    is_integer,
    short,
)

_BATCHES = (1, 16)  # images; a size that depends on the batch more than linearly shows at the second one
_MAX_ELEMENTS = 1 << 26  # of one tensor for one image; the largest network here has 6 million at 299 pixels
_MAX_ALL_ELEMENTS = 1 << 32  # of all tensors for one image; also of those that all operators read
# Of all tensors that do not depend on the pixels. ONNX Runtime computes and keeps them while it loads a file.
_MAX_FIXED_ELEMENTS = 1 << 26
_MAX_PRODUCTS = (
    1 << 42
)  # multiplications for one image; the largest network here has 17 billion at 299 pixels
_MAX_SHAPE_NUMBERS = 1024  # elements of a tensor whose numbers are followed
_MAX_READS = 1 << 20  # inputs, and their followed numbers, that all operators read in the whole check

ShapeRule = Callable[["OperatorCall"], "Tensor | list[Tensor]"]
SHAPE_RULES: dict[str, ShapeRule] = {}


def shape_rule(*names: str) -> Callable[[ShapeRule], ShapeRule]:
    """Registers a function that returns the outputs of an operator."""

    def register(function: ShapeRule) -> ShapeRule:
        for name in names:
            assert name not in SHAPE_RULES, name
            SHAPE_RULES[name] = function
        return function

    return register


class ReadBudget:
    """Counts what operators read, because each of many operators may read the same long list."""

    def __init__(self) -> None:
        self._rest = _MAX_READS

    def spend(self, count: int) -> None:
        """Subtracts a number of reads. Raises ProgramError if there were too many."""
        self._rest -= count
        if self._rest < 0:
            raise ProgramError(f"its operators read more than {_MAX_READS:,} inputs")


class OperatorCall:
    """An operator with what is known about its inputs.

    Attributes:
        products: multiplications that it needs, if these are more than its outputs have elements.

    Args:
        node: the operator.
        tensors: tensors so far, by name.
        budget: reads that remain.
    """

    def __init__(self, node: Node, tensors: Mapping[str, Tensor], budget: ReadBudget) -> None:
        self.node = node
        self._budget = budget
        self.products = 0
        self._tensors = tensors

    def tensor(self, argument: str = "x") -> Tensor:
        """Returns an argument that is one tensor."""
        tensors = self.tensors(argument)
        if len(tensors) != 1:
            raise self.problem(f"{len(tensors)} tensors as {argument}, expected 1")
        return tensors[0]

    def tensors(self, argument: str) -> list[Tensor]:
        """Returns the tensors of an argument; an empty list if it is missing."""
        names = self.node.inputs.get(argument, ())
        self._budget.spend(len(names))
        for name in names:
            if name not in self._tensors:
                raise self.problem(f"an input {short(name)} that no earlier operator writes")
        tensors = [self._tensors[name] for name in names]
        self._budget.spend(sum(len(tensor.numbers) for tensor in tensors if tensor.numbers))
        return tensors

    def value(self, name: str, default: object = None) -> object:
        """Returns an attribute."""
        return self.node.attributes.get(name, default)

    def is_on(self, name: str) -> bool:
        """Returns an attribute that is a truth value."""
        return bool(self.node.attributes.get(name, False))

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """Returns a list of integers that is an attribute, or that inputs hold.

        Raises:
            ProgramError: the integers depend on the pixels.
        """
        tensors = self.tensors(name)
        if not tensors:
            value = self.value(name, default)
            numbers: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
        else:
            numbers = []
            for tensor in tensors:
                if tensor.numbers is None:
                    raise self.problem(f"{name} that is computed from the image")
                numbers += tensor.numbers
        if not all(is_integer(number) for number in numbers):
            raise self.problem(f"no integers as {name}")
        return numbers

    def integer(self, name: str, default: int | None = None) -> int:
        """Returns an integer that is an attribute, or that an input holds."""
        numbers = self.integers(name, None if default is None else [default])
        if len(numbers) != 1:
            raise self.problem(f"{len(numbers)} numbers as {name}, expected 1")
        return numbers[0]

    def axis(self, number: int, rank: int) -> int:
        """Returns the number of an axis, counted from 0."""
        if not -rank <= number < rank:
            raise self.problem(f"the axis {number} of {rank} axes")
        return number % rank

    def problem(self, detail: str) -> ProgramError:
        """Returns the error for this operator."""
        return ProgramError(f"the operator {short(self.node.kind)} has {detail}")


def broadcast(operation: OperatorCall, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the shape of an element-wise operation on tensors of these shapes."""
    rank = max(map(len, shapes))
    padded_shapes = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    sides = []
    for lengths in zip(*padded_shapes, strict=True):
        lengths_above_1 = {length for length in lengths if length != 1}
        if len(lengths_above_1) > 1:
            raise operation.problem(f"inputs of different shapes: {short(list(map(list, shapes)))}")
        sides.append(max(lengths_above_1, default=1))
    return tuple(sides)


def check_sizes(program: CheckedProgram) -> None:
    """Computes the shapes of all tensors, for one image and for several.

    Raises:
        ProgramError: shapes do not fit together, or the program needs too much memory or time.
    """
    from ppxcls.deploy import program_layers, program_tensors  # noqa: F401  they register themselves

    if len(program.nodes) > MAX_OPERATORS:
        raise ProgramError(f"it has {len(program.nodes):,} operators, more than {MAX_OPERATORS:,}")
    budget = ReadBudget()
    for batch in _BATCHES:
        tensors = dict(program.constants)
        image = Tensor((batch, *program.input_shape), program.input_dtype)
        tensors[program.input_name] = image
        _check_tensor("the input", image, batch)
        totals = _Totals(program, batch)
        for node in program.nodes:
            operation = OperatorCall(node, tensors, budget)
            inputs = [tensor for argument in node.inputs for tensor in operation.tensors(argument)]
            outputs = _outputs_of(operation)
            for name, tensor in zip(node.outputs, outputs, strict=False):
                _check_tensor(f"the operator {short(node.kind)}", tensor, batch)
                _check_declaration(name, tensor, program.declared_shapes.get(name))
                tensors[name] = tensor
            totals.add(operation, inputs, outputs)
        _check_output(program, tensors, batch)


class _Totals:
    """Adds up what the operators of a program need, and refuses too much.

    Args:
        program: the program.
        batch: number of images.
    """

    def __init__(self, program: CheckedProgram, batch: int) -> None:
        self._batch = batch
        self._names_with_pixels = {program.input_name}
        self._read_count = self._written_count = self._fixed_count = self._product_count = 0
        self._max_fixed_count = batch * _MAX_FIXED_ELEMENTS + sum(
            tensor.size for tensor in program.constants.values()
        )

    def add(self, operation: OperatorCall, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Adds an operator. Raises ProgramError if the program needs too much."""
        node = operation.node
        has_pixels = any(name in self._names_with_pixels for names in node.inputs.values() for name in names)
        output_count = sum(tensor.size for tensor in outputs)
        if has_pixels and node.rule != "shape":  # a shape may be known without the pixels
            self._names_with_pixels.update(node.outputs)
        else:
            self._fixed_count += output_count
        self._read_count += sum(tensor.size for tensor in inputs)
        self._written_count += output_count
        self._product_count += operation.products
        max_count = self._batch * _MAX_ALL_ELEMENTS
        _check_total("elements in its tensors", self._written_count, max_count)
        _check_total("elements that its operators read", self._read_count, max_count)
        _check_total("elements that do not depend on the image", self._fixed_count, self._max_fixed_count)
        _check_total("multiplications", self._product_count, self._batch * _MAX_PRODUCTS)


def _outputs_of(operation: OperatorCall) -> list[Tensor]:
    try:
        outputs = SHAPE_RULES[operation.node.rule](operation)
    except (IndexError, KeyError, TypeError, ValueError, ArithmeticError):
        raise operation.problem("inputs or attributes that do not fit together") from None
    return outputs if isinstance(outputs, list) else [outputs]


def _check_tensor(place: str, tensor: Tensor, batch: int) -> None:
    if len(tensor.shape) > MAX_AXES:
        raise ProgramError(f"{place} gives a tensor with {len(tensor.shape)} axes, more than {MAX_AXES}")
    if tensor.numbers != () and not all(side >= 1 for side in tensor.shape):  # a list may be empty
        raise ProgramError(f"{place} gives a tensor without elements, {short(list(tensor.shape))}")
    if tensor.size > batch * _MAX_ELEMENTS:
        raise ProgramError(
            f"{place} needs a tensor {short(list(tensor.shape))} for {batch} images, "
            f"more than {batch * _MAX_ELEMENTS:,} elements"
        )


def _check_declaration(name: str, tensor: Tensor, shape: Sequence[int] | None) -> None:
    if shape is None:
        return
    sides = zip(shape, tensor.shape, strict=False)
    if len(shape) != len(tensor.shape) or any(length not in (-1, side) for length, side in sides):
        raise ProgramError(
            f"{short(name)} is declared as {short(list(shape))}, but is {short(list(tensor.shape))}",
            is_foreign=False,
        )


def _check_total(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise ProgramError(f"it needs more than {limit:,} {what}")


def _check_output(program: CheckedProgram, tensors: Mapping[str, Tensor], batch: int) -> None:
    output = tensors.get(program.output_name)
    if output is None:
        raise ProgramError(f"no operator writes its output {short(program.output_name)}", is_foreign=False)
    if not output.shape or output.shape[0] != batch:
        raise ProgramError(
            f"its output has the shape {short(list(output.shape))} for {batch} images, "
            f"expected [{batch}, ...]"
        )


def followed_numbers(tensor_shape: Sequence[int], numbers: Sequence[float]) -> tuple[float, ...] | None:
    """Returns the elements of a small tensor, whose numbers may become a shape; None for a large one."""
    count = math.prod(tensor_shape)
    return tuple(numbers) if count == len(numbers) <= _MAX_SHAPE_NUMBERS else None
