"""Corrections of labels: a table with a row for each image, and lists with the corrected labels.

The columns of the table are ``image``, ``label`` (the class now), ``new_label`` and, if images are to be
dropped, ``action``. They may have any order, and other columns are left out.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ppxcls.data.class_names import CLASS_NAMES_FILE, MAX_NAMES_BYTES, read_class_names
from ppxcls.data.errors import DataError
from ppxcls.data.groups import GROUPS_FILE
from ppxcls.data.list_content import coverage_notes, list_files
from ppxcls.data.list_index import ListIndex, list_line
from ppxcls.data.tables import MAX_TABLE_BYTES, excerpt_of, open_table
from ppxcls.system.atomic_files import read_regular, write_bytes, write_text
from ppxcls.system.output_paths import check_output_folder
from ppxcls.system.paths import one_line
from ppxcls.system.spelling import nearest_spelling

CORRECTION_COLUMNS = ("image", "label", "new_label", "action")
_FILES_BESIDE = {CLASS_NAMES_FILE: MAX_NAMES_BYTES, GROUPS_FILE: MAX_TABLE_BYTES}  # beside a list
_RELABEL, _DROP = ("", "relabel"), ("drop", "delete")


@dataclass(frozen=True)
class Correction:
    """The new label of an image.

    Attributes:
        image: path of the image, as it is in its list.
        label: class of the image now, by name or id.
        new_label: new class, by name or id; None to drop the image.
        line: line number in the table; 0 for a correction that is in no table yet.
    """

    image: str
    label: str
    new_label: str | None
    line: int = 0


@dataclass
class CorrectionSummary:
    """The result of ``apply_corrections``.

    Attributes:
        lists: number of lines of each new list, by file.
        notes: number of changes of each list, and what a user should check.
    """

    lists: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(map(one_line, self.notes))


def corrections_text(corrections: Iterable[Correction]) -> str:
    """Returns the content of a table that ``read_corrections`` reads."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CORRECTION_COLUMNS)
    for correction in corrections:
        action = _DROP[0] if correction.new_label is None else _RELABEL[1]
        writer.writerow([correction.image, correction.label, correction.new_label or "", action])
    return text.getvalue()


def read_corrections(file: Path) -> list[Correction]:
    """Reads a table of corrections in CSV.

    The action is ``relabel``, which is also meant by an empty cell, or ``drop`` or ``delete``. An image that
    is dropped has no new label.

    Raises:
        DataError: the table can't be read, a column is missing, a row is invalid, or an image has two
            different corrections.
    """
    table = open_table(file)
    names = [name.lower().replace(" ", "_") for name in table.columns]
    index_by_name = {name: names.index(name) for name in CORRECTION_COLUMNS if name in names}
    missing_names = [name for name in CORRECTION_COLUMNS[:3] if name not in index_by_name]
    if missing_names:
        raise DataError(
            f"{file}:1: expected the columns {','.join(CORRECTION_COLUMNS[:3])} and perhaps "
            f"{CORRECTION_COLUMNS[3]}, received no {missing_names[0]}"
        )
    correction_by_image: dict[str, Correction] = {}
    for line, cells in table.rows:
        values = {name: cells[index] for name, index in index_by_name.items()}
        correction = _correction(values, line, f"{file}:{line}")
        earlier = correction_by_image.setdefault(correction.image, correction)
        if (earlier.label, earlier.new_label) != (correction.label, correction.new_label):
            raise DataError(f"{file}:{line}: line {earlier.line} has another correction of this image")
    if not correction_by_image:
        raise DataError(f"{file}: the table has no rows below the names of its columns")
    return list(correction_by_image.values())


def _correction(values: Mapping[str, str], line: int, place: str) -> Correction:
    image, label = values["image"], values["label"].strip()
    new_label, action = values["new_label"].strip(), values.get("action", "").strip().lower()
    if not image or not label:
        raise DataError(f"{place}: expected an image and its label, received an empty cell")
    if action not in (*_RELABEL, *_DROP):
        raise DataError(f"{place}: expected relabel, drop or delete as action, received {action!r}")
    if action in _DROP:
        if new_label:
            raise DataError(f"{place}: expected no new label with {action}, received {new_label!r}")
        return Correction(image, label, None, line)
    if not new_label:
        raise DataError(f"{place}: expected a new label, or drop as action; received neither")
    return Correction(image, label, new_label, line)


def apply_corrections(
    source: str | Path, corrections: str | Path, output: str | Path | None = None
) -> CorrectionSummary:
    """Writes lists with corrected labels. The lists themselves are not changed.

    Args:
        source: list, or folder of lists, also with folders of folds. Classes have the names in
            ``class_names.txt`` beside a list; without it, labels are ids.
        corrections: table of corrections; see ``read_corrections``.
        output: new list or new folder. None for one beside the old one, with ``_corrected`` in its name.

    Raises:
        DataError: an image of the table is in no list, has another label now, or gets a class that does not
            exist; or no image would remain in a list. Or files of other lists would be replaced.
        OSError: a list can't be written.
    """
    source, table_file = Path(source), Path(corrections)
    rows = read_corrections(table_file)
    files = list_files(source) if source.is_dir() else [source]
    new_files = _new_files(source, files, Path(output) if output is not None else None)
    for new_file in new_files:
        check_output_folder(new_file.parent)
    if not source.is_dir():
        _check_other_files(source, new_files[0])
    correction_by_image = {row.image: row for row in rows}
    lists = [_CorrectedList(file, correction_by_image, table_file) for file in files]
    listed_images = set().union(*(entry.changed_images for entry in lists))
    unlisted_rows = [row for row in rows if row.image not in listed_images]
    if unlisted_rows:
        shown_rows = [f"line {row.line}: {row.image}" for row in unlisted_rows[:4]]
        raise DataError(
            f"{table_file}: {len(unlisted_rows):,} of {len(rows):,} rows name images that are not in "
            f"{source}: {excerpt_of(shown_rows, len(unlisted_rows))}"
        )
    summary = CorrectionSummary()
    for entry, new_file in zip(lists, new_files, strict=True):
        entry.write(new_file, summary)
    return summary


def _new_files(source: Path, files: Sequence[Path], output: Path | None) -> list[Path]:
    """Returns the new file of each list. Raises DataError if it is the list itself."""
    if source.is_dir():
        folder = output or source.resolve().with_name(f"{source.resolve().name}_corrected")
        new_files = [folder / file.relative_to(source) for file in files]
    else:
        new_files = [output or source.with_name(f"{source.stem}_corrected{source.suffix}")]
    for file, new_file in zip(files, new_files, strict=True):
        if os.path.realpath(file) == os.path.realpath(new_file):
            raise DataError(f"{new_file} is the list itself, which must not change: give another --output")
    return new_files


def _check_other_files(file: Path, new_file: Path) -> None:
    """Refuses to replace class names or groups of other lists, which are beside a new list.

    Raises:
        DataError: such a file differs from that beside the list.
    """
    for name, max_bytes in _FILES_BESIDE.items():
        old_file, other_file = file.parent / name, new_file.parent / name
        if (
            old_file.is_file()
            and other_file.exists()
            and read_regular(old_file, max_bytes) != read_regular(other_file, max_bytes)
        ):
            raise DataError(f"{other_file} differs from {old_file}: give an --output in another folder")


class _CorrectedList:
    """A list with the corrections of its images.

    Args:
        file: list.
        corrections: correction by image; images of other lists are left out.
        table_file: table of the corrections, for messages.

    Attributes:
        changed_images: images with a correction.

    Raises:
        DataError: a correction does not fit the list.
    """

    def __init__(self, file: Path, corrections: Mapping[str, Correction], table_file: Path) -> None:
        self._file = file
        self._index = ListIndex(file)
        names_file = file.parent / CLASS_NAMES_FILE
        self._names = read_class_names(names_file, None) if names_file.is_file() else []
        self.changed_images: set[str] = set()
        self._samples: list[tuple[str, int]] = []
        self._counts = {"changed": 0, "dropped": 0}
        mismatches = []
        for i in range(len(self._index)):
            path, label = self._index.path(i), int(self._index.labels[i])
            correction = corrections.get(path)
            if correction is not None:
                self.changed_images.add(path)
                place = f"{table_file}:{correction.line}"
                if self._id_of(correction.label) != label:
                    mismatches.append(
                        f"line {correction.line}: {path} has the label {self._name_of(label)!r} in the list, "
                        f"and {correction.label!r} in the table"
                    )
                    continue
                if correction.new_label is None:
                    self._counts["dropped"] += 1
                    continue
                new_label = self._checked_id(correction.new_label, place)
                self._counts["changed"] += new_label != label
                label = new_label
            self._samples.append((path, label))
        if mismatches:
            raise DataError(
                f"{table_file}: {len(mismatches):,} rows do not fit {file}: {excerpt_of(mismatches)}"
            )
        if not self._samples:
            raise DataError(f"{file}: no image would remain in the list")

    def _id_of(self, label: str) -> int | None:
        """Returns the class with this name or else this id; None if there is none."""
        if label in self._names:
            return self._names.index(label)
        is_id = label.isascii() and label.isdecimal() and len(label) <= 9
        return int(label) if is_id and (not self._names or int(label) < len(self._names)) else None

    def _checked_id(self, label: str, place: str) -> int:
        """Returns the class with this name or id. Raises DataError if there is none."""
        class_id = self._id_of(label)
        if class_id is None:
            nearest = nearest_spelling(label, self._names)
            hint = f"; did you mean {nearest!r}?" if nearest else ""
            raise DataError(f"{place}: {label!r} is no class of {self._file}{hint}")
        return class_id

    def _name_of(self, label: int) -> str:
        return self._names[label] if label < len(self._names) else str(label)

    def write(self, file: Path, summary: CorrectionSummary) -> None:
        """Writes the list, and beside it the class names and the groups, and adds it to the summary."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, "".join(f"{list_line(path, label)}\n" for path, label in self._samples))
        if file.parent.resolve() != self._file.parent.resolve():
            for name, max_bytes in _FILES_BESIDE.items():
                if (self._file.parent / name).is_file():
                    write_bytes(file.parent / name, read_regular(self._file.parent / name, max_bytes))
        summary.lists[str(file)] = len(self._samples)
        changes = ", ".join(f"{count:,} {words}" for words, count in self._counts.items())
        summary.notes.append(f"{file}: {len(self._samples):,} lines; of {len(self._index):,}, {changes}")
        if self._file.name.startswith("train"):
            summary.notes += coverage_notes({"train": self._samples}, self._names)
