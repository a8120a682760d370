"""The registry of the networks, and the options that they share. No option changes a state key."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import paddle
import paddle.distributed as dist
import paddle.nn.functional as F
from paddle import nn

from ppxcls.config.checks import BelowOne, ConfigPlace, Pattern, matching_keys
from ppxcls.config.registry import Registry
from ppxcls.models.preprocessing import Preprocessing
from ppxcls.ops.batch_norm import NormReLU
from ppxcls.ops.max_pool import MaxPool2D
from ppxcls.ops.sync_batch_norm import has_paddle_kernel, synchronized_batch_norm
from ppxcls.system.logs import logger

BATCH_NORMS = nn.BatchNorm1D, nn.BatchNorm2D, nn.BatchNorm3D


@dataclass
class ModelKeys:
    """Common keys of the networks.

    Attributes:
        pretrained: weights to start from; ``Global.pretrained_model`` takes precedence. It is a file, or a
            word for published weights, which are fetched if they are not on this machine: ``True`` or
            ``imagenet`` for the network's default ones, a name from ``ppxcls weights``,
            ``hf-hub:OWNER/REPO``, or an address.
        new_classifier: True to start the classifier with fresh weights. Otherwise, the weights to start from
            give each class the weights of their class of the same name.
        freeze: regular expressions. Parameters with matching state keys are not trained, and their batch
            norms keep their statistics.
        freeze_norm: True to keep the statistics of all batch norms and to normalise with them in training. It
            needs weights to start from. Scale and offset are trained. Fine-tuning in small batches is more
            accurate this way.
        norm_momentum: share of the old statistics that batch norms keep in a step of training, at least 0 and
            less than 1; None for the network's own, mostly 0.9. Keras's networks have 0.99, so that they need
            hundreds of steps to follow the weights: set 0.9 to fine-tune them in few steps.
        use_sync_bn: True to compute batch-norm statistics over all processes, so that the number of processes
            changes nothing but rounding.
        data_format: memory layout of the computation. Images and weights keep their layout. Measure the speed
            of both layouts before choosing ``NHWC``. On GPUs, Paddle transposes the input of each batch norm
            in this layout, except in float16.
        recompute: True to save memory by computing the blocks again in the backward pass. With several
            processes on CPUs, it saves none.
    """

    pretrained: str | bool | None = None
    new_classifier: bool = False
    freeze: list[Pattern] | None = None
    freeze_norm: bool = False
    norm_momentum: BelowOne | None = None
    use_sync_bn: bool = False
    data_format: Literal["NCHW", "NHWC"] = "NCHW"
    recompute: bool = False


MODELS: Registry[nn.Layer] = Registry("model", common=ModelKeys, facts={"published": None})


def register_network(
    name: str, summary: str, preprocessing: Preprocessing
) -> Callable[[Callable[..., nn.Layer]], Callable[..., nn.Layer]]:
    """Returns a decorator that registers a function of a family for one of its networks.

    Args:
        name: name of the network in configs.
        summary: description of the network in the reference.
        preprocessing: preprocessing of the published weights.
    """

    def register(build: Callable[..., nn.Layer]) -> Callable[..., nn.Layer]:
        build.__name__ = name
        build.__doc__ = summary
        return MODELS.register(published=preprocessing)(build)

    return register


def prepare_training(
    model: nn.Layer, keys: ModelKeys, where: ConfigPlace, *, has_weights: bool = True
) -> None:
    """Applies the common keys for training.

    They are ``norm_momentum``, ``recompute``, ``freeze``, ``freeze_norm`` and ``use_sync_bn``.

    Args:
        model: network to change.
        keys: values of the keys.
        where: place of the network in the config.
        has_weights: True if the network has, or will get, weights to start from.

    Raises:
        ConfigError: the network has no blocks that can be computed again, or a pattern matches no parameter,
            or the network has no batch norm that a key is for, or no weights whose statistics could be kept.
    """
    if keys.norm_momentum is not None and not set_norm_momentum(model, keys.norm_momentum):
        raise (where / "norm_momentum").error("expected null: this network has no batch norms")
    if keys.recompute and not recompute_blocks(model):
        raise (where / "recompute").error(
            "expected false: this network names no blocks that can be computed again"
        )
    freeze(model, keys.freeze or [], where / "freeze")
    if keys.freeze_norm:
        if not has_weights:
            raise (where / "freeze_norm").error(
                "expected false, because there are no weights to start from: fresh batch norms would keep "
                "mean 0 and variance 1. Set Global.pretrained_model or Arch.pretrained"
            )
        count = freeze_norms(model)
        if not count:
            raise (where / "freeze_norm").error("expected false: this network has no batch norms")
        logger.info(f"Arch.freeze_norm: the {count} batch norms keep their statistics")
    if keys.use_sync_bn:
        synchronize_batch_norms(model)


def freeze(model: nn.Layer, patterns: Sequence[str], where: ConfigPlace) -> None:
    """Stops training the parameters with matching state keys. Their batch norms keep their statistics.

    Args:
        model: network to change.
        patterns: regular expressions, searched for in the state keys.
        where: place of the patterns in the config, for error messages.

    Raises:
        ConfigError: a pattern matches no parameter, or no parameter remains to be trained.
    """
    # Paddle counts batch-norm statistics as parameters too.
    trainable = [key for key, parameter in model.named_parameters() if not parameter.stop_gradient]
    for i, pattern in enumerate(patterns):
        frozen_keys = matching_keys(pattern, trainable, where / i)
        for key, parameter in model.named_parameters():
            parameter.stop_gradient |= key in frozen_keys
        for key, layer in model.named_sublayers():
            if isinstance(layer, nn.BatchNorm2D) and f"{key}.weight" in frozen_keys:
                layer._use_global_stats = True
    if patterns and all(parameter.stop_gradient for parameter in model.parameters()):
        raise where.error("expected patterns that leave something to train; every parameter is frozen")


def freeze_norms(model: nn.Layer) -> int:
    """Makes all batch norms keep their statistics, and normalise with them in training too.

    Returns:
        The number of batch norms.
    """
    norms = _batch_norms(model)
    for norm in norms:
        norm._use_global_stats = True
    return len(norms)


def set_norm_momentum(model: nn.Layer, momentum: float) -> int:
    """Sets the share of the old statistics that batch norms keep in a step of training.

    Returns:
        The number of batch norms.
    """
    norms = _batch_norms(model)
    for norm in norms:
        norm._momentum = momentum
    return len(norms)


def _batch_norms(model: nn.Layer) -> list[nn.Layer]:
    return [layer for layer in model.sublayers(include_self=True) if isinstance(layer, BATCH_NORMS)]


def synchronize_batch_norms(model: nn.Layer) -> None:
    """Makes every batch norm that is not frozen compute its statistics over all processes.

    With one process, nothing changes. With several, Paddle's own operator is used if the device has it.
    """
    if dist.get_world_size() == 1:
        return
    if not has_paddle_kernel(paddle.get_device()):
        _synchronize_without_paddle_kernel(model)
        return
    for parent in model.sublayers(include_self=True):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.BatchNorm2D) and not norm._use_global_stats:
                synchronized_norm = nn.SyncBatchNorm.convert_sync_batchnorm(norm)
                if isinstance(norm, NormReLU):
                    synchronized_norm.register_forward_post_hook(lambda layer, inputs, output: F.relu(output))
                parent.add_sublayer(name, synchronized_norm)


def _synchronize_without_paddle_kernel(model: nn.Layer) -> None:
    for norm in model.sublayers():
        if isinstance(norm, nn.BatchNorm2D) and not norm._use_global_stats:
            norm_forward = norm.forward

            def forward(
                x: paddle.Tensor,
                norm: nn.BatchNorm2D = norm,
                norm_forward: Callable[..., paddle.Tensor] = norm_forward,
            ) -> paddle.Tensor:
                if not norm.training:
                    return norm_forward(x)
                y = synchronized_batch_norm(norm, x)
                return F.relu(y) if isinstance(norm, NormReLU) else y

            norm.forward = forward


def channels_last(model: nn.Layer) -> None:
    """Makes a network compute on [N, H, W, C].

    Input, output and weights keep their layout. The speed of the two layouts depends on the device, the
    precision and Paddle's kernels.
    """
    for layer in model.sublayers():
        if isinstance(layer, nn.Conv2D | nn.BatchNorm2D | nn.AdaptiveAvgPool2D):
            layer._data_format = "NHWC"
        elif isinstance(layer, MaxPool2D):
            layer.data_format = "NHWC"
    model.register_forward_pre_hook(lambda layer, inputs: inputs[0].transpose([0, 2, 3, 1]))


def network_blocks(model: nn.Layer) -> dict[str, nn.Layer]:
    """Returns the residual blocks of a network by name.

    They are the layers of the classes in its class attribute ``recomputable``.
    """
    # A user's network may have no such attribute.
    block_types: tuple[type[nn.Layer], ...] = getattr(type(model), "recomputable", ())
    return {name: layer for name, layer in model.named_sublayers() if isinstance(layer, block_types)}


def recompute_blocks(model: nn.Layer) -> int:
    """Makes the backward pass compute the residual blocks again instead of storing their activations.

    See arXiv:1604.06174. A batch norm in a block then sees each batch twice. With the square root of its
    momentum, two updates equal one. Random operators such as drop path draw the same numbers twice.

    Args:
        model: network to change. Its class attribute ``recomputable`` contains the classes of these blocks.

    Returns:
        The number of blocks.
    """
    blocks = network_blocks(model)
    for block in blocks.values():
        run_block = block.forward

        def forward(
            x: paddle.Tensor,
            block: nn.Layer = block,
            run_block: Callable[[paddle.Tensor], paddle.Tensor] = run_block,
        ) -> paddle.Tensor:
            return _recompute(run_block, x) if block.training and not x.stop_gradient else run_block(x)

        block.forward = forward
        for layer in block.sublayers():
            if isinstance(layer, nn.BatchNorm2D):
                layer._momentum = math.sqrt(layer._momentum)
    return len(blocks)


def _recompute(run_block: Callable[[paddle.Tensor], paddle.Tensor], x: paddle.Tensor) -> paddle.Tensor:
    from paddle.distributed.fleet.utils import recompute

    # Paddle's default is a second backward pass inside the first one. DataParallel refuses it, because it
    # reports parameters as ready twice. The other form calls the block again through hooks of saved tensors.
    # It is not used for one process, because the CPU operators keep their inputs whatever these hooks do.
    options: dict[str, bool] = {}
    if dist.get_world_size() > 1:
        # Paddle 2.6 can't restore the random state in this form on CPUs, so _SameRandomNumbers does it.
        run_block = _SameRandomNumbers(run_block)
        options = {"use_reentrant": False, "preserve_rng_state": False}
    output: paddle.Tensor = recompute(run_block, x, **options)
    return output


class _SameRandomNumbers:
    """Calls a block. The second call draws the same random numbers as the first one."""

    def __init__(self, run_block: Callable[[paddle.Tensor], paddle.Tensor]) -> None:
        self._run_block = run_block
        self._first_state: list[Any] | None = None

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        state = paddle.get_rng_state()
        if self._first_state is None:
            self._first_state = state
            return self._run_block(x)
        paddle.set_rng_state(self._first_state)
        try:
            return self._run_block(x)
        finally:
            paddle.set_rng_state(state)
