"""Groups requests into batches.

The queue is bounded, so that an overloaded server reports it at once.
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
    """Answers single items by a function of batches, which runs in its own thread.

    Args:
        answer: function that takes a batch of items and returns one answer per item, in the same order.
        max_items: largest number of items in a batch.
        wait: longest time that an incomplete batch waits for more items, in seconds.
        queue_size: largest number of waiting items.
        on_batch: function that is called with the number of items and the seconds of each batch.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Item]], Sequence[Answer]],
        max_items: int,
        *,
        wait: float,
        queue_size: int,
        on_batch: Callable[[int, float], None] = lambda count, seconds: None,
    ) -> None:
        self._answer = answer
        self._max_items = max_items
        self._wait_seconds = wait
        self._on_batch = on_batch
        self._queue: asyncio.Queue[tuple[Item, asyncio.Future[Answer]]] = asyncio.Queue(queue_size)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="ppxcls-serving")
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Number of items in the queue."""
        return self._queue.qsize()

    async def start(self) -> None:
        """Starts to answer items."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Answers the waiting items, and stops."""
        await self._queue.join()
        assert self._task
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._executor.shutdown()

    async def answers(self, items: Sequence[Item]) -> list[Answer]:
        """Returns the answers to several items, in the same order.

        If the function raises an error, it is raised for all items of the batch.

        Raises:
            BusyError: the queue has no room for all of the items.
        """
        if self._queue.maxsize - self._queue.qsize() < len(items):
            raise BusyError
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Answer]] = [loop.create_future() for _ in items]
        for item, future in zip(items, futures, strict=True):
            self._queue.put_nowait((item, future))
        return await asyncio.gather(*futures)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            deadline = loop.time() + self._wait_seconds
            while len(batch) < self._max_items:
                try:
                    batch.append(await asyncio.wait_for(self._queue.get(), max(deadline - loop.time(), 0)))
                except TimeoutError:
                    break
                except asyncio.TimeoutError:  # a different class before Python 3.11
                    break
            start = time.perf_counter()
            try:
                # The callers of the other items no longer wait.
                active_items = [(item, future) for item, future in batch if not future.done()]
                if active_items:
                    answers = await loop.run_in_executor(
                        self._executor, self._answer, [item for item, _ in active_items]
                    )
                    for (_, future), answer in zip(active_items, answers, strict=True):
                        if not future.done():
                            future.set_result(answer)
                    self._on_batch(len(active_items), time.perf_counter() - start)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            finally:
                for _ in batch:
                    self._queue.task_done()
