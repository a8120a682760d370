"""Batch norm over all processes on the CPU, which Paddle has for GPUs only (arXiv:1711.07240, section 3.1)."""

from __future__ import annotations

from typing import Any

import paddle
import paddle.distributed as dist
from paddle import nn
from paddle.autograd import PyLayer


def synchronized_batch_norm(layer: nn.BatchNorm2D, x: paddle.Tensor) -> paddle.Tensor:
    """What the layer computes in training, with mean and variance over the batches of all processes.

    Args:
        layer: whose weight, bias, momentum and running statistics are used; these are updated.
        x: float32 [N, C, H, W] or, by the layer's ``data_format``, [N, H, W, C]; N of at least 1 on every
            process.
    """
    is_last = layer._data_format == "NHWC"
    y, mean, variance = _SyncBatchNorm.apply(x, layer.weight, layer.bias, layer._epsilon, is_last)
    with paddle.no_grad():
        for running, value in ((layer._mean, mean), (layer._variance, variance)):
            running.set_value(running * layer._momentum + value * (1 - layer._momentum))
    return y


class _SyncBatchNorm(PyLayer):
    """The differentiable operator.

    Mean and variance take two passes, so that small variances are not lost in rounding.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx: Any, x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor, epsilon: float, is_last: bool
    ):
        ctx.axes, ctx.shape = ([0, 1, 2], [1, 1, 1, -1]) if is_last else ([0, 2, 3], [1, -1, 1, 1])
        ctx.needs = [not tensor.stop_gradient for tensor in (x, weight, bias)]
        channels = weight.shape[0]
        sums = _summed(paddle.concat([x.sum(ctx.axes), paddle.full([1], float(x.size // channels))]))
        total = float(sums[-1])
        mean = sums[:-1] / total
        centred = x - mean.reshape(ctx.shape)
        variance = _summed((centred * centred).sum(ctx.axes)) / total
        scale = paddle.rsqrt(variance + epsilon)
        normal = centred * scale.reshape(ctx.shape)
        ctx.save_for_backward(normal, weight, scale)
        ctx.total = total
        mean.stop_gradient = variance.stop_gradient = True
        return normal * weight.reshape(ctx.shape) + bias.reshape(ctx.shape), mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor, *_: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        normal, weight, scale = ctx.saved_tensor()
        of_weight, of_bias = (gradient * normal).sum(ctx.axes), gradient.sum(ctx.axes)
        # The input moves the mean and the variance of all processes' samples.
        of_mean, of_scale = (_summed(paddle.concat([of_bias, of_weight])) / ctx.total).split(2)
        shifted = gradient - of_mean.reshape(ctx.shape) - normal * of_scale.reshape(ctx.shape)
        gradients = (shifted * (weight * scale).reshape(ctx.shape), of_weight, of_bias)
        return tuple(value if needed else None for value, needed in zip(gradients, ctx.needs, strict=True))


def _summed(values: paddle.Tensor) -> paddle.Tensor:
    dist.all_reduce(values)
    return values
