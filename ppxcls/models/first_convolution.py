"""Fits the first convolution of weights for RGB images to images of another number of channels."""

from __future__ import annotations

import numpy as np
from paddle import nn

from ppxcls.checkpoints.files import State
from ppxcls.models.classifier_part import Difference
from ppxcls.models.number_types import as_float32_array
from ppxcls.system.arrays import Array

_RGB_CHANNELS = 3


def input_channels(model: nn.Layer) -> int:
    """Returns the number of channels that a network's first convolution takes; 3 if it has none."""
    layer = _first_convolution(model)[1]
    return _RGB_CHANNELS if layer is None else int(layer.weight.shape[1] * layer._groups)


def _first_convolution(model: nn.Layer) -> tuple[str, nn.Conv2D | None]:
    layers = ((key, layer) for key, layer in model.named_sublayers() if isinstance(layer, nn.Conv2D))
    return next(layers, ("", None))


def fitted_to_channels(state: State, model: nn.Layer) -> tuple[State, list[Difference]]:
    """Fits the first convolution of weights for RGB images to the channels of a network.

    For one channel, its weights are the sums over the three colours, so a grey picture gives the same outputs
    as its three equal colours. For more, the colours are repeated in their order and multiplied by 3 / n, so
    that the size of the outputs stays.

    Args:
        state: arrays by state key.
        model: network that will use them.

    Returns:
        The arrays, and a description of the change if there is one.
    """
    name, layer = _first_convolution(model)
    key = f"{name}.weight"
    if layer is None or layer._groups != 1 or not isinstance(state.get(key), np.ndarray):
        return state, []
    weight = as_float32_array(state[key])  # also from the bits of bfloat16, which have no sums
    outputs, count, *kernel = layer.weight.shape
    is_of_rgb = weight.shape == (outputs, _RGB_CHANNELS, *kernel) and weight.dtype.kind == "f"
    if count == _RGB_CHANNELS or not is_of_rgb:
        return state, []
    method = (
        "1 channel: its weights are the sums over the colours"
        if count == 1
        else f"{count} channels: its weights are the colours' in turn, times 3/{count}"
    )
    text = f"the first convolution, {key}, takes {method}"
    return {**state, key: channel_weights(weight, count)}, [Difference("channels", text)]


def channel_weights(weight: Array, count: int) -> Array:
    """Returns the weights of a convolution over RGB for another number of channels.

    Args:
        weight: weights, [O, 3, H, W].
        count: number of channels.

    Returns:
        Weights [O, count, H, W] of the same type.
    """
    if count == 1:
        return weight.sum(axis=1, keepdims=True, dtype=np.float64).astype(weight.dtype)
    repeated = weight[:, np.arange(count) % _RGB_CHANNELS]
    return (repeated * (_RGB_CHANNELS / count)).astype(weight.dtype)
