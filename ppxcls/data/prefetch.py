"""Starts work in threads before the loop needs the results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
S = TypeVar("S")

_ITEMS_AHEAD = 2  # items in work while the result of another is used


def prefetch(items: Iterable[T], start: Callable[[T], S]) -> Iterator[S]:
    """Starts the work on each item before its result is needed.

    Args:
        items: items to work on.
        start: function that hands an item to threads and returns at once.

    Yields:
        The results of ``start``, in the order of the items.
    """
    pending_results: deque[S] = deque()
    for item in items:
        pending_results.append(start(item))
        if len(pending_results) > _ITEMS_AHEAD:
            yield pending_results.popleft()
    yield from pending_results
