"""Batch norm in training and ReLU: numba kernels on the CPU, Paddle's operators otherwise.

Paddle's CPU operators use only one thread.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import nn

from ppxcls.ops import cpu
from ppxcls.ops.channelwise import Chain


class BatchNorm2D(nn.BatchNorm2D):
    """``paddle.nn.BatchNorm2D`` with its parameters, statistics and state keys.

    It uses the numba kernels for float32 training on the CPU, if numba is installed, with the statistics of
    the batch, or with its own if they are frozen.
    """

    @cpu.without_translation
    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Normalises [N, C, H, W]. The shape stays the same."""
        if self.trains_in_kernels(x):
            return Chain(norm=self)(x)
        return nn.BatchNorm2D.forward(self, x)  # Paddle 2.6 can't translate super() to a static graph

    def trains_in_kernels(self, x: paddle.Tensor) -> bool:
        """True if the numba kernels normalise this input."""
        is_supported = self._data_format == "NCHW" and self.weight is not None and self.bias is not None
        return bool(self.training and is_supported and cpu.applies_to(x, self.weight))


class NormReLU(BatchNorm2D):
    """Batch norm, then ReLU, as one layer."""

    @cpu.without_translation
    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Normalises [N, C, H, W] and applies ReLU. The shape stays the same."""
        if self.trains_in_kernels(x):
            return Chain(norm=self, is_rectified=True)(x)
        return relu(nn.BatchNorm2D.forward(self, x))  # Paddle 2.6 can't translate super() to a static graph


@cpu.without_translation
def relu(x: paddle.Tensor) -> paddle.Tensor:
    """Returns ``max(x, 0)`` for a tensor of any shape. NaN stays NaN."""
    if len(x.shape) == 4 and cpu.applies_to(x):
        return Chain(is_rectified=True)(x)
    return F.relu(x)


class ReLU(nn.Layer):
    """``relu`` as a layer."""

    @cpu.without_translation
    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Applies ReLU to a tensor of any shape. The shape stays the same."""
        return relu(x)
