"""Loads batches in threads of this process."""

from __future__ import annotations

from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

import numpy as np

from ppxcls.data.dataset import Dataset
from ppxcls.data.loading import (
    BatchRequest,
    ImageKind,
    ImageSlots,
    LoadedImages,
    SampleLoader,
    kind_of,
    task_ranges,
)
from ppxcls.system.arrays import Array

_Handle = tuple[ImageSlots, "list[Future[None]]"]


class LoaderThreads:
    """Loads batches in threads, or in the thread of the caller. It is a ``Loading``.

    Args:
        dataset: data set to load.
        seed: seed of the random choices.
        threads: number of threads; 0 for the caller's thread.
    """

    def __init__(self, dataset: Dataset, seed: int, threads: int) -> None:
        self._threads = threads
        self._current_samples = np.empty(max(1, threads), np.int64)
        self._samples = SampleLoader(dataset, seed, self._current_samples)
        self._image_kind: ImageKind | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._pending_count = 0  # batches that were started and neither returned nor cancelled

    def start(self, request: BatchRequest) -> _Handle:
        """Starts to load a batch."""
        count = len(request.indices)
        slots = ImageSlots(self._image_kind, lambda kind: np.empty((count, *kind[0]), kind[1]))
        if self._threads == 0:
            self._samples.load(request, slots, range(count))
            return slots, []
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="ppxcls-loader")
        self._pending_count += 1
        parts = task_ranges(count, self._threads)
        return slots, [self._pool.submit(self._samples.load, request, slots, part) for part in parts]

    def result(self, handle: _Handle, timeout: float | None) -> LoadedImages:
        """Waits for a batch."""
        slots, futures = handle
        states = wait(futures, timeout, FIRST_EXCEPTION)
        for future in states.done:
            future.result()
        if states.not_done:
            raise TimeoutError
        self._end_if_idle(futures)
        if slots.images is not None:
            self._image_kind = kind_of(slots.images)
        return LoadedImages(slots.images, slots.bad_samples)

    def cancel(self, handle: _Handle) -> None:
        """Drops a batch."""
        for future in handle[1]:
            future.cancel()
        self._end_if_idle(handle[1])

    def _end_if_idle(self, futures: list[Future[None]]) -> None:
        """Counts a batch as finished. Ends the threads if no other batch is pending."""
        self._pending_count -= bool(futures)
        if self._pool is not None and self._pending_count == 0:
            self._pool.shutdown(wait=False)
            self._pool = None

    def announce(self, indices: Array) -> None:
        """Announces samples to the data set."""
        self._samples.dataset.announce(indices)

    def current_samples(self) -> list[int]:
        """Returns the samples that are being loaded now."""
        return self._current_samples[self._current_samples >= 0].tolist()
