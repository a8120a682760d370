"""Threads to batches: each sample is read, decoded and transformed by one of a pool of threads, into its slot of the batch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppxcls.data.dataset import DataError, ImageNetDataset
from ppxcls.data.sampler import BatchPlan, DistributedBatchSampler

_Kind = tuple[tuple[int, ...], np.dtype[Any]]

_AHEAD = 2  # batches that are being made while one is used
_TASK = 8  # samples a thread takes at once


@dataclass(frozen=True)
class Batch:
    """A batch in the host's memory.

    Attributes:
        images: uint8 [N, H, W, 3], or what the host's transforms give.
        labels: int64 [N].
        plan: which samples these are.
    """

    images: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    plan: BatchPlan


class _Slots:
    """The batch being filled.

    Args:
        like: shape and dtype of the images so far. The array is made at once then, in the caller's thread, where the C library
            gives out the pages of earlier batches again; otherwise when the first image says how large they are.
    """

    def __init__(self, plan: BatchPlan, like: _Kind | None) -> None:
        self.plan = plan
        self.images = None if like is None else self._empty(like)
        self._lock = threading.Lock()
        self._begun = False

    def put(self, slot: int, image: np.ndarray[Any, Any]) -> None:
        """Raises ValueError where the image has another size than those before it."""
        with self._lock:
            if self.images is None or (not self._begun and self.images.shape[1:] != image.shape):
                self.images = self._empty((image.shape, image.dtype))
            self._begun = True
        if image.shape != self.images.shape[1:]:
            sizes = f"{list(image.shape)} beside {list(self.images.shape[1:])}"
            raise ValueError(f"the images of a batch differ in size, {sizes}; let the transforms end in one size")
        self.images[slot] = image

    def _empty(self, kind: _Kind) -> np.ndarray[Any, Any]:
        return np.empty((len(self.plan.indices), *kind[0]), kind[1])


class Loader:
    """Batches of a data set in the sampler's order.

    What comes out does not depend on the number of threads: every random choice about a sample is drawn from a generator seeded by
    ``(seed, epoch, position in the epoch's global order)``. An error in a thread is raised in the loop that asks for the batch.

    Args:
        num_workers: threads; 0 loads in the caller's own thread.
    """

    def __init__(self, dataset: ImageNetDataset, sampler: DistributedBatchSampler, num_workers: int = 4) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.num_workers = num_workers
        self._like: _Kind | None = None

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.sampler)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from global batch ``start`` on.

        Raises:
            DataError: a sample can't be loaded; names its file.
        """
        plans = self.sampler.batches(epoch, start)
        if self.num_workers == 0:
            for plan in plans:
                slots = _Slots(plan, self._like)
                self._fill(slots, epoch, range(len(plan.indices)))
                yield self._finish(slots)
            return
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="ppxcls-loader")
        try:
            started: deque[tuple[_Slots, list[Future[None]]]] = deque()
            for plan in plans:
                started.append(self._start(pool, plan, epoch))
                if len(started) > _AHEAD:
                    yield self._wait(*started.popleft())
            while started:
                yield self._wait(*started.popleft())
        finally:  # also when the loop that uses the batches ends early
            pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, pool: ThreadPoolExecutor, plan: BatchPlan, epoch: int) -> tuple[_Slots, list[Future[None]]]:
        slots = _Slots(plan, self._like)
        total = len(plan.indices)
        step = max(1, min(_TASK, total // self.num_workers))
        parts = [range(i, min(i + step, total)) for i in range(0, total, step)]
        return slots, [pool.submit(self._fill, slots, epoch, part) for part in parts]

    def _wait(self, slots: _Slots, futures: list[Future[None]]) -> Batch:
        for future in futures:
            future.result()
        return self._finish(slots)

    def _fill(self, slots: _Slots, epoch: int, part: range) -> None:
        for i in part:
            index = int(slots.plan.indices[i])
            rng = np.random.default_rng([self.sampler.seed, epoch, slots.plan.first + i])
            image = self.dataset.load(index, rng)
            try:
                slots.put(i, image)
            except ValueError as error:
                raise DataError(f"{self.dataset.path(index)}: {error}") from None

    def _finish(self, slots: _Slots) -> Batch:
        assert slots.images is not None
        self._like = slots.images.shape[1:], slots.images.dtype
        return Batch(slots.images, self.dataset.index.labels[slots.plan.indices].astype(np.int64), slots.plan)
