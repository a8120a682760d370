"""Reads the losses of training steps from the device, several at a time, and checks them and the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from ppxcls.data.dataset import Dataset
from ppxcls.data.sampler import BatchPlan
from ppxcls.system import distributed
from ppxcls.system.errors import UserError
from ppxcls.system.logs import logger
from ppxcls.train.flat_tensors import FlatTensors
from ppxcls.train.learner import Learner

_MAX_PENDING_STEPS = 200  # steps; with this many, the losses are read in any case
_SMOOTHING, _MIN_READS = 0.9, 10  # weight of the previous mean; reads before the first loss is recorded
_DIVERGENCE_RATIO = 1.5  # times the first loss; a diverging loss is also above twice the lowest loss


class TrainingError(UserError):
    """The run can't continue. The message gives the place in the run and the reason."""


@dataclass(kw_only=True)
class StepResult:
    """The result of a training step. Its numbers may still be on the device.

    Attributes:
        lr: learning rate of the step.
        plan: samples of the batch.
        left_out: number of unreadable samples.
        sums: sums of losses and metrics over the samples, float32 [names].
        skipped: True if AMP skipped the optimizer step.
    """

    lr: float
    plan: BatchPlan
    left_out: int
    sums: paddle.Tensor
    skipped: bool = False


class LossWatch:
    """Collects and checks the results of training steps.

    The results are read several at a time, because each read makes the host wait for the device.

    Args:
        learner: learner that receives the sums and the counts of skipped steps. Its weights are checked.
        dataset: training data, which gives the files of a failed step.
    """

    def __init__(self, learner: Learner, dataset: Dataset) -> None:
        self._learner = learner
        self._dataset = dataset
        self._pending_steps: list[StepResult] = []
        self._loss = self._first_loss = self._lowest_loss = math.nan
        self._read_count = 0
        self._has_warned = False
        self._parameters: FlatTensors | None = None

    def add(self, step: StepResult) -> None:
        """Adds a step without waiting for its numbers."""
        self._pending_steps.append(step)

    def read(self, *, force: bool = True) -> None:
        """Reads the pending results, and checks that they and the weights are finite.

        Args:
            force: False to read only if there are too many pending results.

        Raises:
            TrainingError: a weight or the loss of a step is not finite, or AMP skipped too many steps in a
                row.
        """
        if not self._pending_steps or not (force or len(self._pending_steps) >= _MAX_PENDING_STEPS):
            return
        learner, progress = self._learner, self._learner.progress
        rows = paddle.stack([step.sums for step in self._pending_steps]).numpy()
        steps, self._pending_steps = self._pending_steps, []
        mean_losses: list[float] = []
        for step, row in zip(steps, rows, strict=True):
            is_skipped = step.skipped
            progress.skipped = progress.skipped + 1 if is_skipped else 0
            progress.skipped_total += is_skipped
            if not np.isfinite(row).all():
                if is_skipped:
                    continue
                raise TrainingError(self._loss_message(step, row))
            learner.totals.add(step.plan.count, row if step.plan.count else np.zeros_like(row), step.left_out)
            if step.plan.count:
                mean_losses.append(float(row[-1]) / step.plan.count)
        if progress.skipped > learner.precision.max_skipped_steps:
            skipped_steps = (
                f"{progress.skipped} steps in a row (AMP.max_skipped_steps "
                f"= {learner.precision.max_skipped_steps})"
            )
            raise TrainingError(
                f"gradients were not finite in {skipped_steps}; the last one is step {progress.step}"
            )
        if mean_losses:
            self._watch_loss(sum(mean_losses) / len(mean_losses))
        self._check_weights()

    def _loss_message(self, step: StepResult, row: Any) -> str:
        plan, epoch = step.plan, self._learner.progress.epoch
        files = ", ".join(self._dataset.path(int(i)) for i in plan.indices)
        values = ", ".join(
            f"{n} {v / max(plan.count, 1):g}" for n, v in zip(self._learner.scorer.names, row, strict=True)
        )
        place = f"epoch {epoch}, iteration {plan.number}, lr {step.lr:g}, rank {distributed.rank()}"
        return f"the loss is not finite: {place}: {values}; last files read: {files}"

    def _check_weights(self) -> None:
        """Checks that all trained weights are finite.

        A gradient that is not finite makes them not finite. The loss shows this only later.

        Raises:
            TrainingError: a weight is not finite.
        """
        parameters = {name: p for name, p in self._learner.network.named_parameters() if not p.stop_gradient}
        if self._parameters is None:
            self._parameters = FlatTensors(list(parameters.values()))
        if math.isfinite(float((self._parameters.concatenated() * 0).sum())):
            return
        zero_sums = paddle.stack([(p * 0).sum().astype("float32") for p in parameters.values()]).numpy()
        bad_names = [name for name, mark in zip(parameters, zero_sums, strict=True) if not np.isfinite(mark)]
        if bad_names:
            example_names = ", ".join(bad_names[-3:])  # the gradients come from the end
            place = (
                f"after step {self._learner.progress.step}, rank "
                f"{distributed.rank()}: {len(bad_names)} of {len(parameters)} tensors"
            )
            raise TrainingError(
                f"a gradient was not finite, and weights are not finite {place}, such as {example_names}"
            )

    def _watch_loss(self, loss: float) -> None:
        self._loss = loss if math.isnan(self._loss) else _SMOOTHING * self._loss + (1 - _SMOOTHING) * loss
        self._read_count += 1
        if self._read_count == _MIN_READS:
            self._first_loss = self._lowest_loss = self._loss
        self._lowest_loss = min(self._lowest_loss, self._loss)
        if (
            self._loss > max(_DIVERGENCE_RATIO * self._first_loss, 2 * self._lowest_loss)
            and not self._has_warned
        ):
            self._has_warned = True  # warn only once
            loss_text = f"{self._loss:g} at step {self._learner.progress.step}, smoothed"
            logger.warning(
                f"the loss diverges: {loss_text}; first {self._first_loss:g}, lowest {self._lowest_loss:g}; "
                "a lower learning rate or a longer warm-up may help"
            )
