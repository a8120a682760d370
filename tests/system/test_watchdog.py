"""How long each operation may take. Faults in whole jobs are in ``tests/test_faults.py``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ppxcls.system.watchdog import Watchdog


def limits(watchdog: Watchdog, name: str) -> list[tuple[str, float]]:
    """Returns each operation of a phase of two batches, with its limit in seconds."""
    rows: list[tuple[str, float]] = []

    def note() -> None:
        rows.append((watchdog._operation.split()[0], watchdog.limit_seconds))

    def loading() -> Iterator[int]:
        for batch in (1, 2):
            note()
            yield batch

    for _ in watchdog.batches(iter(loading()), name):
        note()
    return rows


@pytest.mark.parametrize(("world_size", "step"), [(1, 100.0), (2, 125.0)])
def test_the_first_step_of_a_phase_may_take_longer(world_size: int, step: float) -> None:
    """It may compile or search. Later epochs and the loading of batches get the usual time."""
    watchdog = Watchdog(100.0, 0, world_size)
    assert watchdog.limit_seconds == 100
    usual = [("loading", 100.0), ("a", step)]
    first = [("loading", 100.0), ("a", 3 * step)]
    assert limits(watchdog, "epoch 9") == first + usual
    assert limits(watchdog, "epoch 10") == usual + usual
    assert limits(watchdog, "the evaluation") == first + usual
    assert limits(watchdog, "the evaluation") == usual + usual
    watchdog.feed("a write", is_local=True)
    assert watchdog.limit_seconds == 100


def test_a_phase_without_batches_starts_nothing() -> None:
    watchdog = Watchdog(100.0)
    assert list(watchdog.batches(iter([]), "epoch 1")) == []
    assert limits(watchdog, "epoch 2")[1] == ("a", 300.0)
