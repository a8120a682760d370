"""Traces networks to static graphs, also if an earlier tracing failed."""

from __future__ import annotations

from typing import Any

import paddle
from paddle import nn


def to_static(network: nn.Layer, inputs: paddle.static.InputSpec, *, with_cinn: bool = False) -> Any:
    """Returns ``paddle.jit.to_static`` of the whole graph. The first call or saving it traces the network.

    During a tracing, Paddle 3 records the parameters under the address of the program. If the tracing fails,
    the record remains. A later program at the same address then gets values that no longer exist. The result
    is a KeyError, or the end of the process. So the records of earlier tracings are removed here.

    Args:
        network: network with one argument.
        inputs: shape and type of this argument.
        with_cinn: True to compile with CINN. Paddle 3.1 and newer do so by default on GPUs. It can
            take minutes.
    """
    try:
        from paddle.jit.dy2static.parameter_recorder import _global_parameter_recorder as recorder
    except ImportError:  # Paddle 2 has no such record
        recorder = None
    for name in ("params_dict", "tensor2value"):
        getattr(recorder, name, {}).clear()
    backend = "CINN" if with_cinn else None
    return paddle.jit.to_static(network, input_spec=[inputs], full_graph=True, backend=backend)
