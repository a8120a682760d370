"""The parts of a network: trunk, exit flow and classifier, for features that are computed only once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import paddle
from paddle import nn

from ppxcls.config.checks import ConfigError
from ppxcls.ops.in_order import LayerFunction, in_order


class Flow(nn.Layer):
    """A part of a network. It calls layers of the network one after another and shares their parameters.

    Args:
        layers: layers, and functions of a tensor such as ``relu``.
    """

    def __init__(self, layers: Sequence[LayerFunction]) -> None:
        super().__init__()
        self._layers = list(layers)
        for i, layer in enumerate(layers):
            if isinstance(layer, nn.Layer):
                self.add_sublayer(str(i), layer)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Returns the last layer's output. ``x`` is the first layer's input."""
        return in_order(self._layers, x)


class NetworkParts(NamedTuple):
    """A network in three parts. In evaluation, ``classifier(exit_flow(trunk(images)))`` are its logits.

    Attributes:
        trunk: layers from the images, float32 [N, 3, H, W], to the activations before the exit flow. These
            have the network's memory layout: [N, C, H', W'], or [N, H', W', C] for ``NHWC``.
        exit_flow: layers from these activations to the pooled features [N, F], without dropout. At 299 px
            it has 12 % of the multiplications of Xception, Xception41 and legacy_xception, and from 6 to
            15 % of those of the others. It has a quarter to 40 % of the parameters before the classifier.
        classifier: last layer.
    """

    trunk: nn.Layer
    exit_flow: nn.Layer
    classifier: nn.Linear


def pooled(x: paddle.Tensor) -> paddle.Tensor:
    """Converts the output of a global pool, [N, C, 1, 1] or [N, 1, 1, C], to [N, C]."""
    return paddle.flatten(x, start_axis=1)


def split_network(model: nn.Layer) -> NetworkParts | None:
    """Returns the parts of a network, with its own parameters and not copies.

    A network declares them with a method ``network_parts``, which takes no arguments and returns a
    ``NetworkParts``.

    Args:
        model: network. Its common keys, such as ``data_format``, are applied already.

    Returns:
        The parts; None for a network that declares none, or that has no classifier.

    Raises:
        ConfigError: the method returns something else.
    """
    declaration: Callable[[], NetworkParts] | None = getattr(model, "network_parts", None)
    if declaration is None:
        return None
    parts = declaration()
    if not isinstance(parts, NetworkParts):
        raise ConfigError(
            f"the network {type(model).__name__}: expected that its method network_parts returns a"
            f" NetworkParts, received {type(parts).__name__}"
        )
    if not isinstance(parts.classifier, nn.Linear):
        return None
    # The network's memory layout changes the images before its first layer.
    for hook in model._forward_pre_hooks.values():
        parts.trunk.register_forward_pre_hook(hook)
    return parts
