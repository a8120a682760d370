"""Max pooling layer: numba kernels on the CPU, Paddle's operator everywhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.autograd import PyLayer

from ppxcls.ops import cpu
from ppxcls.system import kernels

_MAX_SIDE_PIXELS = 16  # largest side for pixel numbers of 8 bits within a window


class MaxPool2D(nn.Layer):
    """Max pooling with square windows. Values and gradients are those of ``paddle.nn.MaxPool2D``.

    Args:
        kernel_size: side of the windows in pixels.
        stride: distance between windows in pixels.
        padding: pixels by which windows may extend beyond each side; less than ``kernel_size``.
    """

    def __init__(self, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__()
        self._geometry = kernel_size, stride
        self._padding = padding
        self.data_format = "NCHW"

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Pools [N, C, H, W] to [N, C, H', W'].

        H' = (H + 2 padding - kernel_size) // stride + 1.
        """
        return self.pool(x, [self._padding] * 4)

    def pool(self, x: paddle.Tensor, padding: list[int]) -> paddle.Tensor:
        """Pools [N, C, H, W] with another padding.

        Args:
            x: batch.
            padding: pixels by which windows may extend beyond top, bottom, left and right.
        """
        size, stride = self._geometry
        is_supported = self.data_format == "NCHW" and size <= _MAX_SIDE_PIXELS and max(padding) < size
        if is_supported and cpu.applies_to(x):
            return _MaxPooling.apply(x, self._geometry, padding)
        is_even = padding[0] == padding[1] and padding[2] == padding[3]
        return F.max_pool2d(
            x, size, stride, padding[::2] if is_even else padding, data_format=self.data_format
        )


class _MaxPooling(PyLayer):
    """The differentiable operator. It has no second derivative."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, geometry: tuple[int, int], padding: list[int]) -> paddle.Tensor:
        size, stride = geometry
        height, width = (
            (side + sum(padding[2 * axis : 2 * axis + 2]) - size) // stride + 1
            for axis, side in enumerate(x.shape[2:])
        )
        out = paddle.empty([*x.shape[:2], height, width], "float32")
        planes = _planes(out)
        ctx.argmax = np.empty(planes.shape, np.uint8)
        from ppxcls.ops.max_pool_kernels import max_pool

        ctx.geometry = *geometry, (padding[0], padding[2])
        kernels.run(max_pool, len(planes), _planes(x), planes, ctx.argmax, *ctx.geometry)
        ctx.shape = x.shape
        return out

    @staticmethod
    def backward(ctx: Any, out_gradient: paddle.Tensor) -> paddle.Tensor:
        from ppxcls.ops.max_pool_kernels import max_pool_gradient

        gradient = paddle.empty(ctx.shape, "float32")
        arguments = ctx.argmax, _planes(out_gradient), _planes(gradient), *ctx.geometry
        kernels.run(max_pool_gradient, len(ctx.argmax), *arguments)
        return gradient


def _planes(tensor: paddle.Tensor) -> Any:
    array = cpu.view(tensor)
    return array.reshape(-1, *array.shape[2:])
