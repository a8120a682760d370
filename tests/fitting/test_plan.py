"""The plan of ``fit`` with weights: more time buys larger images, mirror images, and more stages."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ppxcls.fitting.plan import (
    MAX_EXIT_EPOCHS,
    MIN_EXIT_EPOCHS,
    MIN_TUNING_EPOCHS,
    Counts,
    Speeds,
    all_layers_choice,
    all_layers_seconds,
    exit_flow_epochs,
    exit_flow_seconds,
    make_plan,
)

COUNTS = Counts(train=600, choose=120, judge=240, classes=12)
SPEEDS = Speeds(size=299, feature=0.05, exit_step=0.1, step=0.6)


def test_more_time_buys_more() -> None:
    plans = [
        make_plan(SPEEDS, COUNTS, 60 * minutes, can_keep_activations=True)
        for minutes in (0.1, 1, 1.5, 2, 3, 6, 60)
    ]
    worth = [(p.size, p.copies, p.trains_exit_flow) for p in plans]
    assert worth == sorted(worth)
    assert worth[0] == (128, 1, False), "the first result may take longer than the time"
    assert worth[-1] == (299, 2, True)


def test_the_plan_names_the_cost_of_the_alternatives() -> None:
    plan = make_plan(SPEEDS, COUNTS, 120, can_keep_activations=True)
    assert [row["name"] for row in plan.rows] == [
        "features at 128 px",
        "299 px",
        "with mirror images",
        "and the exit flow",
        "and all layers",
    ]
    minutes = [row["minutes"] for row in plan.rows]
    assert minutes == sorted(minutes)
    assert str(plan).count(" min") == 5


def test_activations_that_do_not_fit_leave_the_exit_flow_as_it_is() -> None:
    plan = make_plan(SPEEDS, COUNTS, 6000, can_keep_activations=False)
    assert not plan.trains_exit_flow
    assert "exit flow" not in str(plan)


@pytest.mark.parametrize("seconds", [10.0, 250.0, 500.0, 5000.0])
def test_the_exit_flow_gets_the_epochs_that_fit(seconds: float) -> None:
    epochs = exit_flow_epochs(0.1, COUNTS, seconds)
    assert epochs == 0 or MIN_EXIT_EPOCHS <= epochs <= MAX_EXIT_EPOCHS
    if epochs:
        assert exit_flow_seconds(0.1, COUNTS, epochs) <= seconds
    if epochs < MAX_EXIT_EPOCHS:
        assert exit_flow_seconds(0.1, COUNTS, max(epochs + 1, MIN_EXIT_EPOCHS)) > seconds


def test_all_layers_get_a_size_with_enough_epochs() -> None:
    choices = [all_layers_choice(SPEEDS, COUNTS, seconds, 299) for seconds in (10, 1500, 3000, 6000, 90_000)]
    assert choices[0][1] == 0
    sizes = [size for size, epochs in choices if epochs]
    assert sizes == sorted(sizes)
    assert choices[-1] == (299, 20)
    for (size, epochs), seconds in zip(choices[1:], (1500, 3000, 6000, 90_000), strict=True):
        assert size >= 299 * 2 / 3
        assert epochs >= MIN_TUNING_EPOCHS
        assert all_layers_seconds(SPEEDS, COUNTS, size=size, epochs=epochs, evaluated_size=299) <= seconds


@pytest.mark.parametrize("feature_size", [128, 192, 256])
def test_all_layers_are_trained_at_the_size_of_the_features_or_less(feature_size: int) -> None:
    """The evaluations have the size of the features, which is smaller than the publisher's with little time."""
    for seconds in (10, 500, 1500):
        size, epochs = all_layers_choice(SPEEDS, COUNTS, seconds, feature_size)
        assert feature_size * 2 / 3 <= size <= feature_size
        cost = all_layers_seconds(SPEEDS, COUNTS, size=size, epochs=epochs, evaluated_size=feature_size)
        assert not epochs or cost <= seconds
    assert all_layers_choice(SPEEDS, COUNTS, 90_000, feature_size) == (feature_size, 20)


def test_more_classes_take_more_minutes() -> None:
    minutes = [
        make_plan(SPEEDS, replace(COUNTS, classes=classes), 6000, can_keep_activations=True).rows[1][
            "minutes"
        ]
        for classes in (12, 1000)
    ]
    assert minutes[1] > minutes[0] + 0.5
