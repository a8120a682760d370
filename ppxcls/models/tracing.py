"""Tracing networks to static graphs, after others that could not be traced."""

from __future__ import annotations

from typing import Any

import paddle
from paddle import nn


def to_static(network: nn.Layer, inputs: paddle.static.InputSpec) -> Any:
    """``paddle.jit.to_static`` of the whole graph, which is traced at the first call or when it is saved.

    Paddle 3 keeps the parameters that it meets until the end of a tracing, under the address of the program.
    If the tracing fails, they stay, and a later program at this address gets values that are gone: a
    KeyError, or the end of the process. So what an earlier tracing has left is forgotten here.

    Args:
        network: of one argument.
        inputs: shape and type of this argument.
    """
    try:
        from paddle.jit.dy2static.parameter_recorder import _global_parameter_recorder as recorder
    except ImportError:  # Paddle 2 has no such record
        recorder = None
    for name in ("params_dict", "tensor2value"):
        getattr(recorder, name, {}).clear()
    return paddle.jit.to_static(network, input_spec=[inputs], full_graph=True)
