"""All that a channel needs between two products, as one differentiable operator on the CPU: it reads and writes
memory once.

The operator keeps only its input for the backward pass, and computes the rest again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import nn
from paddle.autograd import PyLayer

from ppxcls.ops import cpu
from ppxcls.system import kernels


class Stage(NamedTuple):
    """Batch norm in training, ReLU, both, or none, for the kernels.

    Attributes:
        numbers: float32 [6, C]: weight, bias, running mean and variance, and the batch's mean and one over
            its deviation, which the kernel writes; [6, 0] without batch norm.
        settings: float64 [4]: the share of the running values that stays; what is added to the variance; 1 or
            0 for batch norm and for ReLU.
    """

    numbers: np.ndarray[Any, Any]
    settings: np.ndarray[Any, Any]

    @property
    def has_norm(self) -> bool:
        """Whether there is a batch norm."""
        return bool(self.settings[2])


class Chain:
    """Layers of one operator. All but one may be missing; the last two need the convolution.

    Args:
        norm: the first batch norm.
        is_rectified: whether a ReLU follows it.
        depthwise: the depthwise convolution.
        last_norm: the batch norm after it.
        is_last_rectified: whether a ReLU follows that one.
        layouts: whether input and output have the channels first.
    """

    def __init__(
        self,
        norm: nn.BatchNorm2D | None = None,
        is_rectified: bool = False,
        depthwise: nn.Conv2D | None = None,
        last_norm: nn.BatchNorm2D | None = None,
        is_last_rectified: bool = False,
        layouts: tuple[bool, bool] = (False, False),
    ) -> None:
        self.norm, self.is_rectified, self.depthwise = norm, is_rectified, depthwise
        self.last_norm, self.is_last_rectified, self.layouts = last_norm, is_last_rectified, layouts

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        """[N, C, H, W] to [N, C, H', W'], both with the first two axes exchanged if the layout says so."""
        found: paddle.Tensor = _Channelwise.apply(x, self, *self.parameters())
        return found

    def parameters(self) -> list[paddle.Tensor]:
        """Of the first batch norm, the convolution and the last batch norm."""
        found = [] if self.norm is None else [self.norm.weight, self.norm.bias]
        found += [] if self.depthwise is None else [self.depthwise.weight]
        return found + ([] if self.last_norm is None else [self.last_norm.weight, self.last_norm.bias])

    def kernels(self, channels: int) -> Any:
        """float32 [C, KH, KW]; [C, 0, 0] without convolution."""
        return (
            np.empty((channels, 0, 0), np.float32)
            if self.depthwise is None
            else cpu.view(self.depthwise.weight)[:, 0]
        )

    def geometry(self) -> Any:
        """Padding, stride and dilation of the convolution, int64 [3, 2]."""
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
            cpu.output_size(size, taps[i], padding[i], stride[i], dilation[i])
            for i, size in enumerate((height, width))
        ]


def _stage(norm: nn.BatchNorm2D | None, is_rectified: bool) -> Stage:
    if norm is None:
        return Stage(np.empty((6, 0), np.float32), np.array([0, 0, 0, is_rectified], np.float64))
    own = [cpu.view(tensor) for tensor in (norm.weight, norm.bias, norm._mean, norm._variance)]
    settings = np.array([norm._momentum, norm._epsilon, 1, is_rectified], np.float64)
    return Stage(np.stack([*own, np.empty_like(own[0]), np.empty_like(own[0])]), settings)


def _keep_running(norm: nn.BatchNorm2D | None, stage: Stage) -> None:
    if norm is not None:
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
        both = [channels, images] if chain.layouts[1] else [images, channels]
        # Allocated by Paddle, because the rounding of its next product depends on the alignment.
        out = paddle.empty([*both, *chain.size(*x.shape[2:])], "float32")
        stages = _stage(chain.norm, chain.is_rectified), _stage(chain.last_norm, chain.is_last_rectified)
        arguments = *stages[0], chain.kernels(channels), chain.geometry(), *stages[1], cpu.view(out)
        kernels.run(forward, channels, cpu.view(x), *arguments, np.array(chain.layouts))
        _keep_running(chain.norm, stages[0])
        _keep_running(chain.last_norm, stages[1])
        ctx.save_for_backward(x, *([] if chain.depthwise is None else [chain.depthwise.weight]))
        ctx.chain, ctx.stages, ctx.kept = chain, stages, cpu.Kept(x)
        ctx.needs = [not tensor.stop_gradient for tensor in (x, *parameters)]
        return out

    @staticmethod
    def backward(ctx: Any, upstream: paddle.Tensor) -> Any:
        from ppxcls.ops.channelwise_kernels import backward

        ctx.kept.check()
        chain, (first, last) = ctx.chain, ctx.stages
        x, *weights = ctx.saved_tensor()
        channels = x.shape[0 if chain.layouts[0] else 1]
        of_x = paddle.empty(x.shape, "float32")
        of_norms = [
            paddle.empty(list(stage.numbers[:2].shape), "float32") if stage.has_norm else None
            for stage in (first, last)
        ]
        of_weight = paddle.empty(weights[0].shape, "float32") if weights else None
        no_norm, no_kernels = np.empty((2, 0), np.float32), np.empty((channels, 0, 0), np.float32)
        taps = cpu.view(weights[0])[:, 0] if weights else no_kernels
        gradients = (
            cpu.view(of_x),
            no_norm if of_norms[0] is None else cpu.view(of_norms[0]),
            no_kernels if of_weight is None else cpu.view(of_weight)[:, 0],
            no_norm if of_norms[1] is None else cpu.view(of_norms[1]),
        )
        needed = np.array(
            [ctx.needs[0], chain.depthwise is not None and ctx.needs[1 if chain.norm is None else 3]]
        )
        arguments = *first, taps, chain.geometry(), *last, cpu.view(upstream), np.array(chain.layouts)
        kernels.run(backward, channels, cpu.view(x), *arguments, *gradients, needed)
        found = [of_x]
        for part in (of_norms[0], of_weight, of_norms[1]):
            if part is not None:
                found += [part] if part is of_weight else [part[0], part[1]]
        return tuple(
            gradient if is_needed else None for gradient, is_needed in zip(found, ctx.needs, strict=True)
        )
