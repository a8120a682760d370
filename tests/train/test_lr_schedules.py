"""Schedules against the rates PaddleClas's own used, and closed forms."""

from __future__ import annotations

import json
import math
from typing import Any

import paddle
import pytest

import ppxcls
from tests.conftest import SHARED, needs_shared

CASES = json.loads((SHARED / "parity/lr_schedules.json").read_text()) if SHARED.is_dir() else []


@needs_shared
def test_there_are_26_cases() -> None:
    assert len(CASES) == 26


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['config']['name']}-{c['steps_per_epoch']}")
def test_parity_with_paddleclas(case: dict[str, Any]) -> None:
    lr_at = ppxcls.build_lr_schedule(case["config"], epochs=case["epochs"], steps_per_epoch=case["steps_per_epoch"])
    assert [lr_at(step) for step in range(len(case["lr"]))] == pytest.approx(case["lr"], rel=1e-12, abs=1e-300)


def cosine(t: int, total: int) -> float:
    return 0.045 * (1 + math.cos(math.pi * t / total)) / 2


def test_cosine_closed_form() -> None:
    lr_at = ppxcls.build_lr_schedule({"name": "Cosine", "learning_rate": 0.045}, epochs=120, steps_per_epoch=2503)
    assert lr_at(0) == 0.045
    for step in (1000, 60 * 2503, 100 * 2503):
        assert lr_at(step) == pytest.approx(cosine(step, 120 * 2503), rel=1e-12)
    warm = {"name": "Cosine", "learning_rate": 0.045, "warmup_epoch": 1}
    lr_at = ppxcls.build_lr_schedule(warm, epochs=11, steps_per_epoch=7)
    assert [lr_at(7 + t) for t in range(70)] == pytest.approx([cosine(t, 70) for t in range(70)])


def test_cosine_without_warm_up_is_the_rate_that_paddles_optimizer_applies() -> None:
    """A weight whose gradient is 1 moves by the rate of the step; what the scheduler reports is another figure."""
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
    linear = ppxcls.build_lr_schedule({"name": "Linear", "learning_rate": 1.0, "end_lr": 0.1, "power": 2.0}, 2, 5)
    assert linear(5) == pytest.approx(0.1 + 0.9 * 0.25)
    assert linear(10) == linear(50) == pytest.approx(0.1)
    spec = {
        "name": "Cyclic",
        "base_learning_rate": 0.0,
        "max_learning_rate": 1.0,
        "step_size_up": 4,
        "mode": "triangular2",
    }
    cyclic = ppxcls.build_lr_schedule(spec, 10, 10)
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
        ({"name": "Piecewise", "decay_epochs": [2], "values": [0.1]}, "one more of values than of decay_epochs"),
        ({"name": "Piecewise", "decay_epochs": [2, 1], "values": [3, 2, 1]}, "decay_epochs that increase"),
        ({"name": "MultiStepDecay", "learning_rate": 0.1, "milestones": [3, 3]}, "milestones that increase"),
        ({"name": "Cyclic", "base_learning_rate": 0, "max_learning_rate": 1, "mode": "square"}, "'triangular'"),
        ({"name": "Cosine", "learning_rate": float("nan")}, "received nan"),
    ],
)
def test_rejected(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ppxcls.ConfigError, match=message):
        ppxcls.build_lr_schedule(spec, epochs=10, steps_per_epoch=5)
