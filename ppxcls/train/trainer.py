"""The training loop. It takes built objects and never a config."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from ppxcls.checkpoints.files import CheckpointError
from ppxcls.checkpoints.progress import Progress
from ppxcls.data.device import ModelInput
from ppxcls.data.loader import Batch, Loader
from ppxcls.system import distributed
from ppxcls.system.logs import logger
from ppxcls.system.signals import Preempted, StopSignals, interrupts_deferred
from ppxcls.system.supervisor import note_begun
from ppxcls.system.watchdog import Watchdog
from ppxcls.train import FIRST_BATCH
from ppxcls.train.evaluation import Evaluation
from ppxcls.train.first_batch import write_first_batch
from ppxcls.train.learner import Learner
from ppxcls.train.loss_watch import LossWatch, StepResult, TrainingError
from ppxcls.train.run import Run
from ppxcls.train.run_log import BAR, RunLog


class _Stop(Exception):
    """All processes have agreed to stop here."""


@dataclass
class Plan:
    """When what is done, under the names and in the units of the config's ``Global``."""

    epochs: int
    update_freq: int = 1
    print_batch_step: int = 10
    save_interval: int = 1
    latest_interval: int = 1
    eval_interval: int = 1
    start_eval_epoch: int = 0
    save_interval_steps: int | None = None
    save_interval_minutes: float | None = None
    pin_memory: bool = False


class Trainer:
    """Trains: steps, evaluations, checkpoints.

    Args:
        learner: what training changes.
        loader: of the training data.
        run: where to write.
        plan: when to do what.
        evaluation: None for no evaluation.
    """

    def __init__(
        self, learner: Learner, loader: Loader, run: Run, plan: Plan, evaluation: Evaluation | None = None
    ) -> None:
        self.learner, self.loader, self.run, self.plan, self.evaluation = (
            learner,
            loader,
            run,
            plan,
            evaluation,
        )
        self.log = RunLog(run.trackers, plan.epochs, plan.print_batch_step, learner.schedule.name)
        self.watch = LossWatch(learner, loader.dataset)
        self.watchdog = Watchdog(
            run.hang_timeout, distributed.rank(), distributed.world_size(), loader.files_being_read
        )
        self._to_input = ModelInput(loader.dataset.device_stage, plan.pin_memory)
        self._signals = StopSignals()
        self._agree = distributed.Agreement()
        self._saved_at = time.monotonic()
        self._is_main = distributed.rank() == 0
        self._is_continued = False
        self._saved: int | None = None  # step of the last ``latest``

    @property
    def progress(self) -> Progress:
        """Where training stands."""
        return self.learner.progress

    @property
    def output_dir(self) -> Path:
        """The folder of the run."""
        return self.run.folder.path

    def fit(self) -> dict[str, Any]:
        """Train to the last epoch, from where the progress stands.

        Returns:
            The best evaluation: metric, value, epoch; empty if nothing was evaluated.

        Raises:
            Preempted: SIGTERM or SIGUSR1 came; the run has saved where it stands.
            TrainingError: the loss or a weight is not finite, or AMP left out too many steps in a row.
            DataError: a sample can't be loaded.
            OSError: a checkpoint can't be written.
        """
        with self._signals.noted(), self.watchdog:
            try:
                if self.progress.epoch > self.plan.epochs:
                    logger.warning(
                        f"nothing is left to do: {self.progress.epoch - 1} of {self.plan.epochs} epochs are done"
                    )
                    return self.progress.best
                if self._is_main:
                    self.run.folder.lock()  # a notebook may call this again
                    self.run.begin(self._is_continued or self.progress.step > 0)
                distributed.barrier()  # the other processes must not write to a file that is moved aside
                note_begun(self.progress.step)
                self.log.start(self.progress)
                while self.progress.epoch <= self.plan.epochs:
                    self.train_one_epoch()
                    self._finish_epoch()
                self.run.folder.wait()
                distributed.barrier()  # no process ends before the last checkpoint is written
            except _Stop:
                self._preempted()
            finally:
                self.run.folder.wait()
                self.run.folder.release()
                self.log.close()
        return self.progress.best

    def train_one_epoch(self) -> None:
        """Train on every batch of the epoch in progress that is not done yet.

        Raises:
            TrainingError, DataError, OSError: as ``fit``.
        """
        epoch, batches = self.progress.epoch, len(self.loader)
        self.learner.model.train()
        self.log.clock.lap()
        terminal = {
            "disable": None if self._is_main else True,
            "initial": self.progress.batches_done,
            "leave": False,
        }
        with tqdm(total=batches, desc=f"epoch {epoch}/{self.plan.epochs}", bar_format=BAR, **terminal) as bar:
            loading = self.log.clock.timed(self.loader.epoch(epoch, self.progress.batches_done))
            for batch in self.watchdog.batches(loading, f"epoch {epoch}"):
                with interrupts_deferred():
                    step = self.train_on(batch)
                self.watch.add(step)
                self._after_batch(step)
                bar.set_postfix_str(self.log.short, refresh=False)
                bar.update()
        self.log.epoch_line(self.learner.totals.reduced(), epoch)

    def train_on(self, batch: Batch) -> StepResult:
        """One step on a batch of the epoch in progress; of the optimizer too, if the batch completes its group."""
        plan, sampler, every = batch.plan, self.loader.sampler, self.plan.update_freq
        epoch, learner = self.progress.epoch, self.learner
        group = range(
            plan.number - plan.number % every,
            min(plan.number - plan.number % every + every, len(self.loader)),
        )
        # Means over processes and micro-batches of unequal size add up to the mean over samples.
        weight = plan.count * sampler.world_size / sum(sampler.global_size(i) for i in group)
        # Dropout and the like: seeded by the position, so a resumed run needs no state of the generators.
        paddle.seed(_step_seed(sampler.seed, epoch, plan.number, sampler.rank))
        images, labels = self._to_input(batch.images), paddle.to_tensor(batch.labels)
        images, labels = learner.mixed(images, labels, [sampler.seed, epoch, plan.first])
        if self._is_main and epoch == 1 and plan.number == 0:
            write_first_batch(self.output_dir / FIRST_BATCH, images)
        lr = learner.rate
        is_update_step = plan.number == group[-1]
        sums = learner.step(images, labels, weight, is_update_step)
        skipped = learner.precision.last_step_skipped() if is_update_step else False
        return StepResult(lr, plan, batch.left_out, sums, skipped)

    def _after_batch(self, step: StepResult) -> None:
        """Count, log, and between optimizer steps save what is due."""
        number, batches = step.plan.number, len(self.loader)
        self.progress.batches_done = number + 1
        self.log.clock.samples += self.loader.sampler.global_size(number)
        is_due = self.log.is_due(number, batches)
        self.watch.read(force=is_due)
        if is_due:
            self.log.train_line(self.learner.totals.reduced(), step.lr, number, batches, self.progress)
        if (
            number + 1
        ) % self.plan.update_freq == 0 and number + 1 < batches:  # the epoch's end saves by itself
            self._save_inside_epoch()
        self.run.folder.poll()

    def _finish_epoch(self) -> None:
        """Evaluate if it is due, and save."""
        epoch, plan = self.progress.epoch, self.plan
        is_last = epoch == plan.epochs
        names = ["latest"] if is_last or epoch % plan.latest_interval == 0 else []
        due = epoch % plan.eval_interval == 0 or is_last
        if self.evaluation and due and epoch >= plan.start_eval_epoch and self._evaluate(self.evaluation):
            names.append("best_model")
        if epoch % plan.save_interval == 0:
            names.append(f"epoch_{epoch}")
        self.learner.start_epoch(epoch + 1)
        if names:
            self.save(names)
        if self._is_told_to_stop() and not is_last:
            self._preempted()

    def _evaluate(self, evaluation: Evaluation) -> bool:
        """Evaluate and log; returns whether it is the best so far."""
        with self.learner.averaged():
            results = evaluation(self.learner.network, self._stoppable(evaluation.loader.epoch()))
        name, value = next(iter(results.items()))
        best, larger = self.progress.best, evaluation.larger_is_better(name)
        is_best = (
            not best or best["metric"] != name or (value > best["value"] if larger else value < best["value"])
        )
        if is_best:
            self.progress.best = {"metric": name, "value": value, "epoch": self.progress.epoch}
            if self._is_main:
                self.run.write_predictions(evaluation)
        self.log.eval_line(results, self.progress)
        self.learner.observe(value, larger)
        return is_best

    def _stoppable(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of an evaluation, which a signal ends."""
        for batch in self.watchdog.batches(batches, "the evaluation"):
            if self._is_told_to_stop():
                raise _Stop
            yield batch

    def _is_told_to_stop(self) -> bool:
        return self._agree([self._signals.received is not None])[0]

    def _save_inside_epoch(self) -> None:
        """After an optimizer step: save if it is due, and stop if a signal has come."""
        minutes = self.plan.save_interval_minutes
        by_time = minutes is not None and self._is_main and time.monotonic() - self._saved_at >= 60 * minutes
        stop, by_time = self._agree([self._signals.received is not None, by_time])
        if stop:
            raise _Stop
        if by_time or (
            self.plan.save_interval_steps and self.progress.step % self.plan.save_interval_steps == 0
        ):
            self.save(["latest"])

    def _preempted(self) -> None:
        if self._saved != self.progress.step:
            self.save(["latest"])
        self.run.folder.wait()
        distributed.barrier()  # a launcher ends the other ranks when the first one has gone
        signal = self._signals.received or "a signal to another rank"
        raise Preempted(
            f"stopped by {signal} and saved at {self.progress}; -o Global.checkpoints=auto continues from there"
        )

    def save(self, names: Sequence[str]) -> None:
        """Begin to save under these names, in the background; with ``latest``, also as ``step_N``.

        All processes call it.

        Raises:
            OSError: the checkpoint before can't be written; those that are whole stay.
            TrainingError: a loss or a weight is not finite.
        """
        self.watch.read()
        if "latest" in names:
            names = [f"step_{self.progress.step}", *names]
            self._saved, self._saved_at = self.progress.step, time.monotonic()
        try:
            snapshot = self.learner.state()
        except CheckpointError as error:
            raise TrainingError(f"step {self.progress.step}: {error}") from None
        if snapshot is not None:
            self.run.save(names, snapshot, self.log.flush)

    def resume(self, checkpoint: str | Path, allow_changes: bool = False) -> bool:
        """Go on from a checkpoint; see ``Run.read``.

        Returns:
            False for ``auto`` if there is none.
        """
        snapshot = self.run.read(checkpoint, allow_changes)
        if snapshot is not None:
            self.learner.load(snapshot)
            logger.info(f"Resumed {snapshot.prefix}: {self.progress}")
            self._is_continued = True
        return snapshot is not None


def _step_seed(*position: int) -> int:
    return int(np.random.SeedSequence(position).generate_state(1)[0])
