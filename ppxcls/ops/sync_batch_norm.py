"""Batch norm over all processes on the CPU, which Paddle has for GPUs only (arXiv:1711.07240, section 3.1)."""

from __future__ import annotations

from typing import Any

import paddle
import paddle.distributed as dist
from paddle import nn
from paddle.autograd import PyLayer

_AXES = [0, 2, 3]


def synchronized_batch_norm(layer: nn.BatchNorm2D, x: paddle.Tensor) -> paddle.Tensor:
    """What the layer computes in training, with mean and variance over the batches of all processes.

    Args:
        layer: whose weight, bias, momentum and running statistics are used; these are updated.
        x: float32 [N, C, H, W], N of at least 1 on every process.
    """
    y, mean, variance = _SyncBatchNorm.apply(x, layer.weight, layer.bias, layer._epsilon)
    with paddle.no_grad():
        for running, value in ((layer._mean, mean), (layer._variance, variance)):
            running.set_value(running * layer._momentum + value * (1 - layer._momentum))
    return y


class _SyncBatchNorm(PyLayer):
    """The differentiable operator. Mean and variance take two passes, so that small variances are not lost in rounding."""

    @staticmethod
    def forward(
        ctx: Any, x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor, epsilon: float
    ) -> tuple[paddle.Tensor, ...]:
        count = x.shape[0] * x.shape[2] * x.shape[3]
        sums = _summed(paddle.concat([x.sum(_AXES), paddle.full([1], float(count))]))
        total = float(sums[-1])
        mean = sums[:-1] / total
        centred = x - _wide(mean)
        variance = _summed((centred * centred).sum(_AXES)) / total
        scale = paddle.rsqrt(variance + epsilon)
        normal = centred * _wide(scale)
        ctx.save_for_backward(normal, weight, scale)
        ctx.total = total
        mean.stop_gradient = variance.stop_gradient = True
        return normal * _wide(weight) + _wide(bias), mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor, *_: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        normal, weight, scale = ctx.saved_tensor()
        of_weight, of_bias = (gradient * normal).sum(_AXES), gradient.sum(_AXES)
        # The input moves the mean and the variance of all processes' samples.
        both = _summed(paddle.concat([of_bias, of_weight])) / ctx.total
        of_mean, of_scale = both.split(2)
        of_x = (gradient - _wide(of_mean) - normal * _wide(of_scale)) * _wide(weight * scale)
        return of_x, of_weight, of_bias


def _summed(values: paddle.Tensor) -> paddle.Tensor:
    dist.all_reduce(values)
    return values


def _wide(values: paddle.Tensor) -> paddle.Tensor:
    return values.reshape([1, -1, 1, 1])
