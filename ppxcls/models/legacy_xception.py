"""The original Xception (Chollet, arXiv:1610.02357, figure 5), in the versions of Keras and timm.

timm calls it ``legacy_xception``. A separable convolution is depthwise, then pointwise, then batch norm.
Projections have batch norm, and max pools halve the size. State keys are timm's, except for the names of
batch norm's statistics.
"""

from __future__ import annotations

import math

import paddle
import paddle.nn.functional as F
from paddle import nn

from ppxcls.config.checks import BelowOne, Count, CountOrZero
from ppxcls.models.common_keys import MODELS
from ppxcls.models.layers import convolution, initialize, linear, separable
from ppxcls.models.parts import Flow, NetworkParts, pooled
from ppxcls.models.preprocessing import HALF, Preprocessing, timm_preprocessing
from ppxcls.ops.batch_norm import BatchNorm2D, ReLU, relu
from ppxcls.ops.convolution import DenseConv2D
from ppxcls.ops.in_order import LayerFunction, Stack, in_order
from ppxcls.ops.max_pool import MaxPool2D

_CONV_NAMES = "conv1", "pointwise"


class SamePool(MaxPool2D):
    """3x3 max pool of stride 2 with TensorFlow's padding.

    An even side has one row of padding at its end and none at its start. An odd side has one row at each end.
    """

    def __init__(self) -> None:
        super().__init__(kernel_size=3, stride=2, padding=0)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Pools [N, C, H, W] to [N, C, ceil(H / 2), ceil(W / 2)]."""
        height, width = (x.shape[self.data_format.index(side)] % 2 for side in "HW")
        if isinstance(height, int) and isinstance(width, int):
            return self.pool(x, [height, 1, width, 1])
        # A program for images of any size: only its run knows the sizes.
        x = F.pad(x, [width, 1, height, 1], value=-math.inf, data_format=self.data_format)
        return self.pool(x, [0] * 4)


class Block(nn.Layer):
    """Separable convolutions with a shortcut.

    A ReLU precedes each convolution and a batch norm follows it. The shortcut is the identity, or a
    projection of stride 2 if there is a pool.

    Args:
        channels: input channels, then the output channels of each convolution.
        pool: max pool of stride 2; None for no stride.
        relu_first: True if a ReLU precedes the first convolution.
    """

    def __init__(
        self, channels: tuple[int, ...], pool: nn.Layer | None = None, *, relu_first: bool = True
    ) -> None:
        super().__init__()
        self.skip: nn.Layer | None = None
        if pool is not None:
            self.skip = convolution(channels[0], channels[-1], 1, 2)
            self.skipbn = BatchNorm2D(channels[-1])
        layers: list[nn.Layer] = []
        for in_channels, out_channels in zip(channels, channels[1:], strict=False):
            pair = nn.Sequential(*separable(_CONV_NAMES, in_channels, out_channels=out_channels))
            layers += [ReLU(), pair, BatchNorm2D(out_channels)]
        layers = layers if relu_first else layers[1:]
        self.rep = Stack(*layers, *([] if pool is None else [pool]))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Maps [N, C_in, H, W] to [N, C_out, H, W]. A pool halves H and W, rounded up."""
        return self.rep(x) + (x if self.skip is None else self.skipbn(self.skip(x)))


class LegacyXception(nn.Layer):
    """The network of the original Xception.

    It has two 3x3 convolutions, 3 downsampling blocks, 8 middle blocks, a downsampling block and two
    separable convolutions.

    Args:
        class_num: number of classes; 0 for features.
        in_channels: number of the images' channels.
        drop_rate: dropout rate before the classifier.
        keras: True for Keras's padding of max pools and its batch norm settings, False for timm's.
    """

    recomputable = (Block,)

    def __init__(self, class_num: int, in_channels: int, drop_rate: float, *, keras: bool = False) -> None:
        super().__init__()
        self.conv1 = DenseConv2D(in_channels, 32, kernel_size=3, stride=2)
        self.bn1 = BatchNorm2D(32)
        self.conv2 = DenseConv2D(32, 64, kernel_size=3)
        self.bn2 = BatchNorm2D(64)
        pools = [SamePool() if keras else MaxPool2D(kernel_size=3, stride=2, padding=1) for _ in range(4)]
        widths = [(64, 128, 128), (128, 256, 256), (256, 728, 728), (728, 728, 1024)]
        down_blocks = [
            Block(channels, pool, relu_first=i > 0)
            for i, (channels, pool) in enumerate(zip(widths, pools, strict=True))
        ]
        blocks = [*down_blocks[:3], *(Block((728,) * 4) for _ in range(8)), down_blocks[3]]
        self._blocks = [self.add_sublayer(f"block{i}", block) for i, block in enumerate(blocks, 1)]
        self.conv3 = nn.Sequential(*separable(_CONV_NAMES, 1024, out_channels=1536))
        self.bn3 = BatchNorm2D(1536)
        self.conv4 = nn.Sequential(*separable(_CONV_NAMES, 1536, out_channels=2048))
        self.bn4 = BatchNorm2D(2048)
        self.pool = nn.AdaptiveAvgPool2D(1)
        self.drop = nn.Dropout(drop_rate)
        self.fc = linear(2048, class_num)
        initialize(self)
        if keras:
            for layer in self.sublayers():
                if isinstance(layer, nn.BatchNorm2D):
                    layer._epsilon = 1e-3
                    layer._momentum = 0.99

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Returns logits [N, class_num], or features [N, 2048] if ``class_num`` is 0.

        Args:
            images: batch, float32 [N, C, H, W]. H and W are at least 71.
        """
        return self.fc(self.drop(in_order([*self._trunk(), *self._exit_flow()], images)))

    def network_parts(self) -> NetworkParts:
        """Returns the parts. The exit flow begins with the last downsampling block."""
        return NetworkParts(Flow(self._trunk()), Flow(self._exit_flow()), self.fc)

    def _trunk(self) -> list[LayerFunction]:
        return [self.conv1, self.bn1, relu, self.conv2, self.bn2, relu, *self._blocks[:-1]]

    def _exit_flow(self) -> list[LayerFunction]:
        convs = [self.conv3, self.bn3, relu, self.conv4, self.bn4, relu]
        return [self._blocks[-1], *convs, self.pool, pooled]


# The preprocessing of Keras's preprocess_input.
_KERAS_PREPROCESSING = Preprocessing(
    source="Keras",
    input_size=299,
    crop_share=None,
    interpolation="bilinear",
    mean=HALF,
    std=HALF,
)


@MODELS.register(published=timm_preprocessing(0.8975))
def legacy_xception(
    class_num: CountOrZero = 1000, in_channels: Count = 3, drop_rate: BelowOne = 0.0
) -> LegacyXception:
    """timm's version; 22.9 million parameters with 1,000 classes."""
    return LegacyXception(class_num, in_channels, drop_rate)


@MODELS.register(published=_KERAS_PREPROCESSING)
def Xception(
    class_num: CountOrZero = 1000, in_channels: Count = 3, drop_rate: BelowOne = 0.0
) -> LegacyXception:
    """Keras's version, with its padding of max pools and its batch norm (epsilon 1e-3, momentum 0.99)."""
    return LegacyXception(class_num, in_channels, drop_rate, keras=True)
