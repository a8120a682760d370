"""Depthwise convolution layer: numba's kernels on the CPU, Paddle's operator everywhere else."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import nn

from ppxcls.ops import cpu
from ppxcls.ops.channelwise import Chain


class DepthwiseConv2D(nn.Conv2D):
    """``paddle.nn.Conv2D`` without bias, with one kernel for each channel, for ``[N, C, H, W]`` input.

    It has the parameters, state keys and initial values of Paddle's layer. In float32 on the CPU it runs the
    numba kernels, if numba is installed. Other devices and types, static graphs and export run Paddle's
    operator.

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
        super().__init__(
            channels, channels, kernel_size, stride, padding, dilation, groups=channels, bias_attr=False
        )

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Args: x: [N, C, H, W].

        Returns: [N, C, H', W'], H' = (H + 2 padding - dilation (kernel - 1) - 1) // stride + 1.
        """
        if self.fits_kernels() and cpu.applies_to(x, self.weight):
            out = Chain(depthwise=self)(x)
            return (
                out if self.bias is None else out + self.bias.reshape([1, -1, 1, 1])
            )  # folding a batch norm adds a bias
        return nn.Conv2D.forward(self, x)  # to a static graph, Paddle 2.6 translates no super()

    def fits_kernels(self) -> bool:
        """Whether the numba kernels compute this geometry: with more padding, outputs would lie beyond the reach of the input."""
        taps, padding, dilation = self.weight.shape[2:], cpu.pair(self._padding), cpu.pair(self._dilation)
        return self._data_format == "NCHW" and all(
            padding[i] <= dilation[i] * (taps[i] - 1) for i in range(2)
        )
