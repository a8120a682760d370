"""Learning-rate range test: measures the loss while the rate rises from far too small to far too large."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

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
_TRAILING_WEIGHT = 0.9  # weight of the previous mean, in the mean that ends the test
_STOP_LOSS_RATIO = 3.0  # the test ends if this mean exceeds its minimum by this factor
_MIN_RATES = 10  # rates; fewer give no result
_SMOOTHING_DECADES = 0.3  # standard deviation of the smoothing, in powers of ten of the rate
_MIN_LOSS_FALL = 0.03  # fraction of the first loss; a smaller fall is noise
_MIN_FALL_TO_NOISE = 5.0  # standard deviations of the smoothed loss
_ONSET_SHARE = 0.1  # share of the fall; the loss has begun to fall at the rate at which it has fallen by it
_SUGGESTION_DIVISOR = 3.0  # the suggestion is below the rate of the lowest loss, near which the loss rises
_EDGE_RATIO = 3.0  # a result within this factor of an end of the range is no result


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

    @cached_property
    def smoothed(self) -> Array:
        """Mean of the losses near each rate [n], weighted by a normal distribution over the logarithm.

        Losses far above the first ones count less, because they would hide the fall before them.
        """
        largest_loss = _STOP_LOSS_RATIO * np.median(self.losses[: self._start_count])
        positions = np.arange(len(self.losses))
        distances = (positions[:, None] - positions) / self._smoothing_steps
        weights = np.exp(-0.5 * distances**2)
        means = weights @ np.minimum(self.losses, largest_loss) / weights.sum(axis=1)
        return np.asarray(means)

    @property
    def _smoothing_steps(self) -> float:
        """Standard deviation of the smoothing, in steps."""
        decades = math.log10(self.rates[-1] / self.rates[0])
        steps_per_decade = (len(self.rates) - 1) / decades if decades > 0 else 0.0
        return max(_SMOOTHING_DECADES * steps_per_decade, 1.0)

    @property
    def _start_count(self) -> int:
        """Number of the first rates, up to ten times the lowest, at which almost nothing is learned."""
        return max(int(np.count_nonzero(self.rates <= 10 * self.rates[0])), 1)

    @property
    def suggestion(self) -> float | None:
        """Suggested learning rate, rounded to two digits; None if the test gives no answer.

        It is the rate at which the smoothed loss falls fastest, after it has begun to fall. It is at most a
        third of the rate of the lowest loss, because near that rate the loss is about to rise.
        """
        return None if self.problem else float(f"{self._steepest_rate:.2g}")

    @property
    def problem(self) -> str | None:
        """Reason why no rate is suggested; None if one is."""
        first_loss, lowest_index = self._first_loss, self._lowest_index
        fall = first_loss - self.smoothed[lowest_index]
        if fall < _MIN_LOSS_FALL * abs(first_loss) or self.rates[lowest_index] <= self.rates[0]:
            return "the loss did not fall"
        if fall < _MIN_FALL_TO_NOISE * self._noise:
            return "the loss fell by no more than its noise: there are too few images or steps"
        if self.rates[lowest_index] * _EDGE_RATIO > MAX_RATE:
            return "the loss still fell at the highest rate"
        if self._steepest_rate < _EDGE_RATIO * self.rates[0]:
            return "the loss fell at the lowest rates already: there are too few images or steps"
        return None

    @property
    def _first_loss(self) -> float:
        return float(self.losses[: self._start_count].mean())

    @property
    def _lowest_index(self) -> int:
        return int(np.argmin(self.smoothed))

    @property
    def _noise(self) -> float:
        """Standard deviation of the smoothed loss, from the losses before the lowest one."""
        stop = max(self._lowest_index + 1, 3)
        residuals = self.losses[:stop] - self.smoothed[:stop]
        samples_in_mean = 2 * math.sqrt(math.pi) * self._smoothing_steps
        own_weight = 1 / (math.sqrt(2 * math.pi) * self._smoothing_steps)  # of each loss in its own mean
        residual_share = 1 - 2 * own_weight + 1 / samples_in_mean  # of the variance of a loss
        return float(residuals.std() / math.sqrt(residual_share * samples_in_mean))

    @property
    def _steepest_rate(self) -> float:
        """Rate of the steepest fall between the onset of the fall and a third of the best rate."""
        smoothed_losses, lowest_index = self.smoothed, self._lowest_index
        onset_loss = self._first_loss - _ONSET_SHARE * (self._first_loss - smoothed_losses[lowest_index])
        before_onset = np.flatnonzero(smoothed_losses[: lowest_index + 1] > onset_loss)
        onset_index = int(before_onset[-1]) + 1 if before_onset.size else 0
        indices = np.arange(len(self.rates))
        is_allowed = self.rates <= self.rates[lowest_index] / _SUGGESTION_DIVISOR
        if not is_allowed.any():
            return float(self.rates[0])
        candidates = indices[is_allowed & (indices >= onset_index)]
        if not candidates.size:  # the fall is steeper than the distance to the best rate
            return float(self.rates[is_allowed][-1])
        slopes = np.gradient(smoothed_losses, np.log(self.rates))[candidates]
        return float(self.rates[candidates[int(np.argmin(slopes))]])

    def rows(self) -> Iterator[tuple[float, float, float]]:
        """Returns rate, loss and smoothed loss of each step."""
        return zip(self.rates.tolist(), self.losses.tolist(), self.smoothed.tolist(), strict=True)

    def __str__(self) -> str:
        range_text = f"from {self.rates[0]:.2g} to {self.rates[-1]:.2g} in {len(self.rates)} steps"
        if self.problem:
            return f"learning rate: none is suggested, because {self.problem}; tried {range_text}"
        lowest_rate = self.rates[self._lowest_index]
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
    means, mean = [], 0.0
    for count, loss in enumerate(losses, 1):
        mean = _TRAILING_WEIGHT * mean + (1 - _TRAILING_WEIGHT) * loss
        means.append(mean / (1 - _TRAILING_WEIGHT**count))  # without the bias of the start
    return len(losses) > _MIN_RATES and means[-1] > _STOP_LOSS_RATIO * min(means)


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
