"""The numbers of training steps: read from the device together, summed, and watched for going wrong."""

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

_MOST_PENDING = 200  # steps whose losses stay on the device at most
_SMOOTHING, _SETTLED = 0.9, 10  # of the loss from line to line; lines after which its mean means something
_DIVERGED = 1.5  # times the first loss of the run, and twice its lowest


class TrainingError(Exception):
    """The run can't go on: says where it was and why."""


@dataclass
class StepResult:
    """A step that is done but whose numbers may not have been read yet.

    Attributes:
        sums: losses and metrics times samples, float32 [names].
        skipped: whether AMP left the optimizer step out; a boolean or a tensor [].
    """

    lr: float
    plan: BatchPlan
    left_out: int
    sums: paddle.Tensor
    skipped: Any = False


class LossWatch:
    """Collects the numbers of steps on the device; reading them makes the host wait for the device.

    Args:
        learner: gets the sums and the counts of skipped steps; its weights are looked at.
        dataset: names the files of a step that goes wrong.
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
        """Read the numbers of the steps since the last time, and check that they and the weights are finite.

        Args:
            force: False reads them only if too many have gathered.

        Raises:
            TrainingError: the loss of a step that was not skipped or a weight is not finite, or too many steps in a row were
                skipped.
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
            raise TrainingError(f"AMP found gradients that are not finite in {count}, the last one step {progress.step}")
        if finite:
            self._watch_loss(sum(finite) / len(finite))
        self._check_weights()

    def _not_finite(self, step: StepResult, row: Any) -> str:
        plan, epoch = step.plan, self._learner.progress.epoch
        files = ", ".join(self._dataset.path(int(i)) for i in plan.indices)
        values = ", ".join(f"{n} {v / max(plan.count, 1):g}" for n, v in zip(self._learner.scorer.names, row, strict=True))
        place = f"epoch {epoch}, iteration {plan.number}, lr {step.lr:g}, rank {distributed.rank()}"
        return f"the loss is not finite: {place}: {values}; last files read: {files}"

    def _check_weights(self) -> None:
        """A gradient that was not finite has left its mark, before the loss shows it."""
        trained = {name: p for name, p in self._learner.network.named_parameters() if not p.stop_gradient}
        marks = paddle.stack([(p * 0).sum().astype("float32") for p in trained.values()]).numpy()
        wrong = [name for name, mark in zip(trained, marks, strict=True) if not np.isfinite(mark)]
        if wrong:
            named = ", ".join(wrong[-3:])  # the gradient comes from the end of the network
            place = f"after step {self._learner.progress.step}, rank {distributed.rank()}: {len(wrong)} of {len(trained)} tensors"
            raise TrainingError(f"a gradient was not finite, and so are weights now {place}, such as {named}")

    def _watch_loss(self, loss: float) -> None:
        self._loss = loss if math.isnan(self._loss) else _SMOOTHING * self._loss + (1 - _SMOOTHING) * loss
        self._losses += 1
        if self._losses == _SETTLED:
            self._first_loss = self._lowest_loss = self._loss
        self._lowest_loss = min(self._lowest_loss, self._loss)
        if self._loss > max(_DIVERGED * self._first_loss, 2 * self._lowest_loss) and not self._warned:
            self._warned = True  # once: the lines that follow show the rest
            now = f"{self._loss:g} at step {self._learner.progress.step}, smoothed"
            logger.warning(
                f"the loss diverges: {now}, after {self._first_loss:g} at first and {self._lowest_loss:g} at best; "
                f"a lower learning rate or a longer warm-up may help"
            )
