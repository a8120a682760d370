"""Networks with their weights: by name, or as a config means them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import paddle
from paddle import nn

from ppxcls.build.choices import Purpose, Weights, no_download
from ppxcls.config.checks import Where
from ppxcls.config.sections import AMPSection, Config
from ppxcls.models.common_keys import MODELS, channels_last, prepare_training
from ppxcls.models.preprocessing import differences
from ppxcls.models.tracing import to_static
from ppxcls.models.weights import load_weights, weights_file
from ppxcls.system.logs import logger
from ppxcls.train.precision import MixedPrecision


def list_models() -> list[str]:
    """Names of all networks."""
    return MODELS.names()


def build_model(name: str, **arguments: Any) -> nn.Layer:
    """A network with fresh weights, or with those of ``pretrained``.

    Args:
        name: one of ``list_models()``.
        arguments: the network's own, such as ``class_num=37``, and the common ones, such as ``freeze``.

    Raises:
        ConfigError: unknown name or argument, or an argument that this network or device can't follow.
        CheckpointError: the weights can't be used.
    """
    block = MODELS.block({"name": name, **arguments}, Where(("Arch",)))
    model, keys = MODELS.build(block), MODELS.common_keys(block)
    if keys.pretrained is True:
        raise no_download(name, block.where)
    if keys.pretrained:
        load_weights(model, keys.pretrained, keep_trunk=True)
    if keys.data_format == "NHWC":
        channels_last(model)
    prepare_training(model, keys, block.where)
    return model


def build_network(config: Config, purpose: Purpose, weights: Weights | None) -> nn.Layer:
    """The network of a config with its weights.

    To train, the classifier may have another size than the weights'. Exported networks compute on [N, C, H,
    W], whatever ``data_format`` says.

    Raises:
        ConfigError: as ``prepare_training``.
        CheckpointError: the weights can't be used.
    """
    keys = MODELS.common_keys(config.Arch)
    network = MODELS.build(config.Arch)
    if weights:
        left = load_weights(network, weights.path, purpose == "train", weights.average)
        if purpose == "train":
            logger.info(f"Loaded {weights}")
        if left:
            logger.warning(f"the classifier starts anew, because its size differs: {'; '.join(left)}")
        _compare_with_published(config, weights)
    if keys.data_format == "NHWC" and purpose != "export":
        channels_last(network)
    if purpose == "train":
        prepare_training(network, keys, config.where("Arch"))
    return network


def _compare_with_published(config: Config, weights: Weights) -> None:
    published = MODELS.fact(config.Arch.name, "published")
    is_checkpoint = weights_file(weights.path).with_suffix(".json").exists()
    if published and not is_checkpoint and config.DataLoader and config.DataLoader.Eval:
        for line in differences(published, config.evaluation_transforms):
            logger.warning(f"evaluation transforms against {weights.path}: {line}")


def static_network(network: nn.Layer) -> nn.Layer:
    """The same network, whose forward pass runs as a static graph, compiled once for training and once for
    evaluation.

    Its parameters and state keys stay the same. Images may have any size.
    """
    images = paddle.static.InputSpec([None, 3, None, None], "float32", "images")
    compiled: nn.Layer = to_static(network, images)
    return compiled


def mixed_precision(section: AMPSection | None) -> MixedPrecision | None:
    """The settings of automatic mixed precision; None for float32."""
    if section is None or not section.use_amp:
        return None
    return MixedPrecision(**{f.name: getattr(section, f.name) for f in fields(MixedPrecision)})
