"""PaddleClas's Xception41, 65 and 71 (Chollet, arXiv:1610.02357, with the deeper middle flows of DeepLab).

They differ from figure 5 of the paper. In a separable convolution, the 1x1 convolution precedes the depthwise
one, and each has its own batch norm. The projections of the shortcuts have no batch norm. PaddleClas's
published weights load by key.
"""

from __future__ import annotations

import paddle
from paddle import nn

from ppxcls.config.checks import BelowOne, Count, CountOrZero
from ppxcls.models.common_keys import register_network
from ppxcls.models.layers import linear
from ppxcls.models.parts import Flow, NetworkParts, pooled
from ppxcls.models.preprocessing import paddleclas_preprocessing
from ppxcls.ops.batch_norm import BatchNorm2D, relu
from ppxcls.ops.convolution import DenseConv2D
from ppxcls.ops.depthwise import DepthwiseConv2D
from ppxcls.ops.in_order import in_order
from ppxcls.ops.max_pool import MaxPool2D
from ppxcls.ops.pointwise import PointwiseConv2D

_MIDDLE_CHANNELS = 728  # channels of the middle flow


class ConvBN(nn.Sequential):
    """Convolution without bias, then batch norm."""

    def __init__(self, conv: nn.Conv2D, channels: int) -> None:
        super().__init__(("_conv", conv), ("_batch_norm", BatchNorm2D(channels)))


class SeparableConv(nn.Sequential):
    """1x1 convolution, batch norm, 3x3 depthwise convolution, batch norm. The size stays the same."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        pointwise = ConvBN(PointwiseConv2D(in_channels, out_channels), out_channels)
        super().__init__(
            ("_pointwise_conv", pointwise),
            ("_depthwise_conv", ConvBN(DepthwiseConv2D(out_channels), out_channels)),
        )


class DownsampleBlock(nn.Layer):
    """Two separable convolutions and a 3x3 max pool, with a 1x1 projection of the same stride as shortcut.

    Args:
        channels: channels of the input, between the convolutions, and of the output.
        stride: stride of the max pool and of the projection.
        names: attribute names of the two separable convolutions, as in the published weights.
        relu_first: True if a ReLU precedes the first convolution. The first block follows a ReLU.
    """

    def __init__(
        self, channels: tuple[int, int, int], stride: int, names: tuple[str, str], *, relu_first: bool = True
    ) -> None:
        super().__init__()
        in_channels, mid_channels, out_channels = channels
        self.relu_first = relu_first
        self._short = PointwiseConv2D(in_channels, out_channels, stride)
        self._names = names
        self.add_sublayer(names[0], SeparableConv(in_channels, mid_channels))
        self.add_sublayer(names[1], SeparableConv(mid_channels, out_channels))
        self._pool = MaxPool2D(kernel_size=3, stride=stride, padding=1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Maps [N, C_in, H, W] to [N, C_out, ceil(H / stride), ceil(W / stride)]."""
        first, second = (getattr(self, name) for name in self._names)
        layers = [first, relu, second, self._pool]
        return self._short(x) + in_order([relu, *layers] if self.relu_first else layers, x)


class EntryFlow(nn.Layer):
    """Two 3x3 convolutions, then downsampling blocks. The size is 1/16 of the image's.

    Args:
        channels: output channels of each block.
        strides: stride of each block.
        in_channels: number of the images' channels.
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], in_channels: int) -> None:
        super().__init__()
        self._conv1 = ConvBN(DenseConv2D(in_channels, 32, kernel_size=3, stride=2, padding=1), 32)
        self._conv2 = ConvBN(DenseConv2D(32, 64, kernel_size=3, padding=1), 64)
        self._blocks = []
        in_channels = 64  # of the first block
        for i, (out_channels, stride) in enumerate(zip(channels, strides, strict=True)):
            shape = in_channels, out_channels, out_channels
            block = DownsampleBlock(shape, stride, ("_conv1", "_conv2"), relu_first=i > 0)
            self._blocks.append(self.add_sublayer(f"_conv_{i}", block))
            in_channels = out_channels

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Maps [N, C, H, W] to [N, 728, H / 16, W / 16]."""
        return in_order([self._conv1, relu, self._conv2, relu, *self._blocks], x)


class MiddleBlock(nn.Layer):
    """Three pre-activated separable convolutions with an identity shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self._convs = [
            self.add_sublayer(f"_conv_{i}", SeparableConv(_MIDDLE_CHANNELS, _MIDDLE_CHANNELS))
            for i in range(3)
        ]

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Maps [N, 728, H, W] to the same shape."""
        first, second, third = self._convs
        return x + in_order([relu, first, relu, second, relu, third], x)


class MiddleFlow(nn.Layer):
    """``n_blocks`` middle blocks, one after the other."""

    def __init__(self, n_blocks: int) -> None:
        super().__init__()
        self._blocks = [self.add_sublayer(f"_conv_{i}", MiddleBlock()) for i in range(n_blocks)]

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Maps [N, 728, H, W] to the same shape."""
        for block in self._blocks:
            x = block(x)
        return x


class ExitFlow(nn.Layer):
    """A downsampling block, two separable convolutions, global average pooling, the classifier."""

    def __init__(self, class_num: int, drop_rate: float) -> None:
        super().__init__()
        self._conv_0 = DownsampleBlock((_MIDDLE_CHANNELS, _MIDDLE_CHANNELS, 1024), 2, ("_conv_1", "_conv_2"))
        self._conv_1 = SeparableConv(1024, 1536)
        self._conv_2 = SeparableConv(1536, 2048)
        self._pool = nn.AdaptiveAvgPool2D(1)
        self._drop = nn.Dropout(drop_rate)
        self._out = linear(2048, class_num)
        self.layers = [self._conv_0, self._conv_1, relu, self._conv_2, relu, self._pool, pooled]

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Maps [N, 728, H, W] to logits [N, class_num], or features [N, 2048]."""
        return self._out(self._drop(in_order(self.layers, x)))


class PaddleClasXception(nn.Layer):
    """The network: entry, middle and exit flow.

    Args:
        entry_channels: output channels of the entry flow's blocks.
        entry_strides: strides of the entry flow's blocks.
        middle_blocks: number of the middle flow's blocks.
        class_num: number of classes; 0 for features.
        in_channels: number of the images' channels.
        drop_rate: dropout rate before the classifier.
    """

    recomputable = DownsampleBlock, MiddleBlock

    def __init__(
        self,
        entry_channels: tuple[int, ...],
        entry_strides: tuple[int, ...],
        *,
        middle_blocks: int,
        class_num: int,
        in_channels: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self._entry_flow = EntryFlow(entry_channels, entry_strides, in_channels)
        self._middle_flow = MiddleFlow(middle_blocks)
        self._exit_flow = ExitFlow(class_num, drop_rate)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Returns logits [N, class_num], or features [N, 2048] if ``class_num`` is 0.

        Args:
            images: batch, float32 [N, C, H, W]. H and W are at least 71.
        """
        return self._exit_flow(self._middle_flow(self._entry_flow(images)))

    def network_parts(self) -> NetworkParts:
        """Returns the parts. The trunk is entry and middle flow."""
        trunk = Flow([self._entry_flow, self._middle_flow])
        return NetworkParts(trunk, Flow(self._exit_flow.layers), self._exit_flow._out)


def _register(
    name: str, summary: str, *, channels: tuple[int, ...], strides: tuple[int, ...], middle_blocks: int
) -> None:
    """Registers a network of the family. All networks of the family have one signature."""

    @register_network(name, summary, paddleclas_preprocessing())
    def build(
        class_num: CountOrZero = 1000, in_channels: Count = 3, drop_rate: BelowOne = 0.0
    ) -> PaddleClasXception:
        return PaddleClasXception(
            channels,
            strides,
            middle_blocks=middle_blocks,
            class_num=class_num,
            in_channels=in_channels,
            drop_rate=drop_rate,
        )


_register(
    "Xception41",
    "3 entry and 8 middle blocks; 23.0 million parameters with 1,000 classes.",
    channels=(128, 256, _MIDDLE_CHANNELS),
    strides=(2, 2, 2),
    middle_blocks=8,
)
_register(
    "Xception65",
    "3 entry and 16 middle blocks; 36.0 million parameters with 1,000 classes.",
    channels=(128, 256, _MIDDLE_CHANNELS),
    strides=(2, 2, 2),
    middle_blocks=16,
)
_register(
    "Xception71",
    "5 entry and 16 middle blocks; 37.9 million parameters with 1,000 classes.",
    channels=(128, 256, 256, _MIDDLE_CHANNELS, _MIDDLE_CHANNELS),
    strides=(2, 1, 2, 1, 2),
    middle_blocks=16,
)
