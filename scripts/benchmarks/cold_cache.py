"""Images a second of the training data path with a cold page cache beside a warm one, from files and packed.

    python scripts/benchmarks/cold_cache.py FOLDER [--images 4000 --work DIR]

FOLDER has train_list.txt and its images. They are copied until there are as many files as asked for, in DIR.
Before each cold round, the kernel is told to forget them. Threads decode, crop to 299 px and flip. Medians of
rounds in turn.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ppxcls.system import environment

environment.import_paddle()

from loader import BATCH, OPS  # of this folder
from ratios import compare

from ppxcls.data.dataset import Dataset, ImageNetDataset
from ppxcls.data.loader import Loader
from ppxcls.data.sampler import BlockShuffleSampler, DistributedBatchSampler
from ppxcls.packed.dataset import PackedDataset
from ppxcls.packed.write import pack


def copies(folder: Path, count: int, target: Path) -> Path:
    """Files of their own for each line of a list; returns the list."""
    lines = (folder / "train_list.txt").read_text().splitlines()
    written = []
    for i in range(count):
        path, label = lines[i % len(lines)].split()
        (target / f"{i // 1000}").mkdir(exist_ok=True)
        shutil.copyfile(folder / path, target / f"{i // 1000}/{i}.jpg")
        written.append(f"{i // 1000}/{i}.jpg {label}\n")
    file = target / "list.txt"
    file.write_text("".join(written))
    return file


def forget(folder: Path) -> None:
    """Drop a folder's files from the page cache. Files that are mapped stay, so data sets must be closed."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def seconds(
    make: Callable[[], Dataset], kind: type[DistributedBatchSampler], threads: int, keys: dict[str, int]
) -> float:
    """Of an epoch in random order, by a data set that is opened for it."""
    dataset = make()
    sampler = kind(batch_size=BATCH, drop_last=True, shuffle=True, num_samples=len(dataset), **keys)
    start = time.perf_counter()
    for _ in Loader(dataset, sampler, num_workers=threads).epoch(0):
        pass
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", help="folder on the disk to measure")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.work) as temporary:
        files, packed = Path(temporary) / "files", Path(temporary) / "packed"
        files.mkdir()
        file = copies(given.folder, given.images, files)
        print(pack(file, files, output=str(packed)))
        os.sync()  # the kernel forgets only what is written
        block = {"block": max(1, given.images // 16), "blocks_at_once": 4}
        sides = {
            "files": (
                files,
                lambda: ImageNetDataset(str(files), str(file), transform_ops=OPS),
                DistributedBatchSampler,
                {},
            ),
            "packed": (packed, lambda: PackedDataset(str(packed), OPS), DistributedBatchSampler, {}),
            "packed, in blocks": (
                packed,
                lambda: PackedDataset(str(packed), OPS),
                BlockShuffleSampler,
                block,
            ),
        }
        rates: dict[tuple[str, bool], list[float]] = {
            (name, cold): [] for name in sides for cold in (False, True)
        }
        for number in range(given.rounds + 1):
            for (name, cold), found in rates.items():
                folder, make, kind, keys = sides[name]
                if cold:
                    forget(folder)
                elapsed = seconds(make, kind, given.threads, keys)
                if number:  # the first round warms up
                    found.append(given.images / elapsed)
    for name in sides:
        cold, warm = (statistics.median(rates[name, is_cold]) for is_cold in (True, False))
        compare(f"{name}, cold page cache", "warm", cold, warm, "images/s")
        if name != "files":
            compare(
                f"{name}, cold page cache",
                "files, cold",
                cold,
                statistics.median(rates["files", True]),
                "images/s",
            )


if __name__ == "__main__":
    main()
