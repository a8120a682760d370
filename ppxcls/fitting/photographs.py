"""Lists and checks the photographs of ``fit``, before anything is written to its output folder."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ppxcls.data.check import DataReport, check_lists
from ppxcls.data.class_names import CLASS_NAMES_FILE, read_class_names
from ppxcls.data.dataset import Dataset, ImageNetDataset
from ppxcls.data.errors import DataError
from ppxcls.data.list_index import ListIndex, list_line
from ppxcls.data.make_lists import make_lists
from ppxcls.data.similar_names import similar_name_notes
from ppxcls.data.split_folders import class_folders, same_structure_notes
from ppxcls.system.appended_files import make_own_folder
from ppxcls.system.atomic_files import write_bytes, write_text
from ppxcls.system.logs import logger

TRAIN_LIST, VAL_LIST = "train_list.txt", "val_list.txt"
_MAX_SHOWN = 10  # findings of one kind in the log


@dataclass(frozen=True)
class Photographs:
    """The lists of a folder of photographs, in a folder of their own.

    Attributes:
        root: folder of photographs.
        lists: folder of the lists.
        names: names of the classes.
        digest: SHA-256 of the lists before unreadable files were left out.
    """

    root: Path
    lists: Path
    names: Sequence[str]
    digest: str

    @property
    def train_count(self) -> int:
        """Number of training images."""
        return len(ListIndex(self.lists / TRAIN_LIST))

    def copy_lists(self, folder: Path) -> None:
        """Writes the lists to another folder.

        Raises:
            OSError: they can't be written.
        """
        make_own_folder(folder)
        for file in sorted(self.lists.iterdir()):
            write_bytes(folder / file.name, file.read_bytes())

    def are_listed_in(self, folder: Path) -> bool:
        """True if a folder has files of the same names as these lists."""
        return all((folder / file.name).is_file() for file in self.lists.iterdir())


def list_photographs(root: Path, lists: Path) -> Photographs:
    """Writes the lists of a folder of photographs to a folder, and logs what was recognised.

    Raises:
        DataError: the photographs can't be trained on.
    """
    summary = make_lists(root, lists)
    for list_path, count in summary.lists.items():
        logger.info(f"{Path(list_path).name}: {count:,} lines")
    names = read_class_names(lists / CLASS_NAMES_FILE, None)
    doubts = {*similar_name_notes(names), *same_structure_notes(root, class_folders(root))}
    warnings = [note for note in summary.notes if note in doubts]
    for note in (*(note for note in summary.notes if note not in warnings), summary.skipped):
        logger.info(note)
    for note in warnings:
        logger.warning(note)
    if not (lists / VAL_LIST).is_file():
        raise DataError(f"{root}: no images remain for evaluation; each class needs at least two")
    if len(names) < 2:
        raise DataError(f"{root}: one class; a classifier needs at least two folders")
    digest = hashlib.sha256()
    for file in sorted(lists.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return Photographs(root, lists, names, digest.hexdigest())


def check_photographs(photographs: Photographs) -> None:
    """Decodes all photographs, takes unreadable ones off the lists, and names copies of the same picture.

    Raises:
        DataError: no training image of a class, or no evaluation image, can be read.
    """
    datasets = [
        ImageNetDataset(str(photographs.root), str(photographs.lists / name))
        for name in (TRAIN_LIST, VAL_LIST)
    ]
    total = sum(len(dataset) for dataset in datasets)
    with tqdm(total=total, desc="check", unit="file", disable=None, leave=False) as bar:
        report = check_lists(datasets, len(photographs.names), progress=bar.update)
    _log_copies(datasets, report)
    _leave_out(photographs, datasets, report)


def _log_copies(datasets: Sequence[Dataset], report: DataReport) -> None:
    in_two_classes = []
    in_both_lists = []
    for group in report.copies:
        text = " = ".join(datasets[number].listed(index) for number, index in group)
        if len({int(datasets[number].labels[index]) for number, index in group}) > 1:
            in_two_classes.append(text)
        if len({number for number, _ in group}) > 1:
            in_both_lists.append(text)
    _log_findings("the same picture is in two classes", in_two_classes)
    _log_findings(
        "the same picture is in training and evaluation, so the accuracy will look too high", in_both_lists
    )


def _leave_out(photographs: Photographs, datasets: Sequence[Dataset], report: DataReport) -> None:
    """Writes the lists again, without the samples that can't be read."""
    if not report.bad_samples:
        return
    reasons = [
        f"{datasets[sample.dataset].listed(sample.index)}: {sample.reason}" for sample in report.bad_samples
    ]
    _log_findings("left out, because it can't be read", reasons)
    for number, (dataset, name) in enumerate(zip(datasets, (TRAIN_LIST, VAL_LIST), strict=True)):
        bad_indices = {sample.index for sample in report.bad_samples if sample.dataset == number}
        good_indices = [index for index in range(len(dataset)) if index not in bad_indices]
        counts = Counter(int(dataset.labels[index]) for index in good_indices)
        if name == TRAIN_LIST and (
            empty_labels := [label for label in range(len(photographs.names)) if not counts[label]]
        ):
            class_name = photographs.names[empty_labels[0]]
            raise DataError(f"{photographs.root}: no training image of the class {class_name!r} can be read")
        if not good_indices:
            raise DataError(f"{photographs.root}: no image for the evaluation can be read")
        rows = [list_line(dataset.listed(index), int(dataset.labels[index])) for index in good_indices]
        write_text(photographs.lists / name, "\n".join(rows) + "\n")


def _log_findings(title: str, lines: Sequence[str]) -> None:
    for line in lines[:_MAX_SHOWN]:
        logger.warning(f"{title}: {line}")
    if len(lines) > _MAX_SHOWN:
        logger.warning(f"{title}: and {len(lines) - _MAX_SHOWN:,} more; 'ppxcls check' names all of them")
