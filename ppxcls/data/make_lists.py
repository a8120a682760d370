"""Writes list files for folders of images."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ppxcls.data.class_names import CLASS_NAMES, class_name_lines, read_class_names
from ppxcls.data.errors import DataError
from ppxcls.data.image_files import ImageFiles, find_image_files, identity, is_hidden, lies_in
from ppxcls.data.list_index import ListIndex, list_line
from ppxcls.system.paths import printable
from ppxcls.system.whole_files import write_text

_LABEL = re.compile(r"[0-9]{1,9}")
# Folders that split a data set, in torchvision, Ultralytics, fastai and Keras.
_PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass
class MadeLists:
    """What ``make_lists`` wrote.

    Attributes:
        lists: number of lines by file.
        skipped: what it left out, in one line.
        notes: what a user should look at.
    """

    lists: dict[str, int]
    skipped: str = "skipped: nothing"
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = [f"{file}: {count:,} lines" for file, count in self.lists.items()]
        return "\n".join(map(printable, [*counts, *self.notes, self.skipped]))


def make_lists(
    folder: str | Path,
    output: str | Path,
    val_share: float = 0.2,
    seed: int = 0,
    labels: str | Path | None = None,
) -> MadeLists:
    """Write ``train_list.txt``, ``val_list.txt`` and ``class_names.txt``; paths are relative to ``folder``, the
    ``image_root``.

    Classes are numbered in the order of their folders' names. The split takes the same share of each class,
    and at least one image for each side if a class has two. It depends on the seed and the names alone.

    A folder of ``train/``, ``val/`` and ``test/`` is split already; ``test/`` goes to ``test_list.txt``. So
    is one with PaddleX's ``train.txt``, ``val.txt`` and ``labels.txt``. Hidden files and folders are skipped,
    and links are followed.

    Args:
        folder: its subfolders are the classes, or it is split as described.
        output: folder of the lists.
        val_share: share of each class for evaluation, if the folder is not split.
        seed: decides the split.
        labels: for a flat folder, such as ImageNet's ``val``: a file with one label per line, for the images
            in order of their names. All images go to ``val_list.txt``.

    Raises:
        DataError: there are no images, or the labels do not fit.
        OSError: the lists can't be written.
    """
    folder, output = Path(folder), Path(output)
    if not 0 <= val_share < 1:
        raise DataError(f"expected a share for evaluation from 0 to below 1, received {val_share:g}")
    if not folder.is_dir():
        raise DataError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    if labels is not None:
        return _flat(folder, output, Path(labels))
    if (folder / "train.txt").is_file() and (names := _paddlex_names(folder)):
        return _paddlex(folder, output, names)
    parts = _parts(folder)
    found = ImageFiles()
    if parts:
        _count_beside(folder, list(parts.values()), found)
    root = folder / parts.get("train", "")
    classes = _class_folders(root)
    if not classes:
        raise DataError(f"{root}: no folders of classes; for a flat folder give the labels")
    for name in classes:
        if "train" in map(str.lower, _class_folders(root / name)):
            raise DataError(
                f"{root / name}: a folder of a class that has train/ in it: is it the folder to make lists of?"
            )
    files = _files(folder, parts.get("train", ""), classes, found, all_needed=True)
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    if "val" in parts:
        lines["train"] = [list_line(file, label) for label, paths in enumerate(files) for file in paths]
    else:
        lines["train"], lines["val"] = _split(files, val_share, seed)
    for part in ("val", "test"):
        if part in parts:
            lines[part] = _part_lines(folder, parts[part], classes, found)
    return _written(output, lines, classes, found)


def _parts(folder: Path) -> dict[str, str]:
    """The names of ``train/``, ``val/`` and ``test/`` by their part; empty if the folder is not split."""
    parts: dict[str, str] = {}
    for name in _class_folders(folder):
        part = _PARTS.get(name.lower())
        if part in parts:
            raise DataError(f"{folder}: {parts[part]} and {name} are both the {part} part")
        if part:
            parts[part] = name
    others = [name for name in _class_folders(folder) if name not in parts.values()]
    if "train" not in parts or (len(parts) == 1 and others):  # classes may be called "train" or "test" too
        return {}
    if others:
        raise DataError(
            f"{folder}: expected train/, val/ and test/ or folders of classes, received both: also {others[0]!r}"
        )
    return parts


def _class_folders(folder: Path) -> list[str]:
    inside = lies_in(folder)
    visible = [entry for entry in os.scandir(folder) if not is_hidden(entry.name) and os.path.isdir(entry)]
    return sorted(
        entry.name for entry in visible if identity(entry) not in inside
    )  # no link to where it lies


def _files(
    folder: Path, part: str, classes: Sequence[str], found: ImageFiles, all_needed: bool
) -> list[list[str]]:
    """The images of each class, with their paths from the folder."""
    root = folder / part
    _count_beside(root, classes, found)
    files = []
    for name in classes:
        images = find_image_files(root / name) if (root / name).is_dir() else ImageFiles()
        if not images.files and all_needed:
            raise DataError(f"{root / name}: no images in the folder of a class ({images.skipped_line()})")
        files.append(found.add(images, f"{part}/{name}" if part else name))
    return files


def _count_beside(folder: Path, names: Sequence[str], found: ImageFiles) -> None:
    """Count what lies beside these folders."""
    for entry in os.scandir(folder):
        if entry.name not in names:
            found.skipped["hidden" if is_hidden(entry.name) else "beside the folders of classes"] += 1


def _part_lines(folder: Path, part: str, classes: list[str], found: ImageFiles) -> list[str]:
    own = _class_folders(folder / part)
    if unknown := [name for name in own if name not in classes]:
        raise DataError(f"{folder / part / unknown[0]}: a class that is not in the training part")
    if not own:
        raise DataError(f"{folder / part}: no folders of classes, as the training part has them")
    files = _files(folder, part, classes, found, all_needed=False)
    return [list_line(file, label) for label, paths in enumerate(files) for file in paths]


def _split(files: Sequence[Sequence[str]], val_share: float, seed: int) -> tuple[list[str], list[str]]:
    """Lines of the training and the evaluation list."""
    rng = np.random.default_rng(seed)
    train: list[str] = []
    val: list[str] = []
    for label, paths in enumerate(files):
        count = round(val_share * len(paths))
        count = min(max(count, int(val_share > 0)), len(paths) - 1)
        chosen = set(rng.permutation(len(paths))[:count].tolist())
        for i, file in enumerate(paths):
            (val if i in chosen else train).append(list_line(file, label))
    return train, val


def _flat(folder: Path, output: Path, labels: Path) -> MadeLists:
    found = find_image_files(folder)
    try:
        lines = [line.strip() for line in labels.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{labels}: can't be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not _LABEL.fullmatch(line):
            raise DataError(
                f"{labels}:{number}: expected a label of up to 9 digits a line, received {line[:80]!r}"
            )
    numbers = [int(line) for line in lines]
    if len(numbers) != len(found.files) or not found.files:
        counts = f"{len(numbers):,} labels for {len(found.files):,} images in {folder}"
        raise DataError(f"{labels}: {counts} ({found.skipped_line()})")
    rows = [list_line(file, number) for file, number in zip(found.files, numbers, strict=True)]
    return _written(output, {"val": rows}, [], found)


def _paddlex_names(folder: Path) -> Path | None:
    return next((folder / name for name in ("labels.txt", "label.txt") if (folder / name).is_file()), None)


def _paddlex(folder: Path, output: Path, names_file: Path) -> MadeLists:
    """Convert PaddleX's lists, whose lines are ``path label`` too, and check that their files are there."""
    names, found = read_class_names(names_file, None), find_image_files(folder)
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    listed: set[str] = set()
    for part in ("train", "val", "test"):
        file = folder / f"{part}.txt"
        if not file.is_file():
            continue
        index = ListIndex(file)
        if (outside := index.first_outside(folder)) is not None:
            raise DataError(
                f"{index.line(outside)}: expected a path inside {folder}, received {index.path(outside)!r}"
            )
        for i in range(len(index)):
            path, label = index.path(i), int(index.labels[i])
            if label >= len(names):
                raise DataError(
                    f"{index.line(i)}: the label {label}, but {names_file} has {len(names):,} names"
                )
            if not (folder / path).is_file():
                raise DataError(f"{index.line(i)}: no such file: {folder / path}")
            lines[part].append(list_line(path, label))
            listed.add(os.path.normpath(path))
    found.skipped["images that no list names"] = len(set(found.files) - listed)
    return _written(output, lines, names, found)


def _written(
    output: Path, lines: dict[str, list[str]], classes: Sequence[str], found: ImageFiles
) -> MadeLists:
    output.mkdir(parents=True, exist_ok=True)
    made = MadeLists({}, found.skipped_line(), _alike(classes))
    if len(classes) == 1:
        made.notes.append(f"there is one class only, {classes[0]!r}: is this the folder of the classes?")
    for part, rows in lines.items():
        file = output / f"{part}_list.txt"
        if rows:
            write_text(file, "\n".join(rows) + "\n")
            made.lists[str(file)] = len(rows)
        elif file.exists():  # of other images, beside these class names
            file.unlink()
            made.notes.append(f"{file} of an earlier call was removed")
    if classes:
        write_text(output / CLASS_NAMES, class_name_lines(classes))
        made.lists[str(output / CLASS_NAMES)] = len(classes)
    return made


def _alike(classes: Sequence[str]) -> list[str]:
    """A note for two classes whose names look alike: they differ in blanks or in the form of their Unicode."""
    seen: dict[str, int] = {}
    notes = []
    for label, name in enumerate(classes):
        first = seen.setdefault(unicodedata.normalize("NFC", name).strip(), label)
        if first != label:
            notes.append(
                f"the names of the classes {first} and {label} look alike: {classes[first]!a} and {name!a}"
            )
    return notes
