"""How long Python's interpreter lock is held for an image: ``python scripts/benchmarks/interpreter_lock.py [FOLDER]``.

One process can load no more images a second than fit into a second of the lock, however many cores decode. A thread that does nothing
but count wants the lock all the time: what it counts less than alone, while another thread makes batches, is the time that the other
held the lock. Needs two idle cores.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from loader import BATCH, OPS, repeated_list  # of this folder

from ppxcls.data.dataset import Dataset, ImageNetDataset
from ppxcls.data.loader import Loader
from ppxcls.data.packed.dataset import PackedDataset
from ppxcls.data.packed.write import pack
from ppxcls.data.sampler import DistributedBatchSampler

_SWITCH = 1e-4  # seconds after which a thread must give the lock away


class Counter(threading.Thread):
    """Counts until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.count = 0
        self.stops = False

    def run(self) -> None:
        while not self.stops:
            self.count += 1


def counted(seconds: float) -> float:
    """Counts per second of a thread alone."""
    counter = Counter()
    counter.start()
    time.sleep(0.05)
    start, before = time.perf_counter(), counter.count
    time.sleep(seconds)
    rate = (counter.count - before) / (time.perf_counter() - start)
    counter.stops = True
    counter.join()
    return rate


def held(dataset: Dataset) -> float:
    """Seconds of the lock for an image."""
    alone = counted(0.5)
    loader = Loader(dataset, DistributedBatchSampler(batch_size=BATCH, drop_last=True, num_samples=len(dataset)), 1)
    counter = Counter()
    batches = loader.epoch(0)
    next(batches)
    counter.start()
    start, before, images = time.perf_counter(), counter.count, 0
    for batch in batches:
        images += len(batch.labels)
    taken, count = time.perf_counter() - start, counter.count - before
    counter.stops = True
    counter.join()
    return (taken - count / alone) / images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    sys.setswitchinterval(_SWITCH)
    with tempfile.TemporaryDirectory() as temporary:
        folder, file = repeated_list(given.folder, given.images, Path(temporary))
        pack(file, folder, f"{temporary}/packed")
        sides = {"files": ImageNetDataset(str(folder), str(file), OPS), "packed": PackedDataset(f"{temporary}/packed", OPS)}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(given.rounds):
            for name, dataset in sides.items():
                seconds[name].append(held(dataset))
    for name, found in seconds.items():
        own = statistics.median(found)
        print(f"{name:8} {1000 * own:.3f} ms of the lock for an image: at most {1 / own:,.0f} images/s in one process")


if __name__ == "__main__":
    main()
