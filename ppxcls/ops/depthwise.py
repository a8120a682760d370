"""Depthwise convolution layer: numba kernels on the CPU, Paddle's operator everywhere else."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import nn

from ppxcls.ops import cpu
from ppxcls.ops.channelwise import Chain


class DepthwiseConv2D(nn.Conv2D):
    """``paddle.nn.Conv2D`` without bias, with one kernel for each channel, for ``[N, C, H, W]`` input.

    It has the parameters, state keys and initial values of Paddle's layer. In float32 on the CPU it uses the
    numba kernels, if numba is installed. Other devices and types, static graphs and export use Paddle's
    operator. So does a padding of more than ``dilation * (kernel_size - 1)``.

    Args:
        channels: number of input channels, and of output channels.
        kernel_size: height and width of the kernel in pixels.
        stride: stride in pixels.
        padding: width of the zero border on each side in pixels.
        dilation: distance between the kernel's taps in pixels.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | Sequence[int] = 3,
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
    ) -> None:
        super().__init__(
            channels, channels, kernel_size, stride, padding, dilation, groups=channels, bias_attr=False
        )

    @cpu.without_translation
    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Convolves [N, C, H, W] to [N, C, H', W'].

        H' = (H + 2 padding - dilation (kernel - 1) - 1) // stride + 1.
        """
        if self.fits_kernels() and cpu.applies_to(x, self.weight):
            out = Chain(depthwise=self)(x)
            # Folding a batch norm adds a bias.
            return out if self.bias is None else out + self.bias.reshape([1, -1, 1, 1])
        return nn.Conv2D.forward(self, x)  # Paddle 2.6 can't translate super() to a static graph

    def fits_kernels(self) -> bool:
        """True if the numba kernels compute this layout and geometry.

        With too much padding, some outputs would not depend on any pixel of the input.
        """
        taps = self.weight.shape[2:]
        padding = cpu.pair(self._padding)
        dilation = cpu.pair(self._dilation)
        is_within_reach = all(padding[i] <= dilation[i] * (taps[i] - 1) for i in range(2))
        return self._data_format == "NCHW" and is_within_reach
