"""The shapes that layers give: convolutions, norms, pools, products, and element-wise operators."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ppxcls.deploy.program_check import Tensor
from ppxcls.deploy.program_shapes import OperatorCall, broadcast, shape_rule

_MAX_STEP = 4096  # of a kernel, a stride, a dilation or a padding
_FLOATS = ("float16", "float32", "float64")


@shape_rule("same")
def _same(operation: OperatorCall) -> Tensor:
    x = operation.tensor()
    return Tensor(x.shape, x.dtype)


@shape_rule("alias")
def _alias(operation: OperatorCall) -> Tensor:
    return operation.tensor()


@shape_rule("along_axis")
def _along_axis(operation: OperatorCall) -> Tensor:
    x = operation.tensor()
    operation.axis(operation.integer("axis", -1), len(x.shape))
    return Tensor(x.shape, x.dtype)


@shape_rule("cast")
def _cast(operation: OperatorCall) -> Tensor:
    x, dtype = operation.tensor(), str(operation.value("dtype"))
    is_integer = x.dtype.startswith("int") and dtype.startswith("int")
    return Tensor(x.shape, dtype, x.numbers if is_integer else None)


def _element_wise_shape(operation: OperatorCall) -> tuple[int, ...]:
    x, y = operation.tensor("x").shape, operation.tensor("y").shape
    axis = operation.integer("axis", -1)  # of Paddle 2: the first axis of x that y has too
    if axis >= 0:
        y = y + (1,) * (len(x) - axis - len(y))
    return broadcast(operation, [x, y])


@shape_rule("broadcast")
def _broadcast(operation: OperatorCall) -> Tensor:
    return Tensor(_element_wise_shape(operation), operation.tensor("x").dtype)


@shape_rule("divide")
def _divide(operation: OperatorCall) -> Tensor:
    """Returns a quotient of floating-point numbers. A division of integers by 0 would end the process."""
    dtypes = {operation.tensor("x").dtype, operation.tensor("y").dtype}
    if not dtypes.issubset(_FLOATS):
        raise operation.problem("integers as inputs")
    return Tensor(_element_wise_shape(operation), operation.tensor("x").dtype)


@shape_rule("compare")
def _compare(operation: OperatorCall) -> Tensor:
    return Tensor(_element_wise_shape(operation), "bool")


@shape_rule("where")
def _where(operation: OperatorCall) -> Tensor:
    tensors = [operation.tensor(name) for name in ("condition", "x", "y")]
    return Tensor(broadcast(operation, [tensor.shape for tensor in tensors]), tensors[1].dtype)


@shape_rule("quantize")
def _quantize(operation: OperatorCall) -> Tensor:
    x = operation.tensor()
    _check_quantisation(operation, x)
    zero_points = operation.tensors("zero_point")
    return Tensor(x.shape, zero_points[0].dtype if zero_points else "uint8")


@shape_rule("dequantize")
def _dequantize(operation: OperatorCall) -> Tensor:
    x = operation.tensor()
    _check_quantisation(operation, x)
    return Tensor(x.shape, "float32")


def _check_quantisation(operation: OperatorCall, x: Tensor) -> None:
    for name in ("scale", "zero_point"):
        for tensor in operation.tensors(name):
            if tensor.size != 1 and (
                len(tensor.shape) != 1
                or tensor.size != x.shape[operation.axis(operation.integer("axis", 1), len(x.shape))]
            ):
                raise operation.problem(f"{tensor.size} numbers as {name}")


# Convolutions and pools


def _pairs(operation: OperatorCall, name: str, default: int = 1) -> tuple[int, int]:
    numbers = operation.integers(name, [default] * 2)
    numbers = numbers * 2 if len(numbers) == 1 else numbers
    if len(numbers) != 2 or not all(1 <= number <= _MAX_STEP for number in numbers):
        raise operation.problem(f"{name} = {numbers}, expected two numbers from 1 to {_MAX_STEP}")
    return numbers[0], numbers[1]


def _paddings(operation: OperatorCall) -> list[int]:
    """Returns the padding as [top, bottom, left, right]."""
    numbers = operation.integers("paddings", [0, 0])
    numbers = [n for n in numbers for _ in range(2)] if len(numbers) == 2 else numbers
    if len(numbers) != 4 or not all(0 <= number <= _MAX_STEP for number in numbers):
        raise operation.problem(f"paddings = {numbers}, expected four numbers from 0 to {_MAX_STEP}")
    return numbers


def _window_sides(
    operation: OperatorCall, sides: Sequence[int], kernel: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """Returns the height and width of the output of a kernel that moves over an image."""
    strides, paddings = _pairs(operation, "strides"), _paddings(operation)
    algorithm = operation.value("padding_algorithm", "EXPLICIT")
    output_sides = []
    for i in range(2):
        if algorithm == "SAME":
            output_sides.append(-(-sides[i] // strides[i]))
            continue
        padding = 0 if algorithm == "VALID" else paddings[2 * i] + paddings[2 * i + 1]
        space = sides[i] + padding - dilations[i] * (kernel[i] - 1) - 1
        if space < 0:
            raise operation.problem(f"a kernel {list(kernel)} on an image {list(sides)}")
        step_count = -(-space // strides[i]) if operation.is_on("ceil_mode") else space // strides[i]
        output_sides.append(step_count + 1)
    return output_sides


def _image(operation: OperatorCall, name: str = "x") -> Tensor:
    x = operation.tensor(name)
    if len(x.shape) != 4:
        raise operation.problem(f"an input with {len(x.shape)} axes, expected 4")
    return x


@shape_rule("conv")
def _convolution(operation: OperatorCall) -> Tensor:
    x, kernels = _image(operation), _image(operation, "filter")
    groups = operation.integer("groups", 1)
    out_channels, in_channels, *kernel = kernels.shape
    if groups < 1 or x.shape[1] != in_channels * groups or out_channels % groups:
        raise operation.problem(f"kernels {list(kernels.shape)} in {groups} groups on {x.shape[1]} channels")
    _check_vector(operation, "bias", out_channels)
    expected_kernel = operation.integers("kernel_size", kernel)
    if expected_kernel != kernel:
        raise operation.problem(f"kernels {list(kernels.shape)}, expected a size of {expected_kernel}")
    sides = _window_sides(operation, x.shape[2:], kernel, _pairs(operation, "dilations"))
    output = Tensor((x.shape[0], out_channels, *sides), x.dtype)
    operation.products = output.size * in_channels * math.prod(kernel)
    return output


@shape_rule("conv_transpose")
def _transposed_convolution(operation: OperatorCall) -> Tensor:
    x, kernels = _image(operation), _image(operation, "filter")
    groups = operation.integer("groups", 1)
    in_channels, out_channels, *kernel = kernels.shape
    if groups < 1 or x.shape[1] != in_channels or in_channels % groups:
        raise operation.problem(f"kernels {list(kernels.shape)} on {x.shape[1]} channels")
    _check_vector(operation, "bias", out_channels * groups)
    strides, dilations = _pairs(operation, "strides"), _pairs(operation, "dilations")
    paddings = _paddings(operation)
    extra_sides = operation.integers("output_padding", [0, 0]) or [0, 0]
    if len(extra_sides) != 2 or not all(0 <= extra <= _MAX_STEP for extra in extra_sides):
        raise operation.problem(f"output_padding = {extra_sides}")
    sides = [
        (x.shape[2 + i] - 1) * strides[i]
        - (paddings[2 * i] + paddings[2 * i + 1])
        + dilations[i] * (kernel[i] - 1)
        + 1
        + extra_sides[i]
        for i in range(2)
    ]
    output_size = operation.integers("output_size", [])
    if output_size and any(
        not 0 <= wish - side < stride + _MAX_STEP
        for wish, side, stride in zip(output_size, sides, strides, strict=True)
    ):
        raise operation.problem(f"output_size = {output_size}, expected about {sides}")
    output = Tensor((x.shape[0], out_channels * groups, *(output_size or sides)), x.dtype)
    operation.products = x.size * out_channels * math.prod(kernel)
    return output


@shape_rule("pool")
def _pool(operation: OperatorCall) -> list[Tensor]:
    x = _image(operation)
    sides = x.shape[2:]
    if operation.is_on("global_pooling"):
        kernel, output_sides = list(sides), [1, 1]
    else:
        kernel = list(_pairs(operation, "kernel_size"))
        if operation.is_on("adaptive"):
            output_sides = kernel
            kernel = [-(-side // size) + 1 for side, size in zip(sides, kernel, strict=True)]
        else:
            output_sides = _window_sides(operation, sides, kernel, [1, 1])
    output = Tensor((*x.shape[:2], *output_sides), x.dtype)
    operation.products = output.size * math.prod(map(min, kernel, sides))
    return [output, Tensor(output.shape, "int32")]  # the second one is the place of a maximum


# Norms


def _check_vector(operation: OperatorCall, name: str, count: int) -> None:
    for tensor in operation.tensors(name):
        if tensor.size != count:
            raise operation.problem(f"{tensor.size} numbers as {name}, expected {count}")


@shape_rule("batch_norm")
def _batch_norm(operation: OperatorCall) -> Tensor:
    x = operation.tensor()
    for name in ("scale", "bias", "mean", "variance"):
        _check_vector(operation, name, x.shape[1])
    return Tensor(x.shape, x.dtype)


@shape_rule("channel_norm")
def _channel_norm(operation: OperatorCall) -> Tensor:
    x = operation.tensor()
    groups = operation.integer("groups", 1)
    if groups < 1 or x.shape[1] % groups:
        raise operation.problem(f"{groups} groups of {x.shape[1]} channels")
    for name in ("scale", "bias"):
        _check_vector(operation, name, x.shape[1])
    return Tensor(x.shape, x.dtype)


@shape_rule("layer_norm")
def _layer_norm(operation: OperatorCall) -> Tensor:
    x = operation.tensor()
    axis = operation.axis(operation.integer("begin_norm_axis", 1), len(x.shape))
    for name in ("scale", "bias"):
        _check_vector(operation, name, math.prod(x.shape[axis:]))
    return Tensor(x.shape, x.dtype)


@shape_rule("prelu")
def _prelu(operation: OperatorCall) -> Tensor:
    x, slopes = operation.tensor(), operation.tensor("alpha")
    if slopes.size not in (1, x.shape[1]):
        raise operation.problem(f"{slopes.size} slopes for {x.shape[1]} channels")
    return Tensor(x.shape, x.dtype)


# Products


@shape_rule("matmul")
def _product(operation: OperatorCall) -> Tensor:
    x, y = (list(operation.tensor(name).shape) for name in ("x", "y"))
    if min(len(x), len(y)) < 2:
        raise operation.problem("a vector as an input")
    if operation.is_on("transpose_x"):
        x[-2:] = x[-1], x[-2]
    if operation.is_on("transpose_y"):
        y[-2:] = y[-1], y[-2]
    if x[-1] != y[-2]:
        raise operation.problem(f"inputs {x} and {y}")
    batch = broadcast(operation, [tuple(x[:-2]), tuple(y[:-2])])
    output = Tensor((*batch, x[-2], y[-1]), operation.tensor("x").dtype)
    for bias in operation.tensors("bias"):
        if broadcast(operation, [output.shape, bias.shape]) != output.shape:
            raise operation.problem(f"a bias {list(bias.shape)}")
    operation.products = output.size * x[-1]
    return output
