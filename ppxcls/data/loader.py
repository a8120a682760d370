"""Loads batches with threads.

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
from ppxcls.data.prefetch import prefetch
from ppxcls.data.sampler import BatchPlan, Sampler
from ppxcls.system.arrays import Array

_ImageKind = tuple[tuple[int, ...], np.dtype[Any]]

_ANNOUNCED_BATCHES = 8  # announced to the data set before they are loaded
_SAMPLES_PER_TASK = 8  # upper limit; a thread loads them one after another


@dataclass(frozen=True)
class Batch:
    """A batch in the host's memory.

    Attributes:
        images: images after the host's transforms, usually uint8 [N, H, W, 3].
        labels: class of each image, int64 [N].
        plan: samples of the batch, without the unreadable ones.
        left_out: number of unreadable samples.
    """

    images: Array
    labels: Array
    plan: BatchPlan
    left_out: int = 0


class _Slots:
    """A batch that is being filled.

    Args:
        plan: samples of the batch.
        image_kind: shape and dtype of earlier images; None if the first image decides. If given, the array is
            created here, in the caller's thread, because the C library reuses the memory of earlier batches
            there.
    """

    def __init__(self, plan: BatchPlan, image_kind: _ImageKind | None) -> None:
        self.plan = plan
        self.images = None if image_kind is None else self._empty_array(image_kind)
        self.bad_slots: list[int] = []
        self._lock = threading.Lock()
        self._has_image = False

    def put(self, slot: int, image: Array) -> None:
        """Stores an image.

        Raises:
            ValueError: its size differs from the earlier images of the batch.
        """
        with self._lock:
            if self.images is None or (not self._has_image and self.images.shape[1:] != image.shape):
                self.images = self._empty_array((image.shape, image.dtype))
            self._has_image = True
        if image.shape != self.images.shape[1:]:
            sizes = f"{list(image.shape)} and {list(self.images.shape[1:])}"
            raise ValueError(
                f"the images of a batch differ in size, {sizes}; the transforms must return one size"
            )
        self.images[slot] = image

    def _empty_array(self, image_kind: _ImageKind) -> Array:
        return np.empty((len(self.plan.indices), *image_kind[0]), image_kind[1])


class Loader:
    """Batches of a data set in the sampler's order.

    The batches do not depend on the number of threads: the random choices about a sample come from a
    generator that is seeded by ``(seed, epoch, position in the epoch's global order)``. An error in a thread
    is raised in the loop that uses the batches.

    Args:
        dataset: data set to load.
        sampler: order of the samples.
        num_workers: number of threads; 0 for loading in the caller's thread.
        bad_samples: list of the unreadable samples, which are skipped; None for an error instead.
        timeout: maximum time in seconds to wait for a batch; None for no limit.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Sampler,
        *,
        num_workers: int = 4,
        bad_samples: BadSamples | None = None,
        timeout: float | None = None,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.num_workers = num_workers
        self.bad_samples = bad_samples
        self.timeout = timeout
        self._current_samples: dict[int, int] = {}  # sample number by thread
        self._transform = dataset.host_transform
        self._image_kind: _ImageKind | None = None

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return len(self.sampler)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yields the batches of one epoch, starting with global batch ``start``.

        Raises:
            DataError: a sample can't be loaded, or is not loaded in time. The message names its file.
        """
        plans = self._announced_plans(self.sampler.batches(epoch, start))
        self._transform = self.dataset.host_transform.resized(self.sampler.size_at(epoch))
        if self.num_workers == 0:
            for plan in plans:
                slots = _Slots(plan, self._image_kind)
                self._fill(slots, epoch, range(len(plan.indices)))
                yield self._finish(slots)
            return
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="ppxcls-loader")
        try:
            for slots, futures in prefetch(plans, lambda plan: self._start_tasks(pool, plan, epoch)):
                yield self._wait(slots, futures)
        finally:  # also if the loop that uses the batches ends early
            pool.shutdown(wait=False, cancel_futures=True)

    def _announced_plans(self, plans: Iterator[BatchPlan]) -> Iterator[BatchPlan]:
        """Yields the plans, and announces each to the data set a few batches early."""
        queue: deque[BatchPlan] = deque()
        for plan in plans:
            self.dataset.announce(plan.indices)
            queue.append(plan)
            if len(queue) > _ANNOUNCED_BATCHES:
                yield queue.popleft()
        yield from queue

    def _start_tasks(
        self, pool: ThreadPoolExecutor, plan: BatchPlan, epoch: int
    ) -> tuple[_Slots, list[Future[None]]]:
        slots = _Slots(plan, self._image_kind)
        total = len(plan.indices)
        step = max(1, min(_SAMPLES_PER_TASK, total // self.num_workers))
        parts = [range(i, min(i + step, total)) for i in range(0, total, step)]
        return slots, [pool.submit(self._fill, slots, epoch, part) for part in parts]

    def _wait(self, slots: _Slots, futures: list[Future[None]]) -> Batch:
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        for future in futures:
            try:
                future.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
            except FutureTimeoutError:
                raise DataError(
                    f"no batch for {self.timeout:g} s; files being read: {self.files_being_read()}"
                ) from None
        return self._finish(slots)

    def files_being_read(self) -> str:
        """Returns the files that the threads are reading now."""
        return ", ".join(
            f"{self.dataset.path(i)} ({self.dataset.line(i)})" for i in list(self._current_samples.values())
        )

    def _fill(self, slots: _Slots, epoch: int, part: range) -> None:
        thread_id = threading.get_ident()
        for slot in part:
            index = int(slots.plan.indices[slot])
            self._current_samples[thread_id] = index
            rng = np.random.default_rng([self.sampler.seed, epoch, slots.plan.first + slot])
            try:
                image = self.dataset.load(index, rng, self._transform)
            except DataError as error:
                if self.bad_samples is None:
                    raise
                self.bad_samples.add(index, error)
                slots.bad_slots.append(slot)
                continue
            try:
                slots.put(slot, image)
            except ValueError as error:
                raise DataError(f"{self.dataset.path(index)}: {error}") from None
        self._current_samples.pop(thread_id, None)

    def _finish(self, slots: _Slots) -> Batch:
        plan, images = slots.plan, slots.images
        if slots.bad_slots:
            readable_slots = np.setdiff1d(np.arange(len(plan.indices)), slots.bad_slots)
            if readable_slots.size and images is not None:
                images = images[readable_slots]
            else:  # no readable sample: a dummy that does not count keeps this process in step
                readable_slots = np.arange(1)
                if self._image_kind is None:
                    raise DataError(
                        f"no sample of the first batch can be read, "
                        f"such as {self.dataset.path(int(plan.indices[0]))}"
                    )
                images = np.zeros((1, *self._image_kind[0]), self._image_kind[1])
                plan = replace(plan, count=0)
            plan = replace(
                plan, indices=plan.indices[readable_slots], count=len(readable_slots) if plan.count else 0
            )
        assert images is not None
        self._image_kind = images.shape[1:], images.dtype
        bad_count = len(slots.bad_slots) if slots.plan.count else 0
        return Batch(images, self.dataset.labels[plan.indices].astype(np.int64), plan, bad_count)
