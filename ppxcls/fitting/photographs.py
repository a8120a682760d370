"""Lists and checks the photographs of ``fit``, before anything is written to its output folder."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ppxcls.data.check import DataReport, check_lists
from ppxcls.data.class_names import CLASS_NAMES_FILE, read_class_names
from ppxcls.data.dataset import Dataset, ImageNetDataset
from ppxcls.data.errors import DataError
from ppxcls.data.held_out import Shares
from ppxcls.data.list_index import ListIndex, list_line
from ppxcls.data.make_lists import make_lists
from ppxcls.data.similar_names import similar_name_notes
from ppxcls.data.split_folders import class_folders, same_structure_notes
from ppxcls.system.appended_files import make_own_folder
from ppxcls.system.atomic_files import write_bytes, write_text
from ppxcls.system.logs import logger

# Lists of the photographs that train, that choose the best epoch, and that judge the result.
TRAIN_LIST, VAL_LIST, TEST_LIST = "train_list.txt", "val_list.txt", "test_list.txt"
DEFAULT_SHARES = Shares(val=0.1, test=0.2)
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
    def list_names(self) -> list[str]:
        """Names of the lists of photographs. There is no list of those that judge if there are none."""
        return [name for name in (TRAIN_LIST, VAL_LIST, TEST_LIST) if (self.lists / name).is_file()]

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


def list_photographs(
    root: Path,
    lists: Path,
    *,
    shares: Shares = DEFAULT_SHARES,
    table: Path | None = None,
    options: Mapping[str, Any] | None = None,
    has_folds: bool = False,
) -> Photographs:
    """Writes the lists of a folder of photographs to a folder, and logs what was recognised.

    Args:
        root: folder of photographs.
        lists: folder for the lists.
        shares: shares that are held out to choose and to judge; see ``make_lists``.
        table: table of the photographs and their labels; None if their folders are the classes.
        options: columns of the table, and the groups; see ``make_lists``.
        has_folds: True if a cross-validation judges.

    Raises:
        DataError: the photographs can't be trained on.
    """
    summary = make_lists(
        table or root, lists, val_share=shares.val, test_share=shares.test, **(options or {})
    )
    for list_path, count in summary.lists.items():
        logger.info(f"{Path(list_path).name}: {count:,} lines")
    names = read_class_names(lists / CLASS_NAMES_FILE, None)
    structure_notes = [] if table else same_structure_notes(root, class_folders(root))
    doubts = {*similar_name_notes(names), *structure_notes}
    warnings = [note for note in summary.notes if note in doubts]
    for note in (*(note for note in summary.notes if note not in warnings), summary.skipped):
        logger.info(note)
    for note in warnings:
        logger.warning(note)
    if not (lists / VAL_LIST).is_file():
        raise DataError(f"{table or root}: no images remain for evaluation; each class needs at least two")
    if len(names) < 2:
        unit = "classes" if table else "folders"
        raise DataError(f"{table or root}: one class; a classifier needs at least two {unit}")
    if not (has_folds or (lists / TEST_LIST).is_file()):
        logger.info(
            "no photographs are held out to judge the result: those that choose the best epoch judge it"
        )
    digest = hashlib.sha256()
    for file in sorted(lists.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return Photographs(root, lists, names, digest.hexdigest())


def check_photographs(photographs: Photographs) -> None:
    """Decodes all photographs, and corrects the lists.

    Unreadable photographs are left out. So is a copy of a picture in a later list: a picture that judges
    neither chooses nor trains, and a picture that chooses does not train.

    Raises:
        DataError: no training image of a class can be read, or no image of another list.
    """
    names = photographs.list_names
    datasets = [ImageNetDataset(str(photographs.root), str(photographs.lists / name)) for name in names]
    total = sum(len(dataset) for dataset in datasets)
    with tqdm(total=total, desc="check", unit="file", disable=None, leave=False) as bar:
        report = check_lists(datasets, len(photographs.names), progress=bar.update)
    _log_copies(datasets, report)
    _leave_out(photographs, datasets, report)


def _log_copies(datasets: Sequence[Dataset], report: DataReport) -> None:
    in_two_classes = []
    for group in report.copies:
        if len({int(datasets[number].labels[index]) for number, index in group}) > 1:
            in_two_classes.append(" = ".join(datasets[number].listed(index) for number, index in group))
    _log_findings("the same picture is in two classes", in_two_classes)


def _leave_out(photographs: Photographs, datasets: Sequence[Dataset], report: DataReport) -> None:
    """Writes the lists again, without unreadable samples and without copies of a later list's pictures."""
    reasons = [
        f"{datasets[sample.dataset].listed(sample.index)}: {sample.reason}" for sample in report.bad_samples
    ]
    _log_findings("left out, because it can't be read", reasons)
    left_out = {(sample.dataset, sample.index) for sample in report.bad_samples}
    in_later_list = []
    for group in report.copies:
        last_number = max(number for number, _ in group)
        earlier_copies = [(number, index) for number, index in group if number < last_number]
        left_out |= set(earlier_copies)
        if earlier_copies:
            in_later_list.append(" = ".join(datasets[number].listed(index) for number, index in group))
    _log_findings(
        "the same picture is in two parts, so it is left out of the training or of the part that chooses",
        in_later_list,
    )
    for number, name in enumerate(photographs.list_names):
        if any(sample[0] == number for sample in left_out):
            rows = _remaining_rows(photographs, datasets[number], [i for n, i in left_out if n == number])
            write_text(photographs.lists / name, "".join(f"{row}\n" for row in rows))


def _remaining_rows(photographs: Photographs, dataset: Dataset, left_out: Sequence[int]) -> list[str]:
    """Returns the lines of a list without some samples.

    Raises:
        DataError: nothing remains of it, or of a class of the training list.
    """
    left_out_indices = set(left_out)
    indices = [index for index in range(len(dataset)) if index not in left_out_indices]
    counts = Counter(int(dataset.labels[index]) for index in indices)
    list_name = Path(dataset.source).name
    if list_name == TRAIN_LIST:
        for label, class_name in enumerate(photographs.names):
            if not counts[label]:
                raise DataError(
                    f"{photographs.root}: no training image of the class {class_name!r} can be read, "
                    "or all are copies of images in other parts"
                )
    if not indices:
        raise DataError(f"{photographs.root}: no image of {list_name} remains, without unreadable ones")
    return [list_line(dataset.listed(index), int(dataset.labels[index])) for index in indices]


def _log_findings(title: str, lines: Sequence[str]) -> None:
    for line in lines[:_MAX_SHOWN]:
        logger.warning(f"{title}: {line}")
    if len(lines) > _MAX_SHOWN:
        logger.warning(f"{title}: and {len(lines) - _MAX_SHOWN:,} more; 'ppxcls check' names all of them")
