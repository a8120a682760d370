"""Translates the operators that arrange, reduce, resize and create tensors to ONNX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ppxcls.deploy.onnx_graph import OnnxGraph, channels_first, onnx_dtype, translates, unsupported
from ppxcls.deploy.program import Operator

_LARGEST = np.iinfo(np.int64).max


def _integers(graph: OnnxGraph, numbers: Sequence[int]) -> str:
    return graph.tensor(np.array(numbers, np.int64))


def _list(value: object) -> list[int]:
    """Returns an argument that is an integer or a list of them as a list."""
    return [int(number) for number in value] if isinstance(value, list) else [int(value)]  # type: ignore[call-overload]


def _vector(graph: OnnxGraph, operator: Operator, name: str) -> str:
    """Returns the tensor of an argument that is a list of integers. Some may depend on the images."""
    values = operator.inputs.get(name, [])
    if all(graph.array(value) is not None for value in values):
        return _integers(graph, _list(graph.argument(operator, name)))
    parts = []
    for value in values:
        part = graph.tensor(value)
        if value.dtype != "int64":
            part = graph.node("Cast", [part], to=onnx_dtype("int64"))
        parts.append(part if len(values) == 1 else graph.node("Reshape", [part, _integers(graph, [1])]))
    return parts[0] if len(parts) == 1 else graph.node("Concat", parts, axis=0)


# Constants


@translates("full")
def _full(graph: OnnxGraph, operator: Operator) -> None:
    shape = _list(graph.argument(operator, "shape", []))
    number = graph.number(operator, "value")
    graph.set_array(operator.outputs[0], np.full(shape, number, operator.outputs[0].dtype))


@translates("full_int_array")
def _integer_vector(graph: OnnxGraph, operator: Operator) -> None:
    dtype = operator.outputs[0].dtype
    graph.set_array(operator.outputs[0], np.array(operator.attributes["value"], dtype))


@translates("assign_value")
def _literal(graph: OnnxGraph, operator: Operator) -> None:
    numbers = operator.attributes["values"]
    output = operator.outputs[0]
    graph.set_array(output, np.array(numbers, output.dtype).reshape(_list(operator.attributes["shape"])))


@translates("full_like")
def _full_like(graph: OnnxGraph, operator: Operator) -> None:
    number = np.array([graph.number(operator, "value")], operator.outputs[0].dtype)
    shape = graph.node("Shape", [graph.tensor(operator.first)])
    graph.set_tensor(operator.outputs[0], graph.node("Expand", [graph.tensor(number), shape]))


# Types and shapes


@translates("assign", "share_data", "memcpy_h2d", "memcpy_d2h")
def _identity(graph: OnnxGraph, operator: Operator) -> None:
    graph.alias(operator.outputs[0], operator.first)


@translates("cast")
def _cast(graph: OnnxGraph, operator: Operator) -> None:
    x, output = operator.first, operator.outputs[0]
    array = graph.array(x)
    if x.dtype == output.dtype:
        graph.alias(output, x)
    elif array is not None:
        graph.set_array(output, array.astype(output.dtype))
    else:
        graph.set_tensor(output, graph.node("Cast", [graph.tensor(x)], to=onnx_dtype(output.dtype)))


@translates("shape64")
def _shape(graph: OnnxGraph, operator: Operator) -> None:
    x, output = operator.first, operator.outputs[0]
    if min(x.shape, default=0) >= 0:
        graph.set_array(output, np.array(x.shape, output.dtype))
        return
    name = graph.node("Shape", [graph.tensor(x)])
    if output.dtype != "int64":
        name = graph.node("Cast", [name], to=onnx_dtype(output.dtype))
    graph.set_tensor(output, name)


@translates("reshape")
def _reshape(graph: OnnxGraph, operator: Operator) -> None:
    x, output = operator.first, operator.outputs[0]
    array = graph.array(x)
    if array is not None and min(output.shape, default=0) >= 0:
        graph.set_array(output, array.reshape(output.shape))
        return
    shape = _vector(graph, operator, "shape")
    graph.set_tensor(output, graph.node("Reshape", [graph.tensor(x), shape]))


@translates("flatten")
def _flatten(graph: OnnxGraph, operator: Operator) -> None:
    x, output = operator.first, operator.outputs[0]
    rank = len(x.shape)
    first, last = (operator.attributes[name] % max(rank, 1) for name in ("start_axis", "stop_axis"))
    if first == 1 and last == rank - 1:
        graph.set_tensor(output, graph.node("Flatten", [graph.tensor(x)], axis=1))
        return
    sizes = [0] * first + [-1] + list(x.shape[last + 1 :])
    if min(sizes[first + 1 :], default=0) < 0:
        raise unsupported(operator, "an axis of unknown size after the flattened ones")
    graph.set_tensor(output, graph.node("Reshape", [graph.tensor(x), _integers(graph, sizes)]))


@translates("squeeze", "unsqueeze")
def _squeeze(graph: OnnxGraph, operator: Operator) -> None:
    x, output = operator.first, operator.outputs[0]
    array, axes = graph.array(x), _list(graph.argument(operator, "axis"))
    if array is not None:
        graph.set_array(output, array.reshape(output.shape))
        return
    if operator.kind == "squeeze":  # Paddle leaves out axes of another size than 1
        axes = [axis for axis in axes or range(len(x.shape)) if x.shape[axis] == 1]
    kind = "Squeeze" if operator.kind == "squeeze" else "Unsqueeze"
    graph.set_tensor(output, graph.node(kind, [graph.tensor(x), _integers(graph, axes)]))


@translates("transpose")
def _transpose(graph: OnnxGraph, operator: Operator) -> None:
    name = graph.node("Transpose", [graph.tensor(operator.first)], perm=list(operator.attributes["perm"]))
    graph.set_tensor(operator.outputs[0], name)


@translates("expand")
def _expand(graph: OnnxGraph, operator: Operator) -> None:
    sizes = _vector(graph, operator, "shape")
    # ONNX has no -1 for the size that there is already, but 1 has this effect.
    if all(graph.array(value) is not None for value in operator.inputs.get("shape", [])):
        numbers = _list(graph.argument(operator, "shape"))
        sizes = _integers(graph, [1 if number == -1 else number for number in numbers])
    graph.set_tensor(operator.outputs[0], graph.node("Expand", [graph.tensor(operator.first), sizes]))


@translates("tile")
def _tile(graph: OnnxGraph, operator: Operator) -> None:
    x = operator.first
    counts = _list(graph.argument(operator, "repeat_times"))
    counts = [1] * (len(x.shape) - len(counts)) + counts
    if len(counts) > len(x.shape):
        raise unsupported(operator, "more axes than the tensor has")
    graph.set_tensor(operator.outputs[0], graph.node("Tile", [graph.tensor(x), _integers(graph, counts)]))


@translates("pixel_shuffle")
def _pixel_shuffle(graph: OnnxGraph, operator: Operator) -> None:
    factor = operator.attributes["upscale_factor"]
    name = graph.node("DepthToSpace", [channels_first(graph, operator)], blocksize=factor, mode="CRD")
    graph.set_tensor(operator.outputs[0], name)


# Parts of tensors


@translates("concat")
def _concatenation(graph: OnnxGraph, operator: Operator) -> None:
    tensors = [graph.tensor(value) for value in operator.inputs["x"]]
    name = graph.node("Concat", tensors, axis=int(graph.number(operator, "axis")))
    graph.set_tensor(operator.outputs[0], name)


@translates("stack")
def _stack(graph: OnnxGraph, operator: Operator) -> None:
    axis = int(graph.number(operator, "axis"))
    tensors = [
        graph.node("Unsqueeze", [graph.tensor(value), _integers(graph, [axis])])
        for value in operator.inputs["x"]
    ]
    graph.set_tensor(operator.outputs[0], graph.node("Concat", tensors, axis=axis))


@translates("split", "split_with_num")
def _split(graph: OnnxGraph, operator: Operator) -> None:
    axis = int(graph.number(operator, "axis"))
    sizes = [value.shape[axis] for value in operator.outputs]
    if min(sizes) < 0:
        raise unsupported(operator, "parts of unknown size")
    inputs = [graph.tensor(operator.first), _integers(graph, sizes)]
    names = graph.node("Split", inputs, count=len(sizes), axis=axis)
    for value, name in zip(operator.outputs, names if len(sizes) > 1 else [names], strict=True):
        graph.set_tensor(value, name)


@translates("unbind", "unstack")
def _unbind(graph: OnnxGraph, operator: Operator) -> None:
    axis = int(graph.number(operator, "axis"))
    tensor = graph.tensor(operator.first)
    for i, value in enumerate(operator.outputs):
        index = graph.tensor(np.array(i, np.int64))
        graph.set_tensor(value, graph.node("Gather", [tensor, index], axis=axis))


@translates("slice", "strided_slice")
def _slice(graph: OnnxGraph, operator: Operator) -> None:
    x, output = operator.first, operator.outputs[0]
    axes = _list(graph.argument(operator, "axes"))
    starts, ends = (_list(graph.argument(operator, name)) for name in ("starts", "ends"))
    steps = _list(graph.argument(operator, "strides", [1] * len(axes)))
    squeezed_axes = list(operator.attributes.get("decrease_axis") or [])
    array = graph.array(x)
    if array is not None:
        parts = [slice(None)] * array.ndim
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            parts[axis] = slice(start, None if end >= _LARGEST else end, step)
        graph.set_array(output, array[tuple(parts)].reshape(output.shape))
        return
    inputs = [graph.tensor(x), *(_integers(graph, numbers) for numbers in (starts, ends, axes, steps))]
    name = graph.node("Slice", inputs)
    if squeezed_axes:
        name = graph.node("Squeeze", [name, _integers(graph, squeezed_axes)])
    graph.set_tensor(output, name)


# Padding and resizing

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


@translates("pad")
def _pad(graph: OnnxGraph, operator: Operator) -> None:
    numbers = _list(graph.argument(operator, "paddings"))  # before and after each axis in turn
    _write_pad(graph, operator, [*numbers[::2], *numbers[1::2]], "constant")


@translates("pad3d")
def _pad_3d(graph: OnnxGraph, operator: Operator) -> None:
    numbers = _list(graph.argument(operator, "paddings"))  # left, right, top, bottom, front, back
    mode = operator.attributes["mode"]
    if mode not in _PAD_MODES:
        raise unsupported(operator, f"mode {mode}")
    channels_first(graph, operator)
    starts, ends = ([0, 0, *numbers[i::2][::-1]] for i in (0, 1))
    _write_pad(graph, operator, [*starts, *ends], _PAD_MODES[mode])


def _write_pad(graph: OnnxGraph, operator: Operator, numbers: list[int], mode: str) -> None:
    """Writes a pad of these numbers of elements: before each axis, then after each axis."""
    x = operator.first
    inputs = [graph.tensor(x), _integers(graph, numbers)]
    if mode == "constant":
        inputs.append(graph.tensor(np.array(graph.number(operator, "pad_value", 0.0), x.dtype)))
    graph.set_tensor(operator.outputs[0], graph.node("Pad", inputs, mode=mode))


@translates("nearest_interp", "bilinear_interp", "bicubic_interp")
def _resize(graph: OnnxGraph, operator: Operator) -> None:
    output, tensor = operator.outputs[0], channels_first(graph, operator)
    has_aligned_corners = operator.attributes["align_corners"]
    kind = operator.kind.partition("_")[0]
    coordinates = "half_pixel"
    if has_aligned_corners:
        coordinates = "align_corners"
    elif kind == "nearest" or (kind == "bilinear" and operator.attributes["align_mode"] == 1):
        coordinates = "asymmetric"
    if min(output.shape[2:]) >= 0:
        batch_and_channels = graph.node("Slice", [graph.node("Shape", [tensor]), *_bounds(graph, 0, 2)])
        sizes = graph.node("Concat", [batch_and_channels, _integers(graph, output.shape[2:])], axis=0)
        inputs = [tensor, "", "", sizes]
    elif operator.attributes.get("scale"):
        scales = np.array([1, 1, *operator.attributes["scale"]], np.float32)
        inputs = [tensor, "", graph.tensor(scales)]
    else:
        raise unsupported(operator, "a size that depends on the images")
    details: dict[str, Any] = {"mode": "linear"}
    if kind == "nearest":
        details = {"mode": kind, "nearest_mode": "round_prefer_ceil" if has_aligned_corners else "floor"}
    elif kind == "bicubic":
        details = {"mode": "cubic", "cubic_coeff_a": -0.75}
    name = graph.node("Resize", inputs, coordinate_transformation_mode=coordinates, **details)
    graph.set_tensor(output, name)


def _bounds(graph: OnnxGraph, start: int, end: int) -> list[str]:
    return [_integers(graph, [start]), _integers(graph, [end])]


# Reductions and choices

_REDUCTIONS = {
    "mean": "ReduceMean",
    "sum": "ReduceSum",
    "max": "ReduceMax",
    "min": "ReduceMin",
    "amax": "ReduceMax",
    "amin": "ReduceMin",
    "prod": "ReduceProd",
}


@translates(*_REDUCTIONS)
def _reduction(graph: OnnxGraph, operator: Operator) -> None:
    x, output = operator.first, operator.outputs[0]
    axes = _list(graph.argument(operator, "axis", [])) or None
    keeps_axes = int(bool(operator.attributes["keepdim"]))
    kind, tensor = _REDUCTIONS[operator.kind], graph.tensor(x)
    if output.dtype != x.dtype:
        tensor = graph.node("Cast", [tensor], to=onnx_dtype(output.dtype))
    if kind == "ReduceSum":  # the only one whose axes are an input in this version of ONNX
        inputs = [tensor, *([_integers(graph, axes)] if axes else [])]
        name = graph.node(kind, inputs, keepdims=keeps_axes)
    else:
        name = graph.node(kind, [tensor], axes=axes, keepdims=keeps_axes)
    graph.set_tensor(output, name)


@translates("p_norm")
def _norm(graph: OnnxGraph, operator: Operator) -> None:
    attributes = operator.attributes
    kind = {1: "ReduceL1", 2: "ReduceL2", math.inf: "ReduceMax"}.get(attributes["porder"])
    if kind is None or attributes.get("asvector"):
        raise unsupported(operator, f"order {attributes['porder']}")
    tensor = graph.tensor(operator.first)
    if kind == "ReduceMax":
        tensor = graph.node("Abs", [tensor])
    name = graph.node(kind, [tensor], axes=[attributes["axis"]], keepdims=int(attributes["keepdim"]))
    graph.set_tensor(operator.outputs[0], name)


@translates("argmax")
def _argmax(graph: OnnxGraph, operator: Operator) -> None:
    if operator.attributes.get("flatten"):
        raise unsupported(operator, "all axes at once")
    output = operator.outputs[0]
    name = graph.node(
        "ArgMax",
        [graph.tensor(operator.first)],
        axis=int(graph.number(operator, "axis")),
        keepdims=int(bool(operator.attributes.get("keepdims"))),
    )
    if output.dtype != "int64":
        name = graph.node("Cast", [name], to=onnx_dtype(output.dtype))
    graph.set_tensor(output, name)


@translates("where")
def _where(graph: OnnxGraph, operator: Operator) -> None:
    tensors = [graph.tensor(operator.inputs[name][0]) for name in ("condition", "x", "y")]
    graph.set_tensor(operator.outputs[0], graph.node("Where", tensors))
