"""The end of a run whose evaluations have stopped improving, and the end by the clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import ppxcls
from ppxcls.checkpoints.progress import Progress
from ppxcls.train.early_stop import EarlyStop, early_end
from ppxcls.train.lr_schedules import build_lr_schedule
from ppxcls.train.run_schedule import RunSchedule
from tests.conftest import ROOT


def keras_end(values: Sequence[float], rule: EarlyStop, *, larger_is_better: bool) -> int | None:
    """The number of the evaluation after which Keras's EarlyStopping ends a training, from 1; None for none.

    By the definition in Keras's documentation: an absolute change of ``min_delta`` or less is no improvement, and
    the best value is that of the last improvement.
    """
    best, wait = None, 0
    for number, value in enumerate(values, 1):
        if number < rule.start_epoch:
            continue
        wait += 1
        margin = value - rule.min_delta if larger_is_better else value + rule.min_delta
        if best is None or (margin > best if larger_is_better else margin < best):
            best, wait = value, 0
        elif wait >= rule.patience:
            return number
    return None


def own_end(values: Sequence[float], rule: EarlyStop, *, larger_is_better: bool) -> int | None:
    progress = Progress()
    for number, value in enumerate(values, 1):
        progress.epoch = number
        rule.observe(progress, "top1", value, larger_is_better=larger_is_better)
        if rule.has_ended(progress):
            return number
    return None


@pytest.mark.parametrize("larger_is_better", [True, False])
def test_it_ends_when_keras_does(larger_is_better: bool) -> None:
    rng = np.random.default_rng(0)
    ends = []
    for _ in range(500):
        values = (rng.integers(0, 9, 12) / 8).tolist()  # sums and differences of eighths are exact
        rule = EarlyStop(int(rng.integers(1, 6)), int(rng.integers(0, 3)) / 8, int(rng.integers(0, 4)))
        ends.append(keras_end(values, rule, larger_is_better=larger_is_better))
        assert own_end(values, rule, larger_is_better=larger_is_better) == ends[-1], (values, rule)
    assert None in ends
    assert len(set(ends)) > 8


def test_small_steps_add_up_to_an_improvement() -> None:
    """Values are compared with the last improvement, not with the last evaluation."""
    rule = EarlyStop(3, 0.25)
    assert own_end([0.5, 0.625, 0.75, 0.875, 0.875, 0.875], rule, larger_is_better=True) is None
    assert own_end([0.5, 0.625, 0.75, 0.75], rule, larger_is_better=True) == 4


def test_a_value_that_is_not_finite_is_no_improvement() -> None:
    nan = math.nan
    assert own_end([nan, nan], EarlyStop(2), larger_is_better=True) == 2
    assert own_end([nan, 0.1, math.inf, nan], EarlyStop(2), larger_is_better=True) == 4
    assert own_end([0.5, -math.inf, 0.4], EarlyStop(2), larger_is_better=False) is None


def test_another_metric_is_counted_anew() -> None:
    progress = Progress()
    for metric, value in (("top1", 0.5), ("top1", 0.4), ("loss", 0.6), ("loss", 0.6)):
        EarlyStop(2).observe(progress, metric, value, larger_is_better=True)
    assert progress.improvement == {"metric": "loss", "value": 0.6, "epoch": 1}
    assert progress.stale_evaluations == 1


def test_evaluations_are_counted_and_not_epochs() -> None:
    schedule = RunSchedule(epochs=9, eval_interval=2, early_stop=EarlyStop(2))
    progress = Progress()
    ended = []
    for epoch in range(1, 10):
        progress.epoch = epoch
        if schedule.is_evaluation_due(epoch):
            EarlyStop(2).observe(progress, "top1", 0.5, larger_is_better=True)
        progress.epoch += 1
        ended.append(schedule.has_stopped_early(progress))
    assert ended.index(True) == 6 - 1, "evaluated after the epochs 2, 4 and 6"
    assert not ended[-1], "the last epoch ends the run in any case"


def test_the_sentences() -> None:
    best = {"metric": "top1", "value": 0.75, "epoch": 3, "loss": 1.0}
    improvement = {"metric": "top1", "value": 0.5, "epoch": 2}
    progress = Progress(epoch=6, step=50, best=best, improvement=improvement, stale_evaluations=3)
    cosine = build_lr_schedule({"name": "Cosine", "learning_rate": 0.1}, 10, steps_per_epoch=10)
    rate, last_rate = (0.05 * (1 + math.cos(math.pi * step / 100)) for step in (49, 99))
    assert early_end(progress, 10, cosine, 10) == (
        "The run stopped early, after epoch 5 of 10: no better top1 in 3 evaluations after epoch 2 "
        "(Global.early_stop). The best epoch is 3 (top1 0.75000). The learning rate had not come down to its "
        f"minimum: Cosine was at {rate:.3g}, and would have ended at {last_rate:.3g}."
    )
    progress.improvement = {**improvement, "value": 0.75}
    assert "The best epoch is 3 (top1 0.75000, equal but with a smaller loss)." in early_end(
        progress, 10, None, 0
    )
    constant = build_lr_schedule({"name": "ConstLR", "learning_rate": 0.1}, 10, steps_per_epoch=10)
    assert "learning rate" not in early_end(progress, 10, constant, 10)
    assert early_end(Progress(epoch=2, stale_evaluations=1), 9, None, 0) == (
        "The run stopped early, after epoch 1 of 9: no finite figure in 1 evaluation (Global.early_stop)."
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["early_stop.patience=0"], "early_stop.patience: expected an integer at least 1, received 0"),
        (["early_stop.patience=-1"], "early_stop.patience: expected an integer at least 1, received -1"),
        (
            ["early_stop={min_delta: -0.1}"],
            "early_stop.min_delta: expected a number at least 0, received -0.1",
        ),
        (
            ["early_stop={min_delta: .nan}"],
            "early_stop.min_delta: expected a number at least 0, received nan",
        ),
        (["early_stop=True"], r"expected a mapping such as \{patience: 10, .*\}, or null, received true"),
        (["early_stop=10"], "early_stop: expected a mapping, received 10"),
        (["early_stop.monitor=top1"], "unknown key 'monitor'.*; allowed: patience, min_delta, start_epoch"),
        (["max_hours=0"], "max_hours: expected a number above 0, received 0"),
        (["max_hours=-1"], "max_hours: expected a number above 0, received -1"),
        (["max_hours=.inf"], "max_hours: expected a number above 0, received inf"),
        (["patience=5"], "Global.patience: unknown key 'patience'; write Global.early_stop.patience"),
        (["early_stop_patience=5"], "unknown key 'early_stop_patience'; write Global.early_stop.patience"),
        (["min_delta=0.1"], "unknown key 'min_delta'; write Global.early_stop.min_delta"),
        (["EarlyStopping={}"], r"unknown key 'EarlyStopping'; write Global.early_stop: \{patience: 10, "),
        (
            ["restore_best_weights=True"],
            "unknown key 'restore_best_weights'; write nothing, because best_model",
        ),
        (["time=1.5"], "unknown key 'time'; write Global.max_hours, a number of hours"),
    ],
)
def test_invalid_keys(overrides: list[str], message: str) -> None:
    with pytest.raises(ppxcls.ConfigError, match=message):
        ppxcls.load_config(ROOT / "configs/Xception41.yaml", [f"Global.{text}" for text in overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["Global.early_stop={start_epoch: 6}", "Global.epochs=5"],
            r"early_stop.start_epoch: expected at most 5, the last epoch \(Global.epochs\), received 6",
        ),
        (["Global.eval_during_train=False"], "early_stop: .* but Global.eval_during_train is false"),
        (
            ["Global.start_eval_epoch=9", "Global.epochs=5"],
            "but Global.start_eval_epoch, 9, is after the",
        ),
        (["DataLoader.Eval=null"], "Global.early_stop: .* but there is no DataLoader.Eval"),
    ],
)
def test_an_end_that_can_not_happen_is_refused_if_something_trains(
    overrides: list[str], message: str, small: Callable[..., Path], tmp_path: Path
) -> None:
    """Other verbs take the config of a run without the data or with other epochs."""
    config = ppxcls.load_config(small(), ["Global.early_stop={}", *overrides])
    for function in (ppxcls.build_trainer, ppxcls.check_data):
        with pytest.raises(ppxcls.ConfigError, match=message):
            function(config)
    assert not (tmp_path / "output").exists()
