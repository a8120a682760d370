"""Writes list files for folders of images."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ppxcls.data.class_names import CLASS_NAMES_FILE, class_name_lines, describe_classes, read_class_names
from ppxcls.data.errors import DataError
from ppxcls.data.held_out import PARTS, Sample, Shares, hold_out, with_judging_part
from ppxcls.data.image_files import ImageFiles, find_image_files, is_hidden
from ppxcls.data.list_index import ListIndex, list_line
from ppxcls.data.similar_names import similar_name_notes, similar_names
from ppxcls.data.split_folders import check_nested_parts, class_folders, find_split
from ppxcls.system.atomic_files import read_regular, write_text
from ppxcls.system.line_shapes import line_shape
from ppxcls.system.paths import one_line

_MAX_LABELS_BYTES = 1 << 30
_LABEL_PATTERN = re.compile(r"[0-9]{1,9}")


@dataclass
class ListSummary:
    """The result of ``make_lists``.

    Attributes:
        lists: number of lines by file.
        skipped: numbers of skipped files by reason, in one line.
        notes: remarks that a user should check.
    """

    lists: dict[str, int]
    skipped: str = "skipped: nothing"
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = [f"{file}: {count:,} lines" for file, count in self.lists.items()]
        return "\n".join(map(one_line, [*counts, *self.notes, self.skipped]))


def make_lists(
    folder: str | Path,
    output: str | Path,
    *,
    val_share: float = 0.2,
    test_share: float = 0.0,
    seed: int = 0,
    labels: str | Path | None = None,
) -> ListSummary:
    """Writes ``train_list.txt``, ``val_list.txt`` and ``class_names.txt`` for a folder of images.

    The paths are relative to ``folder``, which is the ``image_root`` of the lists.

    Classes are numbered in the order of their folders' names. The split takes the same share of each class.
    If a class has two images or more, each side gets at least one. The split depends only on the seed and the
    names.

    A folder with ``train/``, ``val/`` and ``test/`` is split already; ``test/`` goes to ``test_list.txt``.
    Other usual names are known too, such as ``training_set`` and ``holdout``, in any case. The structure
    decides: a part holds folders of images, and a class holds images. A folder with PaddleX's ``train.txt``,
    ``val.txt`` and ``labels.txt`` is also split. Hidden files and folders are skipped, and links are
    followed.

    With a share for test, the images that choose the best epoch are not those that judge it:
    ``test_list.txt`` judges. It has the images of ``test/``, or else of ``val/``, or else this share of each
    class. ``val_list.txt`` then has the images of ``val/`` beside a ``test/``, or else its share of each
    class of the training part. Copies of one picture stay in one list. A class with two images has none in
    ``test_list.txt``.

    Args:
        folder: folder with one subfolder per class, or split as described.
        output: folder for the lists.
        val_share: share of each class for evaluation, from 0 to below 1, if the folder is not split.
        test_share: share of each class that judges, from 0 to below 1; 0 for no such list without ``test/``.
        seed: seed of the split.
        labels: file with one label per line, for a flat folder such as ImageNet's ``val``, in the order of
            the images' names. All images go to ``val_list.txt``. None for folders of classes.

    Raises:
        DataError: there are no images, the labels do not fit, or the folders could be parts as well as
            classes.
        OSError: the lists can't be written.
    """
    folder, output = Path(folder), Path(output)
    shares = Shares(val_share, test_share)
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: {'not a folder' if os.path.exists(folder) else 'no such folder'}")
    if labels is not None:
        return _make_flat_lists(folder, output, Path(labels))
    if (folder / "train.txt").is_file() and (names_file := _paddlex_names_file(folder)):
        content = _paddlex_content(folder, names_file)
        is_split_needed = shares.test > 0
    else:
        content = _folder_content(folder)
        is_split_needed = True
    if is_split_needed:
        content.hold_out(folder, shares, seed)
    return _write_lists(output, content)


@dataclass
class _Content:
    """What the lists will hold.

    Attributes:
        parts: samples of ``train``, ``val`` and ``test``.
        classes: names of the classes; empty if they are not known.
        image_files: all images, and counts of what was skipped.
        notes: remarks for the user.
        is_split: True if the data set has parts already.
    """

    parts: dict[str, list[Sample]]
    classes: Sequence[str]
    image_files: ImageFiles
    notes: list[str] = field(default_factory=list)
    is_split: bool = False

    def hold_out(self, folder: Path, shares: Shares, seed: int) -> None:
        """Takes the parts that are missing from the training part, and says so in the notes."""
        if not shares.test:
            if self.is_split and not self.parts["val"] and shares.val:
                held_out = f"{shares.val:.0%} of the training part is held out for it"
                self.notes.append(f"there is no evaluation part: {held_out}")
            self.parts = hold_out(self.parts, shares, seed)
            return
        if self.parts["val"] and not self.parts["test"]:
            self.notes.append("the evaluation part judges the result, because there is no test part")
        parts = with_judging_part(self.parts)
        self.parts = hold_out(parts, shares, seed, folder)
        for part, share, words in (
            ("val", shares.val, "to choose the best epoch"),
            ("test", shares.test, "to judge the result, once, at the end"),
        ):
            if self.parts[part] and not parts[part]:
                self.notes.append(f"{share:.0%} of the training images are held out {words}")


def _folder_content(folder: Path) -> _Content:
    """Finds the classes and images of a folder of classes, or of its parts."""
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
    return _Content(parts, classes, image_files, notes, is_split=bool(split.paths))


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
    return _write_lists(output, _Content({"val": samples}, [], image_files))


def _paddlex_names_file(folder: Path) -> Path | None:
    return next((folder / name for name in ("labels.txt", "label.txt") if (folder / name).is_file()), None)


def _paddlex_content(folder: Path, names_file: Path) -> _Content:
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
        if parts["train"] and (extra_labels := _labels(parts[part]) - _labels(parts["train"])):
            name = names[min(extra_labels)]
            raise DataError(f"{folder / part}.txt: a class that is not in train.txt: {name!r}")
    image_files.skip_counts["images that are in no list"] = len(set(image_files.files) - listed_paths)
    return _Content(parts, names, image_files)


def _write_lists(output: Path, content: _Content) -> ListSummary:
    output.mkdir(parents=True, exist_ok=True)
    classes = content.classes
    all_notes = [*content.notes, *similar_name_notes(classes), *_coverage_notes(content.parts, classes)]
    result = ListSummary({}, content.image_files.skipped_line(), all_notes)
    if len(classes) == 1:
        result.notes.append(f"there is one class only, {classes[0]!r}: is this the folder of the classes?")
    for part, samples in content.parts.items():
        file = output / f"{part}_list.txt"
        if samples:
            write_text(file, "".join(f"{list_line(path, label)}\n" for path, label in samples))
            result.lists[str(file)] = len(samples)
        elif file.exists():  # an older list, which does not match the new class names
            file.unlink()
            result.notes.append(f"{file} of an earlier call was removed")
    if classes:
        write_text(output / CLASS_NAMES_FILE, class_name_lines([_unicode_name(name) for name in classes]))
        result.lists[str(output / CLASS_NAMES_FILE)] = len(classes)
    return result


def _coverage_notes(parts: dict[str, list[Sample]], classes: Sequence[str]) -> list[str]:
    """Returns a note about each list that lacks classes of the training list."""
    notes = []
    for part, words in (("val", "evaluation"), ("test", "test")):
        labels = _labels(parts.get(part, []))
        if not labels or not classes:
            continue
        missing_names = [name for label, name in enumerate(classes) if label not in labels]
        if missing_names:
            notes.append(
                f"without images in the {words} list: {describe_classes(len(missing_names), missing_names)}"
            )
    return notes


def _unicode_name(name: str) -> str:
    """Returns a folder's name as Unicode, even if the locale of the process is not UTF-8."""
    try:
        return os.fsencode(name).decode("utf-8")
    except UnicodeError:  # the name is no Unicode on the disk either
        return name


def _labels(samples: Sequence[Sample]) -> set[int]:
    return {label for _, label in samples}
