"""Starts work in threads before the loop needs the results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
S = TypeVar("S")

_ITEMS_AHEAD = 2  # items in work while the result of another is used


def prefetch(
    items: Iterable[T],
    start: Callable[[T], S],
    *,
    ahead: int = _ITEMS_AHEAD,
    cancel: Callable[[S], object] = lambda _: None,
) -> Generator[S, None, None]:
    """Starts the work on each item before its result is needed.

    Args:
        items: items to work on.
        start: function that starts the work on an item and returns at once.
        ahead: number of items in work while the result of another is used.
        cancel: function that drops a result of ``start``. It is called for those that were not yielded if the
            iterator is closed early.

    Yields:
        The results of ``start``, in the order of the items.
    """
    pending_results: deque[S] = deque()
    try:
        for item in items:
            pending_results.append(start(item))
            if len(pending_results) > ahead:
                yield pending_results.popleft()
        while pending_results:
            yield pending_results.popleft()
    finally:
        for result in pending_results:
            cancel(result)
