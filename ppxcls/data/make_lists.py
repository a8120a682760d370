"""Writes list files for folders of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ppxcls.data.errors import DataError
from ppxcls.data.read_file import IMAGE_EXTENSIONS
from ppxcls.system.whole_files import write_text


def make_lists(
    folder: str | Path, output: str | Path, val_share: float = 0.2, seed: int = 0, labels: str | Path | None = None
) -> dict[str, int]:
    """Write ``train_list.txt``, ``val_list.txt`` and ``class_names.txt``; paths are relative to ``folder``, the ``image_root``.

    Classes are numbered in the order of their folders' names. The split takes the same share of each class, and at least one image
    for each side if a class has two. It depends on the seed and the names alone.

    Args:
        folder: its subfolders are the classes.
        output: folder of the lists.
        val_share: share of each class for evaluation.
        seed: decides the split.
        labels: for a flat folder, such as ImageNet's ``val``: a file with one label per line, for the images in order of their
            names. All images go to ``val_list.txt``.

    Returns:
        Number of lines by file.

    Raises:
        DataError: there are no images, or the labels do not fit.
        OSError: the lists can't be written.
    """
    folder, output = Path(folder), Path(output)
    if not 0 <= val_share < 1:
        raise DataError(f"expected a share for evaluation from 0 to below 1, received {val_share:g}")
    if labels is not None:
        return _written(output, {"val_list.txt": _flat(folder, Path(labels))})
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    rng = np.random.default_rng(seed)
    train: list[str] = []
    val: list[str] = []
    for label, name in enumerate(classes):
        files = _images(folder / name, folder)
        if not files:
            raise DataError(f"{folder / name}: no images in the folder of a class")
        count = round(val_share * len(files))
        count = min(max(count, int(val_share > 0)), len(files) - 1)
        chosen = set(rng.permutation(len(files))[:count].tolist())
        for i, file in enumerate(files):
            (val if i in chosen else train).append(f"{file} {label}")
    if not classes:
        raise DataError(f"{folder}: no folders of classes; for a flat folder give the labels")
    lists = {"train_list.txt": train, "val_list.txt": val, "class_names.txt": [f"{i} {name}" for i, name in enumerate(classes)]}
    return _written(output, {name: lines for name, lines in lists.items() if lines})


def _images(folder: Path, root: Path) -> list[str]:
    found = [f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_EXTENSIONS and f.is_file()]
    return sorted(f.relative_to(root).as_posix() for f in found)


def _flat(folder: Path, labels: Path) -> list[str]:
    files = _images(folder, folder)
    try:
        numbers = [int(line) for line in labels.read_text(encoding="utf-8").split()]
    except (OSError, ValueError) as error:
        raise DataError(f"{labels}: expected a number a line: {error}") from None
    if len(numbers) != len(files) or not files:
        raise DataError(f"{labels}: {len(numbers):,} labels for {len(files):,} images in {folder}")
    return [f"{file} {number}" for file, number in zip(files, numbers, strict=True)]


def _written(output: Path, lists: dict[str, list[str]]) -> dict[str, int]:
    output.mkdir(parents=True, exist_ok=True)
    for name, lines in lists.items():
        write_text(output / name, "\n".join(lines) + "\n")
    return {str(output / name): len(lines) for name, lines in lists.items()}
