"""Which evaluation of a run is the best one."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ppxcls.checkpoints.progress import is_better


def evaluation(value: float, loss: float | None = 1.0, metric: str = "top1") -> dict[str, Any]:
    entry: dict[str, Any] = {"metric": metric, "value": value, "epoch": 1}
    return entry if loss is None else {**entry, "loss": loss}


@pytest.mark.parametrize(
    ("candidate", "best", "expected"),
    [
        (evaluation(0.5), {}, True),
        (evaluation(0.6, loss=9.0), evaluation(0.5), True),
        (evaluation(0.4, loss=0.1), evaluation(0.5), False),
        (evaluation(0.5, loss=0.9), evaluation(0.5), True),
        (evaluation(0.5, loss=1.1), evaluation(0.5), False),
        (evaluation(0.5), evaluation(0.5), False),
        (evaluation(0.5, loss=0.9), evaluation(0.5, loss=None), False),
        (evaluation(0.1, metric="top5"), evaluation(0.5), True),
        (evaluation(math.nan), evaluation(0.5), False),
    ],
)
def test_the_better_metric_and_then_the_smaller_loss(
    candidate: dict[str, Any], best: dict[str, Any], expected: bool
) -> None:
    assert is_better(candidate, best, larger_is_better=True) is expected


def test_a_loss_as_the_metric() -> None:
    assert is_better(evaluation(0.4), evaluation(0.5), larger_is_better=False)
    assert not is_better(evaluation(0.6), evaluation(0.5), larger_is_better=False)
    assert not is_better(evaluation(math.nan), evaluation(0.5), larger_is_better=False)


@pytest.mark.parametrize("larger_is_better", [True, False])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_is_better_than_none(number: float, larger_is_better: bool) -> None:
    assert is_better(evaluation(0.1), evaluation(number), larger_is_better=larger_is_better)
    assert not is_better(evaluation(number), evaluation(0.1), larger_is_better=larger_is_better)
    assert not is_better(evaluation(number), evaluation(number), larger_is_better=larger_is_better)


def test_a_loss_that_is_not_finite_breaks_no_tie() -> None:
    assert is_better(evaluation(0.5, 1.0), evaluation(0.5, math.nan), larger_is_better=True)
    assert not is_better(evaluation(0.5, math.nan), evaluation(0.5, 1.0), larger_is_better=True)
