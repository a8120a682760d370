"""Loads batches in processes, so that the training process decodes nothing."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import connection as connections
from multiprocessing import reduction

import numpy as np

from ppxcls.config.plugins import plugin_modules, plugins_without_paddle
from ppxcls.data.dataset import Dataset, sample_place
from ppxcls.data.errors import DataError
from ppxcls.data.loader_messages import (
    AnnounceSamples,
    CancelPart,
    LoadPart,
    PartDone,
    WorkerLog,
    WorkerSettings,
    WorkerStarted,
)
from ppxcls.data.loader_process import WorkerProcess
from ppxcls.data.loading import BatchRequest, ImageKind, LoadedImages, different_kinds
from ppxcls.system.arrays import Array
from ppxcls.system.errors import UserError
from ppxcls.system.logs import logger
from ppxcls.system.shared_memory import HAS_SHARED_MEMORY, SharedMemory, share_object

_START_SECONDS = 120.0  # maximum time for the start of a process
_WAIT_SECONDS = 0.5  # time between two looks at the deadline
_MAX_LOGS = 100  # different messages of workers that are remembered
_MAX_MEMORIES = 8  # more batches that exist at once are copied


class ProcessesUnavailable(UserError):
    """The data set can't be loaded in processes. The message is the reason, as a part of a sentence."""


class LoaderError(DataError):
    """A loader process ended or raised an error."""


@dataclass(eq=False)
class _PendingBatch:
    """A batch that workers are loading.

    Attributes:
        request: samples of the batch.
        memory: number of its shared memory.
        remaining_parts: number of parts that are not complete.
        kind: shape and type of the images, from the first complete part that has any.
        bad_samples: slot and message of each unreadable sample.
        error: message of an error; empty if there is none.
        trace: traceback of this error in the worker.
        is_cancelled: True if the batch is not needed any more.
    """

    request: BatchRequest
    memory: int
    remaining_parts: int = 0
    kind: ImageKind | None = None
    bad_samples: list[tuple[int, str]] = field(default_factory=list)
    error: str = ""
    trace: str = ""
    is_cancelled: bool = False


class LoaderProcesses:
    """Loads batches in processes with a few threads each. It is a ``Loading``.

    Each batch has its own shared memory. Every process fills a part of it, and the batch's images are an
    array on this memory. The memory is used again when the array and all views of it are gone.

    Args:
        dataset: data set to load.
        seed: seed of the random choices.
        processes: number of processes.
        threads: number of threads of all processes.
        timeout: maximum time in seconds for the start of the processes; None for two minutes.

    Raises:
        ProcessesUnavailable: this system has no memfd, or the data set can't be sent to another process.
        LoaderError: a process did not start.
    """

    def __init__(
        self, dataset: Dataset, seed: int, *, processes: int, threads: int, timeout: float | None = None
    ) -> None:
        if not HAS_SHARED_MEMORY:
            raise ProcessesUnavailable("this system has no memory for processes to share (memfd)")
        try:
            dataset_memory, dataset_sizes = share_object(dataset)
        except Exception as error:  # pickle raises many kinds
            raise ProcessesUnavailable(_cannot_send(dataset, error)) from None
        self.is_broken = False
        self._dataset = dataset
        self._has_announcements = type(dataset).announce is not Dataset.announce
        self._lock = threading.Lock()  # of the connections
        self._tickets = itertools.count()
        self._pending_batches: dict[int, _PendingBatch] = {}
        self._memories: list[SharedMemory] = []
        self._worker_logs: set[WorkerLog] = set()
        self._free_memories: list[int] = []
        table_memory = SharedMemory()
        table_memory.reserve(threads * np.dtype(np.int64).itemsize)
        self._current_samples = table_memory.array([threads], np.dtype(np.int64))
        self._current_samples[:] = -1
        bounds = [threads * i // processes for i in range(processes + 1)]
        self._workers: list[WorkerProcess] = []
        self._end = weakref.finalize(self, _end_workers, self._workers)
        _ALL.add(self)
        try:
            for start, stop in itertools.pairwise(bounds):
                self._workers.append(WorkerProcess(dataset_memory, table_memory, range(start, stop)))
        except (OSError, TypeError, ValueError) as error:  # too many processes or files, or no interpreter
            self.close()
            raise ProcessesUnavailable(f"no process can be started: {error}") from None
        for worker in self._workers:
            settings = WorkerSettings(
                plugin_modules=plugin_modules(),
                plugins=plugins_without_paddle(),
                dataset_sizes=dataset_sizes,
                seed=seed,
                threads=worker.threads,
                all_threads=threads,
            )
            with self._death_reported(worker):
                worker.connection.send(settings)
        self._wait_for_start(time.monotonic() + (timeout or _START_SECONDS))

    def _wait_for_start(self, deadline: float) -> None:
        for worker in self._workers:
            message = None
            while not isinstance(message, WorkerStarted):
                if not worker.connection.poll(max(0.0, deadline - time.monotonic())):
                    self.close()
                    raise LoaderError("a loader process did not start in time")
                message = self._receive(worker)
            if message.problem:
                self.close()
                raise ProcessesUnavailable(_cannot_send(self._dataset, message.problem))

    def start(self, request: BatchRequest) -> int:
        """Starts to load a batch, and returns its ticket."""
        try:
            with self._lock:
                return self._start(request)
        except BaseException:  # Ctrl-C may have cut a message
            self.is_broken = True
            raise

    def _start(self, request: BatchRequest) -> int:
        ticket = next(self._tickets)
        if not self._free_memories:
            self._free_memories.append(len(self._memories))
            self._memories.append(SharedMemory())
        memory = self._free_memories.pop()
        batch = self._pending_batches[ticket] = _PendingBatch(request, memory)
        count = len(request.indices)
        stop = thread_count = 0
        # In turns, so that batches with fewer samples than processes use all of them.
        first_worker = ticket % len(self._workers)
        for worker in [*self._workers[first_worker:], *self._workers[:first_worker]]:
            thread_count += len(worker.threads)
            first, stop = stop, count * thread_count // len(self._current_samples)
            if first == stop:
                continue
            batch.remaining_parts += 1
            part = replace(request, first=request.first + first, indices=request.indices[first:stop])
            is_new = memory not in worker.memories
            message = LoadPart(
                ticket, memory, is_new_memory=is_new, batch_size=count, offset=first, request=part
            )
            with self._death_reported(worker):
                worker.connection.send(message)
                if is_new:
                    descriptor = self._memories[memory].descriptor
                    reduction.send_handle(worker.connection, descriptor, worker.process.pid)
                    worker.memories.add(memory)
        return ticket

    def result(self, handle: int, timeout: float | None) -> LoadedImages:
        """Waits for a batch.

        Raises:
            TimeoutError: the batch is not complete after ``timeout`` seconds.
            LoaderError: a process ended, or raised an error that is not about the file of a sample.
        """
        try:
            return self._result(handle, timeout)
        except BaseException:  # a hanging process would hang again; Ctrl-C may have cut a message
            self.is_broken = True
            raise

    def _result(self, handle: int, timeout: float | None) -> LoadedImages:
        batch = self._pending_batches[handle]
        deadline = None if timeout is None else time.monotonic() + timeout
        workers = {worker.connection: worker for worker in self._workers}
        while batch.remaining_parts:
            with self._lock:
                # Not longer, so that another thread can use the connections.
                for connection in connections.wait(list(workers), _WAIT_SECONDS):
                    self._receive(workers[connection])  # type: ignore[index]
            if batch.remaining_parts and deadline is not None and time.monotonic() > deadline:
                raise TimeoutError
        if batch.error:
            raise LoaderError(batch.error) from (_WorkerTraceback(batch.trace) if batch.trace else None)
        del self._pending_batches[handle]
        images = None
        if batch.kind is None:
            self._free_memories.append(batch.memory)
        else:
            images = self._images(batch, batch.kind)
        return LoadedImages(images, batch.bad_samples)

    def _images(self, batch: _PendingBatch, kind: ImageKind) -> Array:
        """Returns the images of a complete batch, on its memory, or as a copy if there are many batches."""
        shape = (len(batch.request.indices), *kind[0])
        free_memories, memory = self._free_memories, batch.memory
        if len(self._memories) > _MAX_MEMORIES:  # each has a descriptor in every process
            images = self._memories[memory].array(shape, kind[1]).copy()
            free_memories.append(memory)
            return images
        return self._memories[memory].array(shape, kind[1], lambda: free_memories.append(memory))

    def cancel(self, handle: int) -> None:
        """Drops a batch. Its memory is used again when all processes have answered."""
        batch = self._pending_batches.get(handle)
        if batch is None:
            return
        batch.is_cancelled = True
        if batch.remaining_parts == 0:
            self._forget(handle, batch)
        elif not self.is_broken:
            for worker in self._workers:
                with contextlib.suppress(OSError), self._lock:
                    worker.connection.send(CancelPart(handle))

    def announce(self, indices: Array) -> None:
        """Announces samples to the data sets of the processes that will load them."""
        if not self._has_announcements:
            return
        for number, worker in enumerate(self._workers):
            with self._death_reported(worker), self._lock:
                worker.connection.send(AnnounceSamples(indices[number :: len(self._workers)]))

    def current_samples(self) -> list[int]:
        """Returns the samples that are being loaded now."""
        return self._current_samples[self._current_samples >= 0].tolist()

    def close(self) -> None:
        """Ends the processes."""
        self.is_broken = True
        self._end()

    def abandon(self) -> None:
        """Forgets the processes in a forked copy of the training process."""
        self.is_broken = True
        self._end.detach()
        for worker in self._workers:
            worker.close()

    def _receive(self, worker: WorkerProcess) -> object:
        """Receives one message, and updates the batch that it is about."""
        with self._death_reported(worker):
            message = worker.connection.recv()
        if isinstance(message, WorkerLog):
            self._log(message)
        elif isinstance(message, PartDone):
            self._add_part(message)
        return message

    def _log(self, message: WorkerLog) -> None:
        """Logs a message of a worker, unless another worker has sent the same one."""
        if message in self._worker_logs:
            return
        if len(self._worker_logs) < _MAX_LOGS:
            self._worker_logs.add(message)
        logger.log(message.level, "%s", message.text)

    def _add_part(self, part: PartDone) -> None:
        batch = self._pending_batches[part.ticket]
        batch.remaining_parts -= 1
        batch.bad_samples += part.bad_samples
        batch.kind = batch.kind or part.kind
        if part.kind and part.kind != batch.kind and not batch.error:
            path = self._dataset.path(int(batch.request.indices[part.offset]))
            batch.error = f"{path}: {different_kinds(part.kind, batch.kind)}"  # type: ignore[arg-type]
        if part.error and not batch.error:
            batch.error, batch.trace = part.error, part.trace
        if batch.is_cancelled and batch.remaining_parts == 0:
            self._forget(part.ticket, batch)

    def _forget(self, ticket: int, batch: _PendingBatch) -> None:
        del self._pending_batches[ticket]
        self._free_memories.append(batch.memory)

    @contextlib.contextmanager
    def _death_reported(self, worker: WorkerProcess) -> Iterator[None]:
        """Converts the errors of a closed connection to an error that tells how the worker ended."""
        try:
            yield
        except (EOFError, OSError):
            self.is_broken = True
            samples = self._current_samples[worker.threads.start : worker.threads.stop]
            indices = samples[samples >= 0].tolist()
            places = [sample_place(self._dataset, i) for i in indices]
            files = f"; files being read: {', '.join(places)}" if places else ""
            raise LoaderError(f"a loader process {worker.outcome()}{files}") from None


class _WorkerTraceback(Exception):
    """The traceback of an error in a worker, as the cause of the error that is raised here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _cannot_send(dataset: Dataset, reason: object) -> str:
    text = " ".join(str(reason).split())
    return f"{type(dataset).__name__} can't be sent to another process: {text}"


def _end_workers(workers: Sequence[WorkerProcess]) -> None:
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.wait()


_ALL: weakref.WeakSet[LoaderProcesses] = weakref.WeakSet()


def _abandon_after_fork() -> None:
    """Leaves the processes to the parent: a copy of the life line would keep them after its end."""
    for loading in list(_ALL):
        loading.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_after_fork)
