"""An exponential moving average of a network's weights, used for evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddle.optimizer import Optimizer

from ppxcls.models.classifier_part import state_tensors
from ppxcls.system.arrays import Array
from ppxcls.train.flat_tensors import FlatTensors


class WeightAverage:
    """The average of a network's weights and batch-norm statistics, updated after each optimizer step.

    It is one vector, so that an update takes a few operators. If the weights have half precision, it averages
    the optimizer's float32 copies: a step is often too small to change a half-precision weight.

    Args:
        model: network without the wrapper for data parallelism.
        decay: factor of the previous average in each step.
        warmup: True to limit the decay in step n to (1 + n) / (10 + n), so that the initial weights are soon
            forgotten.
        optimizer: optimizer of the network, which has the float32 copies; None if there are none.
    """

    def __init__(
        self, model: nn.Layer, decay: float, *, warmup: bool = False, optimizer: Optimizer | None = None
    ) -> None:
        self.decay = decay
        self.warmup = warmup
        self._tensors = state_tensors(model)
        self._optimizer = optimizer
        self._sources = FlatTensors(list(self._tensors.values()))
        self._average = self._sources.concatenated()

    def update(self, step: int) -> None:
        """Updates the average with the current weights.

        Args:
            step: number of the last optimizer step, counted from 1.
        """
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        with paddle.no_grad():
            weights = self._current_sources().concatenated()
            self._average.scale_(decay)
            self._average.add_(weights.scale(1 - decay))

    def _current_sources(self) -> FlatTensors:
        """Returns the tensors to average: the float32 copy of each weight if there is one.

        The optimizer creates the copies in its first step, and replaces them when a run resumes.
        """
        copies = getattr(self._optimizer, "_master_weights", None) or {}
        tensors = [copies.get(tensor.name, tensor) for tensor in self._tensors.values()]
        if any(tensor is not source for tensor, source in zip(tensors, self._sources.tensors, strict=True)):
            self._sources = FlatTensors(tensors)
        return self._sources

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Replaces the network's weights by the average inside this context."""
        weights = [tensor.clone() for tensor in self._tensors.values()]
        self._set(self._sources.split(self._average))
        try:
            yield
        finally:
            self._set(weights)

    def _set(self, values: Sequence[paddle.Tensor]) -> None:
        with paddle.no_grad():
            for tensor, value in zip(self._tensors.values(), values, strict=True):
                paddle.assign(value if value.dtype == tensor.dtype else value.astype(tensor.dtype), tensor)

    def state_dict(self) -> dict[str, Array]:
        """Returns copies of the averaged arrays by the network's state keys."""
        sizes = self._sources.sizes
        parts = np.split(self._average.numpy(), np.cumsum(sizes)[:-1])
        pairs = zip(self._tensors.items(), parts, strict=True)
        return {key: part.reshape(tensor.shape) for (key, tensor), part in pairs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets the average from arrays by the network's state keys. No key may be missing."""
        values = [np.asarray(state[key], np.float32).reshape(-1) for key in self._tensors]
        self._average = paddle.to_tensor(np.concatenate(values))
