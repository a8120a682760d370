"""The registry of the networks, and the options that all of them have. No option changes a state key."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import paddle
import paddle.distributed as dist
import paddle.nn.functional as F
from paddle import nn

from ppxcls.config.checks import Pattern, Where, matching
from ppxcls.config.registry import Registry
from ppxcls.ops.batch_norm import NormReLU
from ppxcls.ops.max_pool import MaxPool2D
from ppxcls.ops.sync_batch_norm import synchronized_batch_norm


@dataclass
class ModelKeys:
    """Common keys of the networks.

    Attributes:
        pretrained: weights to start from; ``Global.pretrained_model`` takes precedence. Nothing is downloaded
            for ``True``.
        freeze: regular expressions. Parameters whose state keys match are not trained, and their batch norms
            keep their statistics.
        use_sync_bn: compute batch norm's statistics over all processes, so that their number changes nothing
            but rounding.
        data_format: memory layout of the computation. Images and weights stay the same.
        recompute: save memory by computing the blocks again in the backward pass.
    """

    pretrained: str | bool | None = None
    freeze: list[Pattern] | None = None
    use_sync_bn: bool = False
    data_format: Literal["NCHW", "NHWC"] = "NCHW"
    recompute: bool = False


MODELS: Registry[nn.Layer] = Registry("model", common=ModelKeys, facts={"published": None})


def prepare_training(model: nn.Layer, keys: ModelKeys, where: Where) -> None:
    """Apply the common keys that matter for training: ``recompute``, ``freeze`` and ``use_sync_bn``.

    Raises:
        ConfigError: the network has no blocks that can be computed again, or a pattern matches no parameter.
    """
    if keys.recompute and not recompute_blocks(model):
        raise (where / "recompute").error(
            "expected false: this network names no blocks that can be computed again"
        )
    freeze(model, keys.freeze or [], where / "freeze")
    if keys.use_sync_bn:
        synchronize_batch_norms(model)


def freeze(model: nn.Layer, patterns: Sequence[str], where: Where) -> None:
    """Stop training the parameters whose state keys match a pattern. Their batch norms keep their statistics.

    Args:
        model: the network; it is changed.
        patterns: regular expressions, searched for in the state keys.
        where: place of the patterns, for error messages.

    Raises:
        ConfigError: a pattern matches no parameter, or nothing is left to train.
    """
    trainable = [
        key for key, p in model.named_parameters() if not p.stop_gradient
    ]  # Paddle counts batch norm's statistics too
    for i, pattern in enumerate(patterns):
        frozen = matching(pattern, trainable, where / i)
        for key, parameter in model.named_parameters():
            parameter.stop_gradient |= key in frozen
        for key, layer in model.named_sublayers():
            if isinstance(layer, nn.BatchNorm2D) and f"{key}.weight" in frozen:
                layer._use_global_stats = True
    if patterns and all(parameter.stop_gradient for parameter in model.parameters()):
        raise where.error("expected patterns that leave something to train; every parameter is frozen")


def synchronize_batch_norms(model: nn.Layer) -> None:
    """Let every batch norm that is not frozen compute its statistics over all processes.

    One process has them already.
    """
    if paddle.get_device() == "cpu":
        if dist.get_world_size() > 1:
            _synchronize_on_the_cpu(model)
        return
    for parent in model.sublayers(include_self=True):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.BatchNorm2D) and not norm._use_global_stats:
                synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(norm)
                if isinstance(norm, NormReLU):
                    synchronized.register_forward_post_hook(lambda layer, inputs, output: F.relu(output))
                parent.add_sublayer(name, synchronized)


def _synchronize_on_the_cpu(model: nn.Layer) -> None:
    for norm in model.sublayers():
        if isinstance(norm, nn.BatchNorm2D) and not norm._use_global_stats:
            plain = norm.forward

            def forward(
                x: paddle.Tensor, norm: nn.BatchNorm2D = norm, plain: Callable[..., paddle.Tensor] = plain
            ) -> paddle.Tensor:
                if not norm.training:
                    return plain(x)
                y = synchronized_batch_norm(norm, x)
                return F.relu(y) if isinstance(norm, NormReLU) else y

            norm.forward = forward


def channels_last(model: nn.Layer) -> None:
    """Compute on [N, H, W, C], which is faster on GPUs in half precision.

    Input, output and weights stay the same.
    """
    for layer in model.sublayers():
        if isinstance(layer, nn.Conv2D | nn.BatchNorm2D | nn.AdaptiveAvgPool2D):
            layer._data_format = "NHWC"
        elif isinstance(layer, MaxPool2D):
            layer.data_format = "NHWC"
    model.register_forward_pre_hook(lambda layer, inputs: inputs[0].transpose([0, 2, 3, 1]))


def recompute_blocks(model: nn.Layer) -> int:
    """Compute the residual blocks again in the backward pass instead of keeping their activations
    (arXiv:1604.06174).

    A batch norm in a block then sees each batch twice. With the square root of its momentum, two updates
    equal one.

    Args:
        model: its class attribute ``recomputable`` names the classes of these blocks.

    Returns:
        The number of blocks.
    """
    from paddle.distributed.fleet.utils import recompute

    kinds: tuple[type[nn.Layer], ...] = getattr(
        type(model), "recomputable", ()
    )  # a user's network may lack it
    blocks = [layer for layer in model.sublayers() if isinstance(layer, kinds)]
    for block in blocks:
        plain = block.forward

        def forward(x: paddle.Tensor, block: nn.Layer = block, plain: object = plain) -> paddle.Tensor:
            return recompute(plain, x) if block.training and not x.stop_gradient else plain(x)  # type: ignore[operator]

        block.forward = forward
        for layer in block.sublayers():
            if isinstance(layer, nn.BatchNorm2D):
                layer._momentum = math.sqrt(layer._momentum)
    return len(blocks)
