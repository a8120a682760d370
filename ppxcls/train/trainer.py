"""The training loop. It takes built objects and does not read a config."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from ppxcls.calibration.fit import FittedCalibration
from ppxcls.checkpoints.files import CheckpointError
from ppxcls.checkpoints.progress import Progress, is_better
from ppxcls.data.device import ModelInput, to_device
from ppxcls.data.loader import Batch, Loader
from ppxcls.system import distributed
from ppxcls.system.logs import logger
from ppxcls.system.signals import Preempted, StopSignals, interrupts_deferred
from ppxcls.system.supervisor import record_start
from ppxcls.system.watchdog import Watchdog
from ppxcls.train import FIRST_BATCH
from ppxcls.train.early_stop import early_end
from ppxcls.train.evaluation import Evaluation
from ppxcls.train.first_batch import write_first_batch
from ppxcls.train.learner import Learner
from ppxcls.train.loss_watch import LossWatch, StepResult, TrainingError
from ppxcls.train.run import Run
from ppxcls.train.run_log import BAR_FORMAT, RunLog
from ppxcls.train.run_schedule import RunSchedule


class _Stop(Exception):
    """All processes have agreed to stop at this step.

    Args:
        is_planned: True if the time of ``max_hours`` is over; False after a signal.
    """

    def __init__(self, *, is_planned: bool) -> None:
        super().__init__()
        self.is_planned = is_planned


class Trainer:
    """Runs the training: steps, evaluations, checkpoints.

    Args:
        learner: network, optimizer and all other state that training changes.
        loader: loader of the training data.
        run: output folder, metadata and trackers.
        run_schedule: times of log lines, evaluations and checkpoints, and rules for the end of the run.
        evaluation: evaluation between epochs; None for none.
    """

    def __init__(
        self,
        learner: Learner,
        loader: Loader,
        *,
        run: Run,
        run_schedule: RunSchedule,
        evaluation: Evaluation | None = None,
    ) -> None:
        self.learner = learner
        self.loader = loader
        self.run = run
        self.run_schedule = run_schedule
        self.evaluation = evaluation
        self.log = RunLog(
            run.trackers, run_schedule.epochs, run_schedule.print_batch_step, learner.schedule.name
        )
        self.watch = LossWatch(learner, loader.dataset)
        self.watchdog = Watchdog(
            run.hang_timeout, distributed.rank(), distributed.world_size(), loader.files_being_read
        )
        self._to_input = ModelInput(loader.dataset.device_stage)
        self._signals = StopSignals()
        self._agree = distributed.Agreement()
        self._last_save_time = time.monotonic()
        self._end_time = math.inf  # of ``max_hours``, on the clock of this process
        self._is_main = distributed.rank() == 0
        self._is_resumed = False
        self._calibration: FittedCalibration | None = None  # of the last evaluation, if it was the best
        self._last_saved_step: int | None = None  # step of the last checkpoint ``latest``
        self._is_start_written = False

    @property
    def progress(self) -> Progress:
        """The progress of the run."""
        return self.learner.progress

    @property
    def output_dir(self) -> Path:
        """The folder of the run."""
        return self.run.folder.path

    @property
    def is_finished(self) -> bool:
        """True if no epoch is left to train, also because the run has stopped early."""
        return self.run_schedule.is_finished(self.progress)

    def fit(self) -> dict[str, Any]:
        """Trains from the current progress to the last epoch, or to an earlier end by the run's schedule.

        Returns:
            The best evaluation: ``metric``, ``value`` and ``epoch``; empty if nothing was evaluated.

        Raises:
            Preempted: SIGTERM or SIGUSR1 was received, and the run has saved a checkpoint.
            TrainingError: the loss or a weight is not finite, or AMP skipped too many steps in a row.
            DataError: a sample can't be loaded.
            OSError: a checkpoint can't be written.
        """
        self._end_time = time.monotonic() + 3600 * (self.run_schedule.max_hours or math.inf)
        with self._signals.noted(), self.watchdog:
            try:
                if self.is_finished:
                    logger.warning(f"nothing to do: {self._end()}")
                    return self.progress.best
                if self._is_main:
                    self.run.folder.lock()  # a notebook may call fit again
                    is_continued = self._is_resumed or self.progress.step > 0
                    if not is_continued and self.run.has_earlier_results():
                        self.loader.check_first_batch(self.progress.epoch)  # before anything is moved
                    self.run.begin(is_continued=is_continued)
                distributed.barrier()  # other processes must not write to files that are moved aside
                record_start(self.progress.step)
                self.log.start(self.progress)
                while not self.is_finished:
                    self.train_one_epoch()
                    self._finish_epoch()
                self.run.folder.wait()
                distributed.barrier()  # no process ends before the last checkpoint is written
            except _Stop as stop:
                self._save_and_stop(is_planned=stop.is_planned)
            finally:
                self.run.folder.wait()
                self.run.folder.release()
                self.log.close()
                self.close_loaders()
        return self.progress.best

    def _end(self) -> str:
        """Returns the reason why no epoch is left to train."""
        epochs = self.run_schedule.epochs
        if not self.run_schedule.has_stopped_early(self.progress):
            return f"{self.progress.epoch - 1} of {epochs} epochs are done"
        return early_end(self.progress, epochs, self.learner.schedule, self.run.facts.steps_per_epoch)

    def close_loaders(self) -> None:
        """Ends the loader processes. The next epoch starts new ones."""
        self.loader.close()
        if self.evaluation:
            self.evaluation.loader.close()

    def train_one_epoch(self) -> None:
        """Trains on the remaining batches of the current epoch.

        Raises:
            TrainingError, DataError, OSError: as ``fit``.
        """
        epoch, batches = self.progress.epoch, len(self.loader)
        self.learner.model.train()
        self.log.clock.start_epoch()
        bar_options = {
            "disable": None if self._is_main else True,
            "initial": self.progress.batches_done,
            "leave": False,
        }
        with tqdm(
            total=batches,
            desc=f"epoch {epoch}/{self.run_schedule.epochs}",
            bar_format=BAR_FORMAT,
            **bar_options,
        ) as bar:
            timed_batches = self.log.clock.timed(self.loader.epoch(epoch, self.progress.batches_done))
            for batch in self.watchdog.batches(timed_batches, f"epoch {epoch}"):
                with interrupts_deferred():
                    step = self.train_on(batch)
                self.watch.add(step)
                self._after_batch(step)
                bar.set_postfix_str(self.log.summary, refresh=False)
                bar.update()
        self.log.epoch_line(self.learner.totals.reduced(), epoch)

    def train_on(self, batch: Batch) -> StepResult:
        """Runs a forward and a backward pass on a batch of the current epoch.

        If the batch is the last one of its accumulation group, the optimizer makes a step.

        Args:
            batch: batch of the loader.

        Returns:
            The result of the step, which the device may still be computing.
        """
        plan = batch.plan
        sampler = self.loader.sampler
        update_freq = self.run_schedule.update_freq
        epoch, learner = self.progress.epoch, self.learner
        group_start = plan.number - plan.number % update_freq
        group = range(group_start, min(group_start + update_freq, len(self.loader)))
        # Weighted by size, the means of the processes and micro-batches add up to the mean over all samples.
        weight = plan.count * sampler.world_size / sum(sampler.global_size(i) for i in group)
        # Seeds of dropout and similar layers depend on the position only, so generators need no saved state.
        paddle.seed(_step_seed(sampler.seed, epoch, plan.number, sampler.rank))
        if self._is_main and not self._is_start_written:
            self._is_start_written = True
            self.run.write_start(self.progress, learner.network, batch, self.loader.dataset)
        images, labels = self._to_input(batch.images), to_device(batch.labels)
        images, labels = learner.mixed(images, labels, [sampler.seed, epoch, plan.first])
        if self._is_main and epoch == 1 and plan.number == 0:
            write_first_batch(self.output_dir / FIRST_BATCH, images)
        lr = learner.rate
        is_update_step = plan.number == group[-1]
        sums = learner.step(images, labels, weight, is_update_step=is_update_step)
        is_skipped = learner.precision.last_step_skipped() if is_update_step else False
        return StepResult(lr=lr, plan=plan, left_out=batch.left_out, sums=sums, skipped=is_skipped)

    def _after_batch(self, step: StepResult) -> None:
        """Counts the batch, then logs and saves if it is time for it. Saves only after optimizer steps."""
        number, batches = step.plan.number, len(self.loader)
        self.progress.batches_done = number + 1
        self.log.clock.samples += self.loader.sampler.global_size(number)
        is_due = self.log.is_due(number, batches)
        self.watch.read(force=is_due)
        if is_due:
            self.log.train_line(
                self.learner.totals.reduced(), step.lr, number=number, batches=batches, progress=self.progress
            )
        # _finish_epoch saves at the end.
        if (number + 1) % self.run_schedule.update_freq == 0 and number + 1 < batches:
            self._save_inside_epoch()
        self.run.folder.poll()

    def _finish_epoch(self) -> None:
        """Evaluates and saves if it is time for it, or stops the run."""
        epoch, schedule = self.progress.epoch, self.run_schedule
        is_best = False
        if self.evaluation and schedule.is_evaluation_due(epoch):
            is_best = self._evaluate(self.evaluation)
        self.learner.start_epoch(epoch + 1)
        # First, because a run that is resumed from the others takes it as written.
        names = ["best_model"] if is_best else []
        if self.is_finished or epoch % schedule.latest_interval == 0:
            names.append("latest")
        if epoch % schedule.save_interval == 0:
            names.append(f"epoch_{epoch}")
        if names:
            self.save(names)
        if schedule.has_stopped_early(self.progress):
            logger.info(self._end())
        if not self.is_finished:
            self._stop_if_agreed()

    def _evaluate(self, evaluation: Evaluation) -> bool:
        """Evaluates the network and logs the results. Returns True if they are the best so far."""
        with self.learner.averaged():
            results = evaluation(self.learner.network, self._interruptible_batches(evaluation.loader.epoch()))
        name = evaluation.deciding_figure
        larger_is_better = evaluation.larger_is_better(name)
        # A metric of a plugin may differ between the processes, but they must decide alike.
        figures = np.array([results[name], results[evaluation.loss_name]])
        value, loss = distributed.values_of_first_process(figures).tolist()
        candidate = {"metric": name, "value": value, "epoch": self.progress.epoch, "loss": loss}
        is_best = is_better(candidate, self.progress.best, larger_is_better=larger_is_better)
        self._calibration = None
        if is_best:
            self.progress.best = candidate
            self._calibration = evaluation.calibrate()
            if self._is_main:
                self.run.write_predictions(evaluation)
        evaluation.forget_logits()
        self.log.eval_line(results, self.progress)
        if self._calibration is not None:
            logger.info(f"calibration: {self._calibration}")
        self.learner.observe(value, larger_is_better=larger_is_better)
        if rule := self.run_schedule.early_stop:
            rule.observe(self.progress, name, value, larger_is_better=larger_is_better)
        return is_best

    def _interruptible_batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yields the batches of an evaluation. Stops the run if a signal was received."""
        for batch in self.watchdog.batches(batches, "the evaluation"):
            if self._agree([self._signals.received is not None])[0]:
                raise _Stop(is_planned=False)
            yield batch

    def _stop_if_agreed(self, *, is_save_due: bool = False) -> bool:
        """Stops the run after a signal, or if its time is over.

        Clocks differ, so that of the first process decides about times.

        Args:
            is_save_due: True if this process wants a checkpoint.

        Returns:
            True if any process wants a checkpoint.
        """
        is_signalled = self._signals.received is not None
        is_over = self._is_main and time.monotonic() >= self._end_time
        is_signalled, is_over, is_save_due = self._agree([is_signalled, is_over, is_save_due])
        if is_signalled or is_over:
            raise _Stop(is_planned=not is_signalled)
        return is_save_due

    def _save_inside_epoch(self) -> None:
        """Saves after an optimizer step if it is time for it, or stops the run."""
        minutes, steps = self.run_schedule.save_interval_minutes, self.run_schedule.save_interval_steps
        elapsed_seconds = time.monotonic() - self._last_save_time
        is_time_due = minutes is not None and self._is_main and elapsed_seconds >= 60 * minutes
        is_time_due = self._stop_if_agreed(is_save_due=is_time_due)
        if is_time_due or (steps and self.progress.step % steps == 0):
            self.save(["latest"])

    def _save_and_stop(self, *, is_planned: bool) -> None:
        if self._last_saved_step != self.progress.step:
            self.save(["latest"])
        self.run.folder.wait()
        distributed.barrier()  # a launcher ends the other ranks when the first rank has ended
        advice = "resume with -o Global.checkpoints=auto"
        if is_planned:
            hours = f"{self.run_schedule.max_hours:g} h (Global.max_hours)"
            best_text = "" if self.progress.best else "; there is no best_model yet"
            logger.info(f"the time of {hours} is over: saved at {self.progress}{best_text}; {advice}")
            return
        signal = self._signals.received or "a signal to another rank"
        raise Preempted(f"stopped by {signal} and saved at {self.progress}", advice)

    def save(self, names: Sequence[str]) -> None:
        """Starts to save a checkpoint in the background. All processes must call it.

        Args:
            names: names of the checkpoint; for ``latest``, it is also saved as ``step_N``.

        Raises:
            OSError: the previous checkpoint could not be written. Complete checkpoints stay.
            TrainingError: a loss or a weight is not finite.
        """
        self.watch.read()
        if "latest" in names:
            # Last: if ``latest`` were after it, a kill between them could leave an old ``latest`` for ever.
            names = [*names, f"step_{self.progress.step}"]
            self._last_saved_step = self.progress.step
            self._last_save_time = time.monotonic()
        try:
            snapshot = self.learner.state()
        except CheckpointError as error:
            raise TrainingError(f"step {self.progress.step}: {error}") from None
        if snapshot is not None:
            self.run.save(names, snapshot, self.log.flush, calibration=self._calibration)

    def resume(self, checkpoint: str | Path, *, allow_changes: bool = False) -> bool:
        """Resumes from a checkpoint.

        Args:
            checkpoint: prefix of the files, or ``auto``; see ``Run.read``.
            allow_changes: True to resume although the run has changed; see ``Run.read``.

        Returns:
            True if a checkpoint was loaded; False for ``auto`` if there is no checkpoint.

        Raises:
            CheckpointError: the checkpoint can't be used, or it belongs to another run or network.
        """
        snapshot = self.run.read(checkpoint, allow_changes=allow_changes)
        if snapshot is not None:
            self.learner.load(snapshot)
            if self.run_schedule.early_stop is None:  # a later start may count again
                self.progress.improvement, self.progress.stale_evaluations = {}, 0
            logger.info(f"Resumed {snapshot.prefix}: {self.progress}")
            self._is_resumed = True
        return snapshot is not None


def _step_seed(*position: int) -> int:
    return int(np.random.SeedSequence(position).generate_state(1)[0])
