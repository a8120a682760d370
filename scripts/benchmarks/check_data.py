"""Measures files/s of ``ppxcls check`` against Pillow, with the same number of threads.

    python scripts/benchmarks/check_data.py DIR LIST

Pillow's ``verify`` checks the structure of a file. In a JPEG it checks little more than the beginning.
Pillow's ``load`` decodes the image, as ours does. Prints medians of alternating rounds. Also prints the
number of truncated copies that ours and Pillow's ``verify`` find.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from PIL import Image
from ratios import compare  # scripts/benchmarks/ratios.py

from ppxcls.data.check import check_lists
from ppxcls.data.dataset import ImageNetDataset
from ppxcls.data.decode import decode_image


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image_root")
    parser.add_argument("cls_label_path")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    dataset = ImageNetDataset(arguments.image_root, arguments.cls_label_path)
    files = [dataset.path(i) for i in range(len(dataset))]

    def with_pillow(check: Callable[[Image.Image], object]) -> None:
        def check_file(file: str) -> None:
            with Image.open(file) as image:
                check(image)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(check_file, files))

    methods: dict[str, Callable[[], object]] = {
        "ours": lambda: check_lists([dataset], 1000),
        "Pillow verify": lambda: with_pillow(lambda image: image.verify()),
        "Pillow load": lambda: with_pillow(lambda image: image.load()),
    }
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(arguments.rounds):
        for method, run in methods.items():
            start = time.perf_counter()
            run()
            seconds[method].append(time.perf_counter() - start)
    rates = {method: len(files) / median(seconds[method]) for method in methods}
    for method in list(methods)[1:]:
        compare("check the files of a list", method, rates["ours"], rates[method], "files/s")
    detections = {"ours": 0, "Pillow verify": 0}
    for file in files:
        truncated_data = Path(file).read_bytes()
        truncated_data = truncated_data[: len(truncated_data) // 2]
        try:
            decode_image(truncated_data)
        except ValueError:
            detections["ours"] += 1
        try:
            Image.open(io.BytesIO(truncated_data)).verify()
        except Exception:
            detections["Pillow verify"] += 1
    print(f"damage found among {len(files)} files cut in half: {detections}")


if __name__ == "__main__":
    main()
