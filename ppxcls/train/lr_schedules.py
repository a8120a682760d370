"""Learning-rate schedules: functions of the optimizer step, with warm-up and cool-down for all of them.

A schedule takes its own arguments, and ``total`` and ``per_epoch`` if it needs them. It returns a function
from ``t`` to the learning rate. These three are counted in optimizer steps, or in epochs with ``by_epoch``.
``t`` and ``total`` are counted from the end of the warm-up. The rates equal those of PaddleClas's schedules.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from ppxcls.config.checks import Bound, ConfigPlace, Count, CountOrZero, NotNegative, Positive
from ppxcls.config.registry import Registry

Rate = Callable[[int], float]


@runtime_checkable
class AdaptiveRate(Protocol):
    """A learning rate that depends on the evaluations so far.

    Attributes:
        state: values to save in checkpoints.
    """

    state: dict[str, float]

    def __call__(self, t: int) -> float:
        """Returns the learning rate at ``t``."""

    def observe(self, value: float, *, larger_is_better: bool) -> None:
        """Updates the rate with the figure of an evaluation that chooses ``best_model``."""


@dataclass
class ScheduleKeys:
    """Common keys of the learning-rate schedules.

    Attributes:
        warmup_epoch: number of epochs of linear warm-up; fractions of an epoch are allowed.
        warmup_start_lr: learning rate of the first step. The warm-up ends at the schedule's first rate.
        by_epoch: True to change the rate once per epoch instead of every step.
        cooldown_epoch: number of epochs at the end of the run that keep the last rate of the schedule.
    """

    warmup_epoch: NotNegative = 0.0
    warmup_start_lr: NotNegative = 0.0
    by_epoch: bool = False
    cooldown_epoch: NotNegative = 0.0


LR_SCHEDULES: Registry[Rate] = Registry(
    "lr schedule", program_parameters=("total", "per_epoch"), common=ScheduleKeys
)


@LR_SCHEDULES.register
def Cosine(learning_rate: NotNegative, total: float, eta_min: NotNegative = 0.0) -> Rate:
    """Half a cosine from ``learning_rate`` to ``eta_min`` (SGDR, arXiv:1608.03983, equation 5).

    PaddleClas's optimizer uses the same rates. Without warm-up, PaddleClas logs other rates, because Paddle's
    ``get_lr()`` runs its recursion once too often and reports c(t)^2 / c(t - 1).

    Args:
        learning_rate: the first rate.
        total: length of the schedule.
        eta_min: the last rate.

    Raises:
        ValueError: ``eta_min`` is above ``learning_rate``.
    """
    if eta_min > learning_rate:
        raise ValueError(
            f"expected eta_min of at most learning_rate, {learning_rate:g}, received {eta_min:g}"
        )
    if total <= 0:
        return lambda t: learning_rate
    return lambda t: eta_min + (learning_rate - eta_min) * (1 + math.cos(math.pi * min(t / total, 1))) / 2


@LR_SCHEDULES.register
def Linear(
    learning_rate: NotNegative, total: float, end_lr: NotNegative = 0.0, power: Positive = 1.0
) -> Rate:
    """Decays from ``learning_rate`` to ``end_lr`` by ``(1 - t / total) ** power``, then keeps ``end_lr``."""
    height = learning_rate - end_lr
    return lambda t: end_lr + height * (1 - min(t, total) / total) ** power if total > 0 else learning_rate


@LR_SCHEDULES.register
def Polynomial(
    learning_rate: NotNegative, total: float, end_lr: NotNegative = 0.0, power: Positive = 1.0
) -> Rate:
    """The same schedule as ``Linear``."""
    return Linear(learning_rate, total, end_lr, power)


@LR_SCHEDULES.register
def OneCycleLR(
    max_learning_rate: NotNegative,
    total: float,
    *,
    divide_factor: Positive = 25.0,
    end_learning_rate: NotNegative = 1e-4,
    phase_pct: Annotated[float, Bound(gt=0, lt=1)] = 0.3,
    anneal_strategy: Literal["cos", "linear"] = "cos",
) -> Rate:
    """Rises from ``max_learning_rate / divide_factor`` and falls to ``end_learning_rate`` (arXiv:1708.07120).

    Args:
        max_learning_rate: the highest rate.
        total: length of the schedule.
        divide_factor: ratio of the highest rate to the first rate.
        end_learning_rate: the last rate.
        phase_pct: fraction of the schedule in which the rate rises.
        anneal_strategy: shape of the rise and the fall.
    """
    peak = max(phase_pct * total - 1, 0.0)
    first = max_learning_rate / divide_factor

    def interpolation(begin: float, end: float, share: float) -> float:
        share = min(max(share, 0.0), 1.0)
        if anneal_strategy == "cos":
            return end + (begin - end) * ((1 + math.cos(math.pi * share)) / 2)
        return end + (begin - end) * (1 - share)

    def rate(t: int) -> float:
        if t < peak:
            return interpolation(first, max_learning_rate, t / peak)
        return interpolation(max_learning_rate, end_learning_rate, (t - peak) / max(total - 1 - peak, 1e-9))

    return rate


class Plateau:
    """A learning rate that falls if the evaluations stop improving.

    Attributes:
        state: factor of the rate (``factor``), best value (``best``), number of evaluations without
            improvement (``bad``), and number of remaining evaluations of a cool-down (``pause``).
    """

    def __init__(
        self,
        learning_rate: float,
        mode: str | None,
        *,
        factor: float,
        patience: int,
        threshold: float,
        cooldown: int,
        min_lr: float,
    ) -> None:
        self._learning_rate = learning_rate
        self._mode = mode
        self._factor = factor
        self._patience = patience
        self._threshold = threshold
        self._cooldown = cooldown
        self._min_lr = min_lr
        self.state: dict[str, float] = {"factor": 1.0, "bad": 0, "pause": 0}

    def __call__(self, t: int) -> float:
        return max(self._learning_rate * self.state["factor"], self._min_lr)

    def observe(self, value: float, *, larger_is_better: bool) -> None:
        """Lowers the rate if the figure that chooses ``best_model`` has stopped improving."""
        state = self.state
        if state["pause"] > 0:
            state["pause"] -= 1
            return
        best_value = state.get("best")
        sign = 1 if self._mode == "max" or (self._mode is None and larger_is_better) else -1
        if best_value is None or sign * (value - best_value) > self._threshold * abs(best_value):
            state |= {"best": value, "bad": 0}
        else:
            state["bad"] += 1
        if state["bad"] > self._patience:
            state |= {"factor": state["factor"] * self._factor, "bad": 0, "pause": self._cooldown}


@LR_SCHEDULES.register
def ReduceOnPlateau(
    learning_rate: NotNegative,
    mode: Literal["min", "max"] | None = None,
    *,
    factor: Annotated[float, Bound(gt=0, lt=1)] = 0.1,
    patience: CountOrZero = 10,
    threshold: NotNegative = 1e-4,
    cooldown: CountOrZero = 0,
    min_lr: NotNegative = 0.0,
) -> Plateau:
    """Multiplies the rate by ``factor`` if the figure that chooses ``best_model`` stops improving.

    Args:
        learning_rate: the first rate.
        mode: direction of improvement: ``max`` if a larger value is better, and ``min`` if a smaller one is.
            None is ``min`` for a loss and ``max`` for a metric.
        factor: factor of the rate in each reduction.
        patience: number of evaluations without improvement before the rate falls.
        threshold: smallest improvement that counts, as a fraction of the best value.
        cooldown: number of evaluations after a reduction that do not count.
        min_lr: lower limit of the rate.
    """
    return Plateau(
        learning_rate,
        mode,
        factor=factor,
        patience=patience,
        threshold=threshold,
        cooldown=cooldown,
        min_lr=min_lr,
    )


@LR_SCHEDULES.register
def Piecewise(
    per_epoch: float,
    decay_epochs: list[NotNegative],
    values: list[NotNegative],
    learning_rate: NotNegative | None = None,
) -> Rate:
    """A rate of ``values[i]`` until epoch ``decay_epochs[i]`` after the warm-up, then the next value.

    Args:
        per_epoch: number of units of ``t`` per epoch.
        decay_epochs: epochs at which the rate changes, in increasing order.
        values: learning rates, one more than there are ``decay_epochs``.
        learning_rate: unused value. It is accepted because PaddleClas's configs repeat ``values[0]`` here.

    Raises:
        ValueError: ``values`` does not have one entry more than ``decay_epochs``, or ``decay_epochs`` do not
            increase.
    """
    if len(values) != len(decay_epochs) + 1:
        raise ValueError(
            f"expected one more value than decay_epochs, received {len(values)} and {len(decay_epochs)}"
        )
    boundaries = _boundaries(decay_epochs, per_epoch, "decay_epochs")
    return lambda t: values[bisect_right(boundaries, t)]


@LR_SCHEDULES.register
def Step(learning_rate: NotNegative, per_epoch: float, step_size: Positive, gamma: Positive = 0.1) -> Rate:
    """Multiplies the rate by ``gamma`` every ``step_size`` epochs.

    Raises:
        ValueError: ``step_size`` is shorter than one unit of ``t``.
    """
    length = int(step_size * per_epoch)
    if length < 1:
        raise ValueError(
            f"expected a step_size of at least one step, received {step_size:g} epochs of {per_epoch:g} steps"
        )
    return lambda t: learning_rate * gamma ** (t // length)


@LR_SCHEDULES.register
def MultiStepDecay(
    learning_rate: NotNegative, per_epoch: float, milestones: list[NotNegative], gamma: Positive = 0.1
) -> Rate:
    """Multiplies the rate by ``gamma`` at each epoch of ``milestones``.

    Raises:
        ValueError: the milestones do not increase.
    """
    boundaries = _boundaries(milestones, per_epoch, "milestones")
    return lambda t: learning_rate * gamma ** bisect_right(boundaries, t)


@LR_SCHEDULES.register
def ConstLR(learning_rate: NotNegative) -> Rate:
    """A constant rate."""
    return lambda t: learning_rate


@LR_SCHEDULES.register
def Cyclic(
    base_learning_rate: NotNegative,
    max_learning_rate: NotNegative,
    *,
    step_size_up: Count = 2000,
    step_size_down: Count | None = None,
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
    exp_gamma: Annotated[float, Bound(gt=0, le=1)] = 1.0,
) -> Rate:
    """Rises and falls between two rates (arXiv:1506.01186).

    Args:
        base_learning_rate: the lower rate.
        max_learning_rate: the upper rate.
        step_size_up: length of the rise in units of ``t``.
        step_size_down: length of the fall in units of ``t``; None for ``step_size_up``.
        mode: height of the cycles: constant for ``triangular``, halved after each cycle for ``triangular2``,
            and multiplied by ``exp_gamma`` after each unit of ``t`` for ``exp_range``.
        exp_gamma: factor of the height for the mode ``exp_range``.
    """
    cycle_size = step_size_up + (step_size_down or step_size_up)

    def rate(t: int) -> float:
        cycle, position = divmod(t, cycle_size)
        is_rising = position <= step_size_up
        share = (
            position / step_size_up if is_rising else (cycle_size - position) / (cycle_size - step_size_up)
        )
        height = {"triangular": 1.0, "triangular2": 0.5**cycle, "exp_range": exp_gamma**t}[mode]
        return base_learning_rate + (max_learning_rate - base_learning_rate) * share * height

    return rate


def _boundaries(epochs: list[float], per_epoch: float, name: str) -> list[float]:
    if any(a >= b for a, b in zip(epochs, epochs[1:], strict=False)):
        raise ValueError(f"expected {name} that increase, received {epochs}")
    return [epoch * per_epoch for epoch in epochs]


def build_lr_schedule(
    spec: Mapping[str, Any],
    epochs: int,
    *,
    steps_per_epoch: int,
    where: ConfigPlace = ConfigPlace(("Optimizer", "lr")),
    factor: float = 1.0,
) -> LRSchedule:
    """Builds the learning-rate schedule of a run.

    Args:
        spec: block of the schedule, such as ``{"name": "Cosine", "learning_rate": 0.045}``, with the common
            keys.
        epochs: number of epochs in the whole run.
        steps_per_epoch: number of optimizer steps per epoch.
        where: place of the block, for error messages.
        factor: factor of every rate.

    Returns:
        A function from the optimizer step, counted from 0, to the learning rate.

    Raises:
        ConfigError: the schedule or an argument is unknown, a value is invalid, or warm-up and cool-down are
            longer than the run.
    """
    block = LR_SCHEDULES.block(spec, where)
    where, common_keys = block.where, LR_SCHEDULES.common_keys(block)
    if common_keys.warmup_epoch > epochs:
        limit = f"at most {epochs}, the length of the run in epochs"
        raise (where / "warmup_epoch").error(
            f"expected a number {limit}, received {common_keys.warmup_epoch:g}"
        )
    if common_keys.warmup_epoch + common_keys.cooldown_epoch > epochs:
        raise (where / "cooldown_epoch").error(
            f"expected warm-up and cool-down of at most {epochs} epochs, the length of the run"
        )
    per_epoch = 1 if common_keys.by_epoch else steps_per_epoch
    warm_up = (
        common_keys.warmup_epoch
        if common_keys.by_epoch
        else round(common_keys.warmup_epoch * steps_per_epoch)
    )
    total = (epochs - common_keys.warmup_epoch - common_keys.cooldown_epoch) * per_epoch
    rate = LR_SCHEDULES.build(block, total=total, per_epoch=per_epoch)
    end = total if common_keys.cooldown_epoch else None
    unit = steps_per_epoch if common_keys.by_epoch else 1
    return LRSchedule(
        block.name,
        rate,
        warm_up=warm_up,
        start_lr=common_keys.warmup_start_lr,
        end=end,
        unit=unit,
        factor=factor,
    )


class LRSchedule:
    """A schedule with warm-up and cool-down: a function from the optimizer step to the learning rate.

    Args:
        name: name of the schedule, for the log.
        rate: schedule without warm-up; its ``t`` is counted from the end of the warm-up.
        warm_up: length of the warm-up in units.
        start_lr: learning rate of the first step of the warm-up.
        end: unit of the schedule at which the cool-down begins; None for no cool-down.
        unit: number of optimizer steps per unit.
        factor: factor of every rate.
    """

    def __init__(
        self,
        name: str,
        rate: Rate,
        *,
        warm_up: float,
        start_lr: float,
        end: float | None,
        unit: int,
        factor: float = 1.0,
    ) -> None:
        self.name = name
        self._rate = rate
        self._warm_up = warm_up
        self._start_lr = start_lr
        self._end = end
        self._unit = unit
        self._first = rate(0)
        self.factor = factor

    @property
    def state(self) -> dict[str, float]:
        """State of an adaptive rate; empty for other rates."""
        return dict(self._rate.state) if isinstance(self._rate, AdaptiveRate) else {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Restores an earlier ``state``."""
        if isinstance(self._rate, AdaptiveRate):
            self._rate.state |= state

    def observe(self, value: float, *, larger_is_better: bool) -> None:
        """Passes the figure of an evaluation that chooses ``best_model`` to an adaptive rate."""
        if isinstance(self._rate, AdaptiveRate):
            self._rate.observe(value, larger_is_better=larger_is_better)

    def follow(self, rate: Rate) -> None:
        """Uses another function of the optimizer step from now on, without warm-up and cool-down."""
        self._rate = rate
        self._warm_up = 0
        self._end = None
        self._unit = 1

    def __call__(self, step: int) -> float:
        return self.factor * self._unscaled_rate(step)

    def _unscaled_rate(self, step: int) -> float:
        t = step // self._unit
        if t < self._warm_up:
            return self._start_lr + (self._first - self._start_lr) * t / self._warm_up
        t -= self._warm_up  # type: ignore[assignment]
        return self._rate(t if self._end is None else min(t, math.ceil(self._end)))
