"""Translates the operators of layers to ONNX: convolutions, norms, pools, products, softmax, dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

from ppxcls.deploy.onnx_graph import OnnxGraph, channels_first, translates, unsupported
from ppxcls.deploy.program import Operator, Value


def _padding(operator: Operator) -> dict[str, Any]:
    """Returns ONNX's attributes for the padding of a convolution or pool.

    Paddle gives the numbers as [height, width], or as [top, bottom, left, right].
    """
    algorithm = operator.attributes.get("padding_algorithm", "EXPLICIT")
    if algorithm != "EXPLICIT":
        return {"auto_pad": "SAME_UPPER" if algorithm == "SAME" else "VALID"}
    numbers = list(operator.attributes["paddings"])
    if len(numbers) == 4:
        return {"pads": [*numbers[::2], *numbers[1::2]]}
    return {"pads": numbers * 2}


def _kernel_attributes(operator: Operator, kernels: Value) -> dict[str, Any]:
    """Returns ONNX's attributes of a convolution, transposed or not."""
    is_same = operator.attributes.get("padding_algorithm") == "SAME"
    return {
        "kernel_shape": list(kernels.shape[2:]),
        "strides": list(operator.attributes["strides"]),
        # as Paddle computes it
        "dilations": [1, 1] if is_same else list(operator.attributes["dilations"]),
        "group": operator.attributes["groups"],
        **_padding(operator),
    }


@translates("conv2d", "depthwise_conv2d")
def _convolution(graph: OnnxGraph, operator: Operator) -> None:
    kernels = operator.inputs["filter"][0]
    name = graph.node(
        "Conv",
        [channels_first(graph, operator), graph.tensor(kernels)],
        hint=graph.layer_name(kernels),
        **_kernel_attributes(operator, kernels),
    )
    graph.set_tensor(operator.outputs[0], name)


@translates("conv2d_transpose", "depthwise_conv2d_transpose")
def _transposed_convolution(graph: OnnxGraph, operator: Operator) -> None:
    kernels = operator.inputs["filter"][0]
    if operator.attributes.get("padding_algorithm", "EXPLICIT") != "EXPLICIT":
        raise unsupported(operator, f"padding {operator.attributes['padding_algorithm']}")
    size = graph.argument(operator, "output_size", [])
    name = graph.node(
        "ConvTranspose",
        [channels_first(graph, operator), graph.tensor(kernels)],
        hint=graph.layer_name(kernels),
        output_padding=list(operator.attributes.get("output_padding") or [0, 0]) if not size else None,
        output_shape=size or None,
        **_kernel_attributes(operator, kernels),
    )
    graph.set_tensor(operator.outputs[0], name)


@translates("batch_norm")
def _batch_norm(graph: OnnxGraph, operator: Operator) -> None:
    scale = operator.inputs["scale"][0]
    if not (operator.attributes["is_test"] or operator.attributes["use_global_stats"]):
        raise unsupported(operator, "the statistics of the batch")
    parameters = [graph.tensor(operator.inputs[name][0]) for name in ("scale", "bias", "mean", "variance")]
    name = graph.node(
        "BatchNormalization",
        [channels_first(graph, operator), *parameters],
        hint=graph.layer_name(scale),
        epsilon=operator.attributes["epsilon"],
    )
    graph.set_tensor(operator.outputs[0], name)


@translates("layer_norm")
def _layer_norm(graph: OnnxGraph, operator: Operator) -> None:
    x, axis = operator.first, operator.attributes["begin_norm_axis"]
    shape = x.shape[axis:]
    if min(shape) < 0:
        raise unsupported(operator, "axes of unknown size")
    scale, bias = (_affine(graph, operator, name, shape) for name in ("scale", "bias"))
    inputs = [graph.tensor(x), graph.tensor(np.ones(shape, x.dtype)) if scale is None else scale]
    name = graph.node(
        "LayerNormalization",
        [*inputs, *([] if bias is None else [bias])],
        hint=_layer_name(graph, operator),
        axis=axis,
        epsilon=operator.attributes["epsilon"],
    )
    graph.set_tensor(operator.outputs[0], name)


@translates("instance_norm")
def _instance_norm(graph: OnnxGraph, operator: Operator) -> None:
    x = operator.first
    inputs = [channels_first(graph, operator)]
    for argument, neutral_number in (("scale", 1), ("bias", 0)):
        neutral_vector = np.full(x.shape[1], neutral_number, x.dtype)
        inputs.append(_affine(graph, operator, argument, x.shape[1:2]) or graph.tensor(neutral_vector))
    name = graph.node(
        "InstanceNormalization",
        inputs,
        hint=_layer_name(graph, operator),
        epsilon=operator.attributes["epsilon"],
    )
    graph.set_tensor(operator.outputs[0], name)


@translates("group_norm")
def _group_norm(graph: OnnxGraph, operator: Operator) -> None:
    x, groups = operator.first, operator.attributes["groups"]
    tensor = channels_first(graph, operator)
    rows = graph.node("Reshape", [tensor, graph.tensor(np.array([0, groups, -1], np.int64))])
    one, zero = (graph.tensor(np.full(groups, value, x.dtype)) for value in (1, 0))
    rows = graph.node("InstanceNormalization", [rows, one, zero], epsilon=operator.attributes["epsilon"])
    name = graph.node("Reshape", [rows, graph.node("Shape", [tensor])])
    shape = (x.shape[1], *[1] * (len(operator.first.shape) - 2))
    for kind, argument in (("Mul", "scale"), ("Add", "bias")):
        factor = _affine(graph, operator, argument, shape)
        if factor is not None:
            name = graph.node(kind, [name, factor], hint=_layer_name(graph, operator))
    graph.set_tensor(operator.outputs[0], name)


def _affine(graph: OnnxGraph, operator: Operator, name: str, shape: tuple[int, ...]) -> str | None:
    """Returns the tensor of a norm's scale or bias in this shape; None if the norm has none."""
    if name not in operator.inputs:
        return None
    value = operator.inputs[name][0]
    array = graph.array(value)
    if array is None:
        raise unsupported(operator, f"{name} that depends on the images")
    return graph.tensor(value if array.shape == shape else array.reshape(shape))


def _layer_name(graph: OnnxGraph, operator: Operator) -> str:
    return graph.layer_name(operator.inputs["scale"][0]) if "scale" in operator.inputs else ""


@translates("pool2d", "max_pool2d_with_index")
def _pool(graph: OnnxGraph, operator: Operator) -> None:
    """Writes a pool. Of a maximum's two outputs, value and place, only the value is written."""
    attributes, tensor = operator.attributes, channels_first(graph, operator)
    is_max = attributes.get("pooling_type", "max") == "max"
    kind = "MaxPool" if is_max else "AveragePool"
    sizes = graph.argument(operator, "kernel_size")
    sizes = sizes * 2 if len(sizes) == 1 else sizes
    if attributes["global_pooling"] or (attributes["adaptive"] and sizes == [1, 1]):
        name = graph.node(f"Global{kind}", [tensor])
    elif attributes["adaptive"]:
        sides = operator.first.shape[2:]
        if any(side < 0 or side % size for side, size in zip(sides, sizes, strict=True)):
            raise unsupported(operator, f"adaptive pooling from {list(sides)} to {sizes}")
        steps = [side // size for side, size in zip(sides, sizes, strict=True)]
        name = graph.node(kind, [tensor], kernel_shape=steps, strides=steps)
    else:
        name = graph.node(
            kind,
            [tensor],
            kernel_shape=sizes,
            strides=list(attributes["strides"]),
            ceil_mode=int(attributes["ceil_mode"]),
            count_include_pad=None if is_max else int(not attributes["exclusive"]),
            **_padding(operator),
        )
    graph.set_tensor(operator.outputs[0], name)


@translates("matmul", "bmm")
def _product(graph: OnnxGraph, operator: Operator) -> None:
    tensors = []
    for argument in ("x", "y"):
        value = operator.inputs[argument][0]
        array = graph.array(value)
        rank = len(value.shape)
        if not operator.attributes.get(f"transpose_{argument}") or rank < 2:
            tensors.append(graph.tensor(value))
        elif array is not None:
            tensors.append(graph.tensor(array.swapaxes(-1, -2)))
        else:
            axes = [*range(rank - 2), rank - 1, rank - 2]
            tensors.append(graph.node("Transpose", [graph.tensor(value)], perm=axes))
    name = graph.node("MatMul", tensors, hint=graph.layer_name(operator.inputs["y"][0]))
    graph.set_tensor(operator.outputs[0], name)


@translates("softmax", "log_softmax")
def _softmax(graph: OnnxGraph, operator: Operator) -> None:
    kind = "Softmax" if operator.kind == "softmax" else "LogSoftmax"
    name = graph.node(kind, [graph.tensor(operator.first)], axis=operator.attributes["axis"])
    graph.set_tensor(operator.outputs[0], name)


@translates("dropout")
def _dropout(graph: OnnxGraph, operator: Operator) -> None:
    """Writes what evaluation does: nothing, or in Paddle's older mode a factor."""
    x = operator.first
    if operator.attributes["mode"] == "upscale_in_train":
        graph.alias(operator.outputs[0], x)
        return
    factor = np.array(1 - graph.number(operator, "p"), x.dtype)
    graph.set_tensor(operator.outputs[0], graph.node("Mul", [graph.tensor(x), graph.tensor(factor)]))
