"""Schedules against the rates of PaddleClas's own schedules, and against closed forms."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import paddle
import pytest

import ppxcls
from ppxcls.train.lr_schedules import LR_SCHEDULES
from tests.conftest import SHARED, needs_shared

CASES = json.loads((SHARED / "parity/lr_schedules.json").read_text()) if SHARED.is_dir() else []


@needs_shared
def test_there_are_26_cases() -> None:
    assert len(CASES) == 26


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['config']['name']}-{c['steps_per_epoch']}")
def test_parity_with_paddleclas(case: dict[str, Any]) -> None:
    lr_at = ppxcls.build_lr_schedule(
        case["config"], epochs=case["epochs"], steps_per_epoch=case["steps_per_epoch"]
    )
    assert [lr_at(step) for step in range(len(case["lr"]))] == pytest.approx(
        case["lr"], rel=1e-12, abs=1e-300
    )


def cosine(t: int, total: int) -> float:
    return 0.045 * (1 + math.cos(math.pi * t / total)) / 2


def test_cosine_closed_form() -> None:
    lr_at = ppxcls.build_lr_schedule(
        {"name": "Cosine", "learning_rate": 0.045}, epochs=120, steps_per_epoch=2503
    )
    assert lr_at(0) == 0.045
    for step in (1000, 60 * 2503, 100 * 2503):
        assert lr_at(step) == pytest.approx(cosine(step, 120 * 2503), rel=1e-12)
    warm = {"name": "Cosine", "learning_rate": 0.045, "warmup_epoch": 1}
    lr_at = ppxcls.build_lr_schedule(warm, epochs=11, steps_per_epoch=7)
    assert [lr_at(7 + t) for t in range(70)] == pytest.approx([cosine(t, 70) for t in range(70)])


def test_cosine_without_warm_up_is_the_rate_that_paddles_optimizer_applies() -> None:
    """A weight with gradient 1 changes by the rate of the step.

    The rate that the scheduler reports differs from it.
    """
    scheduler = paddle.optimizer.lr.CosineAnnealingDecay(0.045, T_max=20)
    weight = paddle.create_parameter([1], "float32", default_initializer=paddle.nn.initializer.Constant(0.0))
    optimizer = paddle.optimizer.SGD(scheduler, parameters=[weight])
    lr_at = ppxcls.build_lr_schedule({"name": "Cosine", "learning_rate": 0.045}, epochs=4, steps_per_epoch=5)
    reported = []
    for step in range(20):
        before = weight.item()
        weight.grad = paddle.ones([1])
        optimizer.step()
        assert before - weight.item() == pytest.approx(lr_at(step), rel=1e-3), step
        reported.append(scheduler.get_lr())
        scheduler.step()
    assert reported[10] != pytest.approx(lr_at(10), rel=1e-3)


def test_polynomial_and_cycles() -> None:
    linear = ppxcls.build_lr_schedule(
        {"name": "Linear", "learning_rate": 1.0, "end_lr": 0.1, "power": 2.0}, 2, steps_per_epoch=5
    )
    assert linear(5) == pytest.approx(0.1 + 0.9 * 0.25)
    assert linear(10) == linear(50) == pytest.approx(0.1)
    spec = {
        "name": "Cyclic",
        "base_learning_rate": 0.0,
        "max_learning_rate": 1.0,
        "step_size_up": 4,
        "mode": "triangular2",
    }
    cyclic = ppxcls.build_lr_schedule(spec, 10, steps_per_epoch=10)
    assert [cyclic(t) for t in (0, 2, 4, 6, 8, 12)] == pytest.approx([0, 0.5, 1, 0.5, 0, 0.5])


def test_warm_up_of_a_fraction_of_an_epoch_and_of_the_whole_run() -> None:
    spec = {"name": "Cosine", "learning_rate": 1.0, "warmup_epoch": 0.5, "warmup_start_lr": 0.2}
    lr_at = ppxcls.build_lr_schedule(spec, epochs=2, steps_per_epoch=10)
    assert [lr_at(0), lr_at(5)] == pytest.approx([0.2, 1.0])
    whole = ppxcls.build_lr_schedule({**spec, "warmup_epoch": 2}, epochs=2, steps_per_epoch=10)
    assert whole(19) == pytest.approx(0.2 + 0.8 * 19 / 20)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "Cosin", "learning_rate": 0.1}, "did you mean 'Cosine'"),
        ({"name": "Cosine"}, "needs the argument learning_rate"),
        ({"name": "Cosine", "learning_rate": 0.1, "etamin": 0}, "did you mean 'eta_min'"),
        (
            {"name": "Cosine", "learning_rate": -0.1},
            r"Optimizer.lr.learning_rate: expected a number at least 0, received -0.1",
        ),
        (
            {"name": "Cosine", "learning_rate": 0.1, "warmup_epoch": 11},
            "Optimizer.lr.warmup_epoch: expected a number at most 10",
        ),
        ({"name": "Step", "learning_rate": 0.1, "step_size": 0}, "step_size: expected a number above 0"),
        (
            {"name": "Piecewise", "decay_epochs": [2], "values": [0.1]},
            "one more value than decay_epochs",
        ),
        ({"name": "Piecewise", "decay_epochs": [2, 1], "values": [3, 2, 1]}, "decay_epochs that increase"),
        ({"name": "MultiStepDecay", "learning_rate": 0.1, "milestones": [3, 3]}, "milestones that increase"),
        (
            {"name": "Cyclic", "base_learning_rate": 0, "max_learning_rate": 1, "mode": "square"},
            "'triangular'",
        ),
        ({"name": "Cosine", "learning_rate": float("nan")}, "received nan"),
    ],
)
def test_rejected(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ppxcls.ConfigError, match=message):
        ppxcls.build_lr_schedule(spec, epochs=10, steps_per_epoch=5)


SPECS: dict[str, list[dict[str, Any]]] = {
    "Cosine": [{"learning_rate": 1.0}, {"learning_rate": 1.0, "eta_min": 0.5}],
    "Linear": [{"learning_rate": 1.0}, {"learning_rate": 1.0, "end_lr": 0.5, "power": 2}],
    "Polynomial": [{"learning_rate": 1.0}],
    "OneCycleLR": [
        {"max_learning_rate": 1.0, "phase_pct": share, "anneal_strategy": strategy}
        for share in (1e-6, 0.04, 0.1, 0.2, 0.25, 0.3, 1 / 3, 0.5, 0.999)
        for strategy in ("cos", "linear")
    ],
    "ReduceOnPlateau": [{"learning_rate": 1.0}],
    "Piecewise": [{"decay_epochs": [0.5, 2], "values": [1.0, 0.5, 0.1]}],
    "Step": [{"learning_rate": 1.0, "step_size": size} for size in (0.2, 0.5, 1, 30)],
    "MultiStepDecay": [{"learning_rate": 1.0, "milestones": [0, 0.3, 4]}],
    "ConstLR": [{"learning_rate": 1.0}],
    "Cyclic": [
        {"base_learning_rate": 0.1, "max_learning_rate": 1.0, "step_size_up": n, "step_size_down": m}
        for n in (1, 3)
        for m in (1, 2)
    ],
}
FALLING = {
    "Cosine",
    "Linear",
    "Polynomial",
    "Piecewise",
    "Step",
    "MultiStepDecay",
    "ConstLR",
    "ReduceOnPlateau",
}


@pytest.mark.parametrize("name", LR_SCHEDULES.names())
def test_every_schedule_is_defined_on_every_step_of_short_runs(name: str) -> None:
    """Extreme values of epochs, steps, warm-up, cool-down and shares.

    Each rate is finite and between 0 and the highest rate.
    """
    tried = 0
    for epochs, steps in itertools.product(range(1, 6), range(1, 6)):
        for warm_up, cool_down in itertools.product((0, 0.3, 0.5, 1, epochs), (0, 0.5, 1)):
            if warm_up + cool_down > epochs:
                continue
            for keys, by_epoch in itertools.product(SPECS[name], (False, True)):
                spec = {
                    "name": name,
                    **keys,
                    "warmup_epoch": warm_up,
                    "cooldown_epoch": cool_down,
                    "by_epoch": by_epoch,
                }
                try:
                    lr_at = ppxcls.build_lr_schedule(spec, epochs, steps_per_epoch=steps)
                except ppxcls.ConfigError as error:
                    assert "step_size of at least one step" in str(error)  # noqa: PT017  the one thing that may be refused
                    continue
                rates = [lr_at(step) for step in range(epochs * steps + 1)]
                assert all(math.isfinite(rate) and 0 <= rate <= 1 + 1e-12 for rate in rates), (
                    spec,
                    epochs,
                    steps,
                    rates,
                )
                warm = math.ceil(warm_up * steps) if not by_epoch else math.ceil(warm_up) * steps
                if name in FALLING:
                    after = rates[warm:]
                    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(after)), (
                        spec,
                        epochs,
                        steps,
                        rates,
                    )
                tried += 1
    assert tried > 500


def test_one_cycle_whose_rise_is_one_step() -> None:
    spec = {
        "name": "OneCycleLR",
        "max_learning_rate": 1.0,
        "phase_pct": 0.1,
        "end_learning_rate": 0.0,
        "anneal_strategy": "linear",
    }
    lr_at = ppxcls.build_lr_schedule(spec, epochs=2, steps_per_epoch=5)
    assert [lr_at(step) for step in range(10)] == pytest.approx([1 - step / 9 for step in range(10)])


def test_plateau_follows_the_figure_that_is_watched() -> None:
    """Without a mode, a falling loss keeps the rate, and a falling accuracy lowers it.

    A mode overrides this.
    """

    def rate_after(values: list[float], larger_is_better: bool, **keys: Any) -> float:
        spec = {"name": "ReduceOnPlateau", "learning_rate": 1.0, "patience": 0, "factor": 0.5, **keys}
        lr_at = ppxcls.build_lr_schedule(spec, 9, steps_per_epoch=9)
        for value in values:
            lr_at.observe(value, larger_is_better=larger_is_better)
        return lr_at(5)

    falling, rising = [0.9, 0.6, 0.3], [0.3, 0.6, 0.9]
    assert rate_after(falling, larger_is_better=False) == 1
    assert rate_after(rising, larger_is_better=False) == 0.25
    assert rate_after(rising, larger_is_better=True) == 1
    assert rate_after(falling, larger_is_better=True) == 0.25
    assert rate_after(falling, larger_is_better=True, mode="min") == 1
    assert rate_after(rising, larger_is_better=False, mode="max") == 1
