"""The training loop. It takes built objects and never a config."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddle.optimizer.lr import LRScheduler
from tqdm import tqdm

from ppxcls.checkpoints.compatibility import RunFacts, check_continues, converted_progress
from ppxcls.checkpoints.files import CheckpointError
from ppxcls.checkpoints.progress import Progress, manifest_of
from ppxcls.checkpoints.run_folder import RunFolder
from ppxcls.data.device import ModelInput
from ppxcls.data.loader import Batch, Loader
from ppxcls.system import distributed
from ppxcls.system.logs import Curves, logger
from ppxcls.system.signals import Preempted, StopSignals, interrupts_deferred
from ppxcls.system.watchdog import Watchdog
from ppxcls.train.ema import WeightAverage
from ppxcls.train.loss_watch import LossWatch, StepResult, TrainingError
from ppxcls.train.losses import WeightedSum
from ppxcls.train.metrics import Scorer
from ppxcls.train.mixing import BatchTransform
from ppxcls.train.precision import Precision
from ppxcls.train.run_log import RunLog
from ppxcls.train.states import load_checkpoint, snapshot

Watched = Callable[[Iterator[Batch]], Iterator[Batch]]


class _Stop(Exception):
    """All processes have agreed to stop here."""


@dataclass
class Plan:
    """When what is done, under the names and in the units of the config's ``Global``."""

    epochs: int
    update_freq: int = 1
    print_batch_step: int = 10
    save_interval: int = 1
    eval_interval: int = 1
    start_eval_epoch: int = 0
    save_interval_steps: int | None = None
    save_interval_minutes: float | None = None


class Trainer:
    """Trains a model: steps, evaluations, checkpoints.

    Args:
        model: plain, or wrapped by ``paddle.DataParallel``.
        metrics: of training; computed on batches whose labels are not mixed.
        lr_scheduler: stepped after each optimizer step.
        batch_transforms: mixing, applied on the device.
        evaluate: gives the figures of an evaluation, the one that decides about ``best_model`` first; it passes its batches
            through what it is called with. None for none.
        ema: an average of the weights, which is evaluated in their place.
        folder: where checkpoints, ``metrics.jsonl`` and curves go.
        facts: what the checkpoints' manifests say beside the progress.
        hang_timeout: seconds without progress after which a run of the tools ends.
    """

    def __init__(
        self,
        model: nn.Layer,
        loss_fn: WeightedSum,
        metrics: list[Any],
        optimizer: paddle.optimizer.Optimizer,
        lr_scheduler: LRScheduler,
        loader: Loader,
        plan: Plan,
        folder: RunFolder,
        facts: RunFacts,
        precision: Precision | None = None,
        batch_transforms: list[BatchTransform] | None = None,
        evaluate: Callable[[Watched], dict[str, float]] | None = None,
        ema: WeightAverage | None = None,
        curves: Curves | None = None,
        hang_timeout: float = 600.0,
    ) -> None:
        self.model = model
        self.loss_fn = loss_fn
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.loader = loader
        self.plan = plan
        self.folder = folder
        self.facts = facts
        self.precision = precision or Precision()
        self.batch_transforms = batch_transforms or []
        self.evaluate = evaluate
        self.ema = ema
        self.progress = Progress(started=datetime.now(timezone.utc).isoformat())
        self.to_input = ModelInput(loader.dataset.device_stage)
        self.scorer = Scorer(loss_fn.names, [] if self.batch_transforms else metrics)
        lr_name = type(lr_scheduler).__name__
        self.watch = LossWatch(self.scorer.names, self.network, loader.dataset, self.precision.max_skipped_steps)
        self.log = RunLog(folder.path, self.watch, plan.epochs, plan.print_batch_step, lr_name, curves or Curves(None))
        self.watchdog = Watchdog(hang_timeout, distributed.rank(), distributed.world_size(), loader.files_being_read)
        self._signals = StopSignals()
        self._agree = distributed.Agreement()
        self._saved_at = time.monotonic()
        self._is_main = distributed.rank() == 0

    @property
    def network(self) -> nn.Layer:
        """The model without the wrapper for data parallelism."""
        return self.model._layers if isinstance(self.model, paddle.DataParallel) else self.model

    @property
    def output_dir(self) -> Path:
        """The folder of the run."""
        return self.folder.path

    def train_step(
        self, images: paddle.Tensor, labels: paddle.Tensor, weight: float, is_update_step: bool
    ) -> tuple[paddle.Tensor, dict[str, paddle.Tensor]]:
        """One forward and backward pass and, on an update step, one optimizer step.

        Args:
            images: float32 [N, 3, H, W].
            labels: int64 [N], or float32 [N, class_num].
            weight: of this batch's mean loss in the gradient.

        Returns:
            Logits [N, class_num], and the unscaled losses by name, each [].
        """
        with contextlib.nullcontext() if is_update_step else self._no_sync():
            with self.precision.autocast():
                logits = self.model(images)
                losses = self.loss_fn(logits, labels)
            self.precision.scaler.scale(losses["loss"] * weight).backward()
        if is_update_step:
            self.precision.scaler.step(self.optimizer)
            self.precision.scaler.update()
            self.optimizer.clear_grad()
            self.lr_scheduler.step()
            self.progress.step += 1
            if self.ema:
                self.ema.update(self.progress.step)
        return logits.detach(), {name: value.detach() for name, value in losses.items()}

    def fit(self) -> dict[str, Any]:
        """Train to the last epoch, from where the progress stands.

        Returns:
            The best evaluation: metric, value, epoch; empty where nothing was evaluated.

        Raises:
            Preempted: SIGTERM or SIGUSR1 came; the run has saved where it stands.
            TrainingError: the loss or a weight is not finite, or too many steps in a row were left out by AMP.
            DataError: a sample can't be loaded.
            OSError: a checkpoint can't be written.
        """
        with self._signals.noted(), self.watchdog:
            try:
                self.log.start(self.progress)
                while self.progress.epoch <= self.plan.epochs:
                    self.train_one_epoch()
                    self._finish_epoch()
            except _Stop:
                self._preempted()
            finally:
                self.folder.wait()
                self.folder.release()
                self.log.close()
        return self.progress.best

    def train_one_epoch(self) -> None:
        """Train on every batch of the epoch in progress that is not done yet.

        Raises:
            TrainingError, DataError, OSError: as ``fit``.
        """
        epoch, batches, every = self.progress.epoch, len(self.loader), self.plan.update_freq
        self.model.train()
        self.log.start_epoch(self.progress)
        terminal = {"disable": None if self._is_main else True, "initial": self.progress.batches_done, "leave": False}
        with tqdm(total=batches, desc=f"epoch {epoch}", unit="batch", **terminal) as bar:
            loading = self.log.clock.timed(self.loader.epoch(epoch, self.progress.batches_done))
            for batch in self.watchdog.batches(loading, f"epoch {epoch}"):
                number = batch.plan.number
                with interrupts_deferred():
                    step = self._train_on(batch)
                self.watch.add(step)
                self.progress.batches_done = number + 1
                self.log.clock.samples += self.loader.sampler.global_size(number)
                bar.update()
                self.watch.read(self.progress, self.log.line_due(number, batches))
                if self.log.line_due(number, batches):
                    self.log.train_line(step.lr, number, batches, self.progress)
                if (number + 1) % every == 0 and number + 1 < batches:  # the epoch's end saves by itself
                    self._save_inside_epoch()
                self.folder.poll()
        self.log.epoch_line(epoch)

    def _train_on(self, batch: Batch) -> StepResult:
        plan, sampler, every = batch.plan, self.loader.sampler, self.plan.update_freq
        epoch = self.progress.epoch
        group = range(plan.number - plan.number % every, min(plan.number - plan.number % every + every, len(self.loader)))
        # Means over processes and micro-batches of unequal size add up to the mean over samples.
        weight = plan.count * sampler.world_size / sum(sampler.global_size(i) for i in group)
        # Dropout and the like: seeded by the position, so a resumed run needs no state of the generators.
        paddle.seed(_step_seed(sampler.seed, epoch, plan.number, sampler.rank))
        images, labels = self.to_input(batch.images), paddle.to_tensor(batch.labels)
        for i, transform in enumerate(self.batch_transforms):
            images, labels = transform(images, labels, np.random.default_rng([sampler.seed, epoch, plan.first, 1 + i]))
        lr = self.optimizer.get_lr()
        is_update_step = plan.number == group[-1]
        logits, losses = self.train_step(images, labels, weight, is_update_step)
        skipped = self.precision.last_step_skipped() if is_update_step else False
        return StepResult(lr, plan, batch.left_out, self.scorer(losses, logits, labels), skipped)

    def _no_sync(self) -> contextlib.AbstractContextManager[Any]:
        return self.model.no_sync() if isinstance(self.model, paddle.DataParallel) else contextlib.nullcontext()

    def _finish_epoch(self) -> None:
        """Evaluate where it is due, and save."""
        epoch, plan = self.progress.epoch, self.plan
        names = ["latest"]
        due = epoch % plan.eval_interval == 0 or epoch == plan.epochs
        if self.evaluate and due and epoch >= plan.start_eval_epoch and self._evaluate():
            names.append("best_model")
        if epoch % plan.save_interval == 0:
            names.append(f"epoch_{epoch}")
        self.progress.epoch, self.progress.batches_done, self.progress.totals = epoch + 1, 0, {}
        self.save(names)
        if self._agree([self._signals.received is not None])[0] and self.progress.epoch <= plan.epochs:
            self._preempted()

    def _evaluate(self) -> bool:
        """Evaluate and log; returns whether it is the best so far."""
        assert self.evaluate is not None
        with self.ema.applied() if self.ema else contextlib.nullcontext():
            results = self.evaluate(self._watched)
        name, value = next(iter(results.items()))
        # A loss is the better the smaller; it stands first only where there is no metric.
        sign = -1 if name in self.loss_fn.names else 1
        best = self.progress.best
        is_best = not best or best["metric"] != name or sign * value > sign * best["value"]
        if is_best:
            self.progress.best = {"metric": name, "value": value, "epoch": self.progress.epoch}
        self.log.eval_line(results, self.progress)
        if plateau := getattr(self.lr_scheduler.lr_lambda, "plateau", None):
            plateau.observe(value)
            self.progress.plateau = dict(plateau.state)
            self.lr_scheduler.step(self.progress.step)  # the next step's rate
        return is_best

    def _watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of an evaluation, which a signal ends."""
        for batch in self.watchdog.batches(batches, "the evaluation"):
            if self._agree([self._signals.received is not None])[0]:
                raise _Stop
            yield batch

    def _save_inside_epoch(self) -> None:
        """After an optimizer step: save where it is due, and stop where a signal has come."""
        minutes = self.plan.save_interval_minutes
        by_time = minutes is not None and self._is_main and time.monotonic() - self._saved_at >= 60 * minutes
        stop, by_time = self._agree([self._signals.received is not None, by_time])
        if stop:
            raise _Stop
        if by_time or (self.plan.save_interval_steps and self.progress.step % self.plan.save_interval_steps == 0):
            self._save_here()

    def _save_here(self) -> None:
        self.watch.read(self.progress)
        self.watch.totals.gather()
        self.progress.totals = self.watch.totals.as_dict()
        self.save(["latest"])

    def _preempted(self) -> None:
        if self.progress.batches_done:  # not yet saved by the epoch's end
            self._save_here()
        self.folder.wait()
        distributed.barrier()  # a launcher ends the other ranks when the first one has gone
        signal = self._signals.received or "a signal to another rank"
        raise Preempted(f"stopped by {signal} and saved at {self.progress}; -o Global.checkpoints=auto goes on from there")

    def save(self, names: list[str]) -> None:
        """Begin to save a checkpoint as ``step_N`` and under these names, in the background of the first process.

        Raises:
            OSError: the checkpoint before can't be written; those that are whole stay.
            TrainingError: a weight is not finite.
        """
        self._saved_at = time.monotonic()
        if not self._is_main:
            return
        self.progress.scaler = {k: np.asarray(v).tolist() for k, v in self.precision.scaler.state_dict().items()}
        try:
            states = snapshot(self.network, self.optimizer, self.ema)
        except CheckpointError as error:
            raise TrainingError(f"step {self.progress.step}: {error}") from None
        manifest = manifest_of(self.progress, self.facts.as_dict())
        self.folder.save([f"step_{self.progress.step}", *names], states, manifest, self.log.lines.sync)

    def resume(self, prefix: str | Path, allow_changes: bool = False) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it can't be used, or is of a run that this one can't continue.
        """
        check = partial(check_continues, facts=self.facts, allow_changes=allow_changes)
        progress, manifest = load_checkpoint(prefix, self.network, self.optimizer, check, self.ema)
        progress.started = progress.started or self.progress.started
        self.progress = converted_progress(progress, manifest, self.facts)
        if self.progress.plateau:
            self.lr_scheduler.lr_lambda.plateau.state |= self.progress.plateau
        self.lr_scheduler.step(self.progress.step)
        if self.progress.scaler:
            self.precision.scaler.load_state_dict(self.progress.scaler)
        logger.info(f"Resumed {prefix}: {self.progress}")


def _step_seed(*position: int) -> int:
    return int(np.random.SeedSequence(position).generate_state(1)[0])
