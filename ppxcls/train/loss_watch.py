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
from ppxcls.system.logs import logger
from ppxcls.train.learner import Learner

_MOST_PENDING = 200  # largest number of steps whose losses stay on the device
_SMOOTHING, _SETTLED = 0.9, 10  # smoothing of the loss between log lines; lines before its mean is used
_DIVERGED = 1.5  # a loss diverges above this multiple of the first loss, and above twice the lowest


class TrainingError(Exception):
    """The run can't continue. The message gives the place in the run and the reason."""


@dataclass
class StepResult:
    """A step whose numbers may still be on the device.

    Attributes:
        lr: rate of the step.
        plan: samples of the batch.
        left_out: number of unreadable samples.
        sums: sums of losses and metrics over the samples, float32 [names].
        skipped: whether AMP skipped the optimizer step; a boolean or a tensor [].
    """

    lr: float
    plan: BatchPlan
    left_out: int
    sums: paddle.Tensor
    skipped: Any = False


class LossWatch:
    """Collects the results of steps.

    Reading them makes the host wait for the device, so it is done for several at a time.

    Args:
        learner: receives the sums and the counts of skipped steps; its weights are checked.
        dataset: gives the files of a failed step.
    """

    def __init__(self, learner: Learner, dataset: Dataset) -> None:
        self._learner, self._dataset = learner, dataset
        self._pending: list[StepResult] = []
        self._loss = self._first_loss = self._lowest_loss = math.nan
        self._losses = 0
        self._warned = False

    def add(self, step: StepResult) -> None:
        """Add a step, without waiting for it."""
        self._pending.append(step)

    def read(self, force: bool = True) -> None:
        """Read the results of the steps since the last time, and check that they and the weights are finite.

        Args:
            force: False reads them only if too many have gathered.

        Raises:
            TrainingError: a weight or the loss of a step is not finite, or AMP skipped too many steps in a
                row.
        """
        if not self._pending or not (force or len(self._pending) >= _MOST_PENDING):
            return
        learner, progress = self._learner, self._learner.progress
        rows = paddle.stack([step.sums for step in self._pending]).numpy()
        pending, self._pending = self._pending, []
        finite: list[float] = []
        for step, row in zip(pending, rows, strict=True):
            skipped = bool(step.skipped)
            progress.skipped = progress.skipped + 1 if skipped else 0
            progress.skipped_total += skipped
            if not np.isfinite(row).all():
                if skipped:
                    continue
                raise TrainingError(self._not_finite(step, row))
            learner.totals.add(step.plan.count, row if step.plan.count else np.zeros_like(row), step.left_out)
            if step.plan.count:
                finite.append(float(row[-1]) / step.plan.count)
        if progress.skipped > learner.precision.max_skipped_steps:
            count = f"{progress.skipped} steps in a row (AMP.max_skipped_steps = {learner.precision.max_skipped_steps})"
            raise TrainingError(f"gradients were not finite in {count}; the last one is step {progress.step}")
        if finite:
            self._watch_loss(sum(finite) / len(finite))
        self._check_weights()

    def _not_finite(self, step: StepResult, row: Any) -> str:
        plan, epoch = step.plan, self._learner.progress.epoch
        files = ", ".join(self._dataset.path(int(i)) for i in plan.indices)
        values = ", ".join(
            f"{n} {v / max(plan.count, 1):g}" for n, v in zip(self._learner.scorer.names, row, strict=True)
        )
        place = f"epoch {epoch}, iteration {plan.number}, lr {step.lr:g}, rank {distributed.rank()}"
        return f"the loss is not finite: {place}: {values}; last files read: {files}"

    def _check_weights(self) -> None:
        """Find weights that are not finite, because a gradient was not. The loss shows it only later."""
        trained = {name: p for name, p in self._learner.network.named_parameters() if not p.stop_gradient}
        marks = paddle.stack([(p * 0).sum().astype("float32") for p in trained.values()]).numpy()
        wrong = [name for name, mark in zip(trained, marks, strict=True) if not np.isfinite(mark)]
        if wrong:
            named = ", ".join(wrong[-3:])  # gradients come from the end of the network
            place = f"after step {self._learner.progress.step}, rank {distributed.rank()}: {len(wrong)} of {len(trained)} tensors"
            raise TrainingError(
                f"a gradient was not finite, and weights are not finite {place}, such as {named}"
            )

    def _watch_loss(self, loss: float) -> None:
        self._loss = loss if math.isnan(self._loss) else _SMOOTHING * self._loss + (1 - _SMOOTHING) * loss
        self._losses += 1
        if self._losses == _SETTLED:
            self._first_loss = self._lowest_loss = self._loss
        self._lowest_loss = min(self._lowest_loss, self._loss)
        if self._loss > max(_DIVERGED * self._first_loss, 2 * self._lowest_loss) and not self._warned:
            self._warned = True  # once is enough
            now = f"{self._loss:g} at step {self._learner.progress.step}, smoothed"
            logger.warning(
                f"the loss diverges: {now}, after {self._first_loss:g} at first and {self._lowest_loss:g} at best; "
                "a lower learning rate or a longer warm-up may help"
            )
