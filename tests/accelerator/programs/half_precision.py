"""Operators in half precision, beside the same operators in float32 on the same numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
from paddle.nn import functional

Tensors = list[paddle.Tensor]
NAME = os.environ.get("ACCELERATOR_NAME", "iluvatar_gpu")
STATISTICS: Tensors = []  # running statistics of the batch norms
RNG = np.random.default_rng(0)


def numbers(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype("float32")


def convolution(**arguments: Any) -> Callable[..., paddle.Tensor]:
    return lambda x, weight: functional.conv2d(x, weight, padding=1, **arguments)


def batch_norm(x: paddle.Tensor, scale: paddle.Tensor, bias: paddle.Tensor) -> paddle.Tensor:
    mean, variance = paddle.zeros([4]), paddle.ones([4])
    output = functional.batch_norm(x, mean, variance, scale, bias, training=True)
    STATISTICS.append(paddle.concat([mean, variance]))
    return output


def cross_entropy(x: paddle.Tensor) -> paddle.Tensor:
    return functional.cross_entropy(x, paddle.to_tensor([0, 2, 1]), reduction="none")


# The operator, its inputs, and how many of them, from the end, stay float32.
CASES: dict[str, tuple[Callable[..., paddle.Tensor], list[Any], int]] = {
    "conv2d": (convolution(), [numbers(2, 4, 9, 9), numbers(6, 4, 3, 3)], 0),
    "depthwise": (convolution(groups=4), [numbers(2, 4, 9, 9), numbers(4, 1, 3, 3)], 0),
    "groups": (convolution(groups=2), [numbers(2, 4, 9, 9), numbers(6, 2, 3, 3)], 0),
    "NHWC": (convolution(data_format="NHWC"), [numbers(2, 9, 9, 4), numbers(6, 4, 3, 3)], 0),
    "strides": (convolution(stride=2), [numbers(2, 4, 9, 9), numbers(6, 4, 3, 3)], 0),
    "batch_norm": (batch_norm, [numbers(3, 4, 5, 5), numbers(4), numbers(4)], 2),
    "matmul": (paddle.matmul, [numbers(5, 7), numbers(7, 3)], 0),
    "cross_entropy": (cross_entropy, [numbers(3, 4)], 0),
    "max_pool": (lambda x: functional.max_pool2d(x, 3, 2, 1), [numbers(2, 4, 9, 9)], 0),
    "mean": (lambda x: x.mean([2, 3]), [numbers(2, 4, 9, 9)], 0),
}


def results_of(case: str, dtype: str, *, is_in_half: bool) -> Tensors:
    """Returns the output, the gradients and running statistics, on numbers rounded to half precision."""
    function, arrays, statistics = CASES[case]
    inputs = []
    for i, array in enumerate(arrays):
        tensor = paddle.to_tensor(array)
        if i < len(arrays) - statistics:
            tensor = tensor.astype(dtype)
            tensor = tensor if is_in_half else tensor.astype("float32")
        tensor.stop_gradient = False
        inputs.append(tensor)
    output = function(*inputs)
    gradients = paddle.grad(output, inputs, paddle.ones_like(output))
    statistics_after = [STATISTICS.pop()] if STATISTICS else []
    return [output, *gradients, *statistics_after]


def difference(case: str, dtype: str) -> dict[str, Any]:
    """Compares an operator's results with the rounded results of float32."""
    halves = results_of(case, dtype, is_in_half=True)
    floats = results_of(case, dtype, is_in_half=False)
    distances = [
        float((half.astype("float32") - value.astype(half.dtype).astype("float32")).abs().max())
        for half, value in zip(halves, floats, strict=True)
    ]
    return {
        "distances": distances,
        "sizes": [float(value.abs().max()) for value in floats],
        "types": [str(half.dtype) for half in halves],
        "places": sorted({str(half.place) for half in halves}),
    }


def main() -> None:
    paddle.set_device(NAME)
    results = {case: {dtype: difference(case, dtype) for dtype in ("float16", "bfloat16")} for case in CASES}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
