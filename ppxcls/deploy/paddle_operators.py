"""The operators that a program of Paddle may contain, under their names in Paddle 3.

They are those of the networks of this package, and other arithmetic that networks of users often need. Each
computes its outputs from its inputs and does nothing else.
"""

from __future__ import annotations

import math
from typing import Any

from ppxcls.deploy.program_check import (
    BIT,
    DTYPES,
    FALSE,
    FLAG,
    LABEL,
    NUMBER,
    REAL,
    AllowedOperator,
    Node,
    ProgramError,
    Rule,
    Rules,
    check_attributes,
    integer,
    integers,
    is_integer,
    short,
    word,
)

_MAX_LITERALS = 1 << 16  # numbers in a constant that is written as an attribute
_UNKNOWN_DTYPE = "Undefined(ALL_DTYPE)"
_TRUE = Rule("true", lambda v: v is True)
_AXIS = integer(-8, 8)
_AXES = integers(-8, 8)
_ANY_INTEGERS = integers(-(1 << 63), (1 << 63) - 1)
_DTYPE = word(*DTYPES, _UNKNOWN_DTYPE, "")
_FIRST_CHANNELS = word("NCHW", "NCDHW", "AnyLayout")
_PADDINGS = word("EXPLICIT", "SAME", "VALID")
_TEXTS = Rule("texts", lambda v: isinstance(v, list) and all(isinstance(text, str) for text in v))
_NUMBER_TEXT = Rule("a number as a text", lambda v: isinstance(v, str) and len(v) <= 40 and _is_number(v))
PLACE = Rule(
    "a device",
    lambda v: isinstance(v, list) and len(v) == 3 and all(map(is_integer, v[:2])) and _is_device(v[2]),
)
_REALS = Rule(
    f"up to {_MAX_LITERALS} numbers",
    lambda v: (
        isinstance(v, list) and len(v) <= _MAX_LITERALS and all(REAL.accepts(i) or i in (0, 1) for i in v)
    ),
)
_FACTORS = Rule(
    "up to 2 factors from 0.001 to 1000",
    lambda v: isinstance(v, list) and len(v) <= 2 and all(NUMBER.accepts(i) and 1e-3 <= i <= 1e3 for i in v),
)

# Attributes of any operator. None of them changes what an operator computes.
_COMMON_RULES: Rules = {
    "struct_name": LABEL,  # of Paddle 3
    "op_role": integer(0, 256),  # these of Paddle 2
    "op_role_var": _TEXTS,
    "op_namescope": LABEL,
    "op_callstack": _TEXTS,
    "op_device": word(""),
    "with_quant_attr": FALSE,
    "use_mkldnn": FALSE,
    "mkldnn_data_type": word("float32"),
    "use_cudnn": FLAG,
    "force_cpu": FLAG,
}


def _is_device(name: object) -> bool:
    return isinstance(name, str) and len(name) <= 32 and (not name or name.isidentifier())


def _is_number(text: str) -> bool:
    try:
        return not text or not math.isnan(float(text))
    except ValueError:
        return False


def _operator(rule: str, arguments: str = "x", /, **rules: Rule) -> AllowedOperator:
    return AllowedOperator(rule, arguments.split(), {**_COMMON_RULES, **rules})


_UNARY = (
    *("relu", "relu6", "sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "abs", "floor", "ceil", "round"),
    *("sin", "cos", "erf", "sign", "reciprocal", "softsign", "square", "silu", "logical_not", "log_sigmoid"),
)
_COMPARISONS = (
    *("equal", "not_equal", "greater_than", "greater_equal", "less_than", "less_equal"),
    *("logical_and", "logical_or"),
)
_ARITHMETIC = ("add", "subtract", "multiply", "maximum", "minimum", "elementwise_pow")
_REDUCTIONS = ("mean", "sum", "max", "min", "amax", "amin", "prod")
_CONVOLUTION: Rules = {
    "strides": integers(1, 4096),
    "paddings": integers(0, 4096),
    "dilations": integers(1, 4096),
    "groups": integer(1, 1 << 20),
    "padding_algorithm": _PADDINGS,
    "data_format": word("NCHW"),
}
_TRANSPOSED: Rules = {**_CONVOLUTION, "output_padding": integers(0, 4096), "output_size": _ANY_INTEGERS}
_POOL: Rules = {
    "strides": integers(1, 4096),
    "paddings": integers(0, 4096),
    "kernel_size": integers(1, 4096),
    "ceil_mode": FLAG,
    "exclusive": FLAG,
    "global_pooling": FLAG,
    "adaptive": FLAG,
    "data_format": word("NCHW"),
    "pooling_type": word("max", "avg"),
    "padding_algorithm": _PADDINGS,
}
_INTERPOLATION: Rules = {
    "data_format": word("NCHW"),
    "out_d": integer(-1, -1),
    "out_h": integer(-1, 1 << 14),
    "out_w": integer(-1, 1 << 14),
    "scale": _FACTORS,
    "interp_method": word("nearest", "bilinear", "bicubic"),
    "align_corners": FLAG,
    "align_mode": BIT,
}
_REDUCTION: Rules = {"axis": _AXES, "keepdim": FLAG, "reduce_all": FLAG, "dtype": _DTYPE, "in_dtype": _DTYPE}
_SLICE: Rules = {
    "axes": _AXES,
    "starts": _ANY_INTEGERS,
    "ends": _ANY_INTEGERS,
    "strides": _ANY_INTEGERS,
    "infer_flags": _ANY_INTEGERS,
    "decrease_axis": _AXES,
}

PADDLE_OPERATORS: dict[str, AllowedOperator] = {
    **{kind: _operator("same") for kind in _UNARY},
    **{kind: _operator("compare", "x y", axis=_AXIS) for kind in _COMPARISONS},
    **{kind: _operator("broadcast", "x y", axis=_AXIS) for kind in _ARITHMETIC},
    **{kind: _operator("reduce", "x axis", **_REDUCTION) for kind in _REDUCTIONS},
    **{kind: _operator("conv", "x filter bias", **_CONVOLUTION) for kind in ("conv2d", "depthwise_conv2d")},
    **{
        kind: _operator("conv_transpose", "x filter output_size", **_TRANSPOSED)
        for kind in ("conv2d_transpose", "depthwise_conv2d_transpose")
    },
    **{
        f"{kind}_interp": _operator("interpolate", "x out_size size_tensor scale", **_INTERPOLATION)
        for kind in ("nearest", "bilinear", "bicubic")
    },
    # Activations with attributes
    "swish": _operator("same", beta=NUMBER),
    "hardswish": _operator("same", offset=NUMBER, scale=NUMBER, threshold=NUMBER),
    "hardsigmoid": _operator("same", slope=NUMBER, offset=NUMBER),
    "hardtanh": _operator("same", t_min=NUMBER, t_max=NUMBER),
    "elu": _operator("same", alpha=NUMBER),
    "selu": _operator("same", alpha=NUMBER, scale=NUMBER),
    "leaky_relu": _operator("same", negative_slope=NUMBER),
    "softplus": _operator("same", beta=NUMBER, threshold=NUMBER),
    "mish": _operator("same", threshold=NUMBER, **{"lambda": NUMBER}),
    "gelu": _operator("same", approximate=FLAG),
    "prelu": _operator("prelu", "x alpha", mode=word("all", "channel"), data_format=_FIRST_CHANNELS),
    "softmax": _operator("along_axis", axis=_AXIS),
    "log_softmax": _operator("along_axis", axis=_AXIS),
    # Arithmetic
    "divide": _operator("divide", "x y", axis=_AXIS),
    "where": _operator("where", "condition x y"),
    "pow": _operator("same", "x y", y=NUMBER),
    "scale": _operator("same", "x scale bias", scale=NUMBER, bias=NUMBER, bias_after_scale=FLAG),
    "clip": _operator("same", "x min max", min=REAL, max=REAL),
    "cast": _operator("cast", dtype=_DTYPE, in_dtype=_DTYPE),
    "assign": _operator("alias"),
    "share_data": _operator("alias"),
    "dropout": _operator(
        *("same", "x seed p"),
        p=NUMBER,
        is_test=_TRUE,
        mode=word("upscale_in_train", "downgrade_in_infer"),
        seed=integer(),
        fix_seed=FLAG,
    ),
    # Layers
    "pool2d": _operator("pool", "x kernel_size", **_POOL),
    "max_pool2d_with_index": _operator("pool", **_POOL),
    "batch_norm": _operator(
        *("batch_norm", "x mean variance scale bias"),
        is_test=_TRUE,
        momentum=NUMBER,
        epsilon=NUMBER,
        data_format=word("NCHW", "NC"),
        use_global_stats=FLAG,
        trainable_statistics=FALSE,
    ),
    "layer_norm": _operator("layer_norm", "x scale bias", epsilon=NUMBER, begin_norm_axis=_AXIS),
    "instance_norm": _operator("channel_norm", "x scale bias", epsilon=NUMBER),
    "group_norm": _operator(
        *("channel_norm", "x scale bias"),
        epsilon=NUMBER,
        groups=integer(1, 1 << 20),
        data_format=word("NCHW"),
    ),
    "matmul": _operator("matmul", "x y", transpose_x=FLAG, transpose_y=FLAG),
    "bmm": _operator("matmul", "x y"),
    "p_norm": _operator(
        "reduce",
        porder=REAL,
        axis=_AXIS,
        epsilon=NUMBER,
        keepdim=FLAG,
        asvector=FALSE,
    ),
    "argmax": _operator("argmax", "x axis", axis=_AXIS, keepdims=FLAG, flatten=FALSE, dtype=_DTYPE),
    # Arrangement
    "flatten": _operator("flatten", start_axis=_AXIS, stop_axis=_AXIS),
    "reshape": _operator("reshape", "x shape", shape=_ANY_INTEGERS),
    "transpose": _operator("transpose", perm=_AXES),
    "squeeze": _operator("squeeze", "x axis", axis=_AXES),
    "unsqueeze": _operator("unsqueeze", "x axis", axis=_AXES),
    "concat": _operator("concat", "x axis", axis=_AXIS),
    "stack": _operator("stack", axis=_AXIS),
    "split": _operator("split", "x sections axis", axis=_AXIS, num=integer(0, 4096), sections=_ANY_INTEGERS),
    "split_with_num": _operator("split", "x axis", num=integer(0, 4096)),
    "unbind": _operator("unbind", axis=_AXIS),
    "unstack": _operator("unbind", axis=_AXIS, num=integer(0, 4096)),
    "flip": _operator("same", axis=_AXES),
    "slice": _operator("slice", "x starts ends", **_SLICE),
    "strided_slice": _operator("slice", "x starts ends strides", **_SLICE),
    "expand": _operator("expand", "x shape", shape=_ANY_INTEGERS),
    "tile": _operator("tile", "x repeat_times", repeat_times=_ANY_INTEGERS),
    "pad": _operator("pad", "x pad_value", paddings=_ANY_INTEGERS, pad_value=REAL),
    "pad3d": _operator(
        *("pad3d", "x paddings"),
        paddings=_ANY_INTEGERS,
        mode=word("constant", "reflect", "replicate"),
        pad_value=REAL,
        data_format=word("NCDHW"),
    ),
    "pixel_shuffle": _operator("depth_to_space", upscale_factor=integer(1, 64), data_format=word("NCHW")),
    # Constants
    "shape64": _operator("shape"),
    "full": _operator(
        *("full", ""),
        shape=_ANY_INTEGERS,
        value=REAL,
        dtype=_DTYPE,
        place=PLACE,
        place_type=integer(-1, -1),
        str_value=_NUMBER_TEXT,
    ),
    "full_like": _operator("same", "x value", value=REAL, dtype=_DTYPE, place=PLACE),
    "full_int_array": _operator("literal", "", value=_ANY_INTEGERS, dtype=_DTYPE, place=PLACE),
    "assign_value": _operator(
        *("literal", "output"),
        shape=_ANY_INTEGERS,
        values=_REALS,
        dtype=_DTYPE,
        place=PLACE,
        **dict.fromkeys([f"{name}_values" for name in ("bool", "fp32", "fp64", "int32", "int64")], _REALS),
    ),
}


def operator_of(kind: str) -> AllowedOperator:
    """Returns an operator that a program may contain.

    Raises:
        ProgramError: it may not contain this operator.
    """
    if kind not in PADDLE_OPERATORS:
        raise ProgramError(f"it contains the operator {short(kind)}")
    return PADDLE_OPERATORS[kind]


def checked_node(
    kind: str, inputs: dict[str, list[str]], outputs: list[str], attributes: dict[str, Any]
) -> Node:
    """Returns an operator in the form of all formats.

    Args:
        kind: name of the operator in Paddle 3.
        inputs: names of its tensors by argument.
        outputs: names of its outputs, the main one first.
        attributes: values by their names in Paddle 3.

    Raises:
        ProgramError: a program may not contain the operator, or one of its inputs or attributes.
    """
    operator = operator_of(kind)
    check_attributes(kind, attributes, operator.rules)
    unknown_names = set(inputs).difference(operator.arguments)
    if unknown_names:
        raise ProgramError(f"the operator {short(kind)} has an input {short(min(unknown_names))}")
    if not outputs:
        raise ProgramError(f"the operator {short(kind)} has no output", is_foreign=False)
    values = {
        name: value
        for name, value in attributes.items()
        if name not in _COMMON_RULES and value not in (_UNKNOWN_DTYPE, "")
    }
    if values.pop("reduce_all", False):
        values["axis"] = []
    if kind == "full_int_array":
        values["values"] = values.pop("value", [])
    return Node(kind, operator.rule, inputs, outputs, values)
