"""Puts requests together into batches.

The queue is bounded, so that a server that is too busy says so at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class BusyError(Exception):
    """The queue is full."""


class Batcher(Generic[Item, Answer]):
    """Answers single items by a function of batches, which runs in a thread of its own.

    Args:
        answer: gives as many answers as it gets items, in their order.
        most: largest number of items in a batch.
        wait: seconds for which a batch that is not full waits for more items.
        queue_size: items that may wait.
        seen: called with the number of items and the seconds of each batch.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Item]], Sequence[Answer]],
        most: int,
        wait: float,
        queue_size: int,
        seen: Callable[[int, float], None] = lambda count, seconds: None,
    ) -> None:
        self._answer, self._most, self._wait, self._seen = answer, most, wait, seen
        self._queue: asyncio.Queue[tuple[Item, asyncio.Future[Answer]]] = asyncio.Queue(queue_size)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ppxcls-serving")
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return self._queue.qsize()

    async def start(self) -> None:
        """Begin to answer."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Answer what waits, and end."""
        await self._queue.join()
        assert self._task
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._thread.shutdown()

    async def __call__(self, item: Item) -> Answer:
        """The answer to an item. What the function raises is raised for all items of the batch.

        Raises:
            BusyError: the queue is full.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((item, future))
        except asyncio.QueueFull:
            raise BusyError from None
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            deadline = loop.time() + self._wait
            while len(batch) < self._most:
                try:
                    batch.append(await asyncio.wait_for(self._queue.get(), max(deadline - loop.time(), 0)))
                except TimeoutError:
                    break
                except asyncio.TimeoutError:  # another class before Python 3.11
                    break
            start = time.perf_counter()
            try:
                live = [
                    (item, future) for item, future in batch if not future.done()
                ]  # others have given up waiting
                if live:
                    answers = await loop.run_in_executor(
                        self._thread, self._answer, [item for item, _ in live]
                    )
                    for (_, future), answer in zip(live, answers, strict=True):
                        if not future.done():
                            future.set_result(answer)
                    self._seen(len(live), time.perf_counter() - start)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            finally:
                for _ in batch:
                    self._queue.task_done()
