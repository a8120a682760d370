"""The plan of ``fit`` with weights: more time buys larger images, mirror images, and more stages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ppxcls.fitting.plan import (
    CROP_SCALE,
    MAX_TUNING_EPOCHS,
    Counts,
    Speeds,
    all_layers_choice,
    all_layers_seconds,
    evaluated_size,
    make_plan,
    min_tuning_epochs,
)

COUNTS = Counts(train=600, choose=120, judge=240, classes=12)
SPEEDS = Speeds(size=299, feature=0.05, step=0.2)
SIZES = [71, 96, 128, 160, 192, 224, 256, 299]


def test_more_time_buys_more() -> None:
    plans = [make_plan(SPEEDS, COUNTS, 60 * minutes) for minutes in (0.1, 1, 1.5, 2, 3, 6, 60)]
    worth = [(p.size, p.copies) for p in plans]
    assert worth == sorted(worth)
    assert worth[0] == (128, 1), "the first result may take longer than the time"
    assert worth[-1] == (299, 2)


def test_the_plan_names_the_cost_of_the_alternatives() -> None:
    plan = make_plan(SPEEDS, COUNTS, 120)
    assert [row["name"] for row in plan.rows] == [
        "features at 128 px",
        "299 px",
        "with mirror images",
        "and all layers at 71 px",
        "128 px",
        "192 px",
        "299 px",
    ]
    minutes = [row["minutes"] for row in plan.rows]
    assert minutes == sorted(minutes)
    assert str(plan).count(" min") == 7


@pytest.mark.parametrize("seconds", [10, 300, 600, 1500, 3000, 90_000])
def test_all_layers_get_the_largest_size_with_enough_epochs(seconds: float) -> None:
    size, epochs = all_layers_choice(SPEEDS, COUNTS, seconds)
    min_epochs = min_tuning_epochs(COUNTS)
    fitting_sizes = [
        size for size in SIZES if all_layers_seconds(SPEEDS, COUNTS, size=size, epochs=min_epochs) <= seconds
    ]
    assert (size, epochs > 0) == (max(fitting_sizes, default=71), bool(fitting_sizes))
    if epochs:
        assert min_epochs <= epochs <= MAX_TUNING_EPOCHS
        assert all_layers_seconds(SPEEDS, COUNTS, size=size, epochs=epochs) <= seconds
        cost = all_layers_seconds(SPEEDS, COUNTS, size=size, epochs=epochs + 1)
        assert cost > seconds or epochs == MAX_TUNING_EPOCHS


@pytest.mark.parametrize(("train", "epochs"), [(2, 30), (96, 17), (576, 3), (100_000, 3)])
def test_few_photographs_need_more_epochs(train: int, epochs: int) -> None:
    """Batches of 16, and at least 100 steps in 3 to 30 epochs."""
    assert min_tuning_epochs(replace(COUNTS, train=train)) == epochs


def test_evaluations_show_objects_as_large_as_the_random_crops() -> None:
    sides = np.sqrt(np.random.default_rng(0).uniform(*CROP_SCALE, 100_000))  # of crops, as shares
    assert abs(evaluated_size(128, 0.0, largest=299) - 128 / sides.mean()) < 1
    assert evaluated_size(128, 0.875, largest=299) == round(128 / sides.mean() * 0.875)
    assert evaluated_size(280, 0.0, largest=299) == 299


def test_more_classes_take_more_minutes() -> None:
    minutes = [
        make_plan(SPEEDS, replace(COUNTS, classes=classes), 6000).rows[1]["minutes"] for classes in (12, 1000)
    ]
    assert minutes[1] > minutes[0] + 0.5
