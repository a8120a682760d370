"""Convolution layer of dense kernels: oneDNN in training on the CPU, Paddle's operator everywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle
from paddle import nn
from paddle.autograd import PyLayer

from ppxcls.ops import cpu, onednn
from ppxcls.ops.onednn import BFLOAT16, FLOAT32
from ppxcls.ops.onednn_convolution import Sides, convolve
from ppxcls.ops.pointwise import PointwiseConv2D

Side = int | Sequence[int]


class DenseConv2D(nn.Conv2D):
    """``paddle.nn.Conv2D`` without bias, groups and dilation, for ``[N, C, H, W]`` input.

    It has the parameters, state keys and initial values of Paddle's layer. While it trains in float32 on the
    CPU, oneDNN convolves, because Paddle uses one thread for most of it. Evaluation, other devices and types,
    static graphs and export run Paddle's operator.

    Attributes:
        in_bfloat16: train with factors rounded to bfloat16 and sums in float32; see ``onednn.has_bfloat16``.
    """

    in_bfloat16 = False

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Side, stride: Side = 1, padding: Side = 0
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias_attr=False)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[N, C, H, W] to [N, C', H', W'], H' = (H + 2 padding - kernel) // stride + 1."""
        if self.training and self._is_plain() and cpu.are_plain(x, self.weight) and onednn.is_available():
            sides = Sides(cpu.pair(self._stride), cpu.pair(self._padding))
            return _Convolution.apply(x, self.weight, sides, BFLOAT16 if self.in_bfloat16 else FLOAT32)
        return nn.Conv2D.forward(self, x)  # to a static graph, Paddle 2.6 translates no super()

    def _is_plain(self) -> bool:
        is_dense = cpu.pair(self._dilation) == (1, 1) and self._groups == 1
        return (
            is_dense and self._data_format == "NCHW" and self.bias is None
        )  # folding a batch norm adds a bias


def to_bfloat16(model: nn.Layer) -> int:
    """Let a network's convolutions but the depthwise ones train with bfloat16 products; returns their number."""
    layers = [layer for layer in model.sublayers() if isinstance(layer, PointwiseConv2D | DenseConv2D)]
    for layer in layers:
        layer.in_bfloat16 = True
    return len(layers)


class _Convolution(PyLayer):
    """The differentiable operator. It has no second derivative."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, weight: paddle.Tensor, sides: Sides, kind: int) -> paddle.Tensor:
        size = [
            cpu.output_size(x.shape[2 + i], weight.shape[2 + i], sides.padding[i], sides.stride[i])
            for i in range(2)
        ]
        cpu.check_channels(weight.shape[1], x.shape[1])
        ctx.kept = cpu.Kept(x)
        x, kernel = x.contiguous(), weight.detach().contiguous()
        out = paddle.empty([x.shape[0], weight.shape[0], *size], "float32")
        convolve("output", (x, kernel, out), sides, kind)
        ctx.needs, ctx.sides, ctx.kind = (not x.stop_gradient, not weight.stop_gradient), sides, kind
        ctx.save_for_backward(x, kernel)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> tuple[paddle.Tensor | None, paddle.Tensor | None]:
        ctx.kept.check()
        x, kernel = ctx.saved_tensor()
        gradient = gradient.contiguous()
        of_x = paddle.empty(x.shape, "float32") if ctx.needs[0] else None
        of_kernel = paddle.empty(kernel.shape, "float32") if ctx.needs[1] else None
        if of_x is not None:
            convolve("input", (of_x, kernel, gradient), ctx.sides, ctx.kind)
        if of_kernel is not None:
            convolve("kernel", (x, of_kernel, gradient), ctx.sides, ctx.kind)
        return of_x, of_kernel
