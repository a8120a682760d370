"""Trains the exit flow and the classifier of a network on activations of its frozen trunk."""

from __future__ import annotations

import math
import time

import numpy as np
import paddle
from tqdm import tqdm

from ppxcls.fitting.features import Features
from ppxcls.fitting.linear import LinearClassifier
from ppxcls.models.parts import NetworkParts
from ppxcls.system.arrays import Array
from ppxcls.system.signals import interrupts_deferred
from ppxcls.train.losses import CELoss

BATCH_SIZE = 32
_EVALUATED_AT_ONCE = 32
# The linear classifier fits its photographs almost perfectly, so gradients are small. An optimizer that
# divides by their size, such as Adam, takes large steps all the same, and lost 5 % in an epoch.
_LEARNING_RATE = 0.03
_MOMENTUM = 0.9
_MAX_GRADIENT_NORM = 0.3  # photographs that are unlike those of the published weights have large gradients
_TIMED_STEPS = 3


class ExitFlowTraining:
    """Trains the exit flow and the classifier, with batch norms that keep their statistics.

    Each training starts from the same weights, so the result depends on the photographs and the seed only.

    Args:
        parts: parts of a network in evaluation mode. Their parameters are changed.
        features: features with activations.
        seed: seed of the order of the photographs and of their copies.
        loss: cross-entropy, perhaps with class weights.
    """

    def __init__(self, parts: NetworkParts, features: Features, seed: int, loss: CELoss) -> None:
        self._parts = parts
        self._features = features
        self._seed = seed
        self._loss = loss
        self._layers = (parts.exit_flow, parts.classifier)
        self._first_arrays = [tensor.numpy().copy() for tensor in self._parameters()]

    def _parameters(self) -> list[paddle.Tensor]:
        return [p for layer in self._layers for p in layer.parameters() if not p.stop_gradient]

    def reset(self, classifier: LinearClassifier) -> None:
        """Sets the first weights again, and those of a linear classifier."""
        for tensor, array in zip(self._parameters(), self._first_arrays, strict=True):
            tensor.set_value(array)
        self._parts.classifier.weight.set_value(classifier.weight)
        if self._parts.classifier.bias is not None:
            self._parts.classifier.bias.set_value(classifier.bias)

    def train(self, indices: Array, classifier: LinearClassifier, epochs: int) -> None:
        """Trains on some photographs, from the first weights and a linear classifier.

        Args:
            indices: indices of the photographs.
            classifier: linear classifier of the pooled features.
            epochs: number of epochs. In each, one copy of each photograph is used.
        """
        self.reset(classifier)
        step_count = epochs * math.ceil(len(indices) / BATCH_SIZE)
        optimizer = self._optimizer()
        step = 0
        with tqdm(total=step_count, desc="exit flow", unit="step", disable=None, leave=False) as bar:
            for epoch in range(epochs):
                rng = np.random.default_rng([self._seed, epoch])
                order = rng.permutation(indices)
                copies = rng.integers(0, self._features.copies, len(order))
                for first in range(0, len(order), BATCH_SIZE):
                    rows = slice(first, first + BATCH_SIZE)
                    optimizer.set_lr(_LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / step_count)))
                    self._step(optimizer, order[rows], copies[rows])
                    step += 1
                    bar.update()

    def seconds_per_photograph(self, classifier: LinearClassifier) -> float:
        """Returns the time of training on one photograph, from the fastest of a few steps."""
        count = len(self._features.labels)
        indices = np.arange(min(BATCH_SIZE, count))
        copies = np.zeros(len(indices), int)
        self.reset(classifier)
        optimizer = self._optimizer()
        times = []
        for _ in range(_TIMED_STEPS):
            start = time.perf_counter()
            self._step(optimizer, indices, copies)
            times.append(time.perf_counter() - start)
        self.reset(classifier)
        return min(times) / len(indices)

    def logits(self, indices: Array) -> Array:
        """Returns the logits of photographs with the present weights, float32 [len(indices), class_num]."""
        outputs = []
        with paddle.no_grad():
            for first in range(0, len(indices), _EVALUATED_AT_ONCE):
                rows = indices[first : first + _EVALUATED_AT_ONCE]
                inputs = paddle.to_tensor(self._features.inputs(rows, np.zeros(len(rows), int)))
                outputs.append(self._parts.classifier(self._parts.exit_flow(inputs)).numpy())
        return np.concatenate(outputs)

    def _optimizer(self) -> paddle.optimizer.Optimizer:
        return paddle.optimizer.Momentum(
            _LEARNING_RATE,
            _MOMENTUM,
            parameters=self._parameters(),
            use_nesterov=True,
            grad_clip=paddle.nn.ClipGradByGlobalNorm(_MAX_GRADIENT_NORM),
        )

    def _step(self, optimizer: paddle.optimizer.Optimizer, indices: Array, copies: Array) -> float:
        inputs = paddle.to_tensor(self._features.inputs(indices, copies))
        labels = paddle.to_tensor(self._features.labels[indices])
        with interrupts_deferred():
            logits = self._parts.classifier(self._parts.exit_flow(inputs))
            loss = self._loss(logits, labels)
            loss.backward()
            optimizer.step()
            optimizer.clear_grad(set_to_zero=False)
            return float(loss)
