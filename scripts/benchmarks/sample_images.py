"""Writes JPEGs with a texture similar to photographs, for benchmarks without a data set."""

from __future__ import annotations

from pathlib import Path

CLASSES = 1000


def write_images(folder: Path, count: int, samples: int = 0) -> Path:
    """Writes JPEGs of 500 x 375 pixels and ``list.txt``, and returns the folder.

    Args:
        folder: folder of the files. It must exist.
        count: number of JPEGs.
        samples: number of lines of the list, which repeats the files; 0 for one line per file.
    """
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    for i in range(count):
        noise = rng.integers(0, 256, (47, 63, 3), np.uint8)
        cv2.imwrite(str(folder / f"{i}.jpg"), cv2.resize(noise, (500, 375), interpolation=cv2.INTER_CUBIC))
    lines = [f"{i % count}.jpg {i % count % CLASSES}\n" for i in range(samples or count)]
    (folder / "list.txt").write_text("".join(lines))
    return folder
