"""The layers that ``fit`` leaves as the weights have them, because their rate would be very low."""

from __future__ import annotations

import re
from collections.abc import Iterable

from paddle import nn

from ppxcls.models.common_keys import network_blocks
from ppxcls.train.optimizers import layer_depths

LAYER_DECAY = 0.8  # factor of the learning rate per layer
_LOWEST_FACTOR = 0.1  # of the rate; layers with a lower one are not trained


def early_layer_patterns(network: nn.Layer) -> list[str]:
    """Returns patterns for ``Arch.freeze``: those of the layers whose rate would be below a tenth.

    They see edges and colours, and are large: without their backward pass, a step of Xception takes two
    thirds of the time.

    Args:
        network: network whose parameters are all trained.
    """
    dimensions = {key: p.ndim for key, p in network.named_parameters() if not p.stop_gradient}
    depths = layer_depths(dimensions, list(network_blocks(network)))
    last = max(depths.values())
    frozen_keys = [key for key, depth in depths.items() if LAYER_DECAY ** (last - depth) < _LOWEST_FACTOR]
    trained_keys = [key for key in depths if key not in set(frozen_keys)]
    prefixes = dict.fromkeys(_own_prefix(key, trained_keys) for key in frozen_keys)
    return [f"^{re.escape(prefix)}" for prefix in prefixes]


def _own_prefix(key: str, other_keys: Iterable[str]) -> str:
    """Returns the shortest part of a key, up to a dot, that no other key begins with."""
    names = key.split(".")
    prefixes = (".".join(names[:count]) + "." for count in range(1, len(names)))
    return next((p for p in prefixes if not any(other_key.startswith(p) for other_key in other_keys)), key)
