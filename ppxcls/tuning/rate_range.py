"""A learning-rate range test: how the loss changes while the rate rises from far too small to far too large."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppxcls.data.errors import DataError
from ppxcls.data.loader import Batch
from ppxcls.reports.curves import BLUE, GREY, ORANGE, png, pyplot, restyle
from ppxcls.system import distributed
from ppxcls.train.loss_watch import TrainingError
from ppxcls.train.trainer import Trainer

Array = np.ndarray[Any, Any]

LOWEST, HIGHEST = 1e-6, 10.0
_SMOOTHING = 0.9  # share that a smoothed loss keeps of the one before
_TOO_HIGH = 3.0  # the test ends when the smoothed loss is this multiple of the lowest
_LEAST = 10  # rates, to say anything
_LEAST_FALL = 0.03  # of the smoothed loss, as a share; less is noise
_BELOW_THE_LOWEST = 3.0  # the suggestion is at most the rate of the lowest loss divided by this: there the loss is about to rise


@dataclass(frozen=True)
class RateRange:
    """What a range test has seen.

    Attributes:
        rates: of each step [n], rising, as ``Optimizer.lr`` says them: before ``Global.scale_lr`` multiplies
            them.
        losses: means over the step's samples of all processes [n].
    """

    rates: Array
    losses: Array

    @property
    def smoothed(self) -> Array:
        """An exponential moving mean of the losses [n], without the bias of its start."""
        mean, found = 0.0, []
        for i, loss in enumerate(self.losses, 1):
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
            found.append(mean / (1 - _SMOOTHING**i))
        return np.array(found)

    @property
    def suggestion(self) -> float | None:
        """The rate where the smoothed loss falls fastest, before its lowest point and with some distance to it;
        two digits.

        None if the loss did not fall.
        """
        smooth, logs = self.smoothed, np.log(self.rates)
        lowest = int(np.argmin(smooth))
        allowed = self.rates <= self.rates[lowest] / _BELOW_THE_LOWEST
        if not allowed.any() or smooth[0] - smooth[lowest] < _LEAST_FALL * abs(smooth[0]):
            return None
        return float(f"{self.rates[allowed][int(np.argmin(np.gradient(smooth, logs)[allowed]))]:.2g}")

    def rows(self) -> Iterator[tuple[float, float, float]]:
        """Rate, loss and smoothed loss of each step."""
        return zip(self.rates.tolist(), self.losses.tolist(), self.smoothed.tolist(), strict=True)

    def __str__(self) -> str:
        tried = f"from {self.rates[0]:.2g} to {self.rates[-1]:.2g} in {len(self.rates)} steps"
        if self.suggestion is None:
            return f"learning rate: the loss fell at none, tried {tried}"
        lowest = self.rates[int(np.argmin(self.smoothed))]
        return f"learning rate: {self.suggestion:g} is suggested; the loss was lowest at {lowest:.2g}, tried {tried}"


def try_rates(trainer: Trainer, steps: int = 100) -> RateRange:
    """Train for at most so many optimizer steps, at rates from ``LOWEST`` to ``HIGHEST``.

    The trainer is of no use afterwards.

    Args:
        trainer: as for training.
        steps: at least 10.

    Raises:
        DataError: a sample can't be loaded, or there are too few steps.
        TrainingError: the loss was finite at too few rates.
    """
    if steps < _LEAST:
        raise DataError(f"expected at least {_LEAST} steps of a range test, received {steps}")
    learner, every = trainer.learner, trainer.schedule.update_freq
    index = learner.scorer.names.index("loss")
    rates = np.geomspace(LOWEST, HIGHEST, steps)
    learner.schedule.follow(lambda step: float(rates[min(step, steps - 1)]))
    learner.scheduler.step(0)
    learner.model.train()
    tried: list[float] = []
    losses: list[float] = []
    with trainer.watchdog:
        batches = trainer.watchdog.batches(_endless(trainer), "the range test")
        for rate in rates:
            sums = np.zeros(2)
            for batch in itertools.islice(batches, every):
                result = trainer.train_on(batch)
                sums += (float(result.sums[index]), result.plan.count) if result.plan.count else 0.0
            total, count = distributed.sum_over_processes(sums)  # all decide alike
            if count:  # of a batch whose samples can't be read, none
                tried.append(float(rate))
                losses.append(total / count)
                if _is_over(losses):
                    break
    finite = list(itertools.takewhile(math.isfinite, losses))
    if len(finite) < _LEAST:
        raise TrainingError(
            f"the loss is finite at {len(finite)} rates from {LOWEST:g} on: the training diverges by itself"
        )
    return RateRange(np.array(tried[: len(finite)]), np.array(finite))


def _is_over(losses: list[float]) -> bool:
    if not math.isfinite(losses[-1]):
        return True
    smooth = RateRange(np.ones(len(losses)), np.array(losses)).smoothed
    return len(losses) > _LEAST and bool(smooth[-1] > _TOO_HIGH * smooth.min())


def _endless(trainer: Trainer) -> Iterator[Batch]:
    """Batches of epoch after epoch; of each, whole optimizer steps."""
    for epoch in itertools.count(1):
        whole = len(trainer.loader) - len(trainer.loader) % trainer.schedule.update_freq
        yield from itertools.islice(trainer.loader.epoch(epoch), whole or len(trainer.loader))


def draw(found: RateRange) -> bytes:
    """The losses over the rates, and the suggestion; a PNG."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    smooth = found.smoothed
    axis.plot(found.rates, found.losses, color=BLUE, alpha=0.3, linewidth=0.8)
    axis.plot(found.rates, smooth, color=BLUE, label="loss, smoothed")
    if found.suggestion is not None:
        axis.axvline(
            found.suggestion, color=ORANGE, linestyle="--", label=f"suggestion: {found.suggestion:g}"
        )
    room = 0.1 * (smooth[0] - smooth.min()) + 0.02 * abs(smooth[0])
    heights = (min(found.losses.min(), smooth.min() - room), smooth[0] + 4 * room)
    axis.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=heights)
    axis.legend(frameon=False, labelcolor=GREY)
    restyle(axis)
    return png(figure)
