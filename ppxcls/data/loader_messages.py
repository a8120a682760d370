"""The messages between the training process and its loader processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ppxcls.config.plugin_modules import PluginModule
from ppxcls.data.loading import BatchRequest, ImageKind
from ppxcls.system.arrays import Array

# Signals to all processes of a job. Loader processes ignore them, because the training process decides.
IGNORED_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


@dataclass(frozen=True)
class WorkerSettings:
    """The first message to a worker.

    Attributes:
        plugin_modules: modules of the plugins that came from files, by name, with their code.
        plugins: names of the plugin modules to import for their effects, in order.
        dataset_sizes: sizes for ``shared_object`` of the data set.
        seed: seed of the random choices.
        threads: places of this worker's threads in the table of current samples.
        all_threads: length of this table.
    """

    plugin_modules: Mapping[str, PluginModule]
    plugins: Sequence[str]
    dataset_sizes: Sequence[int]
    seed: int
    threads: range
    all_threads: int


@dataclass(frozen=True)
class LoadPart:
    """A message to a worker: load a part of a batch.

    Attributes:
        ticket: number of the batch.
        memory: number of the shared memory for the whole batch. If it is new, its descriptor follows.
        is_new_memory: True if the worker does not have the memory yet.
        batch_size: number of slots of the whole batch.
        offset: first slot of the part.
        request: samples of the part.
    """

    ticket: int
    memory: int
    is_new_memory: bool
    batch_size: int
    offset: int
    request: BatchRequest


@dataclass(frozen=True)
class CancelPart:
    """A message to a worker: the batch with this ticket is not needed any more."""

    ticket: int


@dataclass(frozen=True)
class AnnounceSamples:
    """A message to a worker: samples that it will load soon, int64 [n]."""

    indices: Array


@dataclass(frozen=True)
class WorkerStarted:
    """The first message from a worker: it is ready, or ``problem`` tells why it can't load the data set."""

    problem: str = ""


@dataclass(frozen=True)
class WorkerLog:
    """A message from a worker: a log line."""

    level: int
    text: str


@dataclass(frozen=True)
class PartDone:
    """A message from a worker: a part of a batch is complete.

    Attributes:
        ticket: number of the batch.
        offset: first slot of the part.
        kind: shape and type of the images; None if there are none.
        bad_samples: slot in the whole batch and message of each unreadable sample.
        error: message of an error that ends the loading; empty if there is none.
        trace: traceback of this error.
    """

    ticket: int
    offset: int
    kind: ImageKind | None = None
    bad_samples: list[tuple[int, str]] = field(default_factory=list)
    error: str = ""
    trace: str = ""
