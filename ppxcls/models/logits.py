"""Checks what a user's own network returns."""

from __future__ import annotations

from typing import Any

import paddle
from paddle import nn

from ppxcls.config.checks import ConfigError

_NAME = "name_in_config"  # attribute of a network


def set_network_name(network: nn.Layer, name: str) -> None:
    """Gives a network the name that messages about it contain."""
    setattr(network, _NAME, name)


def network_name(network: nn.Layer) -> str | None:
    """Returns the name that a network was built by; None if it is not known."""
    return getattr(network, _NAME, None)


def checked_logits(output: Any, network: nn.Layer) -> paddle.Tensor:
    """Returns the output of a network.

    Args:
        output: output for a batch.
        network: the network, for the message.

    Raises:
        ConfigError: the output is no tensor [N, C].
    """
    if isinstance(output, paddle.Tensor) and output.ndim == 2:
        return output
    name = getattr(network, _NAME, type(network).__name__)
    raise ConfigError(
        f"the network {name}: expected that it returns logits [N, C], received {_description(output)}"
    )


def _description(output: Any) -> str:
    if isinstance(output, paddle.Tensor):
        return f"a tensor {list(output.shape)}"
    if isinstance(output, dict):
        return f"a dict of {', '.join(f'{key!r}: {_description(value)}' for key, value in output.items())}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {', '.join(map(_description, output))}"
    return "None" if output is None else type(output).__name__
