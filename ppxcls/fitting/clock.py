"""The time of ``fit``: what is used, and what is left."""

from __future__ import annotations

import time

_MISSING_SHARE = 1 / 3  # of the time of a piece of work


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

    def has_time(self, seconds: float, end_seconds: float) -> bool:
        """True if there is time for a piece of work. A third of it may be missing, because times vary.

        Args:
            seconds: estimated time of the work.
            end_seconds: time of what follows.
        """
        return self.left - end_seconds >= (1 - _MISSING_SHARE) * seconds

    def reserve(self, seconds: float) -> None:
        """Takes time away, for work that has a clock of its own."""
        self._seconds -= seconds

    def add(self, seconds: float) -> None:
        """Adds the time of earlier commands."""
        self._used_seconds += seconds
