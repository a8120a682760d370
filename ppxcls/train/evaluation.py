"""Evaluation: every sample exactly once, whatever the number of processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import numpy as np
import paddle
from paddle import nn

from ppxcls.data.device import ModelInput
from ppxcls.data.loader import Batch, Loader
from ppxcls.system import distributed
from ppxcls.system.signals import interrupts_deferred
from ppxcls.train.losses import WeightedSum
from ppxcls.train.metrics import Metric, Scorer, Totals
from ppxcls.train.paddle_inference import Compiler, EvaluatedNetwork
from ppxcls.train.precision import Autocast
from ppxcls.train.predictions import Predictions, PredictionTable


class Evaluation:
    """Evaluates networks on this process's part of a data set, and sums over the processes.

    Args:
        loader: not shuffled; the parts of all processes make up the data set.
        autocast: makes the context to compute in.

    Attributes:
        predictions: of the last evaluation, sample by sample; None before it.
    """

    def __init__(
        self,
        loader: Loader,
        loss: WeightedSum,
        metrics: Sequence[Metric],
        autocast: Autocast = contextlib.nullcontext,
    ) -> None:
        self.loader = loader
        self._loss, self._metrics, self._autocast = loss, list(metrics), autocast
        self._scorer = Scorer(loss.names, metrics)
        self._to_input = ModelInput(loader.dataset.device_stage)
        self._table = PredictionTable(len(loader.dataset))
        self._compiler = Compiler()
        self.predictions: Predictions | None = None

    def larger_is_better(self, name: str) -> bool:
        """Whether a larger value of this figure is better, as of a metric; a smaller loss is."""
        return name not in self._loss.names

    def __call__(self, network: nn.Layer, batches: Iterable[Batch]) -> dict[str, float]:
        """Evaluate.

        Args:
            network: without the wrapper for data parallelism, which would wait for processes that have no
                batch left.
            batches: of ``loader``; what they raise ends the evaluation.

        Returns:
            Metrics as shares, losses as means over samples, ``num_samples``, and ``bad_samples`` if the
            loader leaves out what can't be read. The first figure decides which evaluation is the best.

        Raises:
            DataError: a sample can't be loaded.
        """
        scored: list[
            tuple[int, paddle.Tensor]
        ] = []  # read at the end: reading one makes the host wait for the device
        left_out = 0
        was_training = network.training
        network.eval()
        evaluated = EvaluatedNetwork(
            network, len(self.loader.dataset) // distributed.world_size(), self._compiler
        )
        distributed.share_first_statistics(network)  # what is evaluated is what is saved
        try:
            with paddle.no_grad():
                for batch in batches:
                    left_out += batch.left_out
                    if batch.plan.count:
                        scored.append((batch.plan.count, self._score(evaluated, batch)))
        finally:
            if was_training:
                network.train()
        self.predictions = self._table.gathered()
        return self._results(scored, left_out)

    def _score(self, network: EvaluatedNetwork, batch: Batch) -> paddle.Tensor:
        labels = paddle.to_tensor(batch.labels)
        with interrupts_deferred(), self._autocast():
            logits = network(self._to_input(batch.images))
            losses = self._loss(logits, labels)
        self._table.add(batch.plan.indices, logits, labels)
        return self._scorer(losses, logits, labels)

    def _results(self, scored: list[tuple[int, paddle.Tensor]], left_out: int) -> dict[str, float]:
        totals = Totals(self._scorer.names)
        for count, sums in scored:
            totals.add(count, sums.numpy())
        totals.add(0, np.zeros(len(self._scorer.names)), left_out)
        means = totals.reduced()
        others = {name: value for metric in self._metrics for name, value in metric.results().items()}
        bad = {"bad_samples": means.left_out} if self.loader.bad_samples else {}
        return {**means.values, **others, "num_samples": means.samples, **bad}
