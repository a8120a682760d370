"""Trains with the YAML files of ``fit``, and changes the number of epochs if the plan is off."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ppxcls.build.trainer import build_trainer
from ppxcls.fitting.clock import Clock
from ppxcls.fitting.configs import config_of
from ppxcls.fitting.progress import FitProgress
from ppxcls.fitting.request import Request
from ppxcls.fitting.yaml_files import TRAIN_YAML, train_yaml
from ppxcls.system.logs import logger

RESUME = "Global.checkpoints=auto"
_TOLERATED_SHARE = 1 / 3  # of the planned epochs; a smaller difference changes no plan


@dataclass(frozen=True, kw_only=True)
class EpochLimits:
    """EpochLimits of a training of ``train.yaml``.

    Attributes:
        min_epochs: smallest number of epochs that is worth a training.
        max_epochs: largest number of epochs that is useful.
        end_seconds: time for evaluation and report after the training.
    """

    min_epochs: int
    max_epochs: int
    end_seconds: float


class Training:
    """Trains with one of the YAML files. The same call continues what was interrupted.

    Args:
        request: arguments of ``fit``.
        progress: progress of ``fit``.
        clock: time of the command.
    """

    def __init__(self, request: Request, progress: FitProgress, clock: Clock) -> None:
        self._request = request
        self._progress = progress
        self._clock = clock

    def run(
        self, step: str, file: Path, overrides: Sequence[str] = (), limits: EpochLimits | None = None
    ) -> None:
        """Trains, and resumes the newest checkpoint if this step has begun before.

        Args:
            step: name of the step in the progress.
            file: YAML file.
            overrides: overrides beside those of the command.
            limits: limits for a new number of epochs after the first epoch; None for no such change.
        """
        begun_step, planned_step = f"{step} begun", f"{step} planned"
        may_change = limits is not None and not any(
            text.startswith("Global.epochs=") for text in self._request.overrides
        )
        if may_change and not self._is_done(planned_step):
            assert limits
            self._first_epoch(begun_step, file, overrides=overrides, limits=limits)
            self._progress.finish(planned_step)
        # Without a begun step, a checkpoint may be another run's.
        resuming = [RESUME] if self._is_done(begun_step) else []
        changes = ["Global.allow_changes=true"] if may_change else []
        trainer = build_trainer(config_of(self._request, file, [*overrides, *resuming, *changes]))
        if not self._is_done(begun_step):
            self._progress.finish(begun_step)
        if trainer.progress.epoch <= trainer.run_schedule.epochs:
            trainer.fit()
        else:
            trainer.log.close()
            trainer.close_loaders()
            trainer.run.folder.release()

    def _is_done(self, step: str) -> bool:
        return step in self._progress.finished_steps

    def _first_epoch(
        self, begun_step: str, file: Path, overrides: Sequence[str], limits: EpochLimits
    ) -> None:
        """Trains one epoch, and writes the YAML again if the time allows another number of epochs."""
        resuming = [RESUME] if self._is_done(begun_step) else []
        trainer = build_trainer(config_of(self._request, file, [*overrides, *resuming]))
        if not self._is_done(begun_step):
            self._progress.finish(begun_step)
        planned_epochs = trainer.run_schedule.epochs
        is_whole = trainer.progress.epoch == 1 and trainer.progress.batches_done == 0
        trainer.run_schedule.epochs = 1
        start = time.monotonic()
        trainer.fit()
        if is_whole:
            self._change_epochs(planned_epochs, time.monotonic() - start, limits)

    def _change_epochs(self, planned_epochs: int, epoch_seconds: float, limits: EpochLimits) -> None:
        seconds = self._clock.left - limits.end_seconds
        epochs = 1 + max(int(seconds / epoch_seconds), 0)
        epochs = min(max(epochs, limits.min_epochs), limits.max_epochs)
        if abs(epochs - planned_epochs) <= _TOLERATED_SHARE * planned_epochs:
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
