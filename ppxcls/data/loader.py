"""Makes batches with threads.

Each thread reads, decodes and transforms samples into their slots of a batch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ppxcls.data.bad_samples import BadSamples
from ppxcls.data.dataset import Dataset
from ppxcls.data.errors import DataError
from ppxcls.data.prefetch import prefetched
from ppxcls.data.sampler import BatchPlan, Sampler

_Kind = tuple[tuple[int, ...], np.dtype[Any]]

_ANNOUNCED = 8  # batches of which a data set hears before they are loaded
_TASK = 8  # samples that a thread takes at once


@dataclass(frozen=True)
class Batch:
    """A batch in the host's memory.

    Attributes:
        images: uint8 [N, H, W, 3], or what the host's transforms return.
        labels: int64 [N].
        plan: the samples of the batch, without those that were left out.
        left_out: number of samples that can't be read.
    """

    images: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    plan: BatchPlan
    left_out: int = 0


class _Slots:
    """The batch being filled.

    Args:
        like: shape and dtype of the images so far. With it the array is created here, in the caller's thread,
            because the C library reuses the memory of earlier batches there. Without it, the first image
            decides.
    """

    def __init__(self, plan: BatchPlan, like: _Kind | None) -> None:
        self.plan = plan
        self.images = None if like is None else self._empty(like)
        self.bad: list[int] = []
        self._lock = threading.Lock()
        self._begun = False

    def put(self, slot: int, image: np.ndarray[Any, Any]) -> None:
        """Store an image. Raises ValueError if its size differs from those before it."""
        with self._lock:
            if self.images is None or (not self._begun and self.images.shape[1:] != image.shape):
                self.images = self._empty((image.shape, image.dtype))
            self._begun = True
        if image.shape != self.images.shape[1:]:
            sizes = f"{list(image.shape)} beside {list(self.images.shape[1:])}"
            raise ValueError(
                f"the images of a batch differ in size, {sizes}; let the transforms end in one size"
            )
        self.images[slot] = image

    def _empty(self, kind: _Kind) -> np.ndarray[Any, Any]:
        return np.empty((len(self.plan.indices), *kind[0]), kind[1])


class Loader:
    """Batches of a data set in the sampler's order.

    The batches do not depend on the number of threads: the random choices about a sample come from a
    generator that is seeded by ``(seed, epoch, position in the epoch's global order)``. An error in a thread
    is raised in the loop that uses the batches.

    Args:
        dataset: the samples.
        sampler: decides their order.
        num_workers: number of threads; 0 loads in the caller's thread.
        bad_samples: list of the unreadable samples, which are left out of their batches; None raises instead.
        timeout: seconds to wait for a batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Sampler,
        num_workers: int = 4,
        bad_samples: BadSamples | None = None,
        timeout: float | None = None,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.num_workers = num_workers
        self.bad_samples = bad_samples
        self.timeout = timeout
        self._being_read: dict[int, int] = {}  # sample by thread
        self._transform = dataset.host_transform
        self._like: _Kind | None = None

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.sampler)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from global batch ``start`` on.

        Raises:
            DataError: a sample can't be loaded, or not in time. The message names its file.
        """
        plans = self._announced(self.sampler.batches(epoch, start))
        self._transform = self.dataset.host_transform.resized(self.sampler.size_at(epoch))
        if self.num_workers == 0:
            for plan in plans:
                slots = _Slots(plan, self._like)
                self._fill(slots, epoch, range(len(plan.indices)))
                yield self._finish(slots)
            return
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="ppxcls-loader")
        try:
            for slots, futures in prefetched(plans, lambda plan: self._start(pool, plan, epoch)):
                yield self._wait(slots, futures)
        finally:  # also if the loop that uses the batches ends early
            pool.shutdown(wait=False, cancel_futures=True)

    def _announced(self, plans: Iterator[BatchPlan]) -> Iterator[BatchPlan]:
        """The plans, of which the data set hears some batches ahead."""
        ahead: deque[BatchPlan] = deque()
        for plan in plans:
            self.dataset.announce(plan.indices)
            ahead.append(plan)
            if len(ahead) > _ANNOUNCED:
                yield ahead.popleft()
        yield from ahead

    def _start(
        self, pool: ThreadPoolExecutor, plan: BatchPlan, epoch: int
    ) -> tuple[_Slots, list[Future[None]]]:
        slots = _Slots(plan, self._like)
        total = len(plan.indices)
        step = max(1, min(_TASK, total // self.num_workers))
        parts = [range(i, min(i + step, total)) for i in range(0, total, step)]
        return slots, [pool.submit(self._fill, slots, epoch, part) for part in parts]

    def _wait(self, slots: _Slots, futures: list[Future[None]]) -> Batch:
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        for future in futures:
            try:
                future.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
            except FutureTimeoutError:
                raise DataError(
                    f"no batch for {self.timeout:g} s; being read: {self.files_being_read()}"
                ) from None
        return self._finish(slots)

    def files_being_read(self) -> str:
        """The files that the threads are reading now."""
        return ", ".join(
            f"{self.dataset.path(i)} ({self.dataset.line(i)})" for i in list(self._being_read.values())
        )

    def _fill(self, slots: _Slots, epoch: int, part: range) -> None:
        thread = threading.get_ident()
        for i in part:
            index = int(slots.plan.indices[i])
            self._being_read[thread] = index
            rng = np.random.default_rng([self.sampler.seed, epoch, slots.plan.first + i])
            try:
                image = self.dataset.load(index, rng, self._transform)
            except DataError as error:
                if self.bad_samples is None:
                    raise
                self.bad_samples.add(index, error)
                slots.bad.append(i)
                continue
            try:
                slots.put(i, image)
            except ValueError as error:
                raise DataError(f"{self.dataset.path(index)}: {error}") from None
        self._being_read.pop(thread, None)

    def _finish(self, slots: _Slots) -> Batch:
        plan, images = slots.plan, slots.images
        if slots.bad:
            kept = np.setdiff1d(np.arange(len(plan.indices)), slots.bad)
            if kept.size and images is not None:
                images = images[kept]
            else:  # no sample is left: a dummy that does not count keeps this process in step with the others
                kept = np.arange(1)
                if self._like is None:
                    raise DataError(
                        f"no sample of the first batch can be read, such as {self.dataset.path(int(plan.indices[0]))}"
                    )
                images = np.zeros((1, *self._like[0]), self._like[1])
                plan = replace(plan, count=0)
            plan = replace(plan, indices=plan.indices[kept], count=len(kept) if plan.count else 0)
        assert images is not None
        self._like = images.shape[1:], images.dtype
        left_out = len(slots.bad) if slots.plan.count else 0
        return Batch(images, self.dataset.labels[plan.indices].astype(np.int64), plan, left_out)
