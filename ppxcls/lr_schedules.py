"""Learning-rate schedules as plain functions of the optimizer step; warm-up goes before any of them.

A schedule is a function that takes its own arguments, beside ``total`` and ``per_epoch``, and returns the rate as a function of
``t``. ``t``, ``total`` and ``per_epoch`` are counted in optimizer steps, or in epochs where the config says ``by_epoch``; ``t`` and
``total`` begin after the warm-up. All agree with PaddleClas's schedules.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from ppxcls.registry import LR_SCHEDULES, split_block
from ppxcls.schema import Bound, Count, NotNegative, Positive, Where

Schedule = Callable[[int], float]


@LR_SCHEDULES.register
def Cosine(learning_rate: NotNegative, total: float, as_reported: bool, eta_min: NotNegative = 0.0) -> Schedule:
    """Half a cosine from ``learning_rate`` to ``eta_min`` (SGDR, arXiv:1608.03983, equation 5).

    Stepwise and without warm-up it is the rate that PaddleClas reports, not quite the cosine c(t): Paddle's scheduler applies its
    recursion c(t) / c(t - 1) once more when it is asked, which gives c(t)^2 / c(t - 1). Over the 300,360 steps of Xception41.yaml
    the two differ by 1e-5 half way and matter in the last steps alone.

    Args:
        as_reported: whether that is the case.
    """
    if total <= 0:
        return lambda t: learning_rate

    def cosine(t: int) -> float:
        return (1 + math.cos(math.pi * t / total)) / 2

    def rate(t: int) -> float:
        share = cosine(t) ** 2 / cosine(t - 1) if as_reported and t > 0 else cosine(t)
        return eta_min + (learning_rate - eta_min) * share

    return rate


@LR_SCHEDULES.register
def Linear(learning_rate: NotNegative, total: float, end_lr: NotNegative = 0.0, power: Positive = 1.0) -> Schedule:
    """From ``learning_rate`` to ``end_lr`` as ``(1 - t / total) ** power``, and ``end_lr`` from there on."""
    height = learning_rate - end_lr
    return lambda t: end_lr + height * (1 - min(t, total) / total) ** power if total > 0 else learning_rate


@LR_SCHEDULES.register
def Piecewise(
    per_epoch: float,
    decay_epochs: list[NotNegative],
    values: list[NotNegative],
    learning_rate: NotNegative | None = None,
) -> Schedule:
    """``values[i]`` until epoch ``decay_epochs[i]`` after the warm-up, then the next.

    Args:
        learning_rate: not used; PaddleClas's configs repeat ``values[0]`` here.

    Raises:
        ValueError: ``values`` is not one longer than ``decay_epochs``, or these do not increase.
    """
    if len(values) != len(decay_epochs) + 1:
        raise ValueError(f"expected one more of values than of decay_epochs, received {len(values)} and {len(decay_epochs)}")
    boundaries = _increasing(decay_epochs, per_epoch, "decay_epochs")
    return lambda t: values[bisect_right(boundaries, t)]


@LR_SCHEDULES.register
def Step(learning_rate: NotNegative, per_epoch: float, step_size: Positive, gamma: Positive = 0.1) -> Schedule:
    """Times ``gamma`` every ``step_size`` epochs."""
    length = int(step_size * per_epoch)
    if length < 1:
        raise ValueError(f"expected a step_size of at least one step, received {step_size:g} epochs of {per_epoch:g} steps")
    return lambda t: learning_rate * gamma ** (t // length)


@LR_SCHEDULES.register
def MultiStepDecay(learning_rate: NotNegative, per_epoch: float, milestones: list[NotNegative], gamma: Positive = 0.1) -> Schedule:
    """Times ``gamma`` at each of the epochs ``milestones``.

    Raises:
        ValueError: the milestones do not increase.
    """
    boundaries = _increasing(milestones, per_epoch, "milestones")
    return lambda t: learning_rate * gamma ** bisect_right(boundaries, t)


@LR_SCHEDULES.register
def ConstLR(learning_rate: NotNegative) -> Schedule:
    """Always ``learning_rate``."""
    return lambda t: learning_rate


@LR_SCHEDULES.register
def Cyclic(
    base_learning_rate: NotNegative,
    max_learning_rate: NotNegative,
    step_size_up: Count = 2000,
    step_size_down: Count | None = None,
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
    exp_gamma: Annotated[float, Bound(gt=0, le=1)] = 1.0,
) -> Schedule:
    """Up and down between two rates (arXiv:1506.01186).

    Args:
        step_size_up: units of ``t`` on the way up.
        step_size_down: units on the way down; None for as many.
        mode: height of the cycles: constant, halved each cycle, or times ``exp_gamma`` each unit.
    """
    cycle_size = step_size_up + (step_size_down or step_size_up)

    def rate(t: int) -> float:
        cycle, position = divmod(t, cycle_size)
        rising = position <= step_size_up
        share = position / step_size_up if rising else (cycle_size - position) / (cycle_size - step_size_up)
        height = {"triangular": 1.0, "triangular2": 0.5**cycle, "exp_range": exp_gamma**t}[mode]
        return base_learning_rate + (max_learning_rate - base_learning_rate) * share * height

    return rate


def _increasing(epochs: list[float], per_epoch: float, name: str) -> list[float]:
    if any(a >= b for a, b in zip(epochs, epochs[1:], strict=False)):
        raise ValueError(f"expected {name} that increase, received {epochs}")
    return [epoch * per_epoch for epoch in epochs]


def build_lr_schedule(
    spec: Mapping[str, Any], epochs: int, steps_per_epoch: int, where: Where = Where(("Optimizer", "lr"))
) -> Schedule:
    """The rate of every optimizer step.

    Args:
        spec: ``{"name": "Cosine", "learning_rate": 0.045, ...}``, with the warm-up's keys.
        epochs: epochs of the whole run.
        steps_per_epoch: optimizer steps an epoch.

    Returns:
        A function from the optimizer step, counted from 0, to the learning rate.

    Raises:
        ConfigError: unknown schedule or argument, wrong value, or a warm-up longer than the run.
    """
    name, arguments = split_block(spec)
    LR_SCHEDULES.check(name, arguments, where, where / "name")
    common = LR_SCHEDULES.build_common(arguments, where)
    if common.warmup_epoch > epochs:
        limit = f"at most {epochs}, the epochs of the run"
        raise (where / "warmup_epoch").error(f"expected a number {limit}, received {common.warmup_epoch:g}")
    per_epoch = 1 if common.by_epoch else steps_per_epoch
    warm_up = common.warmup_epoch if common.by_epoch else round(common.warmup_epoch * steps_per_epoch)
    total = (epochs - common.warmup_epoch) * per_epoch
    as_reported = warm_up == 0 and not common.by_epoch
    decay = LR_SCHEDULES.build(name, arguments, where, total=total, per_epoch=per_epoch, as_reported=as_reported)
    first = decay(0)

    def rate(step: int) -> float:
        t = step // steps_per_epoch if common.by_epoch else step
        if t < warm_up:
            return common.warmup_start_lr + (first - common.warmup_start_lr) * t / warm_up
        return decay(t - warm_up)

    return rate
