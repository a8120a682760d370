"""The times of a run: when it logs, evaluates, saves and ends."""

from __future__ import annotations

from dataclasses import dataclass

from ppxcls.checkpoints.progress import Progress
from ppxcls.train.early_stop import EarlyStop


@dataclass
class RunSchedule:
    """Tells when to log, evaluate, save and end.

    Names and units are those of the config's ``Global`` section.

    Attributes:
        epochs: number of epochs to train.
        update_freq: number of batches per optimizer step.
        print_batch_step: number of batches between log lines.
        save_interval: number of epochs between checkpoints ``epoch_N``.
        latest_interval: number of epochs between checkpoints ``latest``.
        eval_interval: number of epochs between evaluations.
        start_eval_epoch: first epoch after which an evaluation may run.
        save_interval_steps: number of optimizer steps between checkpoints inside an epoch; None for none.
        save_interval_minutes: number of minutes between checkpoints inside an epoch; None for none.
        early_stop: rule for an end before the last epoch; None for none.
        max_hours: hours after which a call of ``Trainer.fit`` saves and ends; None for no limit.
    """

    epochs: int
    update_freq: int = 1
    print_batch_step: int = 10
    save_interval: int = 1
    latest_interval: int = 1
    eval_interval: int = 1
    start_eval_epoch: int = 0
    save_interval_steps: int | None = None
    save_interval_minutes: float | None = None
    early_stop: EarlyStop | None = None
    max_hours: float | None = None

    def is_evaluation_due(self, epoch: int) -> bool:
        """True if an evaluation follows this epoch."""
        is_in_interval = epoch % self.eval_interval == 0 or epoch == self.epochs
        return epoch >= self.start_eval_epoch and is_in_interval

    def has_stopped_early(self, progress: Progress) -> bool:
        """True if ``early_stop`` has ended the run before its last epoch."""
        return (
            self.early_stop is not None
            and progress.epoch <= self.epochs
            and self.early_stop.has_ended(progress)
        )

    def is_finished(self, progress: Progress) -> bool:
        """True if no epoch is left to train."""
        return progress.epoch > self.epochs or self.has_stopped_early(progress)
