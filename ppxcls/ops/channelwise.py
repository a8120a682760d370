"""The layers between two matrix products, as one differentiable operator on the CPU.

It reads and writes memory once, because it takes each channel through all layers. It keeps only its input for
the backward pass, and computes the rest again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import nn
from paddle.autograd import PyLayer

from ppxcls.ops import cpu
from ppxcls.system import kernels
from ppxcls.system.arrays import Array


class Stage(NamedTuple):
    """A step of the kernels: batch norm in training, ReLU, both, or none.

    Attributes:
        numbers: float32 [6, C], or [6, 0] without batch norm. The rows are weight, bias, running mean,
            running variance, mean, and 1 / sqrt(variance + epsilon). The kernel writes the last two rows.
            They are those of the batch, and change the running values. For a frozen batch norm, they are the
            running ones.
        settings: float64 [5]: momentum (share of the running values that is kept), epsilon (added to the
            variance), 1 or 0 for batch norm, 1 or 0 for ReLU, and 1 or 0 for a frozen batch norm.
    """

    numbers: Array
    settings: Array

    @property
    def has_norm(self) -> bool:
        """True if the stage has a batch norm."""
        return bool(self.settings[2])


class Chain:
    """The layers that one operator computes. At least one is required; the last two need ``depthwise``.

    Args:
        norm: first batch norm; None for none.
        is_rectified: True if a ReLU follows ``norm``.
        depthwise: depthwise convolution; None for none.
        last_norm: batch norm after ``depthwise``; None for none.
        is_last_rectified: True if a ReLU follows ``last_norm``.
        layouts: memory layouts of the input and of the output; True for [C, N, H, W], False for [N, C, H, W].
    """

    def __init__(
        self,
        norm: nn.BatchNorm2D | None = None,
        *,
        is_rectified: bool = False,
        depthwise: nn.Conv2D | None = None,
        last_norm: nn.BatchNorm2D | None = None,
        is_last_rectified: bool = False,
        layouts: tuple[bool, bool] = (False, False),
    ) -> None:
        self.norm = norm
        self.is_rectified = is_rectified
        self.depthwise = depthwise
        self.last_norm = last_norm
        self.is_last_rectified = is_last_rectified
        self.layouts = layouts

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        """Maps [N, C, H, W] to [N, C, H', W'].

        The first two axes of the input, or of the output, are swapped if its value in ``layouts`` is True.
        """
        out: paddle.Tensor = _Channelwise.apply(x, self, *self.parameters())
        return out

    def parameters(self) -> list[paddle.Tensor]:
        """Parameters of the first batch norm, the convolution and the last batch norm, in this order."""
        tensors = [] if self.norm is None else [self.norm.weight, self.norm.bias]
        tensors += [] if self.depthwise is None else [self.depthwise.weight]
        return tensors + ([] if self.last_norm is None else [self.last_norm.weight, self.last_norm.bias])

    def kernels(self, channels: int) -> Any:
        """Kernels of the convolution, float32 [C, KH, KW]; [C, 0, 0] without convolution."""
        return (
            np.empty((channels, 0, 0), np.float32)
            if self.depthwise is None
            else cpu.view(self.depthwise.weight)[:, 0]
        )

    def geometry(self) -> Any:
        """Padding, stride and dilation of the convolution, int64 [3, 2], each (y, x)."""
        conv = self.depthwise
        sides = (0, 1, 1) if conv is None else (conv._padding, conv._stride, conv._dilation)
        return np.array([cpu.pair(side) for side in sides], np.int64)

    def size(self, height: int, width: int) -> list[int]:
        """Height and width of the output."""
        if self.depthwise is None:
            return [height, width]
        padding, stride, dilation = self.geometry().tolist()
        taps = self.depthwise.weight.shape[2:]
        return [
            cpu.output_size(size, taps[i], padding=padding[i], stride=stride[i], dilation=dilation[i])
            for i, size in enumerate((height, width))
        ]


def _stage(norm: nn.BatchNorm2D | None, *, is_rectified: bool) -> Stage:
    if norm is None:
        return Stage(np.empty((6, 0), np.float32), np.array([0, 0, 0, is_rectified, 0], np.float64))
    rows = [cpu.view(tensor) for tensor in (norm.weight, norm.bias, norm._mean, norm._variance)]
    is_frozen = bool(norm._use_global_stats)
    settings = np.array([norm._momentum, norm._epsilon, 1, is_rectified, is_frozen], np.float64)
    return Stage(np.stack([*rows, np.empty_like(rows[0]), np.empty_like(rows[0])]), settings)


def _update_running_statistics(norm: nn.BatchNorm2D | None, stage: Stage) -> None:
    if norm is not None and not norm._use_global_stats:
        for tensor, values in zip((norm._mean, norm._variance), stage.numbers[2:4], strict=True):
            cpu.view(tensor)[:] = values


class _Channelwise(PyLayer):
    """The differentiable operator. It has no second derivative."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, chain: Chain, *parameters: paddle.Tensor) -> paddle.Tensor:
        from ppxcls.ops.channelwise_kernels import forward

        channels = x.shape[0 if chain.layouts[0] else 1]
        images = x.shape[1 if chain.layouts[0] else 0]
        for parameter in parameters:
            cpu.check_channels(parameter.shape[0], channels)
        leading_sizes = [channels, images] if chain.layouts[1] else [images, channels]
        # Paddle allocates the output, because the rounding of Paddle's next product depends on the alignment.
        out = paddle.empty([*leading_sizes, *chain.size(*x.shape[2:])], "float32")
        stages = (
            _stage(chain.norm, is_rectified=chain.is_rectified),
            _stage(chain.last_norm, is_rectified=chain.is_last_rectified),
        )
        arguments = *stages[0], chain.kernels(channels), chain.geometry(), *stages[1], cpu.view(out)
        kernels.run(forward, channels, cpu.view(x), *arguments, np.array(chain.layouts))
        _update_running_statistics(chain.norm, stages[0])
        _update_running_statistics(chain.last_norm, stages[1])
        ctx.save_for_backward(x, *([] if chain.depthwise is None else [chain.depthwise.weight]))
        ctx.chain = chain
        ctx.stages = stages
        ctx.saved_input = cpu.SavedTensor(x)
        ctx.needs_gradient = [not tensor.stop_gradient for tensor in (x, *parameters)]
        return out

    @staticmethod
    def backward(ctx: Any, upstream: paddle.Tensor) -> Any:
        from ppxcls.ops.channelwise_kernels import backward

        ctx.saved_input.check()
        chain, (first, last) = ctx.chain, ctx.stages
        x, *weights = ctx.saved_tensor()
        channels = x.shape[0 if chain.layouts[0] else 1]
        x_gradient = paddle.empty(x.shape, "float32")
        norm_gradients = [
            paddle.empty(list(stage.numbers[:2].shape), "float32") if stage.has_norm else None
            for stage in (first, last)
        ]
        weight_gradient = paddle.empty(weights[0].shape, "float32") if weights else None
        empty_norm, empty_kernels = np.empty((2, 0), np.float32), np.empty((channels, 0, 0), np.float32)
        taps = cpu.view(weights[0])[:, 0] if weights else empty_kernels
        kernel_gradient = empty_kernels if weight_gradient is None else cpu.view(weight_gradient)[:, 0]
        norm_views = [empty_norm if gradient is None else cpu.view(gradient) for gradient in norm_gradients]
        gradients = (cpu.view(x_gradient), norm_views[0], kernel_gradient, norm_views[1])
        needs_gradient = np.array(
            [
                ctx.needs_gradient[0],
                chain.depthwise is not None and ctx.needs_gradient[1 if chain.norm is None else 3],
            ]
        )
        arguments = *first, taps, chain.geometry(), *last, cpu.view(upstream), np.array(chain.layouts)
        kernels.run(backward, channels, cpu.view(x), *arguments, *gradients, needs_gradient)
        results = [x_gradient]
        for part in (norm_gradients[0], weight_gradient, norm_gradients[1]):
            if part is not None:
                results += [part] if part is weight_gradient else [part[0], part[1]]
        return tuple(
            gradient if is_needed else None
            for gradient, is_needed in zip(results, ctx.needs_gradient, strict=True)
        )
