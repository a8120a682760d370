"""What any of the networks can be told to do otherwise, without another state key."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import paddle
from paddle import nn

from ppxcls.config.checks import Where
from ppxcls.config.registry import ModelKeys
from ppxcls.ops.max_pool import MaxPool2D

_BLOCKS = {"Block", "PreactBlock", "DownsampleBlock", "MiddleBlock"}  # the residual ones of all families


def prepare_training(model: nn.Layer, keys: ModelKeys, where: Where) -> None:
    """Apply the common keys of ``Arch`` that concern training alone: ``recompute`` and ``freeze``.

    Raises:
        ConfigError: as ``freeze``.
    """
    if keys.recompute:
        recompute_blocks(model)
    freeze(model, keys.freeze or [], where / "freeze")


def freeze(model: nn.Layer, patterns: Sequence[str], where: Where) -> None:
    """Stop training the parameters whose state keys a pattern is found in; batch norms among them use their statistics as they are.

    Raises:
        ConfigError: a pattern means no parameter.
    """
    for i, pattern in enumerate(patterns):
        frozen = [key for key, p in model.named_parameters() if re.search(pattern, key)]
        if not frozen:
            raise (where / i).error(f"expected a pattern of state keys, received {pattern!r}, which means no parameter")
        for key, parameter in model.named_parameters():
            parameter.stop_gradient |= key in frozen
        for key, layer in model.named_sublayers():
            if isinstance(layer, nn.BatchNorm2D) and f"{key}.weight" in frozen:
                layer._use_global_stats = True


def channels_last(model: nn.Layer) -> None:
    """Compute on [N, H, W, C], which is what half-precision units of GPUs want; input, output and weights stay as they are."""
    for layer in model.sublayers():
        if isinstance(layer, nn.Conv2D | nn.BatchNorm2D | nn.AdaptiveAvgPool2D):
            layer._data_format = "NHWC"
        elif isinstance(layer, MaxPool2D):
            layer.data_format = "NHWC"
    model.register_forward_pre_hook(lambda layer, inputs: inputs[0].transpose([0, 2, 3, 1]))


def recompute_blocks(model: nn.Layer) -> int:
    """Compute the residual blocks again in the backward pass instead of keeping their inner activations (arXiv:1604.06174).

    A batch norm in a block sees each batch twice then; with the root of its momentum two updates are what one was.

    Returns:
        How many blocks.
    """
    from paddle.distributed.fleet.utils import recompute

    blocks = [layer for layer in model.sublayers() if type(layer).__name__ in _BLOCKS]
    for block in blocks:
        plain = block.forward

        def forward(x: paddle.Tensor, block: nn.Layer = block, plain: object = plain) -> paddle.Tensor:
            return recompute(plain, x) if block.training and not x.stop_gradient else plain(x)  # type: ignore[operator]

        block.forward = forward
        for layer in block.sublayers():
            if isinstance(layer, nn.BatchNorm2D):
                layer._momentum = math.sqrt(layer._momentum)
    return len(blocks)
