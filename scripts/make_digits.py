"""Writes scikit-learn's 1,797 handwritten digits as PNG files in ILSVRC's layout, with train and val lists.

Every fifth digit of each class is held out. Does nothing if both lists exist, because they are written last.
"""

import argparse
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits


def make(folder: Path, size: int = 80) -> str:
    """Writes the digits, unless both lists exist.

    Args:
        folder: output folder of the data set.
        size: side of the written images in pixels; the originals have 8.

    Returns:
        One line for the user: what was written, or that the data set already exists.
    """
    lists = {name: folder / f"{name}_list.txt" for name in ("train", "val")}
    if all(file.exists() for file in lists.values()):
        return f"{folder}: already exists"
    digits = load_digits()
    lines: dict[str, list[str]] = {name: [] for name in lists}
    class_counts: Counter[int] = Counter()
    for i, (image, label) in enumerate(zip(digits.images, digits.target.tolist(), strict=True)):
        class_counts[label] += 1
        split = "val" if class_counts[label] % 5 == 0 else "train"
        path = Path(split) / str(label) / f"digit_{i:04d}.png"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = cv2.resize((image * 255 / 16).astype(np.uint8), (size,) * 2, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / path), pixels)
        lines[split].append(f"{path.as_posix()} {label}\n")
    for name, file in lists.items():
        file.write_text("".join(lines[name]))
    return f"{folder}: {len(lines['train'])} training and {len(lines['val'])} held-out images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("dataset/digits"))
    parser.add_argument(
        "--size", type=int, default=80, help="side of the written images in pixels; the originals have 8"
    )
    arguments = parser.parse_args()
    print(make(arguments.folder, arguments.size))


if __name__ == "__main__":
    main()
