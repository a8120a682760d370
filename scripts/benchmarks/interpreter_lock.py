"""Measures how long Python's interpreter lock is held per image.

    python scripts/benchmarks/interpreter_lock.py [FOLDER]

The lock limits the images that one process can load per second, however many cores decode. The functions that
release the lock (reading, decoding, resizing, flipping) are computed once and then replaced by their results.
The CPU time of everything else is an upper bound on how long the lock is held. It includes copies between
arrays, which release the lock as well.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from loader import BATCH, OPS, repeated_list  # scripts/benchmarks/loader.py

from ppxcls.data.dataset import Dataset, ImageNetDataset
from ppxcls.data.loader import Loader
from ppxcls.data.sampler import DistributedBatchSampler
from ppxcls.packed.dataset import PackedDataset
from ppxcls.packed.write import pack

RELEASING_FUNCTIONS = [
    *("simplejpeg.decode_jpeg", "cv2.imdecode", "cv2.cvtColor", "cv2.resize", "cv2.flip"),
    *("os.pread", "ppxcls.data.dataset.read_file", "ppxcls.packed.jpeg_cut_kernels.cut"),
]


class Replayed:
    """A function that is called in the same order in each epoch.

    It computes its results in the first epoch, and returns them again in the later epochs.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.results = list[Any]()
        self.place = -1

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        if self.place < 0:
            self.results.append(self.function(*arguments, **keywords))
            return self.results[-1]
        self.place += 1
        return self.results[self.place - 1]


def import_by_name(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(__import__(module, fromlist=[attribute]), attribute)


def lock_seconds(dataset: Dataset, rounds: int) -> float:
    """Returns the seconds that the lock is held per image."""
    sampler = DistributedBatchSampler(batch_size=BATCH, drop_last=True, num_samples=len(dataset))
    loader = Loader(dataset, sampler, num_workers=0)
    replays = {
        name: Replayed(import_by_name(name))
        for name in RELEASING_FUNCTIONS
        if name != "os.pread" or hasattr(os, "pread")
    }
    seconds = []
    with contextlib.ExitStack() as stack:
        for name, function in replays.items():
            stack.enter_context(mock.patch(name, function))
        images = sum(len(batch.labels) for batch in loader.epoch(0))
        for _ in range(rounds):
            for function in replays.values():
                function.place = 0
            start = time.thread_time()
            for _batch in loader.epoch(0):
                pass
            seconds.append((time.thread_time() - start) / images)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, file = repeated_list(arguments.folder, arguments.images, Path(temporary))
        pack(file, folder, output=f"{temporary}/packed")
        sides = {
            "files": ImageNetDataset(str(folder), str(file), transform_ops=OPS),
            "packed": PackedDataset(f"{temporary}/packed", OPS),
        }
        for name, dataset in sides.items():
            seconds = lock_seconds(dataset, arguments.rounds)
            print(
                f"{name:8} {1000 * seconds:.3f} ms of the lock for an "
                f"image: at most {1 / seconds:,.0f} images/s in one process"
            )


if __name__ == "__main__":
    main()
