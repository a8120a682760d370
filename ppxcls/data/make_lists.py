"""Writes list files for folders and tables of images.

Classes are numbered in the order of their folders' names. The split takes the same share of each class. If
a class has two images or more, each side gets at least one. The split depends only on the seed and the
names.

A folder with ``train/``, ``val/`` and ``test/`` is split already; ``test/`` goes to ``test_list.txt``.
Other usual names are known too, such as ``training_set`` and ``holdout``, in any case. The structure
decides: a part holds folders of images, and a class holds images. A folder with PaddleX's ``train.txt``,
``val.txt`` and ``labels.txt`` is also split. Hidden files and folders are skipped, and links are followed.

With a share for test, the images that choose the best epoch are not those that judge it: ``test_list.txt``
judges. It has the images of ``test/``, or else of ``val/``, or else this share of each class.
``val_list.txt`` then has the images of ``val/`` beside a ``test/``, or else its share of each class of the
training part. Copies of one picture stay in one list. A class with two images has none in
``test_list.txt``.

With groups, images of one group stay in one list, and so do copies. ``groups.csv`` beside the lists has the
group of each image. Each class has about its share in each list, as far as the groups allow.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path

from ppxcls.data.class_names import read_class_names
from ppxcls.data.errors import DataError
from ppxcls.data.groups import group_pattern, groups_by_pattern
from ppxcls.data.held_out import PARTS, Sample, Shares
from ppxcls.data.image_files import ImageFiles, find_image_files, is_hidden
from ppxcls.data.label_table import TableColumns, read_label_table, table_root
from ppxcls.data.list_content import ListContent, ListSummary, write_lists
from ppxcls.data.list_index import ListIndex
from ppxcls.data.similar_names import similar_names
from ppxcls.data.split_folders import check_nested_parts, class_folders, find_split
from ppxcls.system.atomic_files import read_regular
from ppxcls.system.line_shapes import line_shape

_MAX_LABELS_BYTES = 1 << 30
_LABEL_PATTERN = re.compile(r"[0-9]{1,9}")


def make_lists(
    source: str | Path,
    output: str | Path,
    *,
    val_share: float = 0.2,
    test_share: float = 0.0,
    seed: int = 0,
    labels: str | Path | None = None,
    group: str | None = None,
    folds: int = 0,
    image: str | None = None,
    label: str | None = None,
    split: str | None = None,
    image_root: str | Path | None = None,
) -> ListSummary:
    """Writes ``train_list.txt``, ``val_list.txt`` and ``class_names.txt`` for a folder or a table of images.

    The paths are relative to the folder, or to the root of the table's images, which is the ``image_root`` of
    the lists. The text at the top of this module tells which images are held out.

    Args:
        source: folder with one subfolder per class, or split as described; or a CSV file with a row for each
            image, see ``read_label_table``.
        output: folder for the lists.
        val_share: share of each class for evaluation, from 0 to below 1, if the data set is not split.
        test_share: share of each class that judges, from 0 to below 1; 0 for no such list without ``test/``.
        seed: seed of the split.
        labels: file with one label per line, for a flat folder such as ImageNet's ``val``, in the order of
            the images' names. All images go to ``val_list.txt``. None for folders of classes.
        group: regular expression with one group in parentheses, which is searched in the path of each image
            relative to the root; or a column of the table. None for no groups.
        folds: number of folds of a cross-validation; 0 for none. Lists and class names of the fold K are in
            ``fold_K``. The images of the test part, or a share for test, are in no fold.
        image: column of the images' paths; None for one with a usual name.
        label: column of the labels; None for one with a usual name.
        split: column of the parts; None for one with a usual name, if there is one.
        image_root: folder to which the paths of a table are relative; None for the folder of the table.

    Raises:
        DataError: there are no images, the labels do not fit, a row of a table is invalid, or the folders
            could be parts as well as classes.
        OSError: the lists can't be written.
    """
    source, output = Path(source), Path(output)
    shares = Shares(val_share, test_share)
    columns = TableColumns(image=image, label=label, split=split, group=group)
    if labels is not None:
        if folds or any(vars(columns).values()) or image_root is not None:
            raise DataError(f"{labels}: a file of labels allows no columns, groups, folds and image_root")
        return _make_flat_lists(source, output, Path(labels))
    root, content = _content_of(source, columns, image_root)
    if folds:
        content.divide(root, folds, test_share, seed)
    else:
        content.hold_out(root, shares, seed)
    return write_lists(output, content)


def _content_of(
    source: Path, columns: TableColumns, image_root: str | Path | None
) -> tuple[Path, ListContent]:
    """Reads a folder or a table, and returns the root of the images and what the lists will hold."""
    if os.path.isfile(source):
        root = table_root(source, image_root)
        content = _table_content(source, root, columns)
    else:
        _check_folder(source, columns, image_root)
        root, content = source, _folder_content(source)
    if columns.group is not None and content.groups is None:
        content.group_by(groups_by_pattern(content.paths, group_pattern(columns.group)))
    return root, content


def _check_folder(folder: Path, columns: TableColumns, image_root: str | Path | None) -> None:
    """Raises DataError if it is no folder, or if there are options for tables."""
    _check_is_folder(folder)
    options = {
        "image": columns.image,
        "label": columns.label,
        "split": columns.split,
        "image_root": image_root,
    }
    for name, value in options.items():
        if value is not None:
            raise DataError(f"{folder}: {name}={str(value)!r} is for a table in CSV, and this is a folder")


def _check_is_folder(folder: Path) -> None:
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: {'not a folder' if os.path.exists(folder) else 'no such folder'}")


def _table_content(file: Path, root: Path, columns: TableColumns) -> ListContent:
    """Reads a table of images."""
    table = read_label_table(file, root, columns)
    parts: dict[str, list[Sample]] = {part: [] for part in PARTS}
    for path, label, part in zip(table.paths, table.labels, table.parts, strict=True):
        parts[part].append((path, label))
    for part in ("val", "test"):
        if (untrained_label := _untrained_label(parts, part)) is not None:
            name = table.classes[untrained_label]
            raise DataError(f"{file}: a class of the {part} part that is not in the training part: {name!r}")
    content = ListContent(parts, table.classes, ImageFiles(), table.notes, is_split=table.is_split)
    if table.groups is not None:
        content.group_by(dict(zip(table.paths, table.groups, strict=True)))
    return content


def _folder_content(folder: Path) -> ListContent:
    """Finds the classes and images of a folder of classes, or of its parts, or of PaddleX's lists."""
    if (folder / "train.txt").is_file() and (names_file := _paddlex_names_file(folder)):
        return _paddlex_content(folder, names_file)
    split = find_split(folder)
    image_files = ImageFiles()
    if split.paths:
        _count_skipped(folder, [path.split("/")[0] for path in split.paths.values()], image_files)
    root = folder / split.paths.get("train", "")
    classes = class_folders(root)
    if not classes:
        raise DataError(f"{root}: no folders of classes; for a flat folder, give a file of labels")
    check_nested_parts(root, classes)
    files = _class_images(
        folder, split.paths.get("train", ""), classes=classes, image_files=image_files, all_needed=True
    )
    parts = {"train": _samples(files), "val": [], "test": []}
    for part in ("val", "test"):
        if part in split.paths:
            parts[part] = _part_samples(folder, split.paths[part], classes, image_files)
    notes = [*split.notes]
    if split.other_names:
        notes.append(f"without images, and left out: {', '.join(split.other_names)}")
    return ListContent(parts, classes, image_files, notes, is_split=bool(split.paths))


def _samples(files: Sequence[Sequence[str]]) -> list[Sample]:
    return [(file, label) for label, paths in enumerate(files) for file in paths]


def _class_images(
    folder: Path, part: str, *, classes: Sequence[str], image_files: ImageFiles, all_needed: bool
) -> list[list[str]]:
    """Returns the images of each class, with their paths relative to ``folder``."""
    root = folder / part
    _count_skipped(root, classes, image_files)
    files = []
    for name in classes:
        images = find_image_files(root / name) if (root / name).is_dir() else ImageFiles()
        if not images.files and all_needed:
            raise DataError(f"{root / name}: no images in the folder of a class ({images.skipped_line()})")
        files.append(image_files.add(images, f"{part}/{name}" if part else name))
    return files


def _count_skipped(folder: Path, names: Sequence[str], image_files: ImageFiles) -> None:
    """Counts the files and folders beside these folders as skipped."""
    for entry in os.scandir(folder):
        if entry.name not in names:
            image_files.skip_counts[
                "hidden" if is_hidden(entry.name) else "beside the folders of classes"
            ] += 1


def _part_samples(folder: Path, part: str, classes: list[str], image_files: ImageFiles) -> list[Sample]:
    names = class_folders(folder / part)
    if unknown_names := [name for name in names if name not in classes]:
        pairs = similar_names([*classes, unknown_names[0]])
        twins = [classes[first] for first, label in pairs if label == len(classes)]
        advice = f"; {twins[0]!a} looks alike, so rename one of them" if twins else ""
        raise DataError(
            f"{folder / part / unknown_names[0]}: a class that is not in the training part{advice}"
        )
    if not names:
        raise DataError(f"{folder / part}: no folders of classes, unlike the training part")
    files = _class_images(folder, part, classes=classes, image_files=image_files, all_needed=False)
    return _samples(files)


def _make_flat_lists(folder: Path, output: Path, labels_file: Path) -> ListSummary:
    _check_is_folder(folder)
    image_files = find_image_files(folder)
    try:
        lines = [
            line.strip()
            for line in read_regular(labels_file, _MAX_LABELS_BYTES).decode().splitlines()
            if line.strip()
        ]
    except (OSError, ValueError) as error:
        raise DataError(f"{labels_file}: can't be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not _LABEL_PATTERN.fullmatch(line):
            raise DataError(
                f"{labels_file}:{number}: expected a label of up to 9 digits a line, "
                f"received {line_shape(line)}"
            )
    class_ids = [int(line) for line in lines]
    if len(class_ids) != len(image_files.files) or not image_files.files:
        counts = f"{len(class_ids):,} labels for {len(image_files.files):,} images in {folder}"
        raise DataError(f"{labels_file}: {counts} ({image_files.skipped_line()})")
    samples = list(zip(image_files.files, class_ids, strict=True))
    return write_lists(output, ListContent({"val": samples}, [], image_files))


def _paddlex_names_file(folder: Path) -> Path | None:
    return next((folder / name for name in ("labels.txt", "label.txt") if (folder / name).is_file()), None)


def _paddlex_content(folder: Path, names_file: Path) -> ListContent:
    """Reads PaddleX's lists, which also have lines ``path label``, and checks that their files exist."""
    names, image_files = read_class_names(names_file, None), find_image_files(folder)
    parts: dict[str, list[Sample]] = {part: [] for part in PARTS}
    listed_paths: set[str] = set()
    for part in PARTS:
        file = folder / f"{part}.txt"
        if not file.is_file():
            continue
        index = ListIndex(file)
        if (outside_index := index.first_outside(folder)) is not None:
            raise DataError(
                f"{index.line(outside_index)}: expected a path inside "
                f"{folder}, received {index.path(outside_index)!r}"
            )
        for sample in range(len(index)):
            path, label = index.path(sample), int(index.labels[sample])
            if label >= len(names):
                raise DataError(
                    f"{index.line(sample)}: the label {label}, but {names_file} has {len(names):,} names"
                )
            if not (folder / path).is_file():
                raise DataError(f"{index.line(sample)}: no such file: {folder / path}")
            parts[part].append((path, label))
            listed_paths.add(posixpath.normpath(path))
    for part in ("val", "test"):
        if parts["train"] and (untrained_label := _untrained_label(parts, part)) is not None:
            name = names[untrained_label]
            raise DataError(f"{folder / part}.txt: a class that is not in train.txt: {name!r}")
    image_files.skip_counts["images that are in no list"] = len(set(image_files.files) - listed_paths)
    return ListContent(parts, names, image_files, holds_out_val=False)


def _untrained_label(parts: dict[str, list[Sample]], part: str) -> int | None:
    """Returns the first class of a part that the training part does not have; None if there is none."""
    training_labels = {label for _, label in parts["train"]}
    return min({label for _, label in parts[part]} - training_labels, default=None)
