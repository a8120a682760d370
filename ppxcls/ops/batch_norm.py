"""Batch norm in training and ReLU: numba's kernels on the CPU, because Paddle's use one thread; otherwise Paddle's operators."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import nn

from ppxcls.ops import cpu
from ppxcls.ops.channelwise import Chain


class BatchNorm2D(nn.BatchNorm2D):
    """``paddle.nn.BatchNorm2D`` with its parameters, statistics and state keys.

    In training in float32 on the CPU, it runs the numba kernels, if numba is installed.
    """

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[N, C, H, W] to the same."""
        if self.measures_in_kernels(x):
            return Chain(norm=self)(x)
        return nn.BatchNorm2D.forward(self, x)  # to a static graph, Paddle 2.6 translates no super()

    def measures_in_kernels(self, x: paddle.Tensor) -> bool:
        """Whether the numba kernels normalise this input by its own statistics."""
        uses_batch = self.training and not self._use_global_stats
        is_whole = self._data_format == "NCHW" and self.weight is not None and self.bias is not None
        return bool(uses_batch and is_whole and cpu.applies_to(x, self.weight))


class NormReLU(BatchNorm2D):
    """Batch norm and ReLU under one name."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[N, C, H, W] to the same."""
        if self.measures_in_kernels(x):
            return Chain(norm=self, is_rectified=True)(x)
        return relu(nn.BatchNorm2D.forward(self, x))  # to a static graph, Paddle 2.6 translates no super()


def relu(x: paddle.Tensor) -> paddle.Tensor:
    """``max(x, 0)`` of a tensor of any shape. NaN stays NaN."""
    if len(x.shape) == 4 and cpu.applies_to(x):
        return Chain(is_rectified=True)(x)
    return F.relu(x)


class ReLU(nn.Layer):
    """``relu`` as a layer."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """A tensor of any shape to the same."""
        return relu(x)
