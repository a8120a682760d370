"""An exponential moving average of a network's weights, used for evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import paddle
from paddle import nn

from ppxcls.system.arrays import Array


class WeightAverage:
    """The average of a network's weights and batch-norm statistics, updated after each optimizer step.

    Args:
        model: network without the wrapper for data parallelism.
        decay: factor of the previous average in each step.
        warmup: True to limit the decay in step n to (1 + n) / (10 + n), so that the initial weights are soon
            forgotten.
    """

    def __init__(self, model: nn.Layer, decay: float, *, warmup: bool = False) -> None:
        self.decay = decay
        self.warmup = warmup
        self._tensors = dict(model.state_dict())
        self._average = {
            key: tensor.detach().astype("float32").clone() for key, tensor in self._tensors.items()
        }

    def update(self, step: int) -> None:
        """Updates the average with the current weights.

        Args:
            step: number of the last optimizer step, counted from 1.
        """
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        with paddle.no_grad():
            for key, tensor in self._tensors.items():
                average = self._average[key]
                average.scale_(decay)
                average.add_(tensor.astype("float32") * (1 - decay))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Replaces the network's weights by the average inside this context."""
        weights = {key: tensor.clone() for key, tensor in self._tensors.items()}
        self._set(self._average)
        try:
            yield
        finally:
            self._set(weights)

    def _set(self, values: Mapping[str, paddle.Tensor]) -> None:
        with paddle.no_grad():
            for key, tensor in self._tensors.items():
                tensor.set_value(values[key].astype(tensor.dtype))

    def state_dict(self) -> dict[str, Array]:
        """Returns copies of the averaged arrays by the network's state keys."""
        return {key: value.numpy() for key, value in self._average.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets the average from arrays by the network's state keys. No key may be missing."""
        for key in self._average:
            self._average[key] = paddle.to_tensor(state[key])
