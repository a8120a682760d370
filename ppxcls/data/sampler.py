"""Which samples make up which batch of which process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppxcls.registry import SAMPLERS
from ppxcls.schema import Count


@dataclass(frozen=True)
class BatchPlan:
    """One process's part of one global batch.

    Attributes:
        number: position of the global batch in its epoch.
        indices: samples to load, int64 [n]; at least one in training.
        first: position of ``indices[0]`` in the epoch's global order.
        count: samples that count: all of them, or 0 where this process has no sample left and lends one only to keep step with
            the others.
    """

    number: int
    indices: np.ndarray[Any, Any]
    first: int
    count: int


@SAMPLERS.register
class DistributedBatchSampler:
    """Cuts the epoch's order into global batches, and each of those into one part for every process.

    The order depends on the seed and the epoch alone, so runs on 1, 2 or 8 processes see the same global batches when
    ``batch_size * world_size`` is the same. A last short batch is spread over the processes; nothing is repeated to fill it.

    Args:
        batch_size: samples of one process.
        drop_last: leave out a last short batch.
        shuffle: a new order every epoch; otherwise the list's.
    """

    def __init__(
        self,
        batch_size: Count,
        drop_last: bool = False,
        shuffle: bool = False,
        num_samples: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.shuffle = shuffle
        self.num_samples = num_samples
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        if drop_last and num_samples < batch_size * world_size:
            total = f"{batch_size} x {world_size} processes"
            raise ValueError(f"drop_last leaves nothing of {num_samples} samples at a batch_size of {total}")

    def __len__(self) -> int:
        """Batches an epoch."""
        size = self.batch_size * self.world_size
        return self.num_samples // size if self.drop_last else -(-self.num_samples // size)

    def global_size(self, number: int) -> int:
        """Samples of a global batch, all processes together."""
        size = self.batch_size * self.world_size
        return min(size, self.num_samples - number * size)

    def order(self, epoch: int) -> np.ndarray[Any, Any]:
        """The samples of an epoch in order, int64 [num_samples]."""
        if not self.shuffle:
            return np.arange(self.num_samples)
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)

    def batches(self, epoch: int, start: int = 0) -> Iterator[BatchPlan]:
        """This process's parts, from global batch ``start`` on."""
        order = self.order(epoch)
        size = self.batch_size * self.world_size
        for number in range(start, len(self)):
            begin, total = number * size, self.global_size(number)
            # As even as whole samples allow; the first processes take one more.
            first, stop = (begin + -(-total * r // self.world_size) for r in (self.rank, self.rank + 1))
            count = stop - first
            if count == 0:
                first, stop = begin, begin + 1
            yield BatchPlan(number, order[first:stop], first, count)
