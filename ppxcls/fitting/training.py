"""Trains with the YAML files of ``fit``, and changes the number of epochs if the plan is off."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ppxcls.build.trainer import build_trainer
from ppxcls.fitting.clock import Clock
from ppxcls.fitting.configs import config_of
from ppxcls.fitting.progress import FitProgress
from ppxcls.fitting.request import Request
from ppxcls.fitting.yaml_files import TRAIN_YAML, train_yaml
from ppxcls.system.logs import logger
from ppxcls.train.trackers import Tracker
from ppxcls.train.trainer import Trainer

RESUME = "Global.checkpoints=auto"
_ALLOW_CHANGES = "Global.allow_changes=true"
_TOLERATED_SHARE = 1 / 3  # of the planned epochs; if not many more fit, the plan stays


@dataclass(frozen=True, kw_only=True)
class EpochLimits:
    """Limits for the number of epochs of a training.

    Attributes:
        min_epochs: smallest number of epochs that is worth a training.
        max_epochs: largest number of epochs that is useful.
        end_seconds: time for evaluation and report after the training.
        again_share: time of a later training with all photographs, as a share of the time of this one.
    """

    min_epochs: int
    max_epochs: int
    end_seconds: float
    again_share: float = 0.0

    def epochs(self, seconds: float, epoch_seconds: float, finished_epochs: int) -> int:
        """Returns the number of epochs that the time allows.

        Args:
            seconds: time that is left for the whole command.
            epoch_seconds: time of an epoch.
            finished_epochs: number of epochs that are finished.
        """
        seconds += finished_epochs * epoch_seconds - self.end_seconds
        possible_epochs = int(seconds / (epoch_seconds * (1 + self.again_share)))
        epochs = min(max(possible_epochs, self.min_epochs), self.max_epochs)
        return max(epochs, finished_epochs)


class Training:
    """Trains with one of the YAML files. The same call continues what was interrupted.

    Args:
        request: arguments of ``fit``.
        progress: progress of ``fit``.
        clock: time of the command.

    Attributes:
        epoch_seconds: time of an epoch of the last training; None if no epoch was trained.
    """

    def __init__(self, request: Request, progress: FitProgress, clock: Clock) -> None:
        self._request = request
        self._progress = progress
        self._clock = clock
        self.epoch_seconds: float | None = None

    def run(
        self,
        step: str,
        file: Path,
        *,
        overrides: Sequence[str] = (),
        limits: EpochLimits | None = None,
        last_epoch: int | None = None,
    ) -> int:
        """Trains, and resumes the newest checkpoint if this step has begun before.

        Args:
            step: name of the step in the progress.
            file: YAML file.
            overrides: overrides beside those of the command.
            limits: limits for a new number of epochs after the first epoch, and for an early end; None for
                no such change. A number of epochs by the command is never changed.
            last_epoch: epoch to end after; None for that of the YAML. The learning rate is that of the whole
                training.

        Returns:
            The number of epochs that were trained, by earlier commands too.
        """
        if any(text.startswith("Global.epochs=") for text in self._request.overrides):
            limits = None
        planned_step = f"{step} planned"
        if limits and not self._is_done(planned_step):
            self._plan_by_an_epoch(step, file, overrides=overrides, limits=limits)
            self._progress.finish(planned_step)
        trainer = self._begun_trainer(step, file, [*overrides, *([_ALLOW_CHANGES] if limits else [])])
        trainer.run_schedule.epochs = min(
            last_epoch or trainer.run_schedule.epochs, trainer.run_schedule.epochs
        )
        if limits:
            _end_in_time(trainer, self._clock, limits)
        self._train(trainer)
        return trainer.progress.epoch - 1

    def _is_done(self, step: str) -> bool:
        return step in self._progress.finished_steps

    def _begun_trainer(self, step: str, file: Path, overrides: Sequence[str]) -> Trainer:
        """Returns the trainer of a step, with its newest checkpoint if the step has begun before."""
        begun_step = f"{step} begun"
        # Without a begun step, a checkpoint may be another run's.
        resuming = [RESUME] if self._is_done(begun_step) else []
        trainer = build_trainer(config_of(self._request, file, [*overrides, *resuming]))
        if not self._is_done(begun_step):
            self._progress.finish(begun_step)
        return trainer

    def _train(self, trainer: Trainer) -> None:
        """Trains the epochs that are not finished, and measures the time of one."""
        first_epoch = trainer.progress.epoch
        if first_epoch > trainer.run_schedule.epochs:
            trainer.log.close()
            trainer.close_loaders()
            trainer.run.folder.release()
            return
        start = time.monotonic()
        trainer.fit()
        self.epoch_seconds = (time.monotonic() - start) / max(trainer.progress.epoch - first_epoch, 1)

    def _plan_by_an_epoch(self, step: str, file: Path, overrides: Sequence[str], limits: EpochLimits) -> None:
        """Trains one whole epoch, and writes the YAML again if the time allows another number of epochs.

        If the first epoch was interrupted, the next one is measured.
        """
        is_whole = False
        while not is_whole:
            trainer = self._begun_trainer(step, file, [*overrides, _ALLOW_CHANGES])
            planned_epochs = trainer.run_schedule.epochs
            epoch = trainer.progress.epoch
            is_whole = trainer.progress.batches_done == 0
            trainer.run_schedule.epochs = min(epoch, planned_epochs)
            self._train(trainer)
            if epoch > planned_epochs:
                return
        assert self.epoch_seconds is not None
        self._change_epochs(planned_epochs, self.epoch_seconds, finished_epochs=epoch, limits=limits)

    def _change_epochs(
        self, planned_epochs: int, epoch_seconds: float, *, finished_epochs: int, limits: EpochLimits
    ) -> None:
        epochs = limits.epochs(self._clock.left, epoch_seconds, finished_epochs)
        if planned_epochs <= epochs <= (1 + _TOLERATED_SHARE) * planned_epochs:
            return
        logger.info(
            f"an epoch takes {epoch_seconds:.0f} s: {epochs} epochs instead of {planned_epochs}, "
            f"for about {self._request.minutes:g} minutes"
        )
        self._progress.settings = replace(self._progress.settings, epochs=epochs)
        output = self._request.output
        self._progress.write_yaml(
            output / TRAIN_YAML, train_yaml(self._progress.settings, self._request.photos, output)
        )


class _EarlyEnd(Tracker):
    """Ends a training after an evaluation if there is no time for another epoch.

    Args:
        trainer: trainer.
        clock: time of the command.
        limits: limits of the training.
    """

    def __init__(self, trainer: Trainer, clock: Clock, limits: EpochLimits) -> None:
        self._trainer = trainer
        self._clock = clock
        self._limits = limits
        self._epoch_start = time.monotonic()

    def log(self, kind: str, place: dict[str, int], figures: dict[str, Any]) -> None:  # noqa: ARG002
        """Looks at the clock after each evaluation."""
        if kind != "eval":
            return
        epoch_end = time.monotonic()
        epoch_seconds = epoch_end - self._epoch_start
        self._epoch_start = epoch_end
        epoch, limits = place["epoch"], self._limits
        schedule = self._trainer.run_schedule
        next_seconds = epoch_seconds * (1 + limits.again_share * (epoch + 1))
        has_time = self._clock.has_time(next_seconds, limits.end_seconds)
        if limits.min_epochs <= epoch < schedule.epochs and not has_time:
            logger.warning(f"epoch {epoch} of {schedule.epochs} is the last one: the time is over")
            schedule.epochs = epoch


def _end_in_time(trainer: Trainer, clock: Clock, limits: EpochLimits) -> None:
    """Lets a training end after an epoch if there is no time for another one.

    Args:
        trainer: trainer.
        clock: time of the command.
        limits: limits of the training.
    """
    trackers = trainer.run.trackers
    # Without ``latest`` of each epoch, the last one would be lost.
    if isinstance(trackers, list) and trainer.run_schedule.latest_interval == 1:
        trackers.append(_EarlyEnd(trainer, clock, limits))
