"""The plan of ``fit`` with weights: more time buys larger images, mirror images, and more stages."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ppxcls.fitting.plan import (
    MAX_TUNING_EPOCHS,
    Counts,
    Speeds,
    all_layers_choice,
    all_layers_seconds,
    make_plan,
    min_tuning_epochs,
)

COUNTS = Counts(train=600, choose=120, judge=240, classes=12)
SPEEDS = Speeds(size=299, feature=0.05, step=0.2)


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


@pytest.mark.parametrize("is_good", [True, False])
@pytest.mark.parametrize("seconds", [10, 300, 500, 600, 1000, 1500, 3000, 90_000])
def test_all_layers_get_the_largest_size_with_enough_epochs(seconds: float, is_good: bool) -> None:
    """A large size without a second training is preferred to a small one with it.

    If the linear classifier is good, only a large size with it is worth its time.
    """
    choice = all_layers_choice(SPEEDS, COUNTS, seconds, is_good=is_good)
    min_epochs = min_tuning_epochs(COUNTS)

    def cost(size: int, epochs: int, *, is_repeated: bool) -> float:
        return all_layers_seconds(SPEEDS, COUNTS, size=size, epochs=epochs, is_repeated=is_repeated)

    candidates = [
        (size, is_repeated)
        for sizes in ([299, 256, 224, 192, 160], [128, 96, 71])
        for is_repeated in (True, False)
        for size in sizes
        if cost(size, min_epochs, is_repeated=is_repeated) <= seconds
        and not (is_good and (size < 150 or not is_repeated))
    ]
    assert (choice.epochs > 0) == bool(candidates)
    if candidates:
        assert (choice.size, choice.is_repeated) == candidates[0]
        assert min_epochs <= choice.epochs <= MAX_TUNING_EPOCHS
        assert cost(*choice[:2], is_repeated=choice.is_repeated) <= seconds
        more = cost(choice.size, choice.epochs + 1, is_repeated=choice.is_repeated)
        assert more > seconds or choice.epochs == MAX_TUNING_EPOCHS


def test_mirror_images_yield_to_all_layers() -> None:
    seconds = range(0, 1500, 10)
    plans = [make_plan(SPEEDS, COUNTS, second) for second in seconds]
    copies = [plan.copies for plan in plans if plan.size == 299]
    changes = sum(a != b for a, b in zip(copies, copies[1:], strict=False))
    assert (copies[0], copies[-1], changes) == (1, 2, 3), (
        "1, then 2, then 1 with all layers, then 2 with them"
    )


@pytest.mark.parametrize(("train", "epochs"), [(2, 30), (96, 30), (576, 6), (100_000, 5)])
def test_few_photographs_need_more_epochs(train: int, epochs: int) -> None:
    """Batches of 32, and at least 100 steps in 5 to 30 epochs."""
    assert min_tuning_epochs(replace(COUNTS, train=train)) == epochs


def test_more_classes_take_more_minutes() -> None:
    minutes = [
        make_plan(SPEEDS, replace(COUNTS, classes=classes), 6000).rows[1]["minutes"] for classes in (12, 1000)
    ]
    assert minutes[1] > minutes[0] + 0.5
