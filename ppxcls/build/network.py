"""Builds networks with their weights, by name or from a config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import paddle
from paddle import nn

from ppxcls.build.choices import TRAINING_TRANSFORMS, Purpose, Weights, compared_transforms, path_of_weights
from ppxcls.build.class_order import config_of_weights
from ppxcls.build.classifier_rows import start_classifier
from ppxcls.config.checks import ConfigPlace
from ppxcls.config.sections import AMPSection, Config, to_plain
from ppxcls.models.classifier import classifier_arrays, reset_classifier
from ppxcls.models.classifier_part import Difference
from ppxcls.models.common_keys import MODELS, channels_last, prepare_training
from ppxcls.models.first_convolution import input_channels
from ppxcls.models.logits import set_network_name
from ppxcls.models.preprocessing import differences, differences_from_run, run_preprocessing
from ppxcls.models.tracing import to_static
from ppxcls.models.weights import load_fitting_weights
from ppxcls.system import distributed
from ppxcls.system.logs import logger
from ppxcls.train.precision import MixedPrecision


def list_models() -> list[str]:
    """Returns the names of all networks."""
    return MODELS.names()


def build_model(name: str, **arguments: Any) -> nn.Layer:
    """Builds a network with fresh weights, or with the weights of ``pretrained``.

    Args:
        name: name of a network, one of ``list_models()``.
        arguments: arguments of this network, such as ``class_num=37``, and arguments common to all networks,
            such as ``freeze``.

    Raises:
        ConfigError: the name or an argument is unknown, or this network or device does not support an
            argument.
        CheckpointError: the weights can't be used.
    """
    block = MODELS.block({"name": name, **arguments}, ConfigPlace(("Arch",)))
    model, keys = MODELS.build(block), MODELS.common_keys(block)
    set_network_name(model, name)
    if keys.pretrained:
        path = path_of_weights(keys.pretrained, name, block.where / "pretrained")
        fresh_arrays = classifier_arrays(model)
        _log_differences(load_fitting_weights(model, path, keep_trunk=True))
        if keys.new_classifier:
            reset_classifier(model, fresh_arrays)
    if keys.data_format == "NHWC":
        channels_last(model)
    prepare_training(model, keys, block.where)
    return model


def build_network(config: Config, purpose: Purpose, weights: Weights | None) -> nn.Layer:
    """Builds the network of a config and loads its weights.

    For training, the classes may differ from those of the weights; see ``start_classifier``. An exported
    network computes on [N, C, H, W], whatever the value of ``data_format``.

    Args:
        config: config with ``Arch``.
        purpose: purpose of the network.
        weights: weights to load; None for fresh weights.

    Raises:
        ConfigError: as ``prepare_training``.
        CheckpointError: the weights can't be used.
        DataError: a file of class names can't be used.
    """
    keys = MODELS.common_keys(config.Arch)
    network = MODELS.build(config.Arch)
    set_network_name(network, config.Arch.name)
    fresh_arrays = classifier_arrays(network)
    if weights:
        file_differences = load_fitting_weights(
            network, weights.path, keep_trunk=purpose == "train", average=weights.average
        )
        if purpose == "train":
            logger.info(f"Loaded {weights}")
            file_differences = start_classifier(
                config, network, path=weights.path, fresh_arrays=fresh_arrays, differences=file_differences
            )
        _log_differences(file_differences)
        _compare_preprocessing(config, purpose, weights)
    if keys.data_format == "NHWC" and purpose != "export":
        channels_last(network)
    if purpose == "train":
        has_weights = bool(weights or config.Global.checkpoints)
        prepare_training(network, keys, config.where("Arch"), has_weights=has_weights)
    return network


def _log_differences(file_differences: Sequence[Difference]) -> None:
    """Logs why the classifier starts with fresh weights, and which layers are left out or fitted."""
    starts = {
        "head": "the classifier starts with fresh weights, because ",
        "size": "the classifier starts with fresh weights, because its size differs: ",
        "rest": "",
        "channels": "",
    }
    for kind, start in starts.items():
        texts = [difference.text for difference in file_differences if difference.kind == kind]
        if texts:
            logger.warning(start + "; ".join(texts))


def _compare_preprocessing(config: Config, purpose: Purpose, weights: Weights) -> None:
    """Warns about each difference between the config's transforms and those that the weights expect.

    A run's weights expect the transforms of their run, and other weights those of their publisher.
    """
    run_config = config_of_weights(weights.path)
    expected = run_preprocessing(run_config) if run_config else None
    published_images = MODELS.fact(config.Arch.name, "published") if run_config is None else None
    lines: list[str] = []
    for name, blocks in compared_transforms(config, purpose):
        is_training = name == TRAINING_TRANSFORMS
        texts: list[str] = []
        if expected and to_plain(blocks) == (expected.train_ops if is_training else expected.transform_ops):
            continue  # as for a run's own config, whose blocks were checked already
        if expected:
            texts = differences_from_run(expected, blocks, is_training=is_training)
        elif published_images and not is_training:
            texts = differences(published_images, blocks)
        lines += [f"{name} {weights.path}: {text}" for text in texts]
    for line in lines if distributed.rank() == 0 else []:
        logger.warning(line)


def static_network(network: nn.Layer, *, with_cinn: bool = False) -> nn.Layer:
    """Makes a network's forward pass run as a static graph, and returns the network.

    The graph is compiled once for training and once for evaluation. Parameters and state keys stay the same.
    Images may have any size.

    Args:
        network: network to change.
        with_cinn: True to compile the graph with Paddle's compiler CINN.
    """
    input_spec = paddle.static.InputSpec([None, input_channels(network), None, None], "float32", "images")
    result: nn.Layer = to_static(network, input_spec, with_cinn=with_cinn)
    return result


def mixed_precision(section: AMPSection | None) -> MixedPrecision | None:
    """Returns the settings of automatic mixed precision; None for float32."""
    if section is None or not section.use_amp:
        return None
    return MixedPrecision(**{f.name: getattr(section, f.name) for f in fields(MixedPrecision)})
