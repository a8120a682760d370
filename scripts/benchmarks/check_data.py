"""Files a second of ``ppxcls check`` against Pillow, same threads:
``python scripts/benchmarks/check_data.py DIR LIST``.

Pillow's ``verify`` looks at the structure of a file and, of a JPEG, at little more than its beginning; its
``load`` decodes as ours does. Rounds in turn, medians. What Pillow's verify finds among truncated copies is
printed too.
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
from ratios import compare  # of this folder

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

    def with_pillow(look: Callable[[Image.Image], object]) -> None:
        def one(file: str) -> None:
            with Image.open(file) as image:
                look(image)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(one, files))

    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: check_lists([dataset], 1000),
        "Pillow verify": lambda: with_pillow(lambda image: image.verify()),
        "Pillow load": lambda: with_pillow(lambda image: image.load()),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(arguments.rounds):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            seconds[way].append(time.perf_counter() - start)
    rates = {way: len(files) / median(seconds[way]) for way in ways}
    for way in list(ways)[1:]:
        compare("check the files of a list", way, rates["ours"], rates[way], "files/s")
    found = {"ours": 0, "Pillow verify": 0}
    for file in files:
        half = Path(file).read_bytes()
        half = half[: len(half) // 2]
        try:
            decode_image(half)
        except ValueError:
            found["ours"] += 1
        try:
            Image.open(io.BytesIO(half)).verify()
        except Exception:
            found["Pillow verify"] += 1
    print(f"of {len(files)} files cut in half, found: {found}")


if __name__ == "__main__":
    main()
