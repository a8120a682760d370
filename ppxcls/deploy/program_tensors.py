"""The shapes that other operators give: those that arrange, reduce, resize and create tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ppxcls.deploy.program_check import MAX_AXES, MAX_SIDE, Tensor
from ppxcls.deploy.program_shapes import OperatorCall, broadcast, followed_numbers, shape_rule

_MAX_PADDING = 4096  # elements before or after an axis


def _axes(operation: OperatorCall, numbers: Sequence[int], rank: int) -> list[int]:
    axes = [operation.axis(number, rank) for number in numbers]
    if len(set(axes)) != len(axes):
        raise operation.problem(f"an axis twice: {list(numbers)}")
    return axes


def _reshaped(x: Tensor, shape: Sequence[int]) -> Tensor:
    return Tensor(tuple(shape), x.dtype, x.numbers)


# Constants


@shape_rule("full")
def _full(operation: OperatorCall) -> Tensor:
    shape, dtype = tuple(operation.integers("shape", [])), str(operation.value("dtype", "float32"))
    if len(shape) > MAX_AXES or not all(1 <= side <= MAX_SIDE for side in shape):
        raise operation.problem(f"the shape {list(shape)[:MAX_AXES]}")
    number = operation.value("value", 0)
    numbers = None
    if dtype.startswith("int") and math.prod(shape) == 1 and isinstance(number, (int, float)):
        numbers = (int(number),)
    return Tensor(shape, dtype, numbers)


@shape_rule("literal")
def _literal(operation: OperatorCall) -> Tensor:
    values = operation.value("values", [])
    assert isinstance(values, list)
    shape = tuple(operation.integers("shape", [len(values)]))
    dtype = str(operation.value("dtype", "int64"))
    if math.prod(shape) != len(values) or len(shape) > MAX_AXES or min(shape, default=1) < 0:
        raise operation.problem(f"{len(values)} values for the shape {list(shape)[:MAX_AXES]}")
    numbers = followed_numbers(shape, values) if dtype.startswith("int") else None
    return Tensor(shape, dtype, None if numbers is None else tuple(int(number) for number in numbers))


@shape_rule("shape")
def _shape(operation: OperatorCall) -> Tensor:
    x = operation.tensor()
    return Tensor((len(x.shape),), str(operation.value("dtype", "int64")), x.shape)


# Arrangement


@shape_rule("reshape")
def _reshape(operation: OperatorCall) -> Tensor:
    x, wishes = operation.tensor(), operation.integers("shape")
    if len(wishes) > MAX_AXES or wishes.count(-1) > 1 or min(wishes, default=0) < -1:
        raise operation.problem(f"the shape {wishes[:MAX_AXES]}")
    shape = [x.shape[i] if wish == 0 else wish for i, wish in enumerate(wishes)]
    if -1 in shape:
        position = shape.index(-1)
        rest = math.prod(shape[:position] + shape[position + 1 :])
        shape[position] = x.size // rest
    if math.prod(shape) != x.size:
        raise operation.problem(f"the shape {wishes} for a tensor {list(x.shape)}")
    return _reshaped(x, shape)


@shape_rule("flatten")
def _flatten(operation: OperatorCall) -> Tensor:
    x = operation.tensor()
    rank = len(x.shape)
    first, last = (operation.axis(operation.integer(name), rank) for name in ("start_axis", "stop_axis"))
    if first > last:
        raise operation.problem(f"the axes from {first} to {last}")
    return _reshaped(x, (*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :]))


@shape_rule("flatten_to_matrix")
def _flatten_to_matrix(operation: OperatorCall) -> Tensor:
    x = operation.tensor()
    axis = operation.axis(operation.integer("axis", 1), len(x.shape))
    return _reshaped(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@shape_rule("transpose")
def _transpose(operation: OperatorCall) -> Tensor:
    x, order = operation.tensor(), operation.integers("perm")
    axes = _axes(operation, order, len(x.shape))
    if len(axes) != len(x.shape):
        raise operation.problem(f"the order {order} of {len(x.shape)} axes")
    return Tensor(tuple(x.shape[axis] for axis in axes), x.dtype)


@shape_rule("squeeze")
def _squeeze(operation: OperatorCall) -> Tensor:
    x, numbers = operation.tensor(), operation.integers("axis", [])
    axes = _axes(operation, numbers, len(x.shape)) if numbers else range(len(x.shape))
    return _reshaped(x, [side for i, side in enumerate(x.shape) if i not in axes or side != 1])


@shape_rule("unsqueeze")
def _unsqueeze(operation: OperatorCall) -> Tensor:
    x, numbers = operation.tensor(), operation.integers("axis")
    axes = _axes(operation, numbers, len(x.shape) + len(numbers))
    if len(x.shape) + len(numbers) > MAX_AXES:
        raise operation.problem(f"{len(numbers)} new axes")
    sides = iter(x.shape)
    return _reshaped(x, [1 if i in axes else next(sides) for i in range(len(x.shape) + len(numbers))])


@shape_rule("concat")
def _concatenation(operation: OperatorCall) -> Tensor:
    parts = operation.tensors("x")
    axis = operation.axis(operation.integer("axis"), len(parts[0].shape))
    shape = list(parts[0].shape)
    if any(
        [*part.shape[:axis], *part.shape[axis + 1 :]] != shape[:axis] + shape[axis + 1 :] for part in parts
    ):
        raise operation.problem("parts of different shapes")
    shape[axis] = sum(part.shape[axis] for part in parts)
    return Tensor(tuple(shape), parts[0].dtype, _joined_numbers(parts) if len(shape) == 1 else None)


@shape_rule("stack")
def _stack(operation: OperatorCall) -> Tensor:
    parts = operation.tensors("x")
    axis = operation.axis(operation.integer("axis", 0), len(parts[0].shape) + 1)
    shape = list(parts[0].shape)
    if any(list(part.shape) != shape for part in parts) or len(shape) >= MAX_AXES:
        raise operation.problem("parts of different shapes")
    shape.insert(axis, len(parts))
    return Tensor(tuple(shape), parts[0].dtype, _joined_numbers(parts) if len(shape) == 1 else None)


def _joined_numbers(parts: Sequence[Tensor]) -> tuple[float, ...] | None:
    """Returns the numbers of vectors that are joined; None if some of them are not known."""
    numbers: list[float] = []
    for part in parts:
        if part.numbers is None:
            return None
        numbers += part.numbers
    return followed_numbers([len(numbers)], numbers)


@shape_rule("split")
def _split(operation: OperatorCall) -> list[Tensor]:
    x = operation.tensor()
    count = len(operation.node.outputs)
    axis = operation.axis(operation.integer("axis", 0), len(x.shape))
    sizes = operation.integers("sections", [])
    if not sizes:
        sizes = [x.shape[axis] // count] * count
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = x.shape[axis] - sum(sizes) - 1
    if len(sizes) != count or sum(sizes) != x.shape[axis] or min(sizes) < 1:
        raise operation.problem(f"{count} parts of an axis of {x.shape[axis]}")
    return [Tensor((*x.shape[:axis], size, *x.shape[axis + 1 :]), x.dtype) for size in sizes]


@shape_rule("unbind")
def _unbind(operation: OperatorCall) -> list[Tensor]:
    x = operation.tensor()
    axis = operation.axis(operation.integer("axis", 0), len(x.shape))
    if len(operation.node.outputs) != x.shape[axis]:
        raise operation.problem(f"{len(operation.node.outputs)} outputs of an axis of {x.shape[axis]}")
    return [Tensor(x.shape[:axis] + x.shape[axis + 1 :], x.dtype)] * x.shape[axis]


@shape_rule("gather")
def _gather(operation: OperatorCall) -> Tensor:
    x, indices = operation.tensor(), operation.tensor("index")
    axis = operation.axis(operation.integer("axis", 0), len(x.shape))
    numbers = operation.integers("index")
    if not all(-x.shape[axis] <= number < x.shape[axis] for number in numbers):
        raise operation.problem(f"an index outside of an axis of {x.shape[axis]}")
    values = None
    if x.numbers is not None and len(x.shape) == 1:
        values = tuple(x.numbers[number] for number in numbers)
    return Tensor(x.shape[:axis] + indices.shape + x.shape[axis + 1 :], x.dtype, values)


@shape_rule("slice")
def _slice(operation: OperatorCall) -> Tensor:
    x = operation.tensor()
    starts, ends = operation.integers("starts"), operation.integers("ends")
    axes = _axes(operation, operation.integers("axes", list(range(len(starts)))), len(x.shape))
    steps = operation.integers("strides", [1] * len(starts))
    parts = [slice(None)] * len(x.shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        parts[axis] = slice(start, end, step)
    sides = [len(range(*part.indices(side))) for part, side in zip(parts, x.shape, strict=True)]
    squeezed_axes = _axes(operation, operation.integers("decrease_axis", []), len(x.shape))
    if any(sides[axis] != 1 for axis in squeezed_axes):
        raise operation.problem(f"axes {squeezed_axes} of other sizes than 1")
    numbers = None
    if x.numbers is not None and len(x.shape) == 1:
        numbers = x.numbers[parts[0]]
    return Tensor(tuple(s for i, s in enumerate(sides) if i not in squeezed_axes), x.dtype, numbers)


# Growth


@shape_rule("expand")
def _expand(operation: OperatorCall) -> Tensor:
    x, wishes = operation.tensor(), operation.integers("shape")
    shape = tuple(1 if wish == -1 else wish for wish in wishes)
    if len(shape) > MAX_AXES or min(shape, default=1) < 1:
        raise operation.problem(f"the shape {wishes[:MAX_AXES]}")
    return Tensor(broadcast(operation, [x.shape, shape]), x.dtype)


@shape_rule("tile")
def _tile(operation: OperatorCall) -> Tensor:
    x, counts = operation.tensor(), operation.integers("repeat_times")
    rank = max(len(x.shape), len(counts))
    if rank > MAX_AXES or min(counts, default=1) < 1:
        raise operation.problem(f"repeat_times = {counts[:MAX_AXES]}")
    sides = (1,) * (rank - len(x.shape)) + x.shape
    all_counts = [1] * (rank - len(counts)) + counts
    return Tensor(tuple(s * c for s, c in zip(sides, all_counts, strict=True)), x.dtype)


@shape_rule("pad")
def _pad(operation: OperatorCall) -> Tensor:
    """Returns the shape after a pad, whose numbers are those before and after each axis in turn."""
    numbers = operation.integers("paddings")
    return _padded(operation, numbers[::2], numbers[1::2])


@shape_rule("pad3d")
def _pad_3d(operation: OperatorCall) -> Tensor:
    numbers = operation.integers("paddings")  # left, right, top, bottom, front, back
    starts, ends = ([0, 0, *numbers[i::2][::-1]] for i in (0, 1))
    return _padded(operation, starts, ends)


@shape_rule("pad_starts_and_ends")
def _pad_starts_and_ends(operation: OperatorCall) -> Tensor:
    numbers = operation.integers("paddings")
    half = len(numbers) // 2
    return _padded(operation, numbers[:half], numbers[half:])


def _padded(operation: OperatorCall, starts: Sequence[int], ends: Sequence[int]) -> Tensor:
    x = operation.tensor()
    if not all(0 <= number <= _MAX_PADDING for number in (*starts, *ends)):
        raise operation.problem(f"a padding that is not from 0 to {_MAX_PADDING}")
    if operation.value("mode") == "reflect" and any(
        max(start, end) >= side for start, end, side in zip(starts, ends, x.shape, strict=True)
    ):
        raise operation.problem("a reflection of more than the image")
    shape = tuple(s + start + end for s, start, end in zip(x.shape, starts, ends, strict=True))
    return Tensor(shape, x.dtype)


@shape_rule("interpolate")
def _interpolate(operation: OperatorCall) -> Tensor:
    """Returns the shape after Paddle's resize of height and width."""
    x = operation.tensor()
    sides = [operation.integer(name, -1) for name in ("out_h", "out_w")]
    factors = operation.value("scale", [])
    for name in ("size_tensor", "out_size"):
        if operation.tensors(name):
            sides = operation.integers(name)
    if operation.tensors("scale") or not isinstance(factors, list):
        raise operation.problem("a factor that is computed")
    if len(sides) != 2 or len(x.shape) != 4:
        raise operation.problem(f"{len(sides)} sizes for a tensor {list(x.shape)}")
    if min(sides) < 1:
        factors = factors * 2 if len(factors) == 1 else factors
        sides = [int(side * factor) for side, factor in zip(x.shape[2:], factors, strict=True)]
    return Tensor((*x.shape[:2], *sides), x.dtype)


@shape_rule("resize")
def _resize(operation: OperatorCall) -> Tensor:
    """Returns the shape after ONNX's resize of all axes."""
    x, scales = operation.tensor(), operation.tensors("scales")
    if scales and scales[0].size:
        if scales[0].numbers is None:
            raise operation.problem("factors that are computed")
        shape = [int(s * factor) for s, factor in zip(x.shape, scales[0].numbers, strict=True)]
    else:
        shape = operation.integers("sizes")
    if len(shape) != len(x.shape) or tuple(shape[:2]) != x.shape[:2]:
        raise operation.problem(f"sizes {shape[:MAX_AXES]} for a tensor {list(x.shape)}")
    return Tensor(tuple(shape), x.dtype)


@shape_rule("depth_to_space")
def _depth_to_space(operation: OperatorCall) -> Tensor:
    x, factor = operation.tensor(), operation.integer("upscale_factor")
    batch, channels, height, width = x.shape
    if factor < 1 or channels % factor**2:
        raise operation.problem(f"{channels} channels for a factor of {factor}")
    return Tensor((batch, channels // factor**2, height * factor, width * factor), x.dtype)


# Reductions


@shape_rule("reduce", "argmax")
def _reduce(operation: OperatorCall) -> Tensor:
    x, numbers = operation.tensor(), operation.integers("axis", [])
    axes = _axes(operation, numbers, len(x.shape)) if numbers else list(range(len(x.shape)))
    if operation.is_on("keepdim") or operation.is_on("keepdims"):
        shape = tuple(1 if i in axes else side for i, side in enumerate(x.shape))
    else:
        shape = tuple(side for i, side in enumerate(x.shape) if i not in axes)
    return Tensor(shape, "int64" if operation.node.rule == "argmax" else x.dtype)
