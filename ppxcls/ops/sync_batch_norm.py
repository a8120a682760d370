"""Batch norm over all processes (arXiv:1711.07240, section 3.1), for devices without Paddle's own kernel.

Paddle has a kernel for GPUs, and some vendors have one for their chips. CPUs have none.
"""

from __future__ import annotations

from typing import Any

import paddle
import paddle.distributed as dist
from paddle import nn
from paddle.autograd import PyLayer


def has_paddle_kernel(device: str) -> bool:
    """True if Paddle's own synchronised batch norm runs on a device.

    Args:
        device: name of the device as in ``paddle.get_device()``, such as ``gpu:0``.
    """
    kind = device.split(":", maxsplit=1)[0]
    if kind in ("cpu", "gpu"):
        return kind == "gpu"
    places = paddle.base.core._get_registered_phi_kernels().get("sync_batch_norm", [])
    return any(place.upper().startswith(f"({kind.upper()},") for place in places)


def synchronized_batch_norm(layer: nn.BatchNorm2D, x: paddle.Tensor) -> paddle.Tensor:
    """Computes a layer in training, with mean and variance over the batches of all processes.

    Args:
        layer: batch norm that gives weight, bias, momentum and running statistics. The statistics are
            updated.
        x: input [N, C, H, W], or [N, H, W, C] if this is the layer's ``data_format``, in float32, float16 or
            bfloat16. N is at least 1 on every process.

    Returns:
        The output, in the type of the input. The statistics are computed in float32.
    """
    is_channels_last = layer._data_format == "NHWC"
    y, mean, variance = _SyncBatchNorm.apply(x, layer.weight, layer.bias, layer._epsilon, is_channels_last)
    with paddle.no_grad():
        for statistic, value in ((layer._mean, mean), (layer._variance, variance)):
            # not set_value, for which Paddle 2.6 copies the value to the host
            paddle.assign(statistic * layer._momentum + value * (1 - layer._momentum), output=statistic)
    return y


class _SyncBatchNorm(PyLayer):
    """The differentiable operator.

    Mean and variance take two passes, so that small variances are not lost in rounding.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx: Any,
        x: paddle.Tensor,
        weight: paddle.Tensor,
        bias: paddle.Tensor,
        epsilon: float,
        is_channels_last: bool,
    ):
        ctx.axes, ctx.shape = ([0, 1, 2], [1, 1, 1, -1]) if is_channels_last else ([0, 2, 3], [1, -1, 1, 1])
        ctx.dtypes = [tensor.dtype for tensor in (x, weight, bias)]
        ctx.needs_gradient = [not tensor.stop_gradient for tensor in (x, weight, bias)]
        channels = weight.shape[0]
        with paddle.amp.auto_cast(enable=False):
            inputs, weight, bias = (tensor.astype("float32") for tensor in (x, weight, bias))
            sums = _sum_over_processes(
                paddle.concat([inputs.sum(ctx.axes), paddle.full([1], float(x.size // channels))])
            )
            total = sums[-1:]  # stays on the device, because a Python number would make the host wait
            mean = sums[:-1] / total
            centred_x = inputs - mean.reshape(ctx.shape)
            variance = _sum_over_processes((centred_x * centred_x).sum(ctx.axes)) / total
            scale = paddle.rsqrt(variance + epsilon)
            standard_scores = centred_x * scale.reshape(ctx.shape)
            y = standard_scores * weight.reshape(ctx.shape) + bias.reshape(ctx.shape)
        ctx.save_for_backward(standard_scores, weight, scale, total)
        mean.stop_gradient = variance.stop_gradient = True
        return y.astype(x.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor, *_: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        standard_scores, weight, scale, total = ctx.saved_tensor()
        gradient = gradient.astype("float32")
        weight_gradient, bias_gradient = (gradient * standard_scores).sum(ctx.axes), gradient.sum(ctx.axes)
        # The input changes the mean and the variance that all processes' samples share.
        mean_gradient, scale_gradient = (
            _sum_over_processes(paddle.concat([bias_gradient, weight_gradient])) / total
        ).split(2)
        centred_gradient = (
            gradient - mean_gradient.reshape(ctx.shape) - standard_scores * scale_gradient.reshape(ctx.shape)
        )
        gradients = (centred_gradient * (weight * scale).reshape(ctx.shape), weight_gradient, bias_gradient)
        return tuple(
            value.astype(dtype) if is_needed else None
            for value, dtype, is_needed in zip(gradients, ctx.dtypes, ctx.needs_gradient, strict=True)
        )


def _sum_over_processes(values: paddle.Tensor) -> paddle.Tensor:
    dist.all_reduce(values)
    return values
