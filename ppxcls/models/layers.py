"""Layers and functions that the families share.

These are stochastic depth, the classifier, separable convolutions and initial values.
"""

from __future__ import annotations

import math

import paddle
from paddle import nn

from ppxcls.ops.convolution import DenseConv2D
from ppxcls.ops.depthwise import DepthwiseConv2D
from ppxcls.ops.pointwise import PointwiseConv2D


class DropPath(nn.Layer):
    """Drops a residual branch for some samples in training (stochastic depth, arXiv:1603.09382).

    Args:
        rate: share of the samples without the branch. The branch of the others is scaled, so that the mean
            stays the same.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Drops samples of [N, C, H, W]. The shape stays the same."""
        if not self.training or self.rate == 0:
            return x
        mask = (paddle.rand([x.shape[0], 1, 1, 1]) >= self.rate).astype(x.dtype)
        return x * mask / (1 - self.rate)


def linear(features: int, class_num: int) -> nn.Layer:
    """Returns the classifier. For ``class_num`` 0 it is the identity, and the network returns features."""
    if class_num == 0:
        return nn.Identity()
    limit = 1 / math.sqrt(features)
    return nn.Linear(features, class_num, weight_attr=nn.initializer.Uniform(-limit, limit))


def convolution(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2D:
    """Returns a convolution without bias. With stride 1, the size of the image stays the same."""
    if kernel_size == 1:
        return PointwiseConv2D(in_channels, out_channels, stride)
    return DenseConv2D(
        in_channels, out_channels, kernel_size=kernel_size, stride=stride, padding=kernel_size // 2
    )


def separable(
    names: tuple[str, str], in_channels: int, *, out_channels: int, stride: int = 1, dilation: int = 1
) -> list[tuple[str, nn.Layer]]:
    """Returns a 3x3 depthwise and a 1x1 convolution, with their names, for ``nn.Sequential``."""
    depthwise = DepthwiseConv2D(in_channels, 3, stride=stride, padding=dilation, dilation=dilation)
    return [(names[0], depthwise), (names[1], PointwiseConv2D(in_channels, out_channels))]


def initialize(model: nn.Layer) -> None:
    """Draws kernels from a normal distribution (arXiv:1502.01852, section 2.2).

    The variance is 2 / (kernel area * output channels per group).
    """
    for layer in model.sublayers():
        if isinstance(layer, nn.Conv2D):
            fan = math.prod(layer.weight.shape[2:]) * layer.weight.shape[0] // layer._groups
            nn.initializer.Normal(0.0, math.sqrt(2 / fan))(layer.weight)
