"""What the checks of programs share: errors, the rules for attributes, and the form of a checked program.

A program of Paddle or ONNX can do more than compute: read and write files, call functions, and run for ever.
So a program from a file is read by this package first. It passes if each of its operators can do nothing but
arithmetic of a bounded size on its inputs. ``paddle2_check``, ``pir_check`` and ``onnx_check`` read the three
formats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppxcls.system.errors import UserError
from ppxcls.system.paths import bounded, printable

TRUST_HINT = "such a program may do anything; --trust (trust=True) loads it, if you trust who wrote it"
MAX_OPERATORS = 20_000
MAX_TENSORS = 100_000
MAX_AXES = 8
MAX_SIDE = 1 << 20  # elements along an axis of the input or of a constant
MAX_LIST = 64  # numbers in an attribute
_MAX_NAME_LENGTH = 100  # characters of a name in a message
_MAX_LABEL_LENGTH = 4096  # characters of a text that is only shown
DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")


class ProgramError(UserError):
    """A program is damaged, or is not one that this package exports.

    Args:
        reason: what is wrong, without the name of the file.
        is_foreign: True if another exporter may have written the program. False if it is damaged.
    """

    def __init__(self, reason: str, *, is_foreign: bool = True) -> None:
        super().__init__(reason)
        self.is_foreign = is_foreign


def short(text: object) -> str:
    """Returns a name of a stranger's file for a message."""
    return printable(bounded(str(text), _MAX_NAME_LENGTH))


@dataclass(frozen=True)
class Rule:
    """The values that an attribute may have.

    Attributes:
        expected: description of these values, for messages.
        accepts: function that returns True for such a value.
    """

    expected: str
    accepts: Callable[[Any], bool]


Rules = Mapping[str, Rule]


@dataclass(frozen=True)
class AllowedOperator:
    """An operator that a program may contain.

    Attributes:
        rule: rule for the shapes of its outputs; see ``program_shapes``.
        arguments: names of its inputs, in their order.
        rules: rules of its attributes.
        defaults: values of attributes that are left out, under Paddle 3's names.
    """

    rule: str
    arguments: Sequence[str]
    rules: Rules
    defaults: Mapping[str, Any] = field(default_factory=dict)


def is_integer(value: object) -> bool:
    """True if a value is an integer and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def integer(low: int = -(1 << 31), high: int = (1 << 31) - 1) -> Rule:
    """Returns a rule for an integer in a range."""
    return Rule(f"an integer from {low} to {high}", lambda v: is_integer(v) and low <= v <= high)


def integers(low: int = -(1 << 31), high: int = (1 << 31) - 1, max_count: int = MAX_LIST) -> Rule:
    """Returns a rule for a short list of integers in a range."""
    return Rule(
        f"up to {max_count} integers from {low} to {high}",
        lambda v: (
            isinstance(v, list) and len(v) <= max_count and all(is_integer(i) and low <= i <= high for i in v)
        ),
    )


def word(*words: str) -> Rule:
    """Returns a rule for one of a few words."""
    return Rule(f"one of {', '.join(map(repr, words))}", lambda v: isinstance(v, str) and v in words)


def _is_finite(value: object) -> bool:
    return is_integer(value) or (isinstance(value, float) and math.isfinite(value))


FLAG = Rule("true or false", lambda v: isinstance(v, bool))
BIT = Rule("0 or 1", lambda v: is_integer(v) and v in (0, 1))
FALSE = Rule("false", lambda v: v is False)
NUMBER = Rule("a finite number", _is_finite)
REAL = Rule("a number", lambda v: is_integer(v) or (isinstance(v, float) and not math.isnan(v)))
LABEL = Rule("a text", lambda v: isinstance(v, str) and len(v) <= _MAX_LABEL_LENGTH)


def check_attributes(kind: str, attributes: Mapping[str, Any], rules: Rules) -> None:
    """Raises ProgramError if an operator has an attribute that is not in the rules, or breaks its rule.

    Args:
        kind: name of the operator, for the message.
        attributes: values by name.
        rules: rules by the name of the attribute.
    """
    for name, value in attributes.items():
        if name not in rules:
            raise ProgramError(f"the operator {short(kind)} has an attribute {short(name)}")
        if not rules[name].accepts(value):
            raise ProgramError(
                f"the operator {short(kind)} has {short(name)} = {short(value)}, "
                f"expected {rules[name].expected}"
            )


@dataclass(frozen=True)
class Tensor:
    """What is known about a tensor of a program before it runs.

    Attributes:
        shape: sizes of the axes.
        dtype: element type as numpy calls it.
        numbers: its elements, if they are few and do not depend on the pixels; None if unknown.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    numbers: tuple[float, ...] | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Node:
    """An operator of a program, in one form for all formats.

    Attributes:
        kind: name of the operator in its file.
        rule: name of the rule for the shapes of its outputs; see ``program_shapes``.
        inputs: names of its tensors by argument. An argument may be a list, or be missing.
        outputs: names of the output tensors.
        attributes: values by Paddle 3's names.
    """

    kind: str
    rule: str
    inputs: Mapping[str, Sequence[str]]
    outputs: Sequence[str]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckedProgram:
    """A program that may be loaded.

    Attributes:
        input_name: name of the input.
        input_shape: sizes of the input's axes without the first, which is the batch.
        input_dtype: element type of the input.
        output_name: name of the output.
        constants: weights and other tensors that the file contains.
        nodes: operators in the order of their execution.
        declared_shapes: shapes that the file declares for tensors, by name; -1 for a side of any length.
    """

    input_name: str
    input_shape: tuple[int, ...]
    input_dtype: str
    output_name: str
    constants: Mapping[str, Tensor]
    nodes: Sequence[Node]
    declared_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)


def check_input(name: str, shape: Sequence[int], dtype: str) -> tuple[int, ...]:
    """Returns the shape of an image, from the shape of a program's input.

    Raises:
        ProgramError: the first axis does not take any number of images, or the image is no image.
    """
    sides = tuple(shape[1:])
    is_batch = bool(shape) and shape[0] == -1
    if not is_batch or len(sides) > MAX_AXES or not all(0 < side <= MAX_SIDE for side in sides):
        raise ProgramError(
            f"the input {short(name)} has the shape {short(list(shape))}, expected [-1, ...] for any "
            "number of images"
        )
    if dtype not in ("uint8", "float32"):
        raise ProgramError(f"the input {short(name)} has the type {short(dtype)}, expected uint8 or float32")
    return sides
