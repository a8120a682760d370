"""Dense convolution layer: oneDNN in training on the CPU, Paddle's operator everywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle
from paddle import nn
from paddle.autograd import PyLayer

from ppxcls.ops import cpu, onednn
from ppxcls.ops.onednn import BFLOAT16, FLOAT32
from ppxcls.ops.onednn_convolution import Sides, convolve_dense
from ppxcls.ops.pointwise import PointwiseConv2D

Side = int | Sequence[int]


class DenseConv2D(nn.Conv2D):
    """``paddle.nn.Conv2D`` without bias, groups and dilation, for ``[N, C, H, W]`` input.

    It has the parameters, state keys and initial values of Paddle's layer. It uses oneDNN for float32
    training on the CPU, because Paddle uses one thread for most of the work. Evaluation, other devices and
    types, static graphs and export use Paddle's operator.

    Attributes:
        in_bfloat16: True to train with factors rounded to bfloat16 and sums in float32; see
            ``onednn.has_bfloat16``.
    """

    in_bfloat16 = False

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: Side, stride: Side = 1, padding: Side = 0
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias_attr=False)

    @cpu.without_translation
    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Convolves [N, C, H, W] to [N, C', H', W'], with H' = (H + 2 padding - kernel) // stride + 1."""
        if self.training and self._is_plain() and cpu.are_plain(x, self.weight) and onednn.is_available():
            sides = Sides(cpu.pair(self._stride), cpu.pair(self._padding))
            return _Convolution.apply(x, self.weight, sides, BFLOAT16 if self.in_bfloat16 else FLOAT32)
        return nn.Conv2D.forward(self, x)  # Paddle 2.6 can't translate super() to a static graph

    def _is_plain(self) -> bool:
        is_dense = cpu.pair(self._dilation) == (1, 1) and self._groups == 1
        # Folding a batch norm adds a bias.
        return is_dense and self._data_format == "NCHW" and self.bias is None


def to_bfloat16(model: nn.Layer) -> int:
    """Makes a network's convolutions train with bfloat16 products, except for the depthwise ones.

    Returns:
        The number of these convolutions.
    """
    layers = [layer for layer in model.sublayers() if isinstance(layer, PointwiseConv2D | DenseConv2D)]
    for layer in layers:
        layer.in_bfloat16 = True
    return len(layers)


class _Convolution(PyLayer):
    """The differentiable operator. It has no second derivative."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, weight: paddle.Tensor, sides: Sides, kind: int) -> paddle.Tensor:
        size = [
            cpu.output_size(
                x.shape[2 + i], weight.shape[2 + i], padding=sides.padding[i], stride=sides.stride[i]
            )
            for i in range(2)
        ]
        cpu.check_channels(weight.shape[1], x.shape[1])
        ctx.saved_input = cpu.SavedTensor(x)
        x, kernel = x.contiguous(), weight.detach().contiguous()
        out = paddle.empty([x.shape[0], weight.shape[0], *size], "float32")
        convolve_dense("output", (x, kernel, out), sides, kind)
        ctx.needs_gradient = (not x.stop_gradient, not weight.stop_gradient)
        ctx.sides = sides
        ctx.kind = kind
        ctx.save_for_backward(x, kernel)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> tuple[paddle.Tensor | None, paddle.Tensor | None]:
        ctx.saved_input.check()
        x, kernel = ctx.saved_tensor()
        gradient = gradient.contiguous()
        x_gradient = paddle.empty(x.shape, "float32") if ctx.needs_gradient[0] else None
        kernel_gradient = paddle.empty(kernel.shape, "float32") if ctx.needs_gradient[1] else None
        if x_gradient is not None:
            convolve_dense("input", (x_gradient, kernel, gradient), ctx.sides, ctx.kind)
        if kernel_gradient is not None:
            convolve_dense("kernel", (x, kernel_gradient, gradient), ctx.sides, ctx.kind)
        return x_gradient, kernel_gradient
