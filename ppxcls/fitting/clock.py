"""The time of ``fit``: what is used, and what is left."""

from __future__ import annotations

import time


class Clock:
    """Measures the time of a command, and of earlier commands that it continues.

    Args:
        minutes: time of the whole work, in minutes.
        used_seconds: time that earlier commands used.
    """

    def __init__(self, minutes: float, used_seconds: float = 0.0) -> None:
        self._seconds = 60 * minutes
        self._used_seconds = used_seconds
        self._start = time.monotonic()

    @property
    def used(self) -> float:
        """Seconds that were used so far."""
        return self._used_seconds + time.monotonic() - self._start

    @property
    def left(self) -> float:
        """Seconds that are left; negative if the time is over."""
        return self._seconds - self.used

    def add(self, seconds: float) -> None:
        """Adds the time of earlier commands."""
        self._used_seconds += seconds
