"""Translates the operators of a network that Paddle 2 traced to the names of Paddle 3."""

from __future__ import annotations

import re
from typing import Any

from ppxcls.deploy.program import Operator, Value, dtype_name

KINDS = {
    "elementwise_add": "add",
    "elementwise_sub": "subtract",
    "elementwise_mul": "multiply",
    "elementwise_div": "divide",
    "elementwise_max": "maximum",
    "elementwise_min": "minimum",
    "elementwise_mod": "remainder",
    "elementwise_floordiv": "floor_divide",
    "reduce_mean": "mean",
    "reduce_sum": "sum",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_prod": "prod",
    "matmul_v2": "matmul",
    "flatten_contiguous_range": "flatten",
    "reshape2": "reshape",
    "transpose2": "transpose",
    "squeeze2": "squeeze",
    "unsqueeze2": "unsqueeze",
    "expand_v2": "expand",
    "fill_constant": "full",
    "hard_sigmoid": "hardsigmoid",
    "hard_swish": "hardswish",
    "arg_max": "argmax",
    "bilinear_interp_v2": "bilinear_interp",
    "nearest_interp_v2": "nearest_interp",
    "bicubic_interp_v2": "bicubic_interp",
    "shape": "shape64",
    "brelu": "hardtanh",
    "fill_any_like": "full_like",
}
# Attributes with another name, for any operator.
ATTRIBUTES = {
    "data_layout": "data_format",
    "ksize": "kernel_size",
    "dim": "axis",
    "axes": "axis",
    "keep_dim": "keepdim",
    "trans_x": "transpose_x",
    "trans_y": "transpose_y",
    "out_dtype": "dtype",
    "dropout_prob": "p",
    "dropout_implementation": "mode",
}
# Attributes with another name, for some operators.
ATTRIBUTES_BY_KIND = {
    "leaky_relu": {"alpha": "negative_slope"},
    "transpose": {"axis": "perm"},
    "pad3d": {"value": "pad_value"},
    "pow": {"factor": "y"},
    "slice": {"axes": "axes"},
    "strided_slice": {"axes": "axes"},
}
# Inputs that hold what else is an attribute: a tensor, or a list of tensors with one number each.
_TENSOR_SUFFIXES = re.compile("(_?tensor_?list|_?tensor)$")


def operators_of(block: Any) -> list[Operator]:
    """Returns the operators of a block of Paddle 2's program."""
    return [_operator(block, op) for op in block.ops if op.type not in ("feed", "fetch")]


def _operator(block: Any, op: Any) -> Operator:
    kind = KINDS.get(op.type, op.type)
    inputs: dict[str, list[Value]] = {}
    for slot in op.input_names:
        values = [variable_value(block, name) for name in op.input(slot)]
        if values:
            inputs[argument_name(slot)] = values
    # Operators that normalise list their main output last.
    slots = sorted(op.output_names, key=lambda slot: slot not in ("Out", "Output", "Y"))
    outputs = [variable_value(block, name) for slot in slots for name in op.output(slot)]
    names = ATTRIBUTES | ATTRIBUTES_BY_KIND.get(kind, {})
    attributes = {names.get(name, name): op.attr(name) for name in op.attr_names}
    for name in inputs:
        attributes.pop(name, None)
    return Operator(kind, inputs, outputs, _translated(kind, attributes))


def argument_name(slot: str) -> str:
    """Returns the argument's name in Paddle 3: ``x`` of ``X``, ``starts`` of ``StartsTensorList``."""
    name = re.sub("(?<=[a-z])(?=[A-Z])", "_", slot).lower()
    name = _TENSOR_SUFFIXES.sub("", name) or name
    return "axis" if name == "axes" else name


def _translated(kind: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """Replaces values that Paddle 3 writes in another way."""
    if attributes.pop("reduce_all", False):
        attributes["axis"] = []
    if isinstance(attributes.get("dtype"), int):
        attributes["dtype"] = _dtype_of_number(attributes["dtype"])
    if kind == "full" and attributes.get("str_value"):
        attributes["value"] = float(attributes["str_value"])
    if kind == "split" and attributes.get("num"):
        attributes["sections"] = []
    if kind == "assign_value":
        values = [attributes[name] for name in attributes if name.endswith("values") and attributes[name]]
        attributes["values"] = values[0] if values else []
    return attributes


def _dtype_of_number(number: int) -> str:
    """Returns numpy's name of a dtype that an attribute gives by its number; empty for an unset one."""
    from paddle.base.framework import convert_np_dtype_to_dtype_

    names = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
    return next((name for name in names if int(convert_np_dtype_to_dtype_(name)) == number), "")


def variable_value(block: Any, name: str) -> Value:
    """Returns the value of a variable of the block."""
    variable = block.var(name)
    return Value(name, tuple(variable.shape), dtype_name(variable.dtype))
