"""Ctrl-C at a place where it does no harm; imports nothing of the package."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Hold a Ctrl-C back until the block ends.

    Raised inside Paddle's backward pass, where Python code of ours runs too, KeyboardInterrupt would come out as another exception,
    after lines of Paddle's own.
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
