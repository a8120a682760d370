"""timm's aligned Xception of DeepLab v3+ (arXiv:1802.02611, section 3.2).

The networks are 41, 65, 71, and the pre-activated 41p and 65p. Strided depthwise convolutions replace the max
pools, and the last block has no shortcut. Each depthwise and each pointwise convolution has a batch norm. In
the pre-activated networks, one batch norm and ReLU precede each pair instead. State keys are timm's, except
for the names of batch norm's statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import paddle
from paddle import nn

from ppxcls.config.checks import BelowOne, Count, CountOrZero
from ppxcls.models.common_keys import register_network
from ppxcls.models.layers import DropPath, convolution, initialize, linear, separable
from ppxcls.models.parts import Flow, NetworkParts, pooled
from ppxcls.models.preprocessing import Preprocessing, timm_preprocessing
from ppxcls.ops.batch_norm import BatchNorm2D, NormReLU, ReLU, relu
from ppxcls.ops.convolution import DenseConv2D
from ppxcls.ops.in_order import LayerFunction, Stack, in_order

Norm = Callable[[int], nn.Layer]
OutputStride = Literal[8, 16, 32]

_CONV_NAMES = "conv_dw", "conv_pw"
_EXIT_CHANNELS = [(728, 728, 1024, 1024), (1024, 1536, 1536, 2048)]  # channels of the exit flow's two blocks


def _conv_bn(
    in_channels: int, out_channels: int, *, kernel_size: int, stride: int, norm: Norm
) -> list[tuple[str, nn.Layer]]:
    return [("conv", convolution(in_channels, out_channels, kernel_size, stride)), ("bn", norm(out_channels))]


class Block(nn.Layer):
    """Three separable convolutions, each with two batch norms, and a shortcut.

    The shortcut is the identity, a projection, or none.

    Args:
        channels: input channels, then the output channels of the three convolutions.
        stride: stride of the third convolution and of the projection.
        dilation: dilation of the depthwise convolutions.
        is_last: True for no shortcut, and ReLU after each batch norm instead of before each separable
            convolution.
        drop_path: share of the samples for which training drops the branch.
        norm: function from a number of channels to a batch norm.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        stride: int,
        *,
        dilation: int,
        is_last: bool,
        drop_path: float,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.shortcut = None
        if not is_last and (stride > 1 or channels[0] != channels[-1]):
            self.shortcut = nn.Sequential(
                *_conv_bn(channels[0], channels[-1], kernel_size=1, stride=stride, norm=norm)
            )
        self._has_shortcut = not is_last
        layers: list[tuple[str, nn.Layer]] = []
        for i, (in_channels, out_channels) in enumerate(zip(channels, channels[1:], strict=False), 1):
            depthwise, pointwise = separable(
                _CONV_NAMES,
                in_channels,
                out_channels=out_channels,
                stride=stride if i == 3 else 1,
                dilation=dilation,
            )
            conv_layers = [depthwise, ("bn_dw", norm(in_channels)), pointwise, ("bn_pw", norm(out_channels))]
            if is_last:
                conv_layers = [*conv_layers[:2], ("act_dw", ReLU()), *conv_layers[2:], ("act_pw", ReLU())]
            else:
                layers.append((f"act{i}", ReLU()))
            layers.append((f"conv{i}", nn.Sequential(*conv_layers)))
        self.stack = Stack(*layers)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Maps [N, C_in, H, W] to [N, C_out, H / stride, W / stride]."""
        if not self._has_shortcut:
            return self.stack(x)
        return self.drop_path(self.stack(x)) + (x if self.shortcut is None else self.shortcut(x))


class PreactBlock(nn.Layer):
    """Like ``Block``, with one batch norm and ReLU before each separable convolution.

    The shortcut begins after the first batch norm and ReLU.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        stride: int,
        *,
        dilation: int,
        is_last: bool,
        drop_path: float,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.shortcut = None
        if not is_last and (stride > 1 or channels[0] != channels[-1]):
            self.shortcut = convolution(channels[0], channels[-1], 1, stride)
        self._has_shortcut = not is_last
        self.norm = norm(channels[0])
        layers = []
        for i, (in_channels, out_channels) in enumerate(zip(channels, channels[1:], strict=False), 1):
            conv_layers = separable(
                _CONV_NAMES,
                in_channels,
                out_channels=out_channels,
                stride=stride if i == 3 else 1,
                dilation=dilation,
            )
            layers.append(
                (f"conv{i}", nn.Sequential(*([("norm", norm(in_channels))] if i > 1 else []), *conv_layers))
            )
        self.stack = Stack(*layers)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Maps [N, C_in, H, W] to [N, C_out, H / stride, W / stride]."""
        x = self.norm(x)
        if not self._has_shortcut:
            return self.stack(x)
        return self.drop_path(self.stack(x)) + (x if self.shortcut is None else self.shortcut(x))


class XceptionAligned(nn.Layer):
    """Two 3x3 convolutions, entry, middle and exit flow, classifier.

    Args:
        entry: output channels and stride of each block of the entry flow.
        middle_blocks: number of the middle flow's blocks.
        preact: True if batch norm and ReLU precede the convolutions.
        epsilon: epsilon of batch norm.
        class_num: number of classes; 0 for features.
        in_channels: number of the images' channels.
        drop_rate: dropout rate before the classifier.
        drop_path_rate: drop-path rate of the last block. It grows evenly from 0 in the first block.
        output_stride: size of the image divided by the size of the features. Blocks that would exceed it use
            dilation, not strides.
    """

    recomputable = Block, PreactBlock

    def __init__(
        self,
        entry: tuple[tuple[int, int], ...],
        middle_blocks: int,
        *,
        preact: bool,
        epsilon: float,
        class_num: int,
        in_channels: int,
        drop_rate: float,
        drop_path_rate: float,
        output_stride: int,
    ) -> None:
        super().__init__()
        norm = partial(NormReLU if preact else BatchNorm2D, epsilon=epsilon)
        stem_norm = partial(BatchNorm2D, epsilon=epsilon)
        first = nn.Sequential(
            *_conv_bn(in_channels, 32, kernel_size=3, stride=2, norm=stem_norm), ("act", ReLU())
        )
        second = (
            DenseConv2D(32, 64, kernel_size=3, padding=1)
            if preact
            else nn.Sequential(*_conv_bn(32, 64, kernel_size=3, stride=1, norm=stem_norm), ("act", ReLU()))
        )
        self.stem = Stack(first, second)
        shapes: list[tuple[tuple[int, ...], int]] = []
        channels = 64
        for width, stride in entry:
            shapes.append(((channels, width, width, width), stride))
            channels = width
        shapes += [*[((728,) * 4, 1)] * middle_blocks, (_EXIT_CHANNELS[0], 2), (_EXIT_CHANNELS[1], 1)]
        blocks = []
        dilation = 1
        current_stride = 2
        for i, (widths, stride) in enumerate(shapes):
            drop_path = drop_path_rate * i / (len(shapes) - 1)
            block_stride = stride if current_stride * stride <= output_stride else 1
            block_type = PreactBlock if preact else Block
            block = block_type(
                widths,
                block_stride,
                dilation=dilation,
                is_last=i == len(shapes) - 1,
                drop_path=drop_path,
                norm=norm,
            )
            blocks.append(block)
            current_stride *= block_stride
            dilation *= stride // block_stride
        self.blocks = nn.Sequential(*blocks)
        self._ends_with_relu = preact
        self.pool = nn.AdaptiveAvgPool2D(1)
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Sequential(("fc", linear(2048, class_num)))
        initialize(self)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Returns logits [N, class_num], or features [N, 2048] if ``class_num`` is 0.

        Args:
            images: batch, float32 [N, C, H, W]. H and W are at least 71.
        """
        x = self.blocks(self.stem(images))
        return self.head(self.drop(in_order(self._layers_after_blocks(), x)))

    def network_parts(self) -> NetworkParts:
        """Returns the parts. The exit flow begins with the last downsampling block."""
        blocks = list(self.blocks)
        exit_flow = Flow([*blocks[-2:], *self._layers_after_blocks()])
        return NetworkParts(Flow([self.stem, *blocks[:-2]]), exit_flow, self.head.fc)

    def _layers_after_blocks(self) -> list[LayerFunction]:
        return [*([relu] if self._ends_with_relu else []), self.pool, pooled]


_ENTRY_BLOCKS = ((128, 2), (256, 2), (728, 2))
_ENTRY_BLOCKS_71 = ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2))


def _register(
    name: str,
    summary: str,
    *,
    middle_blocks: int,
    preprocessing: Preprocessing,
    entry: tuple[tuple[int, int], ...] = _ENTRY_BLOCKS,
    preact: bool = False,
    epsilon: float = 1e-3,
) -> None:
    """Registers a network of the family. All networks of the family have one signature."""

    @register_network(name, summary, preprocessing)
    def build(
        class_num: CountOrZero = 1000,
        in_channels: Count = 3,
        *,
        drop_rate: BelowOne = 0.0,
        drop_path_rate: BelowOne = 0.0,
        output_stride: OutputStride = 32,
    ) -> XceptionAligned:
        return XceptionAligned(
            entry,
            middle_blocks,
            preact=preact,
            epsilon=epsilon,
            class_num=class_num,
            in_channels=in_channels,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            output_stride=output_stride,
        )


_register(
    "xception41",
    "8 middle blocks; 27.0 million parameters with 1,000 classes.",
    middle_blocks=8,
    preprocessing=timm_preprocessing(0.903),
)
_register(
    "xception65",
    "16 middle blocks; 39.9 million parameters with 1,000 classes.",
    middle_blocks=16,
    preprocessing=timm_preprocessing(0.94),
)
_register(
    "xception71",
    "5 entry and 16 middle blocks; 42.3 million parameters with 1,000 classes.",
    middle_blocks=16,
    preprocessing=timm_preprocessing(0.903),
    entry=_ENTRY_BLOCKS_71,
)
_register(
    "xception41p",
    "8 pre-activated middle blocks; 26.9 million parameters with 1,000 classes.",
    middle_blocks=8,
    preprocessing=timm_preprocessing(0.94),
    preact=True,
    epsilon=1e-5,
)
_register(
    "xception65p",
    "16 pre-activated middle blocks; 39.8 million parameters with 1,000 classes.",
    middle_blocks=16,
    preprocessing=timm_preprocessing(0.94),
    preact=True,
)
