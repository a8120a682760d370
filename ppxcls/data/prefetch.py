"""Lets threads work ahead of the loop that uses the results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
S = TypeVar("S")

_AHEAD = 2  # items that are being made while one is used


def prefetched(items: Iterable[T], start: Callable[[T], S]) -> Iterator[S]:
    """Start the work on each item before its result is needed; yield what was started, in order.

    Args:
        items: to work on.
        start: hands an item to threads and returns at once.
    """
    started: deque[S] = deque()
    for item in items:
        started.append(start(item))
        if len(started) > _AHEAD:
            yield started.popleft()
    yield from started
