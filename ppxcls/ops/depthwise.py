"""Depthwise convolution layer: numba's kernels on the CPU, Paddle's operator everywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle
from paddle import nn
from paddle.autograd import PyLayer

from ppxcls.ops import cpu


class DepthwiseConv2D(nn.Conv2D):
    """``paddle.nn.Conv2D`` without bias, with one kernel for each channel, for ``[N, C, H, W]`` input.

    It has the parameters, state keys and initial values of Paddle's layer. In float32 on the CPU it runs the numba kernels, if
    numba is installed. Other devices and types, static graphs and export run Paddle's operator.

    Args:
        channels: number of input channels, and of output channels.
        kernel_size: pixels of the kernel's sides.
        stride: of the output's pixels.
        padding: pixels of zeros on each side, at most ``dilation * (kernel_size - 1)``.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
    ) -> None:
        super().__init__(channels, channels, kernel_size, stride, padding, dilation, groups=channels, bias_attr=False)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Args: x: [N, C, H, W]. Returns: [N, C, H', W'], H' = (H + 2 padding - dilation (kernel - 1) - 1) // stride + 1."""
        if self._data_format == "NCHW" and cpu.applies_to(x, self.weight):
            padding = _pair(self._padding)
            out = _DepthwiseConvolution.apply(x, self.weight, _pair(self._stride), padding, _pair(self._dilation))
            return out if self.bias is None else out + self.bias.reshape([1, -1, 1, 1])  # folding a batch norm adds a bias
        return nn.Conv2D.forward(self, x)  # to a static graph, Paddle 2.6 translates no super()


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


class _DepthwiseConvolution(PyLayer):
    """The differentiable operator. It has no second derivative."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, weight: paddle.Tensor, stride, padding, dilation) -> paddle.Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding, dilation
        ctx.needs = not x.stop_gradient, not weight.stop_gradient
        kernel = cpu.view(weight)[:, 0]
        images = cpu.view(x)
        size = [
            (images.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel.shape[1 + i] - 1) - 1) // stride[i] + 1 for i in range(2)
        ]
        # Allocated by Paddle, because the rounding of its next product depends on the alignment.
        out = paddle.empty([*images.shape[:2], *size], "float32")
        cpu.run("depthwise_kernels", "correlate", images, kernel, cpu.view(out), padding, (1, 1), stride, dilation)
        return out

    @staticmethod
    def backward(ctx: Any, out_gradient: paddle.Tensor) -> tuple[paddle.Tensor | None, paddle.Tensor | None]:
        x, weight = ctx.saved_tensor()
        stride, padding, dilation = ctx.geometry
        images, kernel, upstream = cpu.view(x), cpu.view(weight)[:, 0], cpu.view(out_gradient)
        x_gradient = weight_gradient = None
        if ctx.needs[0]:
            x_gradient = paddle.empty(x.shape, "float32")
            margin = tuple(dilation[i] * (kernel.shape[1 + i] - 1) - padding[i] for i in range(2))
            turned = -dilation[0], -dilation[1]
            cpu.run(
                "depthwise_kernels", "correlate_rounded", upstream, kernel, cpu.view(x_gradient), margin, stride, (1, 1), turned
            )
        if ctx.needs[1]:
            weight_gradient = paddle.empty(weight.shape, "float32")
            cpu.run(
                "depthwise_kernels", "kernel_gradient", images, upstream, cpu.view(weight_gradient)[:, 0], padding, stride, dilation
            )
        return x_gradient, weight_gradient
