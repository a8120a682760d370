"""Delays signals to places where they do no harm."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

EXIT_PREEMPTED = 75  # sysexits.h: EX_TEMPFAIL, try again later


class Preempted(Exception):
    """A signal stopped the run after it had saved. The message gives the signal and the place in the run."""


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Hold a Ctrl-C back until the block ends.

    Inside Paddle's backward pass, which calls Python code of ours, a KeyboardInterrupt turns into another
    exception, after lines of Paddle's own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[Any] = []
    original = signal.signal(signal.SIGINT, lambda *arguments: caught.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, original)
    if caught:
        raise KeyboardInterrupt


class StopSignals:
    """Records SIGTERM and SIGUSR1, which schedulers send before they take a machine away.

    The loop acts on them.

    Attributes:
        received: the name of the signal, or None.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Record the signals in this block instead of ending the process.

        Does nothing outside the main thread.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        names = [name for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]  # Windows has no SIGUSR1
        originals = {name: signal.signal(getattr(signal, name), self._note) for name in names}
        try:
            yield
        finally:
            for name, handler in originals.items():
                signal.signal(getattr(signal, name), handler)

    def _note(self, number: int, frame: Any) -> None:
        self.received = signal.Signals(number).name
