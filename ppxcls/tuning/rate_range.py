"""Learning-rate range test: measures the loss while the rate rises from far too small to far too large."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ppxcls.data.errors import DataError
from ppxcls.data.loader import Batch
from ppxcls.reports.curves import BLUE, GREY, ORANGE, png, pyplot, restyle
from ppxcls.system import distributed
from ppxcls.system.arrays import Array
from ppxcls.system.signals import interrupts_deferred
from ppxcls.train.loss_watch import TrainingError
from ppxcls.train.trainer import Trainer

MIN_RATE, MAX_RATE = 1e-6, 10.0
_SMOOTHING = 0.9  # weight of the previous smoothed loss
_STOP_LOSS_RATIO = 3.0  # the test ends if the smoothed loss exceeds its minimum by this factor
_MIN_RATES = 10  # rates; fewer give no result
_MIN_LOSS_FALL = 0.03  # fraction of the first smoothed loss; a smaller fall is noise
_SUGGESTION_DIVISOR = 3.0  # the suggestion is below the rate of the lowest loss, near which the loss rises


@dataclass(frozen=True)
class RateRange:
    """Results of a range test.

    Attributes:
        rates: learning rate of each step [n], rising, in the unit of ``Optimizer.lr``: before
            ``Global.scale_lr`` multiplies it.
        losses: mean loss of each step over the samples of all processes [n].
    """

    rates: Array
    losses: Array

    @property
    def smoothed(self) -> Array:
        """Exponential moving mean of the losses [n], corrected for the bias of its start."""
        mean, values = 0.0, []
        for i, loss in enumerate(self.losses, 1):
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
            values.append(mean / (1 - _SMOOTHING**i))
        return np.array(values)

    @property
    def suggestion(self) -> float | None:
        """Suggested learning rate, rounded to two digits; None if the loss did not fall.

        It is the rate at which the smoothed loss falls fastest. It is at most a third of the rate of the
        lowest loss, because near that rate the loss is about to rise.
        """
        smoothed_losses, log_rates = self.smoothed, np.log(self.rates)
        lowest_index = int(np.argmin(smoothed_losses))
        is_allowed = self.rates <= self.rates[lowest_index] / _SUGGESTION_DIVISOR
        fall = smoothed_losses[0] - smoothed_losses[lowest_index]
        if not is_allowed.any() or fall < _MIN_LOSS_FALL * abs(smoothed_losses[0]):
            return None
        slopes = np.gradient(smoothed_losses, log_rates)[is_allowed]
        steepest_rate = self.rates[is_allowed][int(np.argmin(slopes))]
        return float(f"{steepest_rate:.2g}")

    def rows(self) -> Iterator[tuple[float, float, float]]:
        """Returns rate, loss and smoothed loss of each step."""
        return zip(self.rates.tolist(), self.losses.tolist(), self.smoothed.tolist(), strict=True)

    def __str__(self) -> str:
        range_text = f"from {self.rates[0]:.2g} to {self.rates[-1]:.2g} in {len(self.rates)} steps"
        if self.suggestion is None:
            return f"learning rate: none is suggested, because the loss did not fall; tried {range_text}"
        lowest_rate = self.rates[int(np.argmin(self.smoothed))]
        return (
            f"learning rate: {self.suggestion:g} is suggested; "
            f"the loss was lowest at {lowest_rate:.2g}, tried {range_text}"
        )


def try_rates(trainer: Trainer, steps: int = 100) -> RateRange:
    """Trains for at most ``steps`` optimizer steps, at rates from ``MIN_RATE`` to ``MAX_RATE``.

    The trainer can't be used afterwards.

    Args:
        trainer: trainer, as for training.
        steps: number of optimizer steps, at least 10.

    Raises:
        DataError: a sample can't be loaded, or there are too few steps.
        TrainingError: the loss was finite at too few rates.
    """
    if steps < _MIN_RATES:
        raise DataError(f"expected at least {_MIN_RATES} steps of a range test, received {steps}")
    learner, batches_per_step = trainer.learner, trainer.run_schedule.update_freq
    loss_index = learner.scorer.names.index("loss")
    rates = np.geomspace(MIN_RATE, MAX_RATE, steps)
    learner.schedule.follow(lambda step: float(rates[min(step, steps - 1)]))
    learner.scheduler.step(0)
    learner.model.train()
    finished_rates: list[float] = []
    losses: list[float] = []
    with trainer.watchdog:
        batches = trainer.watchdog.batches(_endless_batches(trainer), "the range test")
        for rate in rates:
            sums = np.zeros(2)
            for batch in itertools.islice(batches, batches_per_step):
                with interrupts_deferred():
                    result = trainer.train_on(batch)
                sums += (float(result.sums[loss_index]), result.plan.count) if result.plan.count else 0.0
            total, count = distributed.sum_over_processes(sums)  # all processes decide alike
            if count:  # 0 if no sample of the step can be read
                finished_rates.append(float(rate))
                losses.append(total / count)
                if _is_over(losses):
                    break
    finite_losses = list(itertools.takewhile(math.isfinite, losses))
    if len(finite_losses) < _MIN_RATES:
        raise TrainingError(
            f"the loss is finite at {len(finite_losses)} rates from {MIN_RATE:g} upwards: "
            "the training diverges even at low rates"
        )
    return RateRange(np.array(finished_rates[: len(finite_losses)]), np.array(finite_losses))


def _is_over(losses: list[float]) -> bool:
    if not math.isfinite(losses[-1]):
        return True
    smoothed_losses = RateRange(np.ones(len(losses)), np.array(losses)).smoothed
    return len(losses) > _MIN_RATES and bool(smoothed_losses[-1] > _STOP_LOSS_RATIO * smoothed_losses.min())


def _endless_batches(trainer: Trainer) -> Iterator[Batch]:
    """Yields the batches of one epoch after another.

    Of each epoch, it yields the batches of whole optimizer steps only.
    """
    for epoch in itertools.count(1):
        batch_count = len(trainer.loader) - len(trainer.loader) % trainer.run_schedule.update_freq
        yield from itertools.islice(trainer.loader.epoch(epoch), batch_count or len(trainer.loader))


def draw(rate_range: RateRange) -> bytes:
    """Draws the losses over the rates, and the suggestion; returns a PNG."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    smoothed_losses = rate_range.smoothed
    axis.plot(rate_range.rates, rate_range.losses, color=BLUE, alpha=0.3, linewidth=0.8)
    axis.plot(rate_range.rates, smoothed_losses, color=BLUE, label="loss, smoothed")
    if rate_range.suggestion is not None:
        axis.axvline(
            rate_range.suggestion,
            color=ORANGE,
            linestyle="--",
            label=f"suggestion: {rate_range.suggestion:g}",
        )
    margin = 0.1 * (smoothed_losses[0] - smoothed_losses.min()) + 0.02 * abs(smoothed_losses[0])
    loss_limits = (
        min(rate_range.losses.min(), smoothed_losses.min() - margin),
        smoothed_losses[0] + 4 * margin,
    )
    axis.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=loss_limits)
    axis.legend(frameon=False, labelcolor=GREY)
    restyle(axis)
    return png(figure)
