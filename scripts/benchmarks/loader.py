"""Measures images/s of the training data path, from files and packed, against PaddleClas's steps.

    python scripts/benchmarks/loader.py [FOLDER]     a folder with train_list.txt, such as dataset/ILSVRC2012

Without a folder, scikit-learn's two sample photos are used. Both sides decode, crop to 299 px and flip.
PaddleClas's steps are written out in this file. Prints ratios of medians.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ppxcls.system import environment

environment.import_paddle()

import cv2
import numpy as np
import paddle
from ratios import compare  # scripts/benchmarks/ratios.py

from ppxcls.data.dataset import Dataset, ImageNetDataset
from ppxcls.data.device import ModelInput
from ppxcls.data.list_index import ListIndex
from ppxcls.data.loader import Loader
from ppxcls.data.sampler import DistributedBatchSampler
from ppxcls.packed.dataset import PackedDataset
from ppxcls.packed.write import pack

BATCH = 64
OPS = [
    {"DecodeImage": {}},
    {"RandCropImage": {"size": 299}},
    {"RandFlipImage": {}},
    {"NormalizeImage": {"scale": "1.0/255.0", "order": ""}},
]


class StepsWrittenOut(paddle.io.Dataset):
    """The transforms of PaddleClas's configs, step by step in numpy and OpenCV.

    Images are float32 [3, 299, 299].
    """

    def __init__(self, dataset: ImageNetDataset) -> None:
        super().__init__()
        self.paths = [dataset.path(i) for i in range(len(dataset))]
        self.labels = dataset.index.labels
        self.mean = np.array([0.485, 0.456, 0.406], np.float32)
        self.std = np.array([0.229, 0.224, 0.225], np.float32)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        with open(self.paths[i], "rb") as file:
            image = cv2.imdecode(np.frombuffer(file.read(), np.uint8), 1)[:, :, ::-1]
        rng = np.random.default_rng(i)
        height, width = image.shape[:2]
        aspect = rng.uniform(3 / 4, 4 / 3)
        largest = min(width / height / aspect, height / width * aspect)
        side = (width * height * rng.uniform(min(0.08, largest), min(1.0, largest))) ** 0.5
        w, h = int(side * aspect**0.5), int(side / aspect**0.5)
        left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
        image = cv2.resize(image[top : top + h, left : left + w], (299, 299), interpolation=cv2.INTER_LINEAR)
        if rng.integers(2):
            image = cv2.flip(image, 1)
        image = (image.astype(np.float32) * np.float32(1 / 255) - self.mean) / self.std
        return image.transpose(2, 0, 1), int(self.labels[i])


def exhaust(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def make_batches(dataset: Dataset) -> Callable[[], None]:
    loader = Loader(
        dataset,
        DistributedBatchSampler(batch_size=BATCH, drop_last=True, num_samples=len(dataset)),
        num_workers=0,
    )
    return lambda: exhaust(loader.epoch(0))


def make_written_out_batches(dataset: StepsWrittenOut) -> Callable[[], None]:
    def run() -> None:
        for start in range(0, len(dataset), BATCH):
            samples = [dataset[i] for i in range(start, start + BATCH)]
            np.stack([image for image, _ in samples])

    return run


def hand_over(dataset: Dataset, threads: int, *, normalize: bool) -> Callable[[], None]:
    loader = Loader(
        dataset,
        DistributedBatchSampler(batch_size=BATCH, drop_last=True, num_samples=len(dataset)),
        num_workers=threads,
    )
    to_input = ModelInput(dataset.device_stage) if normalize else paddle.to_tensor

    def run() -> None:
        for batch in loader.epoch(0):
            to_input(batch.images)
            paddle.to_tensor(batch.labels)

    return run


def hand_over_written_out(dataset: StepsWrittenOut) -> Callable[[], None]:
    loader = paddle.io.DataLoader(
        dataset, batch_size=BATCH, drop_last=True, num_workers=2, use_shared_memory=True
    )
    return lambda: exhaust(loader)


def measure(variants: dict[str, Callable[[], None]], images: int, rounds: int) -> dict[str, float]:
    """Returns the median images/s of each variant."""
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(rounds + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if round_number:  # the first round warms up
                rates[name].append(images / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def repeated_list(folder: Path | None, count: int, temporary: Path) -> tuple[Path, Path]:
    """Writes a list of ``count`` images, and returns its image folder and the list.

    The images are repeated if the folder has fewer. Without a folder, scikit-learn's two sample photos are
    used.
    """
    if folder is None:
        import sklearn.datasets

        folder = Path(sklearn.datasets.__file__).parent / "images"
        lines = [f"{photo.name} 0\n" for photo in sorted(folder.glob("*.jpg"))]
    else:
        lines = (folder / "train_list.txt").read_text().splitlines(keepends=True)
    file = temporary / "repeated_list.txt"
    file.write_text("".join(lines[i % len(lines)] for i in range(count)))
    return folder, file


def list_index(folder: Path) -> None:
    import psutil

    file = folder / "list.txt"
    with open(file, "w") as stream:
        for i in range(1_281_167):
            stream.write(
                f"train/n{1440764 + i % 1000:08d}/n{1440764 + i % 1000:08d}_{i % 30000}.JPEG {i % 1000}\n"
            )
    process = psutil.Process()
    initial_bytes, start = process.memory_info().rss, time.perf_counter()
    index = ListIndex(file)
    seconds, added_bytes = time.perf_counter() - start, process.memory_info().rss - initial_bytes
    print(f"list of {len(index):,} lines: {seconds:.2f} s, {added_bytes / 1e6:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=512, help="images per round, a multiple of 64")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        list_index(Path(temporary))
        folder, file = repeated_list(arguments.folder, arguments.images, Path(temporary))
        dataset = ImageNetDataset(str(folder), str(file), transform_ops=OPS)
        peer = StepsWrittenOut(dataset)
        print(pack(file, folder, output=f"{temporary}/packed"))
        print(pack(file, folder, output=f"{temporary}/reduced", short_side=352, quality=85))
        packed, reduced = (PackedDataset(f"{temporary}/{name}", OPS) for name in ("packed", "reduced"))
        rates = measure(
            {
                "make, one thread": make_batches(dataset),
                "make, packed": make_batches(packed),
                "make, packed and reduced": make_batches(reduced),
                "make, written out": make_written_out_batches(peer),
                "hand over, packed": hand_over(packed, 2, normalize=False),
                "hand over, packed and reduced": hand_over(reduced, 2, normalize=False),
                "hand over and normalize, packed": hand_over(packed, 2, normalize=True),
                "hand over, one thread": hand_over(dataset, 1, normalize=False),
                "hand over, two threads": hand_over(dataset, 2, normalize=False),
                "hand over and normalize, two threads": hand_over(dataset, 2, normalize=True),
                "hand over, written out, two processes": hand_over_written_out(peer),
            },
            arguments.images,
            arguments.rounds,
        )
    written_out_core_rate, written_out_rate = (
        rates["make, written out"],
        rates["hand over, written out, two processes"],
    )
    for name in ("make, one thread", "make, packed", "make, packed and reduced"):
        compare(
            f"{name}, a core",
            "PaddleClas's steps written out",
            rates[name],
            written_out_core_rate,
            "images/s",
        )
    for name, rate in rates.items():
        if name.startswith("hand over") and name not in (
            "hand over, one thread",
            "hand over, written out, two processes",
        ):
            compare(
                f"{name}, two cores",
                "those steps in paddle.io.DataLoader",
                rate,
                written_out_rate,
                "images/s",
            )
    compare(
        "two threads",
        "one thread",
        rates["hand over, two threads"],
        rates["hand over, one thread"],
        "images/s",
    )


if __name__ == "__main__":
    main()
