"""Reads the names of layers in the ``config.json`` of Keras's archives.

The weights beside it are in groups that are numbered by the class of a layer: the tenth layer of the class
``SeparableConv2D`` in a model has the group ``separable_conv2d_9``.
"""

from __future__ import annotations

import re
from typing import Any

from ppxcls.system.json_text import read_json

_MAX_LAYERS, _MAX_DEPTH = 20_000, 16


def layer_names(text: bytes) -> dict[tuple[str, ...], str]:
    """Returns the name of each layer by the path of its group, such as ``("functional", "conv2d_1")``.

    Raises:
        ValueError: the text is no JSON, is nested too deeply, or has too many layers.
    """
    names: dict[tuple[str, ...], str] = {}
    models: list[tuple[tuple[str, ...], Any]] = [((), read_json(text))]
    while models:
        path, model = models.pop()
        config = model.get("config") if isinstance(model, dict) else None
        layers = config.get("layers") if isinstance(config, dict) else None
        if not isinstance(layers, list):
            continue
        if len(path) >= _MAX_DEPTH:
            raise ValueError("models are nested too deeply")
        counts: dict[str, int] = {}
        for layer in layers:
            class_name = layer.get("class_name") if isinstance(layer, dict) else None
            if not isinstance(class_name, str):
                continue
            kind = _group_name(class_name[:200])
            number = counts.get(kind, 0)
            counts[kind] = number + 1
            layer_path = (*path, f"{kind}_{number}" if number else kind)
            names[layer_path] = _name(layer)
            if len(names) > _MAX_LAYERS:
                raise ValueError(f"more than {_MAX_LAYERS:,} layers")
            models.append((layer_path, layer))
    return {path: name for path, name in names.items() if name}


def _name(layer: dict[str, Any]) -> str:
    config = layer.get("config")
    name = config.get("name") if isinstance(config, dict) else None
    return name[:200] if isinstance(name, str) else ""


def _group_name(class_name: str) -> str:
    """Returns the name of a class as Keras writes it in paths: ``SeparableConv2D``, ``separable_conv2d``."""
    letters = re.sub(r"[^A-Za-z0-9_]", "", class_name.rpartition(">")[2])
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z0-9_])(?=[A-Z][a-z])", "_", letters).lower()
