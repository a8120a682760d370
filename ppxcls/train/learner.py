"""The state that training changes, and one training step."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddle.optimizer import Optimizer
from paddle.optimizer.lr import LambdaDecay

from ppxcls.checkpoints.files import AVERAGE, OPTIMIZER, WEIGHTS, CheckpointError, State
from ppxcls.checkpoints.progress import Progress, Snapshot
from ppxcls.models.logits import checked_logits
from ppxcls.models.weights import check_fits, fitting_arrays, model_state, set_weights
from ppxcls.system import distributed
from ppxcls.train.ema import WeightAverage
from ppxcls.train.flat_tensors import as_float32, average_gradients
from ppxcls.train.losses import WeightedSum
from ppxcls.train.lr_schedules import LRSchedule
from ppxcls.train.metrics import Metric, Scorer, Totals
from ppxcls.train.mixing import BatchTransform
from ppxcls.train.optimizer_state import load_optimizer_state, optimizer_state
from ppxcls.train.precision import Precision


class Learner:
    """The state that training changes: network, optimizer, learning rate, loss scale, average and progress.

    It also holds the loss and the mixing. All state that must survive a kill is here. ``state`` copies it,
    and ``load`` restores it.

    Args:
        network: network to train. It is wrapped for data parallelism if there are several processes.
        loss: loss, a weighted sum of terms.
        optimizer: optimizer with the parameters of the network.
        scheduler: Paddle's scheduler, which sets the optimizer's learning rate to that of ``schedule``.
        schedule: learning rate as a function of the optimizer step.
        metrics: training metrics, skipped if labels are mixed.
        precision: precision of the forward pass, with the loss scale; None for float32.
        average: average of the weights, which evaluations use instead of the weights; None for no average.
        mixing: batch transforms on the device, applied in this order.
        comm_buffer_size: megabytes of gradients that the processes exchange at once.

    Attributes:
        progress: position of the run. ``step`` counts the optimizer steps. The training loop sets the
            position in the data.
        totals: sums of losses and metrics in the current epoch.
    """

    def __init__(
        self,
        network: nn.Layer,
        loss: WeightedSum,
        *,
        optimizer: Optimizer,
        scheduler: LambdaDecay,
        schedule: LRSchedule,
        metrics: Sequence[Metric] = (),
        precision: Precision | None = None,
        average: WeightAverage | None = None,
        mixing: Sequence[BatchTransform] = (),
        comm_buffer_size: int = 25,
    ) -> None:
        self.network = network
        is_parallel = distributed.world_size() > 1
        self.model = network
        if is_parallel:
            self.model = paddle.DataParallel(network, comm_buffer_size=comm_buffer_size)
        self.loss = loss
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.schedule = schedule
        self.precision = precision or Precision()
        self.average = average
        self.mixing = list(mixing)
        self.scorer = Scorer(loss.names, [] if self.mixing else metrics)
        self.totals = Totals(self.scorer.names)
        self._has_gradients = False  # True between the micro-batches of an optimizer step
        self.progress = Progress(started=datetime.now(timezone.utc).isoformat())

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.get_lr())

    def mixed(
        self, images: paddle.Tensor, labels: paddle.Tensor, seed: Sequence[int]
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Returns the batch after mixing.

        Args:
            images: float32 [N, 3, H, W].
            labels: int64 [N].
            seed: integers that seed the random choices.

        Returns:
            Images, and labels float32 [N, class_num]. Both are unchanged if there is no mixing.
        """
        for i, transform in enumerate(self.mixing, 1):
            images, labels = transform(images, labels, np.random.default_rng([*seed, i]))
        return images, labels

    def step(
        self, images: paddle.Tensor, labels: paddle.Tensor, weight: float, *, is_update_step: bool
    ) -> paddle.Tensor:
        """Runs one forward and backward pass and, on an update step, one optimizer step.

        Args:
            images: float32 [N, 3, H, W].
            labels: int64 [N], or float32 [N, class_num].
            weight: factor of this batch's mean loss in the gradient.
            is_update_step: True if the optimizer makes a step; False to accumulate gradients only.

        Returns:
            Sums over the batch for each of ``scorer.names``, float32 [names]. The device may still be
            computing them.
        """
        # Paddle's wrapper can't add half-precision gradients to the float32 sums of earlier micro-batches.
        has_float32_sums = self._has_gradients and self.precision.has_float32_gradients
        is_synchronized = is_update_step and not has_float32_sums
        with contextlib.nullcontext() if is_synchronized else self._no_sync():
            with self.precision.autocast():
                logits = checked_logits(self.model(images), self.network)
            losses = self.loss(as_float32(logits), labels)
            self.precision.scaler.scale(losses["loss"] * weight).backward()
        self._has_gradients = not is_update_step
        if is_update_step and not is_synchronized:
            average_gradients(self.network.parameters())
        if is_update_step:
            self.precision.scaler.step(self.optimizer)
            self.precision.scaler.update()
            # Zeroed gradients would cost two operators per parameter: to fill them, and to add to them.
            self.optimizer.clear_grad(set_to_zero=False)
            self.scheduler.step()
            self.progress.step += 1
            if self.average:
                self.average.update(self.progress.step)
        return self.scorer({name: value.detach() for name, value in losses.items()}, logits.detach(), labels)

    def _no_sync(self) -> contextlib.AbstractContextManager[Any]:
        if isinstance(self.model, paddle.DataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Returns a context in which the network has the averaged weights, if there is an average."""
        return self.average.applied() if self.average else contextlib.nullcontext()

    def observe(self, figure: float, *, larger_is_better: bool) -> None:
        """Passes the figure that chooses ``best_model`` to the schedule, and updates the learning rate."""
        self.schedule.observe(figure, larger_is_better=larger_is_better)
        self.scheduler.step(self.progress.step)

    def start_epoch(self, epoch: int) -> None:
        """Sets the progress to the beginning of an epoch, and resets the totals."""
        self.progress.epoch = epoch
        self.progress.batches_done = 0
        self.totals = Totals(self.scorer.names)

    def state(self) -> Snapshot | None:
        """Returns copies of all state that must survive a kill; None on every rank but 0.

        All processes must call it.

        Raises:
            CheckpointError: a weight is not finite, so the state is not worth saving. The message names the
                weight.
        """
        self.totals.gather()
        if distributed.rank() != 0:
            return None
        parts = {WEIGHTS: model_state(self.network), OPTIMIZER: optimizer_state(self.optimizer)}
        for key, value in parts[WEIGHTS].items():
            if isinstance(value, np.ndarray) and not np.isfinite(value).all():
                raise CheckpointError(f"{key} has values that are not finite, so no checkpoint is written")
        if self.average:
            parts[AVERAGE] = self.average.state_dict()
        self.progress.totals = self.totals.as_dict()
        self.progress.scaler = {
            key: np.asarray(value).tolist() for key, value in self.precision.scaler.state_dict().items()
        }
        self.progress.plateau = self.schedule.state
        return Snapshot(parts, copy.deepcopy(self.progress))

    def load(self, snapshot: Snapshot) -> None:
        """Restores a state that ``state`` returned.

        Raises:
            CheckpointError: the state belongs to another network or optimizer.
        """
        self.optimizer.clear_grad(set_to_zero=False)
        self._has_gradients = False
        weights, progress = snapshot.parts[WEIGHTS], snapshot.progress
        weights = self._fitting_part(weights, snapshot.file(WEIGHTS))
        average = weights  # if there is no saved average, start from the weights
        if self.average and AVERAGE in snapshot.parts:
            average = self._fitting_part(snapshot.parts[AVERAGE], snapshot.file(AVERAGE))
        set_weights(self.network, weights, snapshot.file(WEIGHTS))
        load_optimizer_state(
            self.optimizer,
            snapshot.parts[OPTIMIZER],
            weights=weights,
            model=self.network,
            file=snapshot.file(OPTIMIZER),
        )
        if self.average:
            self.average.load_state_dict(average)
        progress.started = progress.started or self.progress.started
        self.progress = progress
        self.totals = Totals(self.scorer.names, progress.totals if distributed.rank() == 0 else None)
        self.schedule.load_state(progress.plateau)
        self.scheduler.step(progress.step)
        if progress.scaler:
            self.precision.scaler.load_state_dict(progress.scaler)

    def _fitting_part(self, state: State, file: Path) -> State:
        """Returns a checkpoint's weights in the types that the network has, with the other entries."""
        check_fits(state, self.network, file)
        return {**state, **fitting_arrays(state, self.network, file)}
