"""Keras's Xception as a network of timm: timm's ``legacy_xception`` with Keras's pools and batch norms.

timm's network has the same layers and names. But its max pools pad both ends of a side, and its batch norms
add 1e-5 to the variance. Keras pads an even side at its end only, and adds 1e-3. With these two changes a
trunk of Keras gives the same features in timm and in fastai as in Keras.

Importing this module registers the network as ``xception_keras``, so that ``timm.create_model`` and fastai's
``vision_learner`` know it by name.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.layers.pool2d_same import MaxPool2dSame
from timm.models import register_model

STATE_VARIABLE = "COMPARISON_STATE"  # path of the converted trunk, an .npz file of ``trunk.write_state``
_STATISTICS = {"_mean": "running_mean", "_variance": "running_var"}


def torch_state(file: Path) -> dict[str, torch.Tensor]:
    """Reads a converted trunk by the state keys of timm's network."""
    state = {}
    with np.load(file) as arrays:
        for key in arrays.files:
            layer, _, name = key.rpartition(".")
            state[f"{layer}.{_STATISTICS.get(name, name)}"] = torch.from_numpy(arrays[key])
    return state


def load_trunk(model: torch.nn.Module, file: Path) -> None:
    """Sets all parameters and statistics of timm's network, except for its classifier.

    Raises:
        ValueError: a key is missing or unknown.
    """
    missing_keys, unknown_keys = model.load_state_dict(torch_state(file), strict=False)
    missing_keys = [
        key for key in missing_keys if not key.startswith("fc.") and "num_batches_tracked" not in key
    ]
    if missing_keys or unknown_keys:
        raise ValueError(f"{file}: missing {missing_keys}, unknown {unknown_keys}")


@register_model
def xception_keras(pretrained: bool = False, **arguments: Any) -> torch.nn.Module:  # noqa: FBT001, FBT002
    """Builds the network; with ``pretrained``, from the file that ``STATE_VARIABLE`` names."""
    for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        arguments.pop(key, None)
    model = timm.create_model("legacy_xception", pretrained=False, **arguments)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = 1e-3
        elif isinstance(layer, torch.nn.MaxPool2d):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, MaxPool2dSame(3, 2))
    if pretrained:
        load_trunk(model, Path(os.environ[STATE_VARIABLE]))
    return model
