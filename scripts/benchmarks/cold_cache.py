"""Measures images/s of the training data path with a cold and a warm page cache, from files and packed.

    python scripts/benchmarks/cold_cache.py FOLDER [--images 4000 --work DIR]

FOLDER contains train_list.txt and its images. The images are copied to DIR repeatedly, until it contains
``--images`` files. Before each cold round, the kernel drops them from its cache. Threads decode, crop to
299 px and flip. Prints medians of alternating rounds.
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

from loader import BATCH, OPS  # scripts/benchmarks/loader.py
from ratios import compare

from ppxcls.data.dataset import Dataset, ImageNetDataset
from ppxcls.data.loader import Loader
from ppxcls.data.sampler import BlockShuffleSampler, DistributedBatchSampler
from ppxcls.packed.dataset import PackedDataset
from ppxcls.packed.write import pack


def copy_images(folder: Path, count: int, target: Path) -> Path:
    """Copies an image to a new file for each of ``count`` samples. Returns the list file."""
    lines = (folder / "train_list.txt").read_text().splitlines()
    list_lines = []
    for i in range(count):
        path, label = lines[i % len(lines)].split()
        (target / f"{i // 1000}").mkdir(exist_ok=True)
        shutil.copyfile(folder / path, target / f"{i // 1000}/{i}.jpg")
        list_lines.append(f"{i // 1000}/{i}.jpg {label}\n")
    file = target / "list.txt"
    file.write_text("".join(list_lines))
    return file


def drop_from_cache(folder: Path) -> None:
    """Drops a folder's files from the page cache.

    Memory-mapped files stay in the cache, so data sets must be closed.
    """
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def epoch_seconds(
    open_dataset: Callable[[], Dataset],
    sampler_class: type[DistributedBatchSampler],
    threads: int,
    sampler_settings: dict[str, int],
) -> float:
    """Returns the seconds of one shuffled epoch. The data set is opened for each call."""
    dataset = open_dataset()
    sampler = sampler_class(
        batch_size=BATCH, drop_last=True, shuffle=True, num_samples=len(dataset), **sampler_settings
    )
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
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as temporary:
        files, packed = Path(temporary) / "files", Path(temporary) / "packed"
        files.mkdir()
        file = copy_images(arguments.folder, arguments.images, files)
        print(pack(file, files, output=str(packed)))
        os.sync()  # the kernel drops only pages that are on the disk
        block_settings = {"block": max(1, arguments.images // 16), "blocks_at_once": 4}
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
                block_settings,
            ),
        }
        rates: dict[tuple[str, bool], list[float]] = {
            (name, is_cold): [] for name in sides for is_cold in (False, True)
        }
        for round_number in range(arguments.rounds + 1):
            for (name, is_cold), side_rates in rates.items():
                folder, open_dataset, sampler_class, sampler_settings = sides[name]
                if is_cold:
                    drop_from_cache(folder)
                elapsed = epoch_seconds(open_dataset, sampler_class, arguments.threads, sampler_settings)
                if round_number:  # the first round warms up
                    side_rates.append(arguments.images / elapsed)
    for name in sides:
        cold_rate, warm_rate = (statistics.median(rates[name, is_cold]) for is_cold in (True, False))
        compare(f"{name}, cold page cache", "warm", cold_rate, warm_rate, "images/s")
        if name != "files":
            compare(
                f"{name}, cold page cache",
                "files, cold",
                cold_rate,
                statistics.median(rates["files", True]),
                "images/s",
            )


if __name__ == "__main__":
    main()
