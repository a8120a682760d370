"""A process that loads parts of batches into memory that it shares with the training process.

It imports no Paddle, unless a user's own data set or transform does.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import logging
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import reduction
from multiprocessing.connection import Connection

import numpy as np

from ppxcls.config.plugin_modules import PluginFinder
from ppxcls.data.dataset import Dataset
from ppxcls.data.loader_messages import (
    IGNORED_SIGNALS,
    AnnounceSamples,
    CancelPart,
    LoadPart,
    PartDone,
    WorkerLog,
    WorkerSettings,
    WorkerStarted,
)
from ppxcls.data.loading import ImageKind, ImageSlots, SampleLoader, kind_of, task_ranges
from ppxcls.system.arrays import Array
from ppxcls.system.logs import logger
from ppxcls.system.paths import one_line
from ppxcls.system.shared_memory import SharedMemory, shared_object


class _LogSender(logging.Handler):
    def __init__(self, connection: Connection, lock: threading.Lock) -> None:
        super().__init__()
        self._connection = connection
        self._lock = lock

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = WorkerLog(record.levelno, record.getMessage())
            with self._lock:
                self._connection.send(message)
        except Exception:
            self.handleError(record)


class _Worker:
    """Loads parts of batches in threads.

    Args:
        connection: connection to the training process.
        send_lock: lock for sending.
        samples: loader of the samples.
        threads: number of threads.
    """

    def __init__(
        self, connection: Connection, send_lock: threading.Lock, samples: SampleLoader, threads: int
    ) -> None:
        self._connection = connection
        self._send_lock = send_lock
        self._samples = samples
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._memories: dict[int, SharedMemory] = {}
        self._futures: dict[int, list[Future[None]]] = {}

    def run(self) -> None:
        """Serves requests until the training process closes the connection."""
        while True:
            message = self._connection.recv()
            if isinstance(message, LoadPart):
                self._start(message)
            elif isinstance(message, CancelPart):
                for future in self._futures.pop(message.ticket, []):
                    future.cancel()
            elif isinstance(message, AnnounceSamples):
                self._announce(message.indices)

    def _announce(self, indices: Array) -> None:
        try:
            self._samples.dataset.announce(indices)
        except Exception as error:  # an error in a user's own data set; loading needs no announcement
            logger.warning("samples can't be announced to %s: %s", self._samples.dataset.source, _text(error))

    def _start(self, message: LoadPart) -> None:
        if message.is_new_memory:
            self._memories[message.memory] = SharedMemory(reduction.recv_handle(self._connection))
        memory, count = self._memories[message.memory], len(message.request.indices)

        def empty_array(kind: ImageKind) -> Array:
            shape = (message.batch_size, *kind[0])
            memory.reserve(int(np.prod(shape)) * kind[1].itemsize)
            return memory.array(shape, kind[1])[message.offset : message.offset + count]

        slots = ImageSlots(None, empty_array)
        parts = task_ranges(count, self._threads)
        outcome = _PartOutcome(len(parts), lambda error: self._finish(message, slots, error))
        futures = [self._pool.submit(self._samples.load, message.request, slots, part) for part in parts]
        self._futures[message.ticket] = futures
        for future in futures:
            future.add_done_callback(outcome.add)

    def _finish(self, message: LoadPart, slots: ImageSlots, error: BaseException | None) -> None:
        self._futures.pop(message.ticket, None)
        if error is not None:
            trace = "".join(traceback.format_exception(error))
            reply = PartDone(message.ticket, message.offset, error=_text(error), trace=trace)
        else:
            kind = None if slots.images is None else kind_of(slots.images)
            bad_samples = [(message.offset + slot, text) for slot, text in slots.bad_samples]
            reply = PartDone(message.ticket, message.offset, kind, bad_samples)
        with self._send_lock:
            self._connection.send(reply)


class _PartOutcome:
    """Calls a function when all tasks of a part have ended, with the first error."""

    def __init__(self, count: int, finish: Callable[[BaseException | None], None]) -> None:
        self._remaining_count = count
        self._finish = finish
        self._error: BaseException | None = None
        self._lock = threading.Lock()

    def add(self, future: Future[None]) -> None:
        """Receives a task that has ended, or was cancelled."""
        error = None if future.cancelled() else future.exception()
        with self._lock:
            self._remaining_count -= 1
            self._error = self._error or error
            is_last = self._remaining_count == 0
        if is_last:
            self._finish(self._error)


def _text(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if type(error).__name__ == "DataError" else f"{type(error).__name__}: {text}"


def end_with_parent(descriptor: int) -> None:
    """Makes the kernel kill this process when the other end of a pipe is closed.

    The kernel closes it when the training process ends, however it ends. It kills this process also if a
    thread does not return from C code.

    Args:
        descriptor: end of the pipe for reading.
    """
    import fcntl  # not on Windows, which has no loader processes

    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([descriptor], [], [], 0)[0]:  # it was closed before
        os._exit(0)


def run_worker(connection_descriptor: int, life_line: int, dataset_memory: int, table_memory: int) -> None:
    """Runs a worker. The arguments are file descriptors.

    Args:
        connection_descriptor: connection to the training process.
        life_line: pipe for ``end_with_parent``.
        dataset_memory: memory with the data set.
        table_memory: memory with the table of current samples.
    """
    end_with_parent(life_line)
    for name in IGNORED_SIGNALS:  # the training process decides when to stop
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # they were blocked during the start
    connection = Connection(connection_descriptor)
    send_lock = threading.Lock()
    logger.addHandler(_LogSender(connection, send_lock))
    try:
        settings: WorkerSettings = connection.recv()
        dataset = _received_dataset(settings, dataset_memory, connection)
        table = SharedMemory(table_memory).array([settings.all_threads], np.dtype(np.int64))
        samples = SampleLoader(dataset, settings.seed, table[settings.threads.start : settings.threads.stop])
        connection.send(WorkerStarted())
        _Worker(connection, send_lock, samples, len(settings.threads)).run()
    except (EOFError, ConnectionError):  # the training process has closed the connection, or has ended
        os._exit(0)
    except OSError as error:  # no more descriptors, for example
        print(one_line(f"loader process: {error}"), file=sys.stderr, flush=True)
        os._exit(1)


class _PaddleNeededError(ImportError):
    """A plugin imports Paddle, which would take seconds and much memory in each loader process."""


class _PaddleRefused(importlib.abc.MetaPathFinder):
    """A block in which Paddle can't be imported, also not by the names of ``ppxcls`` that need it."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:  # noqa: ARG002
        if name == "paddle" and "paddle" not in sys.modules:
            raise _PaddleNeededError("a loader process does without Paddle", name=name)

    def __enter__(self) -> None:
        sys.meta_path.insert(0, self)

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)


def _received_dataset(settings: WorkerSettings, memory: int, connection: Connection) -> Dataset:
    """Imports the plugins and returns the data set. If that fails, reports why and ends the process."""
    sys.meta_path.insert(0, PluginFinder(settings.plugin_modules))
    try:
        for name in settings.plugins:
            with contextlib.suppress(_PaddleNeededError), _PaddleRefused():
                importlib.import_module(name)
        dataset: Dataset = shared_object(memory, settings.dataset_sizes)
    except BaseException as error:  # a class can't be imported here, or raises any error
        connection.send(WorkerStarted(_text(error) or type(error).__name__))
        os._exit(1)
    return dataset
