"""What list files will hold, and how they are written."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from ppxcls.data.class_names import CLASS_NAMES_FILE, class_name_lines, describe_classes
from ppxcls.data.errors import DataError
from ppxcls.data.groups import GROUPS_FILE, check_groups_apart, groups_text
from ppxcls.data.held_out import PARTS, Sample, Shares, hold_out, hold_out_folds, with_judging_part
from ppxcls.data.image_files import ImageFiles
from ppxcls.data.list_index import list_line
from ppxcls.data.similar_names import similar_name_notes
from ppxcls.system.atomic_files import write_text
from ppxcls.system.paths import one_line

_FOLD_FOLDER = re.compile(r"fold_([1-9][0-9]{0,3})")


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


@dataclass
class ListContent:
    """What the lists will hold.

    Attributes:
        parts: samples of ``train``, ``val`` and ``test``.
        classes: names of the classes; empty if they are not known.
        image_files: all images, and counts of what was skipped.
        notes: remarks for the user.
        is_split: True if the data set has parts already.
        holds_out_val: False if a missing evaluation part stays missing, unless a part is to judge.
        groups: group by path; None for no groups.
        folds: training and evaluation part of each fold of a cross-validation; empty without one.
    """

    parts: dict[str, list[Sample]]
    classes: Sequence[str]
    image_files: ImageFiles
    notes: list[str] = field(default_factory=list)
    is_split: bool = False
    holds_out_val: bool = True
    groups: Mapping[str, str] | None = None
    folds: list[dict[str, list[Sample]]] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """Paths of all samples."""
        return [path for path, _ in chain.from_iterable(self.parts.values())]

    def group_by(self, groups: Mapping[str, str]) -> None:
        """Sets the groups, and checks that the parts of the data set share none.

        Raises:
            DataError: some groups have images in several parts.
        """
        check_groups_apart(
            {part: [path for path, _ in samples] for part, samples in self.parts.items()}, groups
        )
        self.groups = groups
        count = len({groups[path] for path in self.paths})
        self.notes.append(f"{len(self.paths):,} images in {count:,} groups, which stay together")

    def hold_out(self, folder: Path, shares: Shares, seed: int) -> None:
        """Takes the parts that are missing from the training part, and says so in the notes."""
        if not shares.test:
            if not self.holds_out_val:
                return
            if self.is_split and not self.parts["val"] and shares.val:
                held_out = f"{shares.val:.0%} of the training part is held out for it"
                self.notes.append(f"there is no evaluation part: {held_out}")
            root = folder if self.groups is not None else None
            self.parts = hold_out(self.parts, shares, seed=seed, root=root, groups=self.groups)
            return
        if self.parts["val"] and not self.parts["test"]:
            self.notes.append("the evaluation part judges the result, because there is no test part")
        parts = with_judging_part(self.parts)
        self.parts = hold_out(parts, shares, seed=seed, root=folder, groups=self.groups)
        for part, share, words in (
            ("val", shares.val, "to choose the best epoch"),
            ("test", shares.test, "to judge the result, once, at the end"),
        ):
            if self.parts[part] and not parts[part]:
                self.notes.append(f"{share:.0%} of the training images are held out {words}")

    def divide(self, folder: Path, folds: int, test_share: float, seed: int) -> None:
        """Divides the images of a cross-validation into folds: all but those that judge.

        Raises:
            DataError: there are too few images or groups.
        """
        if test_share:
            self.hold_out(folder, Shares(0.0, test_share), seed)
        if self.parts["val"]:
            self.notes.append("the images of the evaluation part are in the folds, too")
        samples = [*self.parts["train"], *self.parts["val"]]
        self.folds = hold_out_folds(samples, folds, seed=seed, root=folder, groups=self.groups)


def write_lists(output: Path, content: ListContent) -> ListSummary:
    """Writes the lists, the class names and the groups, and removes those of an earlier call.

    Raises:
        OSError: a file can't be written.
    """
    classes = content.classes
    summary = ListSummary(
        {}, content.image_files.skipped_line(), [*content.notes, *similar_name_notes(classes)]
    )
    if len(classes) == 1:
        summary.notes.append(f"there is one class only, {classes[0]!r}: is this the folder of the classes?")
    parts_by_folder = {output: content.parts}
    if content.folds:
        parts_by_folder = {
            output / f"fold_{number}": {**parts, "test": content.parts["test"]}
            for number, parts in enumerate(content.folds, 1)
        }
    for folder, parts in parts_by_folder.items():
        folder.mkdir(parents=True, exist_ok=True)
        place = f" of {folder.name}" if content.folds else ""
        summary.notes += coverage_notes(parts, classes, place)
        _write_folder(folder, parts, content, summary)
    for folder in [output, *_fold_folders(output)]:
        if folder not in parts_by_folder:  # lists of two calls do not belong together
            for name in (*(f"{part}_list.txt" for part in PARTS), GROUPS_FILE, CLASS_NAMES_FILE):
                _remove(folder / name, summary)
    return summary


def _write_folder(
    folder: Path, parts: Mapping[str, list[Sample]], content: ListContent, summary: ListSummary
) -> None:
    """Writes the files of one folder, and adds them to the summary."""
    for part, samples in parts.items():
        file = folder / f"{part}_list.txt"
        if samples:
            write_text(file, "".join(f"{list_line(path, label)}\n" for path, label in samples))
            summary.lists[str(file)] = len(samples)
        else:  # an older list does not match the new class names
            _remove(file, summary)
    if content.groups is None:
        _remove(folder / GROUPS_FILE, summary)
    else:
        paths = [path for path, _ in chain.from_iterable(parts.values())]
        write_text(folder / GROUPS_FILE, groups_text(paths, content.groups))
        summary.lists[str(folder / GROUPS_FILE)] = len(paths) + 1
    if content.classes:
        names = [_unicode_name(name) for name in content.classes]
        write_text(folder / CLASS_NAMES_FILE, class_name_lines(names))
        summary.lists[str(folder / CLASS_NAMES_FILE)] = len(names)


def _remove(file: Path, summary: ListSummary) -> None:
    if file.exists():
        file.unlink()
        summary.notes.append(f"{file} of an earlier call was removed")


def _fold_folders(folder: Path) -> list[Path]:
    """Returns the folders of the folds of a cross-validation, in order."""
    numbers = [int(match[1]) for name in os.listdir(folder) if (match := _FOLD_FOLDER.fullmatch(name))]
    return [folder / f"fold_{number}" for number in sorted(numbers)]


def list_files(folder: Path) -> list[Path]:
    """Returns the lists that ``make_lists`` has written to a folder: also those of folds.

    Raises:
        DataError: there are none.
    """
    files = [
        file
        for place in [folder, *_fold_folders(folder)]
        for part in PARTS
        if (file := place / f"{part}_list.txt").is_file()
    ]
    if not files:
        raise DataError(f"{folder}: no lists, such as train_list.txt")
    return files


def coverage_notes(parts: Mapping[str, list[Sample]], classes: Sequence[str], place: str = "") -> list[str]:
    """Returns a note about each list that lacks classes.

    Args:
        parts: samples of each list.
        classes: names of the classes.
        place: words after the name of the list.
    """
    notes = []
    for part, words in (("train", "training"), ("val", "evaluation"), ("test", "test")):
        labels = {label for _, label in parts.get(part, [])}
        if not labels or not classes:
            continue
        missing_names = [name for label, name in enumerate(classes) if label not in labels]
        if missing_names:
            classes_text = describe_classes(len(missing_names), missing_names)
            notes.append(f"without images in the {words} list{place}: {classes_text}")
    return notes


def _unicode_name(name: str) -> str:
    """Returns a folder's name as Unicode, even if the locale of the process is not UTF-8."""
    try:
        return os.fsencode(name).decode("utf-8")
    except UnicodeError:  # the name is no Unicode on the disk either
        return name
