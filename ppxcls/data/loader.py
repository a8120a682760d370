"""Loads batches ahead of the loop that uses them, in threads or in processes."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ppxcls.data.bad_samples import BadSamples
from ppxcls.data.dataset import Dataset, sample_place
from ppxcls.data.errors import DataError
from ppxcls.data.loader_processes import LoaderProcesses, ProcessesUnavailable
from ppxcls.data.loader_threads import LoaderThreads
from ppxcls.data.loading import BatchRequest, ImageKind, LoadedImages, Loading, kind_of
from ppxcls.data.prefetch import prefetch
from ppxcls.data.sampler import BatchPlan, Sampler
from ppxcls.system.arrays import Array
from ppxcls.system.logs import logger

_BATCHES_AHEAD = 2  # batches in work while another is used
_ANNOUNCED_BATCHES = 8  # announced to the data set before they are loaded


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


class Loader:
    """Batches of a data set in the sampler's order.

    The batches do not depend on the number of threads and processes: the random choices about a sample come
    from a generator that is seeded by ``(seed, epoch, position in the epoch's global order)``. An error in a
    thread or a process is raised in the loop that uses the batches.

    Each operator of a training step needs Python's lock, and threads that decode images take it in between.
    So a process that trains on an accelerator should not decode images itself. The processes start with the
    first batch, and serve all epochs until ``close``.

    Args:
        dataset: data set to load.
        sampler: order of the samples.
        num_workers: number of threads in all; 0 for loading in the caller's thread.
        num_processes: number of processes among which the threads are divided; 0 for threads of this process.
            If the data set can't be sent to another process, a warning is logged and threads are used.
        bad_samples: list of the unreadable samples, which are skipped; None for an error instead.
        timeout: maximum time in seconds to wait for a batch; None for no limit.

    Raises:
        ValueError: there are more processes than threads.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Sampler,
        *,
        num_workers: int = 4,
        num_processes: int = 0,
        bad_samples: BadSamples | None = None,
        timeout: float | None = None,
    ) -> None:
        if num_processes > num_workers:
            raise ValueError(
                f"expected at most num_workers = {num_workers}, because each process needs a thread; "
                f"received {num_processes}"
            )
        self.dataset = dataset
        self.sampler = sampler
        self.num_workers = num_workers
        self.num_processes = num_processes
        self.bad_samples = bad_samples
        self.timeout = timeout
        self._loading: Loading | None = None
        self._image_kind: ImageKind | None = None

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return len(self.sampler)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yields the batches of one epoch, starting with global batch ``start``.

        Raises:
            DataError: a sample can't be loaded, or is not loaded in time. The message names its file.
        """
        loading = self._start_loading()
        size = self.sampler.size_at(epoch)

        def start_batch(plan: BatchPlan) -> tuple[BatchPlan, Any]:
            return plan, loading.start(BatchRequest(epoch, plan.first, plan.indices, size))

        started_batches = prefetch(
            self._announced_plans(loading, self.sampler.batches(epoch, start)),
            start_batch,
            ahead=_BATCHES_AHEAD if self.num_workers else 0,
            cancel=lambda batch: loading.cancel(batch[1]),
        )
        with contextlib.closing(started_batches):  # also if the loop that uses the batches ends early
            for plan, handle in started_batches:
                yield self._result(loading, plan, handle)

    def check_first_batch(self, epoch: int) -> None:
        """Loads the samples of an epoch's first batch, and discards them.

        Raises:
            DataError: a sample can't be loaded; if unreadable samples are skipped, none of them can.
        """
        indices = next(iter(self.sampler.batches(epoch))).indices.tolist()
        with ThreadPoolExecutor(max(self.num_workers, 1)) as pool:
            errors = [error for error in pool.map(self._loading_error, indices) if error]
        if errors and (self.bad_samples is None or len(errors) == len(indices)):
            raise errors[0]

    def _loading_error(self, index: int) -> DataError | None:
        try:
            self.dataset.load(index)
        except DataError as error:
            return error
        return None

    def close(self) -> None:
        """Ends the processes. The next epoch starts new ones."""
        if isinstance(self._loading, LoaderProcesses):
            self._loading.close()
        self._loading = None

    def files_being_read(self) -> str:
        """Returns the files that the threads are reading now."""
        samples = self._loading.current_samples() if self._loading else []
        return ", ".join(sample_place(self.dataset, i) for i in samples)

    def _start_loading(self) -> Loading:
        if isinstance(self._loading, LoaderProcesses) and self._loading.is_broken:
            self.close()
        if self._loading is None and self.num_processes:
            try:
                self._loading = LoaderProcesses(
                    self.dataset,
                    self.sampler.seed,
                    processes=self.num_processes,
                    threads=self.num_workers,
                    timeout=self.timeout,
                )
            except ProcessesUnavailable as error:
                logger.warning(f"images are loaded in threads of this process, because {error}")
        if self._loading is None:
            self._loading = LoaderThreads(self.dataset, self.sampler.seed, self.num_workers)
        return self._loading

    @staticmethod
    def _announced_plans(loading: Loading, plans: Iterator[BatchPlan]) -> Iterator[BatchPlan]:
        """Yields the plans, and announces each to the data set a few batches early."""
        queue: deque[BatchPlan] = deque()
        for plan in plans:
            loading.announce(plan.indices)
            queue.append(plan)
            if len(queue) > _ANNOUNCED_BATCHES:
                yield queue.popleft()
        yield from queue

    def _result(self, loading: Loading, plan: BatchPlan, handle: Any) -> Batch:
        try:
            loaded_images = loading.result(handle, self.timeout)
        except TimeoutError:
            loading.cancel(handle)
            files = self.files_being_read() or "none"
            raise DataError(f"no batch for {self.timeout:g} s; files being read: {files}") from None
        except BaseException:
            loading.cancel(handle)
            raise
        return self._batch(plan, loaded_images)

    def _batch(self, plan: BatchPlan, loaded_images: LoadedImages) -> Batch:
        bad_samples = sorted(loaded_images.bad_samples)
        for slot, message in bad_samples:
            if self.bad_samples is None:
                raise DataError(message)
            self.bad_samples.add(int(plan.indices[slot]), DataError(message))
        images = loaded_images.images
        bad_count = len(bad_samples) if plan.count else 0
        if bad_samples:
            bad_slots = [slot for slot, _ in bad_samples]
            readable_slots = np.setdiff1d(np.arange(len(plan.indices)), bad_slots)
            if images is not None:
                images = images[readable_slots]
            else:  # no readable sample: a dummy that does not count keeps this process in step
                readable_slots = np.arange(1)
                if self._image_kind is None:
                    example = self.dataset.path(int(plan.indices[0]))
                    raise DataError(f"no sample of the first batch can be read, such as {example}")
                images = np.zeros((1, *self._image_kind[0]), self._image_kind[1])
                plan = replace(plan, count=0)
            count = len(readable_slots) if plan.count else 0
            plan = replace(plan, indices=plan.indices[readable_slots], count=count)
        assert images is not None
        self._image_kind = kind_of(images)
        return Batch(images, self.dataset.labels[plan.indices].astype(np.int64), plan, bad_count)
