"""Delays signals until they do no harm."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from ppxcls.system.errors import UserError

EXIT_PREEMPTED = 75  # exit code EX_TEMPFAIL of sysexits.h: try again later


class Preempted(UserError):
    """A signal stopped the run after a save.

    Args:
        fact: signal and progress of the run, in words.
        advice: how the run can be continued, in words.
    """

    def __init__(self, fact: str, advice: str) -> None:
        super().__init__(f"{fact}; {advice}")
        self.fact = fact


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Delays a Ctrl-C until the block ends.

    Inside Paddle's backward pass, which calls Python code of this package, a KeyboardInterrupt turns into
    another exception, after lines that Paddle prints.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupts: list[Any] = []
    original = signal.signal(signal.SIGINT, lambda *arguments: interrupts.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, original)
    if interrupts:
        raise KeyboardInterrupt


@contextlib.contextmanager
def termination_kept() -> Iterator[None]:
    """Keeps the reaction to SIGTERM, while a block imports a library that sets its own.

    Paddle's reaction prints a stack of C++ functions, as if the program had crashed. Without it, SIGTERM ends
    the process at once, or calls the handler that the user's program has set.
    """
    original = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # Python sets handlers in its main thread only, and knows None for a handler that is not Python's.
        if threading.current_thread() is threading.main_thread() and original is not None:
            signal.signal(signal.SIGTERM, original)


class StopSignals:
    """Records SIGTERM and SIGUSR1, which schedulers send before they take a machine away.

    The training loop reacts to them.

    Attributes:
        received: name of the signal, or None.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Records the signals in this block instead of ending the process.

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
