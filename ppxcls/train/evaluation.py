"""Evaluates every sample exactly once, with any number of processes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional

from ppxcls.calibration.fit import FittedCalibration, fitted_calibration
from ppxcls.config.figures import GROUP_PREFIX, is_larger_better
from ppxcls.data.device import ModelInput, to_device
from ppxcls.data.loader import Batch, Loader
from ppxcls.system import distributed
from ppxcls.system.signals import interrupts_deferred
from ppxcls.train.flat_tensors import as_float32
from ppxcls.train.group_figures import GroupFigures
from ppxcls.train.losses import WeightedSum
from ppxcls.train.metrics import Metric, Scorer, Totals
from ppxcls.train.paddle_inference import Compiler, EvaluatedNetwork
from ppxcls.train.precision import Autocast
from ppxcls.train.predictions import Predictions, PredictionTable


class Evaluation:
    """Evaluates networks on this process's part of a data set, and sums over the processes.

    If the images contain several views, the probabilities of these are averaged. Loss and metrics get the
    logarithms of the averages as logits.

    Args:
        loader: loader without shuffling. The parts of all processes make up the data set.
        loss: loss to report, a weighted sum of terms.
        metrics: metrics to report.
        autocast: function that makes the context for the forward pass.
        best_metric: figure that decides which evaluation is the best; None for the first figure.
        calibration_source: name of the list, and whether its images choose the weights, for ``calibrate``;
            None to keep no logits for it.
        group_figures: figures of groups of images; None if there are no groups.

    Attributes:
        predictions: predictions for each sample in the last evaluation; None before the first evaluation.
    """

    def __init__(
        self,
        loader: Loader,
        loss: WeightedSum,
        *,
        metrics: Sequence[Metric],
        autocast: Autocast = contextlib.nullcontext,
        best_metric: str | None = None,
        calibration_source: str | None = None,
        group_figures: GroupFigures | None = None,
    ) -> None:
        self.loader = loader
        self._loss = loss
        self._metrics = list(metrics)
        self._autocast = autocast
        self._best_metric = best_metric
        self._group_figures = group_figures
        self._scorer = Scorer(loss.names, metrics)
        self._to_input = ModelInput(loader.dataset.device_stage)
        self._calibration_source = calibration_source
        self._view_temperature = 1.0
        self._table = PredictionTable(len(loader.dataset), keeps_logits=calibration_source is not None)
        self._compiler = Compiler()
        self.predictions: Predictions | None = None

    @property
    def loss_name(self) -> str:
        """The name of the whole loss in the results."""
        return self._loss.names[-1]

    @property
    def deciding_figure(self) -> str:
        """The name of the figure that decides which evaluation is the best."""
        if self._best_metric is not None:
            return self._best_metric
        return [*self.figures, *self._loss.names][0]

    @property
    def figures(self) -> list[str]:
        """The names of the figures of metrics in the results, and then those of groups."""
        names = [name for metric in self._metrics for name in (*metric.names, *metric.figures)]
        group_names = [f"{GROUP_PREFIX}{name}" for name in names] if self._group_figures else []
        return [*names, *group_names]

    @property
    def facts(self) -> dict[str, str]:
        """Facts about the evaluation that a checkpoint's manifest contains, as in ``RunFacts``."""
        return {
            "eval_list": self.loader.dataset.labelled_digest(),
            "eval_groups": self._group_figures.digest if self._group_figures else "",
            "best_metric": self.deciding_figure,
        }

    def larger_is_better(self, name: str) -> bool:
        """True if a larger value of ``name`` is better, as of all metrics but error rates and losses."""
        return is_larger_better(name, losses=self._loss.names, metrics=self._metrics)

    def __call__(self, network: nn.Layer, batches: Iterable[Batch]) -> dict[str, float]:
        """Evaluates a network.

        Args:
            network: network without the wrapper for data parallelism. The wrapper would wait for processes
                that have no more batches.
            batches: batches of ``loader``. An exception from this iterable ends the evaluation.

        Returns:
            Metrics in the order of their list, those of groups with ``group_`` before their names, losses as
            means over samples, ``num_samples``, and ``bad_samples`` if the loader skips unreadable samples.

        Raises:
            DataError: a sample can't be loaded.
        """
        # Read at the end, because each read makes the host wait for the device.
        batch_sums: list[tuple[int, paddle.Tensor]] = []
        bad_count = 0
        was_training = network.training
        network.eval()
        evaluated_network = EvaluatedNetwork(
            network, len(self.loader.dataset) // distributed.world_size(), self._compiler
        )
        for metric in self._metrics:
            metric.reset()
        if self._group_figures:
            self._group_figures.reset()
        self._table.reset()
        distributed.share_first_statistics(network)  # checkpoints contain these statistics
        try:
            with paddle.no_grad():
                for batch in batches:
                    bad_count += batch.left_out
                    if batch.plan.count:
                        batch_sums.append((batch.plan.count, self._score(evaluated_network, batch)))
        finally:
            if was_training:
                network.train()
        self.predictions = self._table.gathered()
        if self.loader.dataset.views:
            self.predictions = replace(self.predictions, temperature=self._view_temperature)
        return self._results(batch_sums, bad_count)

    def set_temperature(self, temperature: float) -> None:
        """Sets the divisor of the logits for the predictions. Loss and metrics are those of the logits."""
        if self.loader.dataset.views:  # the scores of each view are divided, before their mean
            self._view_temperature = temperature
        else:
            self._table.temperature = temperature

    def calibrate(self) -> FittedCalibration | None:
        """Fits a temperature to the last evaluation, and computes ``predictions`` with it.

        All processes must call it.

        Returns:
            The calibration; None if there is no source for it, or if the images say too little.
        """
        if self._calibration_source is None:
            return None
        fitted = fitted_calibration(*self._table.gathered_logits(), self._calibration_source)
        if fitted is not None:
            self.set_temperature(fitted.calibration.temperature)
            self.predictions = self._table.gathered()
            self.set_temperature(1.0)
        return fitted

    def forget_logits(self) -> None:
        """Frees the memory of the logits of the last evaluation."""
        self._table.reset()

    def results_of(self, logits: paddle.Tensor, labels: paddle.Tensor) -> dict[str, float]:
        """Returns the results for logits that are known already, without any network.

        Args:
            logits: logits of all images in the order of the data set, [N, class_num].
            labels: int64 [N].
        """
        if self._group_figures:
            self._group_figures.add(np.arange(logits.shape[0]), logits)
        sums = self._scorer(self._loss(logits, labels), logits, labels)
        return self._results([(logits.shape[0], sums)], bad_count=0)

    def _score(self, network: EvaluatedNetwork, batch: Batch) -> paddle.Tensor:
        labels = to_device(batch.labels)
        with interrupts_deferred():
            outputs = self._outputs(network, self._to_input(batch.images))
            logits = _mean_logits(outputs)
            losses = self._loss(logits, labels)
        table_logits = logits
        if self._view_temperature != 1:
            table_logits = _mean_logits([output / self._view_temperature for output in outputs])
        self._table.add(batch.plan.indices, table_logits, labels)
        if self._group_figures:
            self._group_figures.add(batch.plan.indices, logits)
        return self._scorer(losses, logits, labels)

    def _outputs(self, network: EvaluatedNetwork, images: paddle.Tensor) -> list[paddle.Tensor]:
        """Returns the logits of each view of a batch [N, C, H, W], float32."""
        views = self.loader.dataset.views
        outputs = []
        for view in paddle.split(images, views.count, axis=2) if views else [images]:
            with self._autocast():
                logits = network(view)
            outputs.append(as_float32(logits))
        return outputs

    def _results(self, batch_sums: list[tuple[int, paddle.Tensor]], bad_count: int) -> dict[str, float]:
        totals = Totals(self._scorer.names)
        rows = paddle.stack([sums for _, sums in batch_sums]).numpy() if batch_sums else []
        for (count, _), row in zip(batch_sums, rows, strict=True):
            totals.add(count, row)
        totals.add(0, np.zeros(len(self._scorer.names)), bad_count)
        means = totals.reduced()
        figures: dict[str, float] = {}
        for metric in self._metrics:
            figures |= {name: means.values[name] for name in metric.names} | metric.results()
            if missing_figures := [name for name in metric.figures if name not in figures]:
                raise TypeError(f"metric {type(metric).__name__} returns no {', '.join(missing_figures)}")
        if self._group_figures:
            figures |= self._group_figures.results()
        losses = {name: means.values[name] for name in self._loss.names}
        bad_samples = {"bad_samples": means.left_out} if self.loader.bad_samples else {}
        return {**figures, **losses, "num_samples": means.samples, **bad_samples}


def _mean_logits(outputs: Sequence[paddle.Tensor]) -> paddle.Tensor:
    """Returns the logits of one view; of several views, log(mean(softmax(logits)))."""
    if len(outputs) == 1:
        return outputs[0]
    log_probabilities = [functional.log_softmax(logits, axis=-1) for logits in outputs]
    return paddle.logsumexp(paddle.stack(log_probabilities), axis=0) - math.log(len(outputs))
