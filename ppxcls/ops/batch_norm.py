"""Batch norm and ReLU: numba's kernels in training on the CPU, because Paddle's use one thread; otherwise Paddle's operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.autograd import PyLayer

from ppxcls.ops import cpu

_KERNELS = "batch_norm_kernels"


class BatchNorm2D(nn.BatchNorm2D):
    """``paddle.nn.BatchNorm2D`` with its parameters, statistics and state keys.

    In training in float32 on the CPU, it runs the numba kernels, if numba is installed.
    """

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[N, C, H, W] to the same."""
        if self.training and not self._use_global_stats and self._data_format == "NCHW" and cpu.applies_to(x, self.weight):
            statistics = self._mean, self._variance
            return _BatchNormalization.apply(x, self.weight, self.bias, statistics, self._momentum, self._epsilon)
        return nn.BatchNorm2D.forward(self, x)  # to a static graph, Paddle 2.6 translates no super()


def relu(x: paddle.Tensor) -> paddle.Tensor:
    """``max(x, 0)`` of a tensor of any shape. NaN stays NaN."""
    if len(x.shape) > 1 and cpu.applies_to(x):
        return _Rectification.apply(x)
    return F.relu(x)


class ReLU(nn.Layer):
    """``relu`` as a layer."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """A tensor of any shape to the same."""
        return relu(x)


class _BatchNormalization(PyLayer):
    """The differentiable operator. It has no second derivative."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx: Any, x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor, statistics, momentum: float, epsilon: float
    ) -> paddle.Tensor:
        channels = weight.shape[0]
        out, mean, scale = (paddle.empty(shape, "float32") for shape in (x.shape, [channels], [channels]))
        running = np.stack([cpu.view(tensor) for tensor in statistics])
        factors = np.float32(momentum), float(epsilon)
        arrays = cpu.view(weight), cpu.view(bias), running
        cpu.run(_KERNELS, "normalize_batch", _rows(x), *arrays, *factors, cpu.view(mean), cpu.view(scale), _rows(out))
        for tensor, values in zip(statistics, running, strict=True):
            cpu.view(tensor)[:] = values
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.needs = [not tensor.stop_gradient for tensor in (x, weight, bias)]
        return out

    @staticmethod
    def backward(ctx: Any, upstream: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensor()
        gradients = [paddle.empty(shape, "float32") for shape in (x.shape, weight.shape, weight.shape)]
        constants = cpu.view(weight), cpu.view(mean), cpu.view(scale)
        of_x, of_weight, of_bias = _rows(gradients[0]), cpu.view(gradients[1]), cpu.view(gradients[2])
        cpu.run(_KERNELS, "normalize_batch_gradient", _rows(x), *constants, _rows(upstream), of_x, of_weight, of_bias)
        return tuple(gradient if needed else None for gradient, needed in zip(gradients, ctx.needs, strict=True))


class _Rectification(PyLayer):
    """The differentiable operator. It has no second derivative."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor) -> paddle.Tensor:
        out = paddle.empty(x.shape, "float32")
        cpu.run(_KERNELS, "rectify", *(_matrix(tensor) for tensor in (x, out)))
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, upstream: paddle.Tensor) -> paddle.Tensor:
        (out,) = ctx.saved_tensor()
        gradient = paddle.empty(out.shape, "float32")
        cpu.run(_KERNELS, "rectify_gradient", *(_matrix(tensor) for tensor in (out, upstream, gradient)))
        return gradient


def _rows(tensor: paddle.Tensor) -> Any:
    """[N, C, H, W] as [N, C, H * W]."""
    array = cpu.view(tensor)
    return array.reshape(*array.shape[:2], -1)


def _matrix(tensor: paddle.Tensor) -> Any:
    """[N, ...] as [N * C, ...] with one row for each plane."""
    array = cpu.view(tensor)
    return array.reshape(array.shape[0] * array.shape[1], -1)
