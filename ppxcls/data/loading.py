"""Loads the samples of a batch into its slots. Threads of any process do this."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ppxcls.data.dataset import Dataset, sample_place
from ppxcls.data.errors import DataError
from ppxcls.data.transforms import Compose
from ppxcls.system.arrays import Array

ImageKind = tuple[tuple[int, ...], np.dtype[Any]]

_SAMPLES_PER_TASK = 8  # upper limit; a thread loads them one after another


@dataclass(frozen=True)
class BatchRequest:
    """The samples of a batch, or of a part of it.

    Attributes:
        epoch: number of the epoch.
        first: position of the first sample in the epoch's global order.
        indices: samples to load, int64 [n].
        size: side of the images in pixels; None for that of the transforms.
    """

    epoch: int
    first: int
    indices: Array
    size: int | None


@dataclass
class LoadedImages:
    """The images of a request.

    Attributes:
        images: images in their slots, [n, ...]; None if no sample can be read.
        bad_samples: slot and message of each unreadable sample.
    """

    images: Array | None
    bad_samples: list[tuple[int, str]]


class Loading(Protocol):
    """Loads the samples of batches in the background."""

    def start(self, request: BatchRequest) -> Any:
        """Starts to load a batch, and returns a handle for ``result``."""

    def result(self, handle: Any, timeout: float | None) -> LoadedImages:
        """Waits for a batch.

        Raises:
            TimeoutError: the batch is not complete after ``timeout`` seconds.
            DataError: a sample can't be loaded for another reason than its file, or a process ended.
        """

    def cancel(self, handle: Any) -> None:
        """Drops a batch that is not needed any more."""

    def announce(self, indices: Array) -> None:
        """Announces samples that will be loaded soon to the data set."""

    def current_samples(self) -> list[int]:
        """Returns the samples that are being loaded now."""


class ImageSlots:
    """The images of a batch that is being filled, or of a part of it.

    Args:
        kind: shape and type of earlier images; None if the first image decides.
        empty_array: function from the shape and the type of an image to the array of all slots.
    """

    def __init__(self, kind: ImageKind | None, empty_array: Callable[[ImageKind], Array]) -> None:
        self.bad_samples: list[tuple[int, str]] = []
        self._empty_array = empty_array
        # With a kind, the array is created in the caller's thread: the C library reuses the memory of earlier
        # batches there.
        self._images = None if kind is None else empty_array(kind)
        self._has_image = False
        self._lock = threading.Lock()

    @property
    def images(self) -> Array | None:
        """The images; None if no sample could be read."""
        return self._images if self._has_image else None

    def put(self, slot: int, image: Array) -> None:
        """Stores an image.

        Raises:
            ValueError: its size or type differs from the earlier images of the batch.
            OSError: there is no memory for the batch.
        """
        kind = image.shape, image.dtype
        with self._lock:
            images = self._images
            if images is None or (not self._has_image and kind_of(images) != kind):
                images = self._images = self._empty_array(kind)
            self._has_image = True
        if kind != kind_of(images):
            raise ValueError(different_kinds(kind, kind_of(images)))
        images[slot] = image


def kind_of(images: Array) -> ImageKind:
    """Returns the shape and the type of each image of a batch."""
    return images.shape[1:], images.dtype


def different_kinds(kind: ImageKind, expected: ImageKind) -> str:
    """Returns the error message for images of different sizes or types in a batch."""
    if kind[0] == expected[0]:
        types = f"{kind[1]} and {expected[1]}"
        return f"the images of a batch differ in type, {types}; the transforms must return one type"
    sizes = f"{list(kind[0])} and {list(expected[0])}"
    return f"the images of a batch differ in size, {sizes}; the transforms must return one size"


class SampleLoader:
    """Loads samples with the random choices of their positions in the epoch.

    Args:
        dataset: data set to load.
        seed: seed of the random choices.
        current_samples: array that receives the sample that each thread loads, or -1, int64 [threads].
    """

    def __init__(self, dataset: Dataset, seed: int, current_samples: Array) -> None:
        self.dataset = dataset
        self._seed = seed
        self._current_samples = current_samples
        self._current_samples[:] = -1
        self._thread_numbers = itertools.count()
        self._thread = threading.local()
        self._transforms: dict[int | None, Compose] = {None: dataset.host_transform}

    def load(self, request: BatchRequest, slots: ImageSlots, part: range) -> None:
        """Loads some samples of a request into their slots.

        Unreadable samples are added to ``slots.bad_samples``.

        Raises:
            DataError: the images differ in size, or the data set or a transform raises another error than
                those for unreadable samples.
        """
        if not hasattr(self._thread, "number"):
            self._thread.number = next(self._thread_numbers) % len(self._current_samples)
        transform = self._transform(request.size)
        try:
            for slot in part:
                self._load_sample(request, slots, slot, transform)
        finally:
            self._current_samples[self._thread.number] = -1

    def _load_sample(self, request: BatchRequest, slots: ImageSlots, slot: int, transform: Compose) -> None:
        index = int(request.indices[slot])
        self._current_samples[self._thread.number] = index
        rng = np.random.default_rng([self._seed, request.epoch, request.first + slot])
        try:
            image = self.dataset.load(index, rng, transform)
        except DataError as error:
            slots.bad_samples.append((slot, str(error)))
            return
        except (Exception, SystemExit) as error:  # an error in a user's own data set or transform
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise DataError(f"{sample_place(self.dataset, index)}: {reason}") from error
        try:
            slots.put(slot, image)
        except (ValueError, OSError, MemoryError) as error:
            raise DataError(f"{self.dataset.path(index)}: {error or 'too large for the memory'}") from None

    def _transform(self, size: int | None) -> Compose:
        if size not in self._transforms:
            self._transforms[size] = self.dataset.host_transform.resized(size)
        return self._transforms[size]


def task_ranges(count: int, threads: int) -> list[range]:
    """Divides slots into parts, each of which one thread loads."""
    step = max(1, min(_SAMPLES_PER_TASK, count // threads))
    return [range(i, min(i + step, count)) for i in range(0, count, step)]
