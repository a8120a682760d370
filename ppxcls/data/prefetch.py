"""Work that threads do ahead of the loop that uses it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
S = TypeVar("S")

_AHEAD = 2  # items that are being made while one is used


def prefetched(items: Iterable[T], start: Callable[[T], S]) -> Iterator[S]:
    """Start each item before it is needed, and give out what was started, in order.

    Args:
        start: hands an item to threads and returns at once, with what to wait for.
    """
    started: deque[S] = deque()
    for item in items:
        started.append(start(item))
        if len(started) > _AHEAD:
            yield started.popleft()
    yield from started
