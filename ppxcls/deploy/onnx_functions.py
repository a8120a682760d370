"""Translates activations and arithmetic to ONNX."""

from __future__ import annotations

import math

import numpy as np

from ppxcls.deploy.onnx_graph import OnnxGraph, channels_first, translates, unsupported
from ppxcls.deploy.program import Operator

# Operators of one tensor that ONNX has under its own name.
_UNARY = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "abs": "Abs",
    "floor": "Floor",
    "ceil": "Ceil",
    "sin": "Sin",
    "cos": "Cos",
    "erf": "Erf",
    "sign": "Sign",
    "reciprocal": "Reciprocal",
    "softsign": "Softsign",
    "logical_not": "Not",
}


@translates(*_UNARY)
def _unary(graph: OnnxGraph, operator: Operator) -> None:
    name = graph.node(_UNARY[operator.kind], [graph.tensor(operator.first)])
    graph.set_tensor(operator.outputs[0], name)


@translates("relu6")
def _relu6(graph: OnnxGraph, operator: Operator) -> None:
    _clip_to(graph, operator, 0, 6)


@translates("clip", "hardtanh")
def _clip(graph: OnnxGraph, operator: Operator) -> None:
    low, high = ("t_min", "t_max") if operator.kind == "hardtanh" else ("min", "max")
    _clip_to(graph, operator, graph.number(operator, low), graph.number(operator, high))


def _clip_to(graph: OnnxGraph, operator: Operator, low: float, high: float) -> None:
    x = operator.first
    limits = [graph.tensor(np.array(limit, x.dtype)) for limit in (low, high)]
    graph.set_tensor(operator.outputs[0], graph.node("Clip", [graph.tensor(x), *limits]))


@translates("leaky_relu")
def _leaky_relu(graph: OnnxGraph, operator: Operator) -> None:
    slope = graph.number(operator, "negative_slope", 0.02)
    name = graph.node("LeakyRelu", [graph.tensor(operator.first)], alpha=slope)
    graph.set_tensor(operator.outputs[0], name)


@translates("prelu")
def _prelu(graph: OnnxGraph, operator: Operator) -> None:
    slopes = graph.array(operator.inputs["alpha"][0])
    if slopes is None:
        raise unsupported(operator, "slopes that depend on the images")
    shape = (-1, *[1] * (len(operator.first.shape) - 2)) if slopes.size > 1 else (1,)
    name = graph.node(
        "PRelu",
        [channels_first(graph, operator), graph.tensor(slopes.reshape(shape))],
        hint=graph.layer_name(operator.inputs["alpha"][0]),
    )
    graph.set_tensor(operator.outputs[0], name)


# ONNX's operator, and the names of its attributes in Paddle.
_ACTIVATIONS = {
    "elu": ("Elu", {"alpha": "alpha"}),
    "selu": ("Selu", {"alpha": "alpha", "gamma": "scale"}),
    "hardsigmoid": ("HardSigmoid", {"alpha": "slope", "beta": "offset"}),
}


@translates(*_ACTIVATIONS)
def _activation(graph: OnnxGraph, operator: Operator) -> None:
    kind, names = _ACTIVATIONS[operator.kind]
    attributes = {key: graph.number(operator, name) for key, name in names.items()}  # None is ONNX's default
    graph.set_tensor(operator.outputs[0], graph.node(kind, [graph.tensor(operator.first)], **attributes))


@translates("hardswish")
def _hard_swish(graph: OnnxGraph, operator: Operator) -> None:
    graph.set_tensor(operator.outputs[0], graph.node("HardSwish", [graph.tensor(operator.first)]))


@translates("swish", "silu")
def _swish(graph: OnnxGraph, operator: Operator) -> None:
    tensor = graph.tensor(operator.first)
    name = graph.node("Mul", [tensor, graph.node("Sigmoid", [tensor])])
    graph.set_tensor(operator.outputs[0], name)


@translates("mish")
def _mish(graph: OnnxGraph, operator: Operator) -> None:
    tensor = graph.tensor(operator.first)
    gate = graph.node("Tanh", [graph.node("Softplus", [tensor])])
    graph.set_tensor(operator.outputs[0], graph.node("Mul", [tensor, gate]))


@translates("softplus")
def _softplus(graph: OnnxGraph, operator: Operator) -> None:
    x, beta = operator.first, graph.number(operator, "beta", 1.0)
    tensor, factor = graph.tensor(x), np.array(beta, x.dtype)
    if beta == 1:
        name = graph.node("Softplus", [tensor])
    else:
        name = graph.node("Softplus", [graph.node("Mul", [tensor, graph.tensor(factor)])])
        name = graph.node("Div", [name, graph.tensor(factor)])
    graph.set_tensor(operator.outputs[0], name)


@translates("gelu")
def _gelu(graph: OnnxGraph, operator: Operator) -> None:
    x = operator.first
    tensor = graph.tensor(x)

    def number(value: float) -> str:
        return graph.tensor(np.array(value, x.dtype))

    if operator.attributes.get("approximate"):
        cubes = graph.node("Mul", [graph.node("Pow", [tensor, number(3)]), number(0.044715)])
        inner = graph.node("Mul", [graph.node("Add", [tensor, cubes]), number(math.sqrt(2 / math.pi))])
        gate = graph.node("Tanh", [inner])
    else:
        gate = graph.node("Erf", [graph.node("Div", [tensor, number(math.sqrt(2))])])
    half = graph.node("Mul", [tensor, number(0.5)])
    name = graph.node("Mul", [half, graph.node("Add", [gate, number(1)])])
    graph.set_tensor(operator.outputs[0], name)


@translates("square")
def _square(graph: OnnxGraph, operator: Operator) -> None:
    tensor = graph.tensor(operator.first)
    graph.set_tensor(operator.outputs[0], graph.node("Mul", [tensor, tensor]))


@translates("rsqrt")
def _rsqrt(graph: OnnxGraph, operator: Operator) -> None:
    root = graph.node("Sqrt", [graph.tensor(operator.first)])
    graph.set_tensor(operator.outputs[0], graph.node("Reciprocal", [root]))


@translates("pow")
def _power(graph: OnnxGraph, operator: Operator) -> None:
    x = operator.first
    exponent = graph.tensor(np.array(graph.number(operator, "y"), x.dtype))
    graph.set_tensor(operator.outputs[0], graph.node("Pow", [graph.tensor(x), exponent]))


_BINARY = {
    "add": "Add",
    "subtract": "Sub",
    "multiply": "Mul",
    "divide": "Div",
    "maximum": "Max",
    "minimum": "Min",
    "elementwise_pow": "Pow",
    "equal": "Equal",
    "greater_than": "Greater",
    "greater_equal": "GreaterOrEqual",
    "less_than": "Less",
    "less_equal": "LessOrEqual",
    "logical_and": "And",
    "logical_or": "Or",
}


@translates(*_BINARY)
def _binary(graph: OnnxGraph, operator: Operator) -> None:
    x, y = operator.inputs["x"][0], operator.inputs["y"][0]
    if operator.kind == "add" and _add_bias(graph, operator):
        return
    axis = operator.attributes.get("axis", -1)  # of Paddle 2: the first axis of x that y has too
    y_tensor = graph.tensor(y)
    if axis >= 0 and (missing_axes := len(x.shape) - axis - len(y.shape)) > 0:
        axes = np.arange(len(y.shape), len(y.shape) + missing_axes)
        y_tensor = graph.node("Unsqueeze", [y_tensor, graph.tensor(axes)])
    graph.set_tensor(operator.outputs[0], graph.node(_BINARY[operator.kind], [graph.tensor(x), y_tensor]))


def _add_bias(graph: OnnxGraph, operator: Operator) -> bool:
    """Adds a constant to the convolution or product before it, if it is a number for each channel."""
    x, y = operator.inputs["x"][0], operator.inputs["y"][0]
    bias, node = graph.array(y), graph.producer(x)
    if bias is None or node is None or len(node.input) != 2 or operator.attributes.get("axis", -1) != -1:
        return False
    if node.op_type in ("Conv", "ConvTranspose") and bias.shape == (1, x.shape[1], 1, 1):
        node.input.append(graph.tensor(bias.reshape(-1), hint=f"{node.name}.bias"))
    elif node.op_type == "MatMul" and len(x.shape) == 2 and bias.shape == (x.shape[1],):
        node.op_type = "Gemm"
        node.input.append(graph.tensor(y))
    else:
        return False
    graph.alias(operator.outputs[0], x)
    return True


@translates("scale")
def _scale(graph: OnnxGraph, operator: Operator) -> None:
    x = operator.first
    factor, bias = graph.number(operator, "scale", 1.0), operator.attributes["bias"]
    is_bias_last = operator.attributes["bias_after_scale"]
    steps = [("Mul", factor, 1), ("Add", bias, 0)] if is_bias_last else [("Add", bias, 0), ("Mul", factor, 1)]
    name = graph.tensor(x)
    for kind, number, neutral_number in steps:
        if number != neutral_number:
            name = graph.node(kind, [name, graph.tensor(np.array(number, x.dtype))])
    graph.set_tensor(operator.outputs[0], name)
