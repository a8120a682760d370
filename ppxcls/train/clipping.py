"""Gradient clipping with a few operators for all gradients, computed in float32."""

from __future__ import annotations

from typing import Any

import paddle
from paddle import nn

from ppxcls.train.flat_tensors import FlatTensors

ParametersAndGradients = list[tuple[paddle.Tensor, paddle.Tensor]]


class ClipGradByGlobalNorm(nn.ClipGradByGlobalNorm):
    """Scales all gradients, if the norm of all together is larger than ``clip_norm``.

    Paddle's class uses several operators per gradient, and sums the squares of half-precision gradients in
    half precision, where they overflow above 65,504.
    """

    def _dygraph_clip(self, params_grads: ParametersAndGradients) -> ParametersAndGradients:
        def clip(gradients: paddle.Tensor) -> None:
            norm = (gradients * gradients).sum().sqrt()
            limit = paddle.full([], float(self.clip_norm), "float32")
            gradients.multiply_(limit / paddle.maximum(norm, limit))

        return _clipped(params_grads, clip)


class ClipGradByValue(nn.ClipGradByValue):
    """Limits each element of the gradients to ``min`` and ``max``."""

    def _dygraph_clip(self, params_grads: ParametersAndGradients) -> ParametersAndGradients:
        return _clipped(params_grads, lambda gradients: gradients.clip_(self.min, self.max))


def _clipped(params_grads: ParametersAndGradients, clip: Any) -> ParametersAndGradients:
    """Returns the parameters with gradients that a function has changed in place.

    Args:
        params_grads: parameters and their gradients; the gradient is None if the parameter was not used.
        clip: function of all gradients as one vector, float32 [total].
    """
    pairs = [(parameter, gradient) for parameter, gradient in params_grads if gradient is not None]
    if not pairs:
        return params_grads
    flat_gradients = FlatTensors([gradient for _, gradient in pairs])
    with paddle.no_grad():
        vector = flat_gradients.concatenated()
        clip(vector)
        return [
            (parameter, view if view.dtype == gradient.dtype else view.astype(gradient.dtype))
            for (parameter, gradient), view in zip(pairs, flat_gradients.split(vector), strict=True)
        ]
