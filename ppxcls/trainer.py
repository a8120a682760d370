"""The training loop. It takes built objects and never a config."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddle.optimizer.lr import LRScheduler
from tqdm import tqdm

from ppxcls import distributed
from ppxcls.checkpoint import Progress, load_checkpoint, save_checkpoint
from ppxcls.data.batch_transforms import BatchTransform
from ppxcls.data.loader import Batch, Loader
from ppxcls.data.model_input import ModelInput
from ppxcls.interrupts import interrupts_deferred
from ppxcls.logger import BatchClock, append_json_line, format_figures, logger, start_json_lines
from ppxcls.losses import WeightedSum
from ppxcls.metrics import Scorer, Totals

_NO_CURVE = {"batch_cost", "reader_cost", "eta", "num_samples"}
_MOST_PENDING = 200  # steps whose losses stay on the device at most


class TrainingError(Exception):
    """The run can't go on: says where it was and why."""


@dataclass
class Precision:
    """How to compute: the context of forward passes and the scaling of the loss; float32 as it stands."""

    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    scaler: paddle.amp.GradScaler = field(default_factory=lambda: paddle.amp.GradScaler(enable=False))


@dataclass
class Schedule:
    """When what is done; intervals in epochs, ``log_interval`` in iterations."""

    epochs: int
    update_freq: int = 1
    log_interval: int = 10
    save_interval: int = 1
    eval_interval: int = 1
    first_eval: int = 0


@dataclass
class _Pending:
    """A step whose loss has not been read yet."""

    iteration: int
    lr: float
    plan: Any
    sums: paddle.Tensor


class Trainer:
    """Trains a model: steps, log lines, evaluations, checkpoints.

    Args:
        model: plain, or wrapped by ``paddle.DataParallel``.
        metrics: of training; computed on batches whose labels are not mixed.
        lr_scheduler: stepped after each optimizer step.
        batch_transforms: mixing, applied on the device.
        evaluate: gives the figures of an evaluation, the one that decides about ``best_model`` first; None for none.
        output_dir: where checkpoints, ``metrics.jsonl`` and curves go.
        curves: VisualDL's writer, or None.
        facts: what the checkpoints' manifests say beside the progress.
    """

    def __init__(
        self,
        model: nn.Layer,
        loss_fn: WeightedSum,
        metrics: list[Any],
        optimizer: paddle.optimizer.Optimizer,
        lr_scheduler: LRScheduler,
        loader: Loader,
        schedule: Schedule,
        output_dir: Path,
        precision: Precision | None = None,
        batch_transforms: list[BatchTransform] | None = None,
        evaluate: Callable[[], dict[str, float]] | None = None,
        curves: Any = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.loss_fn = loss_fn
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.loader = loader
        self.schedule = schedule
        self.output_dir = output_dir
        self.precision = precision or Precision()
        self.batch_transforms = batch_transforms or []
        self.evaluate = evaluate
        self.curves = curves
        self.facts = facts or {}
        self.progress = Progress()
        self.to_input = ModelInput(loader.dataset.device_stage)
        self.scorer = Scorer(loss_fn.names, [] if self.batch_transforms else metrics)
        self._pending: list[_Pending] = []
        self._lr = 0.0  # of the last step
        self._is_main = distributed.rank() == 0

    @property
    def network(self) -> nn.Layer:
        """The model without the wrapper for data parallelism."""
        return self.model._layers if isinstance(self.model, paddle.DataParallel) else self.model

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
        return logits.detach(), {name: value.detach() for name, value in losses.items()}

    def fit(self) -> dict[str, Any]:
        """Train to the last epoch, from where the progress stands.

        Returns:
            The best evaluation: metric, value, epoch; empty where nothing was evaluated.

        Raises:
            TrainingError: the loss is not finite.
            DataError: a sample can't be loaded.
            OSError: a file can't be written.
        """
        if self._is_main:
            start_json_lines(self.output_dir / "metrics.jsonl", self.progress.step)
        while self.progress.epoch <= self.schedule.epochs:
            epoch = self.progress.epoch
            self.train_one_epoch(epoch)
            prefixes = [self.output_dir / "latest"]
            due = epoch % self.schedule.eval_interval == 0 or epoch == self.schedule.epochs
            if self.evaluate and due and epoch >= self.schedule.first_eval and self._evaluate(epoch):
                prefixes.append(self.output_dir / "best_model")
            if epoch % self.schedule.save_interval == 0:
                prefixes.append(self.output_dir / f"epoch_{epoch}")
            self.progress.epoch, self.progress.batches_done, self.progress.totals = epoch + 1, 0, {}
            self.save(prefixes)
        if self.curves:
            self.curves.close()
        return self.progress.best

    def train_one_epoch(self, epoch: int) -> None:
        """Train on every batch of the epoch that is not done yet.

        Raises:
            TrainingError, DataError: as ``fit``.
        """
        self.model.train()
        totals = Totals(self.scorer.names, self.progress.totals)
        clock = BatchClock()
        terminal = {"disable": None if self._is_main else True, "initial": self.progress.batches_done, "leave": False}
        with tqdm(total=len(self.loader), desc=f"epoch {epoch}", unit="batch", **terminal) as bar:
            for batch in clock.timed(self.loader.epoch(epoch, self.progress.batches_done)):
                with interrupts_deferred():
                    self._train_on(batch, epoch)
                self.progress.batches_done = batch.plan.number + 1
                clock.samples += self.loader.sampler.global_size(batch.plan.number)
                bar.update()
                last = self.progress.batches_done == len(self.loader)
                if batch.plan.number % self.schedule.log_interval == 0 or last:
                    self._flush(totals, epoch)
                    self._log_train(epoch, batch.plan.number, totals, clock)
                elif len(self._pending) >= _MOST_PENDING:
                    self._flush(totals, epoch)
        samples, means = totals.reduced()
        logger.info(f"[Train][Epoch {epoch}/{self.schedule.epochs}][Avg]{format_figures(means)}, samples: {samples}")

    def _train_on(self, batch: Batch, epoch: int) -> None:
        plan, sampler, every = batch.plan, self.loader.sampler, self.schedule.update_freq
        group = range(plan.number - plan.number % every, min(plan.number - plan.number % every + every, len(self.loader)))
        # Means over processes and micro-batches of unequal size add up to the mean over samples.
        weight = plan.count * sampler.world_size / sum(sampler.global_size(i) for i in group)
        # Dropout and the like: seeded by the position, so a resumed run needs no state of the generators.
        paddle.seed(_step_seed(sampler.seed, epoch, plan.number, sampler.rank))
        images, labels = self.to_input(batch.images), paddle.to_tensor(batch.labels)
        for i, transform in enumerate(self.batch_transforms):
            images, labels = transform(images, labels, np.random.default_rng([sampler.seed, epoch, plan.first, 1 + i]))
        self._lr = self.optimizer.get_lr()
        logits, losses = self.train_step(images, labels, weight, is_update_step=plan.number == group[-1])
        self._pending.append(_Pending(plan.number, self._lr, plan, self.scorer(losses, logits, labels)))

    def _no_sync(self) -> contextlib.AbstractContextManager[Any]:
        return self.model.no_sync() if isinstance(self.model, paddle.DataParallel) else contextlib.nullcontext()

    def _flush(self, totals: Totals, epoch: int) -> None:
        """Read the losses of the steps since the last time; here the host waits for the device."""
        if not self._pending:
            return
        rows = paddle.stack([p.sums for p in self._pending]).numpy()
        pending, self._pending = self._pending, []
        for step, row in zip(pending, rows, strict=True):
            if not np.isfinite(row).all():
                raise TrainingError(self._not_finite(step, row, epoch))
            if step.plan.count:
                totals.add(step.plan.count, row)
        self.progress.totals = totals.as_dict()

    def _not_finite(self, step: _Pending, row: Any, epoch: int) -> str:
        dataset = self.loader.dataset
        files = ", ".join(dataset.path(int(i)) for i in step.plan.indices)
        values = ", ".join(f"{n} {v / max(step.plan.count, 1):g}" for n, v in zip(self.scorer.names, row, strict=True))
        place = f"epoch {epoch}, iteration {step.iteration}, lr {step.lr:g}, rank {self.loader.sampler.rank}"
        return f"the loss is not finite: {place}: {values}; last files read: {files}"

    def _log_train(self, epoch: int, iteration: int, totals: Totals, clock: BatchClock) -> None:
        _, means = totals.reduced()
        times = clock.lap()
        remaining = (self.schedule.epochs - epoch + 1) * len(self.loader) - iteration - 1
        eta = timedelta(seconds=round(remaining * times["batch_cost"]))
        logger.info(
            f"[Train][Epoch {epoch}/{self.schedule.epochs}][Iter: {iteration}/{len(self.loader)}]"
            f"lr({type(self.lr_scheduler).__name__}): {self._lr:.8f}, {format_figures(means)}, "
            f"batch_cost: {times['batch_cost']:.5f}s, reader_cost: {times['reader_cost']:.5f}s, "
            f"ips: {times['ips']:.5f} samples/s, eta: {eta}"
        )
        figures = {"lr": self._lr, **means, **times, "eta": eta.total_seconds()}
        self._write("train", {"epoch": epoch, "iter": iteration, "step": self.progress.step}, figures)

    def _evaluate(self, epoch: int) -> bool:
        """Evaluate and log; returns whether it is the best so far."""
        assert self.evaluate is not None
        results = self.evaluate()
        name, value = next(iter(results.items()))
        # A loss is the better the smaller; it stands first only where there is no metric.
        sign = -1 if name in self.loss_fn.names else 1
        best = self.progress.best
        is_best = not best or best["metric"] != name or sign * value > sign * best["value"]
        if is_best:
            self.progress.best = {"metric": name, "value": value, "epoch": epoch}
        figures = {key: value for key, value in results.items() if key != "num_samples"}
        logger.info(f"[Eval][Epoch {epoch}][Avg]{format_figures(figures)}, samples: {results['num_samples']}")
        logger.info(f"[Eval][Epoch {epoch}][best metric: {self.progress.best['value']:.5f}]")
        self._write("eval", {"epoch": epoch, "step": self.progress.step}, results)
        return is_best

    def _write(self, kind: str, place: dict[str, Any], figures: dict[str, Any]) -> None:
        if not self._is_main:
            return
        append_json_line(self.output_dir / "metrics.jsonl", {"kind": kind, **place, **figures})
        if self.curves:
            for name in figures.keys() - _NO_CURVE:
                self.curves.add_scalar(f"{kind}_{name}", figures[name], self.progress.step)

    def save(self, prefixes: list[Path]) -> None:
        """Save a checkpoint under each prefix, from the first process; the others wait.

        Raises:
            OSError: it can't be written; earlier checkpoints stay whole.
        """
        if self._is_main:
            self.progress.scaler = {k: np.asarray(v).tolist() for k, v in self.precision.scaler.state_dict().items()}
            save_checkpoint(prefixes, self.network, self.optimizer, self.progress, self.facts)
            logger.info(f"Saved {', '.join(str(p) for p in prefixes)}")
        distributed.barrier()

    def resume(self, prefix: str | Path) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it can't be used.
        """
        self.progress, _ = load_checkpoint(prefix, self.network, self.optimizer)
        self.lr_scheduler.step(self.progress.step)
        if self.progress.scaler:
            self.precision.scaler.load_state_dict(self.progress.scaler)
        logger.info(f"Resumed {prefix}: epoch {self.progress.epoch}, step {self.progress.step}")


def _step_seed(*position: int) -> int:
    return int(np.random.SeedSequence(position).generate_state(1)[0])
