"""The times in a log line cover enough batches."""

from __future__ import annotations

import pytest

from ppxcls.train import run_log
from ppxcls.train.run_log import BatchClock


def test_the_last_line_of_an_epoch_covers_a_whole_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that were read ahead make the last few steps look fast. They are timed with the lap before."""
    now = [100.0]
    monkeypatch.setattr(run_log.time, "perf_counter", lambda: now[0])
    clock = BatchClock()

    def run(batches: int, seconds: float) -> dict[str, float]:
        for _ in clock.timed(iter(range(batches))):
            now[0] += seconds
            clock.samples += 8
        return clock.lap(10)

    clock.start_epoch()
    assert run(1, 4.0)["ips_total"] == pytest.approx(2.0)
    assert run(10, 0.8)["ips_total"] == pytest.approx(10.0)
    assert run(10, 1.0)["ips_total"] == pytest.approx(8.0)
    times = run(3, 0.01)
    assert times["ips_total"] == pytest.approx(13 * 8 / 10.03)
    assert times["batch_cost"] == pytest.approx(10.03 / 13)
    now[0] += 1000  # an evaluation
    clock.start_epoch()
    assert run(1, 2.0)["ips_total"] == pytest.approx(4.0)
    assert run(3, 1.0)["ips_total"] == pytest.approx(4 * 8 / 5)
    assert clock.samples == 0
