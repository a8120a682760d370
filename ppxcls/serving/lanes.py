"""AnswerShares the decoders among clients, so that slow pictures of one do not keep the others waiting."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ppxcls.data.picture_headers import picture_size
from ppxcls.serving.batching import BusyError

Result = TypeVar("Result")
_LARGE_BYTES = 64 << 20  # pictures that take more when decoded are decoded one after the other


class Lanes:
    """Threads for pictures: one for large ones, and others for the rest.

    Args:
        count: number of decoders. One client may use all but one of them at a time.
        proxies: keys of clients that may use all of them.
    """

    def __init__(self, count: int, proxies: Collection[str] = ()) -> None:
        self._client_count, self._proxies = max(count - 1, 1), frozenset(proxies)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="ppxcls-decoding")
        self._large_thread = ThreadPoolExecutor(1, thread_name_prefix="ppxcls-decoding-large")
        self._turns: weakref.WeakValueDictionary[str, asyncio.Semaphore] = weakref.WeakValueDictionary()
        self._waiting_pictures: set[object] = set()
        self._is_closed = False

    @property
    def has_waiting(self) -> bool:
        """True if a picture waits for its turn."""
        return bool(self._waiting_pictures)

    async def run(self, work: Callable[[bytes], Result], image: bytes, client: str) -> Result:
        """Returns the result of a function of a picture, which runs in a thread when it is its turn.

        Args:
            work: function of the picture.
            image: content of an image file.
            client: key of the client.

        Raises:
            BusyError: the server is stopping.
        """
        place = object()

        def begin() -> Result:
            self._waiting_pictures.discard(place)
            return work(image)

        self._waiting_pictures.add(place)
        try:
            async with self._turn_of(client):
                size = picture_size(image)
                is_large = size is None or size.decoded_bytes > _LARGE_BYTES
                threads = self._large_thread if is_large else self._threads
                if self._is_closed:
                    raise BusyError("the server is stopping")
                return await asyncio.get_running_loop().run_in_executor(threads, begin)
        finally:
            self._waiting_pictures.discard(place)

    def _turn_of(self, client: str) -> contextlib.AbstractAsyncContextManager[None]:
        if client in self._proxies:
            return contextlib.nullcontext()
        turns = self._turns.get(client)
        if turns is None:
            turns = self._turns[client] = asyncio.Semaphore(self._client_count)
        return turns

    def close(self) -> None:
        """Gives up the pictures that wait."""
        self._is_closed = True
        for threads in (self._threads, self._large_thread):
            threads.shutdown(wait=False, cancel_futures=True)
