"""Repeats a request if its connection breaks or its server is busy, with pauses that grow."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from ppxcls.published.web import BrokenTransferError, FetchError
from ppxcls.system.logs import logger

Reply = TypeVar("Reply")

MAX_ATTEMPTS = 5  # in a row that bring less than this
_MIN_PROGRESS_BYTES = 1 << 20
_MAX_ATTEMPTS_IN_ALL = 100
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 1.0, 30.0
_MAX_ASKED_SECONDS = 120.0  # longest wait that a server may ask for

pause: Callable[[float], None] = time.sleep


def repeated(
    request: Callable[[], Reply],
    byte_count: Callable[[], int] = lambda: 0,
    *,
    label: str,
    address: str,
    advice: str = "try again later",
) -> Reply:
    """Returns the result of the first request that succeeds.

    Args:
        request: function that asks a server once.
        byte_count: function that returns the number of bytes that all requests have brought. While they bring
            something, more requests are allowed.
        label: name of the file for messages.
        address: address of the file for messages.
        advice: what the user may do if all requests fail.

    Raises:
        FetchError: the server has no such file, refuses it, or breaks off again and again.
    """
    attempt = 0
    for _ in range(_MAX_ATTEMPTS_IN_ALL):
        earlier_bytes = byte_count()
        try:
            return request()
        except BrokenTransferError as error:
            is_progress = byte_count() - earlier_bytes >= _MIN_PROGRESS_BYTES
            attempt = 1 if is_progress else attempt + 1
            if attempt >= MAX_ATTEMPTS:
                raise FetchError(
                    f"{label}: {error.reason}, {MAX_ATTEMPTS} times in a row ({address}); {advice}"
                ) from None
            _wait(error, attempt, label=label, address=address)
    raise FetchError(f"{label}: the connection broke {_MAX_ATTEMPTS_IN_ALL} times ({address})")


def _wait(error: BrokenTransferError, attempt: int, *, label: str, address: str) -> None:
    seconds = min(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), _MAX_PAUSE_SECONDS)
    if error.wait_seconds is not None:
        if error.wait_seconds > _MAX_ASKED_SECONDS:
            raise FetchError(
                f"{label}: {error.reason}; the server wants to be asked again in "
                f"{error.wait_seconds:,.0f} s ({address})"
            )
        seconds = max(seconds, error.wait_seconds)
    logger.warning(f"{label}: {error.reason}; the next attempt is in {seconds:.0f} s")
    pause(seconds)
