"""Writes small files in Keras's layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ppxcls.models.keras_trunk import TRUNK

_GROUPS = {"convolution": "conv2d", "separable": "separable_conv2d", "norm": "batch_normalization"}


def add_layer(group: Any, path: str, shapes: Sequence[tuple[int, ...]], name: str | None = None) -> None:
    """Writes a layer of Keras 3.

    Args:
        group: group that contains it.
        path: path of the layer in the group.
        shapes: shapes of its variables.
        name: name of the layer as an attribute; None for no attribute.
    """
    variables = group.create_group(f"{path}/vars")
    if name is not None:
        variables.attrs["name"] = name
    for i, shape in enumerate(shapes):
        variables[str(i)] = np.zeros(shape, np.float32)


def numbered_root(file: Any) -> Any:
    """Writes one convolution as Keras 3 does, and returns the group that contains it."""
    add_layer(file, "layers/conv2d", [(3, 3, 3, 32)])
    return file


def legacy_root(file: Any) -> Any:
    """Writes one convolution in the older layout, and returns the group that contains it."""
    file.attrs["layer_names"] = np.array([b"block1_conv1"])
    group = file.create_group("block1_conv1")
    group.attrs["weight_names"] = np.array([b"block1_conv1/kernel:0"])
    group["block1_conv1/kernel:0"] = np.zeros((7, 7, 3, 32), np.float32)
    return file


def trunk_of_numbers(change: Callable[[list[Any]], list[Any]], file: Any) -> None:
    """Writes the layers of Keras's Xception with numbers instead of names.

    Args:
        change: function of the list of groups and shapes, which returns another list.
        file: open HDF5 file.
    """
    counts: dict[str, int] = {}
    layers: list[Any] = []
    for layer in TRUNK:
        group = _GROUPS[layer.kind]
        number = counts.get(group, 0)
        counts[group] = number + 1
        shapes = [tuple(size or 3 for size in shape) for shape in layer.shapes]
        layers.append((f"{group}_{number}" if number else group, shapes))
    names: dict[str, Any] = dict(change(layers))
    for name, shapes in names.items():
        add_layer(file, f"layers/{name}", shapes)
    add_layer(file, "layers/dense", [(100, 6), (6,)])
