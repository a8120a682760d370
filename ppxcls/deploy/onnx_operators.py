"""The operators that an ONNX file may contain.

They are those that ``onnx_layers``, ``onnx_functions`` and ``onnx_tensors`` write, and those that
ONNX Runtime adds for 8 bits. Each computes its outputs from its inputs and does nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ppxcls.deploy.program_check import (
    BIT,
    NUMBER,
    AllowedOperator,
    Node,
    ProgramError,
    Rule,
    Rules,
    check_attributes,
    integer,
    integers,
    short,
    word,
)

ONNX_DTYPES = {
    **{1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 9: "bool"},
    **{10: "float16", 11: "float64"},
}
_AXIS = integer(-8, 8)
_AXES = integers(-8, 8)
_ZERO = integer(0, 0)
_ANY_INTEGERS = integers(-(1 << 63), (1 << 63) - 1)
_AUTO_PADS = {"NOTSET": "EXPLICIT", "SAME_UPPER": "SAME", "VALID": "VALID"}
# The names of attributes in Paddle 3.
_NAMES = {
    "kernel_shape": "kernel_size",
    "group": "groups",
    "output_shape": "output_size",
    "keepdims": "keepdim",
    "axes": "axis",
    "split": "sections",
    "transA": "transpose_x",
    "transB": "transpose_y",
    "blocksize": "upscale_factor",
}
_LIST = "*"  # ends the name of an argument that takes all remaining inputs


def _operator(
    rule: str, arguments: str = "x", defaults: dict[str, Any] | None = None, /, **rules: Rule
) -> AllowedOperator:
    return AllowedOperator(rule, arguments.split(), rules, defaults or {})


_UNARY = (
    *("Relu", "Sigmoid", "Tanh", "Exp", "Log", "Sqrt", "Abs", "Floor", "Ceil", "Round", "Sin", "Cos", "Erf"),
    *("Sign", "Reciprocal", "Softsign", "Softplus", "HardSwish", "Not", "Neg"),
)
_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or")
_ARITHMETIC = ("Add", "Sub", "Mul", "Max", "Min", "Pow")
_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2")
_WINDOW: Rules = {
    "kernel_shape": integers(1, 4096),
    "strides": integers(1, 4096),
    "pads": integers(0, 4096),
    "dilations": integers(1, 4096),
    "auto_pad": word(*_AUTO_PADS),
}
_CONVOLUTION: Rules = {**_WINDOW, "group": integer(1, 1 << 20)}
_POOL: Rules = {**_WINDOW, "dilations": integers(1, 1), "ceil_mode": BIT}
_QUANTISATION: Rules = {"axis": _AXIS}

ONNX_OPERATORS: dict[str, AllowedOperator] = {
    **{kind: _operator("same") for kind in _UNARY},
    **{kind: _operator("compare", "x y") for kind in _COMPARISONS},
    **{kind: _operator("broadcast", "x y") for kind in _ARITHMETIC},
    **{
        kind: _operator(
            *("reduce", "x axis", {"keepdim": 1}),
            axes=_AXES,
            keepdims=BIT,
            noop_with_empty_axes=_ZERO,
        )
        for kind in _REDUCTIONS
    },
    **{kind: _operator("along_axis", "x", {"axis": -1}, axis=_AXIS) for kind in ("Softmax", "LogSoftmax")},
    **{
        kind: _operator("pool", "x", {"global_pooling": True})
        for kind in ("GlobalAveragePool", "GlobalMaxPool")
    },
    # Activations with attributes
    "Clip": _operator("same", "x min max"),
    "LeakyRelu": _operator("same", alpha=NUMBER),
    "Elu": _operator("same", alpha=NUMBER),
    "Selu": _operator("same", alpha=NUMBER, gamma=NUMBER),
    "HardSigmoid": _operator("same", alpha=NUMBER, beta=NUMBER),
    "PRelu": _operator("prelu", "x alpha"),
    # Arithmetic
    "Div": _operator("divide", "x y"),
    "Where": _operator("where", "condition x y"),
    "Cast": _operator("cast", to=word(*ONNX_DTYPES.values())),
    "Identity": _operator("alias"),
    # Layers
    "Conv": _operator("conv", "x filter bias", **_CONVOLUTION),
    "ConvTranspose": _operator(
        *("conv_transpose", "x filter bias"),
        output_padding=integers(0, 4096),
        output_shape=_ANY_INTEGERS,
        **_CONVOLUTION,
    ),
    "MaxPool": _operator("pool", storage_order=_ZERO, **_POOL),
    "AveragePool": _operator("pool", count_include_pad=BIT, **_POOL),
    "BatchNormalization": _operator(
        *("batch_norm", "x scale bias mean variance"),
        epsilon=NUMBER,
        momentum=NUMBER,
        training_mode=_ZERO,
    ),
    "LayerNormalization": _operator(
        *("layer_norm", "x scale bias", {"begin_norm_axis": -1}),
        axis=_AXIS,
        epsilon=NUMBER,
        stash_type=integer(1, 1),
    ),
    "InstanceNormalization": _operator("channel_norm", "x scale bias", epsilon=NUMBER),
    "MatMul": _operator("matmul", "x y"),
    "Gemm": _operator("matmul", "x y bias", alpha=NUMBER, beta=NUMBER, transA=BIT, transB=BIT),
    "QuantizeLinear": _operator("quantize", "x scale zero_point", **_QUANTISATION),
    "DequantizeLinear": _operator("dequantize", "x scale zero_point", **_QUANTISATION),
    "ArgMax": _operator(
        *("argmax", "x", {"keepdim": 1, "axis": 0}),
        axis=_AXIS,
        keepdims=BIT,
        select_last_index=_ZERO,
    ),
    # Arrangement
    "Flatten": _operator("flatten_to_matrix", axis=_AXIS),
    "Reshape": _operator("reshape", "x shape", allowzero=_ZERO),
    "Transpose": _operator("transpose", perm=_AXES),
    "Squeeze": _operator("squeeze", "x axis", axes=_AXES),
    "Unsqueeze": _operator("unsqueeze", "x axis", axes=_AXES),
    "Concat": _operator("concat", "x*", axis=_AXIS),
    "Split": _operator("split", "x sections", axis=_AXIS, split=_ANY_INTEGERS, num_outputs=integer(1, 4096)),
    "Gather": _operator("gather", "x index", axis=_AXIS),
    "Slice": _operator("slice", "x starts ends axes strides"),
    "Shape": _operator("shape"),
    "Expand": _operator("expand", "x shape"),
    "Tile": _operator("tile", "x repeat_times"),
    "Pad": _operator("pad_starts_and_ends", "x paddings pad_value", mode=word("constant", "reflect", "edge")),
    "Resize": _operator(
        *("resize", "x roi scales sizes"),
        coordinate_transformation_mode=word("half_pixel", "align_corners", "asymmetric"),
        mode=word("nearest", "linear", "cubic"),
        nearest_mode=word("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
        cubic_coeff_a=NUMBER,
        exclude_outside=_ZERO,
        extrapolation_value=NUMBER,
        antialias=_ZERO,
    ),
    "DepthToSpace": _operator("depth_to_space", blocksize=integer(1, 64), mode=word("CRD", "DCR")),
}


def checked_onnx_node(
    kind: str, inputs: Sequence[str], outputs: Sequence[str], attributes: dict[str, Any]
) -> Node:
    """Returns an operator in the form of all formats.

    Args:
        kind: operator of ONNX.
        inputs: names of its inputs in their order; empty for one that is left out.
        outputs: names of its outputs.
        attributes: values by ONNX's names.

    Raises:
        ProgramError: a file may not contain the operator, or one of its inputs or attributes.
    """
    if kind not in ONNX_OPERATORS:
        raise ProgramError(f"it contains the operator {short(kind)}")
    operator = ONNX_OPERATORS[kind]
    check_attributes(kind, attributes, operator.rules)
    named_inputs: dict[str, list[str]] = {}
    if operator.arguments[0].endswith(_LIST):
        named_inputs[operator.arguments[0].rstrip(_LIST)] = list(inputs)
    elif len(inputs) > len(operator.arguments):
        raise ProgramError(f"the operator {short(kind)} has {len(inputs)} inputs")
    else:
        named_inputs = {
            argument: [name] for argument, name in zip(operator.arguments, inputs, strict=False) if name
        }
    if "roi" in named_inputs:
        raise ProgramError(f"the operator {short(kind)} has a region of interest")
    values = {**operator.defaults, **_in_words_of_paddle(kind, attributes)}
    return Node(kind, operator.rule, named_inputs, outputs, values)


def _in_words_of_paddle(kind: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """Returns attributes under Paddle 3's names, and in its order of numbers."""
    values: dict[str, Any] = {}
    for name, value in attributes.items():
        if name == "auto_pad":
            values["padding_algorithm"] = _AUTO_PADS[value]
        elif name == "pads":  # top, left, bottom, right
            values["paddings"] = [number for i in range(len(value) // 2) for number in value[i::2][:2]]
        elif name == "to":
            values["dtype"] = value
        elif name == "axis" and kind == "LayerNormalization":
            values["begin_norm_axis"] = value
        else:
            values[_NAMES.get(name, name)] = value
    return values
