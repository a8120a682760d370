"""Xception41 and 65 with the changes of DeepLab v3+ (arXiv:1802.02611, section 3.2).

Strided depthwise convolutions replace the max pools. Each depthwise and each pointwise convolution has its
own batch norm (epsilon 1e-3, momentum 0.99). The last block has dilation 2. The classifier is PaddleClas's.
State keys, with their slashes, are those of PaddleClas's weights.
"""

from __future__ import annotations

from typing import Literal

import paddle
import paddle.nn.functional as F
from paddle import nn

from ppxcls.config.checks import BelowOne, Count, CountOrZero
from ppxcls.models.common_keys import register_network
from ppxcls.models.layers import convolution
from ppxcls.models.parts import Flow, NetworkParts, pooled
from ppxcls.models.preprocessing import paddleclas_preprocessing
from ppxcls.ops.batch_norm import BatchNorm2D, ReLU, relu
from ppxcls.ops.depthwise import DepthwiseConv2D
from ppxcls.ops.in_order import LayerFunction, Stack, in_order

_MIDDLE_CHANNELS = 728  # channels of the middle flow


def _batch_norm(channels: int) -> nn.BatchNorm2D:
    return BatchNorm2D(channels, momentum=0.99, epsilon=1e-3)


class ConvBN(nn.Sequential):
    """Convolution without bias, then batch norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__(
            ("_conv", convolution(in_channels, out_channels, kernel_size, stride)),
            ("_bn", _batch_norm(out_channels)),
        )


class SeparableConv(Stack):
    """3x3 depthwise convolution, batch norm, 1x1 convolution, batch norm.

    If ``relu`` is True, a ReLU follows each batch norm.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, dilation: int, relu: bool
    ) -> None:
        depthwise = DepthwiseConv2D(in_channels, 3, stride=stride, padding=dilation, dilation=dilation)
        layers: list[tuple[str, nn.Layer]] = [("_conv1", depthwise), ("_bn1", _batch_norm(in_channels))]
        layers += [("_relu1", ReLU())] if relu else []
        layers += [("_conv2", convolution(in_channels, out_channels, 1)), ("_bn2", _batch_norm(out_channels))]
        super().__init__(*layers, *([("_relu2", ReLU())] if relu else []))


class Block(nn.Layer):
    """Three separable convolutions, each after a ReLU, and a shortcut.

    The shortcut is the identity or a projection with batch norm.

    Args:
        channels: input channels, then the output channels of the three convolutions.
        stride: stride of the third convolution and of the projection.
        project: True if the shortcut is a projection.
        dilation: dilation of the depthwise convolutions.
    """

    def __init__(
        self, channels: tuple[int, int, int, int], stride: int = 1, *, project: bool = True, dilation: int = 1
    ) -> None:
        super().__init__()
        self._conv1 = SeparableConv(channels[0], channels[1], stride=1, dilation=dilation, relu=False)
        self._conv2 = SeparableConv(channels[1], channels[2], stride=1, dilation=dilation, relu=False)
        self._conv3 = SeparableConv(channels[2], channels[3], stride=stride, dilation=dilation, relu=False)
        self._short = ConvBN(channels[0], channels[3], 1, stride) if project else None

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Maps [N, C_in, H, W] to [N, C_out, H / stride, W / stride]."""
        y = in_order([relu, self._conv1, relu, self._conv2, relu, self._conv3], x)
        return y + (x if self._short is None else self._short(x))


class LastBlock(nn.Layer):
    """Three separable convolutions with ReLU after each batch norm, and no shortcut."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self._conv1 = SeparableConv(1024, 1536, stride=1, dilation=dilation, relu=True)
        self._conv2 = SeparableConv(1536, 1536, stride=1, dilation=dilation, relu=True)
        self._conv3 = SeparableConv(1536, 2048, stride=1, dilation=dilation, relu=True)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Maps [N, 1024, H, W] to [N, 2048, H, W]."""
        return in_order([self._conv1, self._conv2, self._conv3], x)


class XceptionDeeplab(nn.Layer):
    """Two 3x3 convolutions, entry, middle and exit flow, classifier.

    Args:
        prefix: prefix of the state keys of entry and middle flow.
        middle_blocks: number of the middle flow's blocks.
        class_num: number of classes; 0 for features.
        in_channels: number of the images' channels.
        drop_rate: dropout rate of the last feature map.
        output_stride: size of the image divided by the size of the features. Blocks that would exceed it use
            dilation, not strides.
    """

    recomputable = (Block,)

    def __init__(
        self,
        prefix: str,
        middle_blocks: int,
        *,
        class_num: int,
        in_channels: int,
        drop_rate: float,
        output_stride: int,
    ) -> None:
        super().__init__()
        self._conv1 = ConvBN(in_channels, 32, 3, stride=2)
        self._conv2 = ConvBN(32, 64, 3, stride=1)
        self._blocks = []
        channels = 64
        current_stride = 2
        dilation = 1
        for i, width in enumerate((128, 256, _MIDDLE_CHANNELS)):
            stride = 2 if current_stride * 2 <= output_stride else 1
            block = Block((channels, width, width, width), stride, dilation=dilation)
            self._blocks.append(self.add_sublayer(f"{prefix}/entry_flow/block{i + 1}", block))
            channels = width
            current_stride = current_stride * stride
            dilation = dilation * 2 // stride
        for i in range(middle_blocks):
            block = Block((_MIDDLE_CHANNELS,) * 4, project=False, dilation=dilation)
            self._blocks.append(self.add_sublayer(f"{prefix}/middle_flow/block{i + 1}", block))
        stride = 2 if current_stride * 2 <= output_stride else 1
        self._exit_flow_1 = Block((_MIDDLE_CHANNELS, _MIDDLE_CHANNELS, 1024, 1024), stride, dilation=dilation)
        self._exit_flow_2 = LastBlock(2 * dilation * 2 // stride)
        # The published weights were trained with Paddle's older rule. Evaluation scales the features down,
        # and training does not scale them.
        self._drop = nn.Dropout(drop_rate, mode="downscale_in_infer")
        self._pool = nn.AdaptiveAvgPool2D(1)
        self._fc = nn.Linear(2048, class_num) if class_num else nn.Identity()

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Returns logits [N, class_num], or features [N, 2048] if ``class_num`` is 0.

        Args:
            images: batch, float32 [N, C, H, W]. H and W are at least 71.
        """
        blocks: list[LayerFunction] = [*self._trunk(), self._exit_flow_1, self._exit_flow_2]
        return self._fc(in_order([*blocks, self._drop, self._pool, pooled], images))

    def network_parts(self) -> NetworkParts:
        """Returns the parts. The exit flow scales the features down, as the dropout does in evaluation."""
        blocks: list[LayerFunction] = [self._exit_flow_1, self._exit_flow_2]
        exit_flow = Flow([*blocks, self._scaled_down, self._pool, pooled])
        return NetworkParts(Flow(self._trunk()), exit_flow, self._fc)

    def _trunk(self) -> list[LayerFunction]:
        return [self._conv1, relu, self._conv2, relu, *self._blocks]

    def _scaled_down(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.dropout(x, self._drop.p, training=False, mode=self._drop.mode)


def _register(name: str, summary: str, *, prefix: str, middle_blocks: int) -> None:
    """Registers a network of the family. All networks of the family have one signature."""

    @register_network(name, summary, paddleclas_preprocessing())
    def build(
        class_num: CountOrZero = 1000,
        in_channels: Count = 3,
        drop_rate: BelowOne = 0.5,
        output_stride: Literal[8, 16, 32] = 32,
    ) -> XceptionDeeplab:
        return XceptionDeeplab(
            prefix,
            middle_blocks,
            class_num=class_num,
            in_channels=in_channels,
            drop_rate=drop_rate,
            output_stride=output_stride,
        )


_register(
    "Xception41_deeplab",
    "8 middle blocks; 27.0 million parameters with 1,000 classes.",
    prefix="xception_41",
    middle_blocks=8,
)
_register(
    "Xception65_deeplab",
    "16 middle blocks; 40.1 million parameters with 1,000 classes.",
    prefix="xception_65",
    middle_blocks=16,
)
