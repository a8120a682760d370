"""Keras's Xception without its classifier, with the weights of a file, as Keras itself reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

_FIRST_LAYER = "block1_conv1"  # Keras's Xception begins with it


def build_trunk(file: Path, size: int | None) -> Any:
    """Builds the trunk.

    Args:
        file: ``.keras`` file of a model that is an Xception or has one as a layer, or weights of the trunk.
        size: pixels of both sides of the images; None for any size.
    """
    trunk = keras.applications.Xception(weights=None, include_top=False, input_shape=(size, size, 3))
    if file.suffix == ".keras":
        network = xception_in(keras.saving.load_model(file, compile=False))
        arrays = network.get_weights()[: len(trunk.weights)]  # after them, only a classifier
        trunk.set_weights(arrays)
    else:
        trunk.load_weights(file)
    return trunk


def xception_in(model: Any) -> Any:
    """Returns the model, or the layer of it, that has Xception's first layer.

    Raises:
        ValueError: no layer is an Xception.
    """
    names = [layer.name for layer in model.layers]
    if _FIRST_LAYER in names:
        return model
    for layer in model.layers:
        if hasattr(layer, "layers") and _FIRST_LAYER in [inner.name for inner in layer.layers]:
            return layer
    raise ValueError(f"expected a layer {_FIRST_LAYER}, received {', '.join(names)}")
