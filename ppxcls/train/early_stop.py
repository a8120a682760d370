"""The end of a run whose evaluations have stopped improving."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ppxcls.checkpoints.progress import Progress
from ppxcls.train.lr_schedules import LRSchedule


@dataclass(frozen=True)
class EarlyStop:
    """A rule that ends a run, with Keras's meaning of the three numbers.

    Its state is in the progress of the run, so a resumed run takes the same decision.

    Attributes:
        patience: number of evaluations in a row without an improvement after which the run ends, from 1.
        min_delta: difference from the last improvement; only a larger one is an improvement.
        start_epoch: first epoch whose evaluation counts.
    """

    patience: int = 10
    min_delta: float = 0.0
    start_epoch: int = 0

    def observe(self, progress: Progress, metric: str, value: float, *, larger_is_better: bool) -> None:
        """Counts an evaluation.

        Args:
            progress: progress of the run, which is changed.
            metric: name of the figure that chooses ``best_model``.
            value: value of the figure. A value that is not finite is no improvement.
            larger_is_better: True if a larger value is better.
        """
        if progress.epoch < self.start_epoch:
            return
        if progress.improvement and progress.improvement["metric"] != metric:  # it can't be compared
            progress.improvement, progress.stale_evaluations = {}, 0
        last = progress.improvement
        sign = 1 if larger_is_better else -1
        if math.isfinite(value) and (not last or sign * (value - last["value"]) > self.min_delta):
            progress.improvement = {"metric": metric, "value": value, "epoch": progress.epoch}
            progress.stale_evaluations = 0
        else:
            progress.stale_evaluations += 1

    def has_ended(self, progress: Progress) -> bool:
        """True if there were too many evaluations without an improvement."""
        return progress.stale_evaluations >= self.patience


def early_end(progress: Progress, epochs: int, schedule: LRSchedule | None, steps_per_epoch: int) -> str:
    """Returns sentences about an early end: its reason, the best epoch, and a rate that was still high.

    Args:
        progress: progress at the end of the run.
        epochs: number of epochs that were planned.
        schedule: schedule of the learning rate; None if it is not known.
        steps_per_epoch: number of optimizer steps per epoch.
    """
    evaluations = (
        "1 evaluation" if progress.stale_evaluations == 1 else f"{progress.stale_evaluations:,} evaluations"
    )
    best, improvement = progress.best, progress.improvement
    if improvement:
        reason = f"no better {improvement['metric']} in {evaluations} after epoch {improvement['epoch']:,}"
    else:
        reason = f"no finite figure in {evaluations}"
    end = f"after epoch {progress.epoch - 1:,} of {epochs:,}"
    sentences = [f"The run stopped early, {end}: {reason} (Global.early_stop)."]
    if best:
        is_equal = best["value"] == improvement.get("value") and best["epoch"] != improvement["epoch"]
        loss_text = ", equal but with a smaller loss" if is_equal else ""
        figure = f"{best['metric']} {best['value']:.5f}{loss_text}"
        sentences.append(f"The best epoch is {best['epoch']:,} ({figure}).")
    if schedule and progress.step:
        rate = schedule(progress.step - 1)
        last_rate = schedule(epochs * steps_per_epoch - 1)
        if rate > last_rate:
            sentences.append(
                f"The learning rate had not come down to its minimum: {schedule.name} was at {rate:.3g}, "
                f"and would have ended at {last_rate:.3g}."
            )
    return " ".join(sentences)
