"""Divides the samples of an epoch into batches, and each batch among the processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from ppxcls.config.checks import Count
from ppxcls.config.registry import Registry
from ppxcls.system.arrays import Array


@dataclass(frozen=True)
class BatchPlan:
    """One process's part of one global batch.

    Attributes:
        number: position of the global batch in its epoch.
        indices: samples to load, int64 [n]; at least one in training.
        first: position of ``indices[0]`` in the epoch's global order.
        count: number of samples that are counted: all of ``indices``, or 0 if this process has no samples
            remaining and loads one only to stay in step with the other processes.
    """

    number: int
    indices: Array
    first: int
    count: int


class Sampler(Protocol):
    """Divides the samples of an epoch into batches.

    Attributes:
        batch_size: number of samples in one process's part of a batch.
        seed: seed of the order and of every random choice about a sample.
        rank: number of this process.
        world_size: number of processes.
    """

    batch_size: int
    seed: int
    rank: int
    world_size: int

    def __len__(self) -> int:
        """Returns the number of batches per epoch."""

    def global_size(self, number: int) -> int:
        """Returns the number of samples in a global batch, over all processes."""

    def size_at(self, epoch: int) -> int | None:
        """Returns the side of the images in an epoch, in pixels; None for that of the transforms."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[BatchPlan]:
        """Yields this process's parts, from global batch ``start`` on."""


SAMPLERS: Registry[Sampler] = Registry(
    "sampler", program_parameters=("num_samples", "labels", "seed", "rank", "world_size"), base=Sampler
)


@SAMPLERS.register
@dataclass(kw_only=True)
class DistributedBatchSampler:
    """Cuts an epoch into global batches, and each global batch into one part per process.

    The order depends only on the seed and the epoch. So runs on 1, 2 or 8 processes see the same global
    batches, if ``batch_size * world_size`` is the same. A short last batch is divided among the processes. No
    sample is repeated to fill it.

    Args:
        batch_size: number of samples in one process's part of a batch.
        drop_last: True if a short last batch is left out.
        shuffle: True if every epoch has a new order, False if it has the order of the list.
        num_samples: number of samples in the data set.
        labels: labels of the samples, [num_samples].
        seed: seed of the order.
        rank: number of this process.
        world_size: number of processes.
    """

    batch_size: Count
    drop_last: bool = False
    shuffle: bool = False
    num_samples: int = 0
    labels: Any = None
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.drop_last and self.num_samples < self.batch_size * self.world_size:
            batch_text = f"{self.batch_size} x {self.world_size} processes"
            raise ValueError(
                f"drop_last drops all {self.num_samples} samples, because batch_size is {batch_text}"
            )

    def __len__(self) -> int:
        """Returns the number of batches per epoch."""
        size = self.batch_size * self.world_size
        return self.num_samples // size if self.drop_last else -(-self.num_samples // size)

    def global_size(self, number: int) -> int:
        """Returns the number of samples in a global batch, over all processes."""
        size = self.batch_size * self.world_size
        return min(size, self.num_samples - number * size)

    def size_at(self, epoch: int) -> int | None:
        """Returns the side of the images in an epoch, in pixels; None for that of the transforms."""
        return None

    def order(self, epoch: int) -> Array:
        """Returns the samples of an epoch in order, int64 [num_samples]."""
        if not self.shuffle:
            return np.arange(self.num_samples)
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)

    def batches(self, epoch: int, start: int = 0) -> Iterator[BatchPlan]:
        """Yields this process's parts, from global batch ``start`` on."""
        order = self.order(epoch)
        size = self.batch_size * self.world_size
        for number in range(start, len(self)):
            begin, total = number * size, self.global_size(number)
            # As even as possible: the parts differ by one sample at most.
            first, stop = (begin + -(-total * r // self.world_size) for r in (self.rank, self.rank + 1))
            count = stop - first
            if count == 0:
                first, stop = begin, begin + 1
            yield BatchPlan(number, order[first:stop], first, count)


@SAMPLERS.register
@dataclass(kw_only=True)
class RASampler(DistributedBatchSampler):
    """Uses each drawn sample several times in a row (repeated augmentation, arXiv:1902.05509).

    Each use has other random choices. An epoch has as many samples as the list, so it uses one in
    ``num_repeats`` of them.

    Args:
        num_repeats: number of uses of a sample in a row.
    """

    shuffle: bool = True
    num_repeats: Count = 3

    def order(self, epoch: int) -> Array:
        """Returns the samples of an epoch in order, int64 [num_samples]."""
        return np.repeat(super().order(epoch), self.num_repeats)[: self.num_samples]


@SAMPLERS.register
@dataclass(kw_only=True)
class BlockShuffleSampler(DistributedBatchSampler):
    """Reads neighbours in the list together, for disks and object stores with slow random access.

    It suits ``PackedDataset``. The list is cut into blocks, which come in random order. The samples of
    ``blocks_at_once`` blocks are shuffled together. If the list itself is in random order, the batches are as
    mixed as with a full shuffle. If the list is in the order of its classes, each batch has few classes.

    Args:
        block: number of samples in a row that form a block, such as those of a shard.
        blocks_at_once: number of blocks that are shuffled together; the cache of an object store should hold
            twice as many.
    """

    shuffle: Literal[True] = True
    block: Count = 8192
    blocks_at_once: Count = 8

    def order(self, epoch: int) -> Array:
        """Returns the samples of an epoch in order, int64 [num_samples]."""
        rng = np.random.default_rng([self.seed, epoch])
        starts = rng.permutation(-(-self.num_samples // self.block)) * self.block
        parts = []
        for first in range(0, starts.size, self.blocks_at_once):
            offsets = np.arange(min(self.block, self.num_samples))
            group = starts[first : first + self.blocks_at_once, None] + offsets
            parts.append(rng.permutation(group[group < self.num_samples]))
        return np.concatenate(parts)


@SAMPLERS.register
@dataclass(kw_only=True)
class ClassBalancedSampler(DistributedBatchSampler):
    """Draws every class equally often on average, and repeats samples for this."""

    shuffle: Literal[True] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._samples_by_class = np.argsort(self.labels, kind="stable")
        _, self._class_sizes = np.unique(self.labels, return_counts=True)

    def order(self, epoch: int) -> Array:
        """Returns the samples of an epoch in order, int64 [num_samples]."""
        rng = np.random.default_rng([self.seed, epoch])
        classes = rng.integers(len(self._class_sizes), size=self.num_samples)
        class_positions = rng.integers(self._class_sizes[classes])
        return self._samples_by_class[
            np.cumsum(self._class_sizes)[classes] - self._class_sizes[classes] + class_positions
        ]


@SAMPLERS.register
@dataclass(kw_only=True)
class ProgressiveSampler(DistributedBatchSampler):
    """Trains on images of a size that grows with the epochs (EfficientNetV2, arXiv:2104.00298, section 4).

    Args:
        epochs: first epoch of each size, counted from 1, in increasing order.
        sizes: side of the images from that epoch on, in pixels. Before the first of these epochs, the
            transforms decide the size.
    """

    shuffle: bool = True
    epochs: list[Count]
    sizes: list[Count]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.epochs) != len(self.sizes) or sorted(set(self.epochs)) != self.epochs:
            raise ValueError(
                f"expected increasing epochs and a size for each, received {self.epochs} and {self.sizes}"
            )

    def size_at(self, epoch: int) -> int | None:
        """Returns the side of the images in an epoch, in pixels; None for that of the transforms."""
        return next(
            (size for first, size in zip(self.epochs[::-1], self.sizes[::-1], strict=True) if epoch >= first),
            None,
        )
