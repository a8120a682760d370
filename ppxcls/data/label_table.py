"""Reads the labels of images from a table in CSV."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ppxcls.data.errors import DataError
from ppxcls.data.groups import group_pattern
from ppxcls.data.image_files import IMAGE_EXTENSIONS
from ppxcls.data.split_folders import part_of_word
from ppxcls.data.tables import CsvTable, excerpt_of, open_table
from ppxcls.system.paths import is_address, url_problem
from ppxcls.system.spelling import nearest_spelling

# Usual names of columns, in lower case and without separators.
_USUAL_NAMES = {
    "image": (
        *(
            "image",
            "images",
            "img",
            "file",
            "files",
            "filename",
            "filenames",
            "path",
            "filepath",
            "imagepath",
        ),
        *("imgpath", "imagefile", "imgfile", "imagename", "imgname", "imagefilename", "relativepath"),
    ),
    "label": ("label", "labels", "class", "classname", "labelname", "category", "categoryname", "target"),
    "split": ("split", "subset", "partition"),
}
# Columns with such a name are mentioned, because their images may have to stay together.
_GROUP_NAMES = {
    *("group", "groupid", "patient", "patientid", "subject", "subjectid", "video", "videoid", "videoname"),
    *("case", "caseid", "session", "sessionid", "person", "personid", "individual", "individualid"),
}
_SEPARATORS = re.compile(r"[\W_]+")
_NUMBER = re.compile(r"[+-]?[0-9]{1,15}(\.[0-9]{1,15})?")


@dataclass(frozen=True, kw_only=True)
class TableColumns:
    """The columns of a table that a user has named. None for a column with a usual name.

    Attributes:
        image: column of the images' paths.
        label: column of the labels.
        split: column of the parts; there may be none.
        group: column of the groups, or a regular expression for the paths; None for no groups.
    """

    image: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None


@dataclass
class LabelTable:
    """The images of a table, in the order of the rows.

    Attributes:
        paths: path of each image, relative to the root.
        labels: class of each image.
        parts: part of each image: ``train``, ``val`` or ``test``.
        groups: group of each image; None if no column has them.
        classes: names of the classes.
        notes: remarks for the user.
        is_split: True if a column has the parts.
    """

    paths: list[str]
    labels: list[int]
    parts: list[str]
    groups: list[str] | None
    classes: list[str]
    notes: list[str] = field(default_factory=list)
    is_split: bool = False


@dataclass
class _Rows:
    """The cells of the columns that are used, by row.

    Attributes:
        lines: line number of each row.
        cells: cells of each column, by what the column has: ``image``, ``label``, ``split`` and ``group``.
    """

    lines: list[int] = field(default_factory=list)
    cells: dict[str, list[str]] = field(default_factory=dict)

    def without(self, indices: Iterable[int]) -> None:
        """Removes some rows."""
        removed_indices = set(indices)
        if removed_indices:
            indices_left = [i for i in range(len(self.lines)) if i not in removed_indices]
            self.lines = [self.lines[i] for i in indices_left]
            self.cells = {kind: [cells[i] for i in indices_left] for kind, cells in self.cells.items()}


def table_root(file: Path, image_root: str | Path | None) -> Path:
    """Returns the folder to which the paths of a table are relative.

    Raises:
        DataError: there is no such folder.
    """
    root = Path(image_root) if image_root is not None else file.parent
    if not os.path.isdir(root):
        raise DataError(f"{root}: no such folder of images for {file}")
    return root


def read_label_table(file: Path, root: Path, columns: TableColumns) -> LabelTable:
    """Reads the images of a table in CSV, and checks that they exist.

    The first line has the names of the columns. Paths are relative to the root, or absolute and inside it.
    Labels that are all numbers become classes in numeric order. Other labels become classes in the order of
    their names, as folders do. A repeated row counts once.

    Args:
        file: CSV file; see ``open_table``.
        root: folder to which the paths are relative.
        columns: columns that the user has named.

    Raises:
        DataError: the table can't be read; a column is missing; a cell is empty; a path leads out of the
            root, or its file is missing; an image has two labels, parts or groups; or a part is unknown.
    """
    table = open_table(file)
    kinds, notes = _chosen_columns(table, columns)
    rows = _Rows(cells={kind: [] for kind in kinds})
    pairs = [(cells, index) for cells, index in zip(rows.cells.values(), kinds.values(), strict=True)]
    for line, row in table.rows:
        rows.lines.append(line)
        for cells, index in pairs:
            cells.append(row[index])
    if not rows.lines:
        raise DataError(f"{file}: the table has no rows below the names of its columns")
    _check_cells(table, kinds, rows)
    rows.cells["image"] = _relative_paths(file, root, rows)
    notes.append(f"the paths are relative to {root}, which is the image_root of the lists")
    notes += _without_repeated_rows(file, rows)
    parts = _parts(table, rows, columns, notes)
    notes += _check_files(file, root, rows)
    labels = rows.cells["label"]
    classes = ordered_classes(set(labels))
    label_by_name = {name: label for label, name in enumerate(classes)}
    if all(map(_NUMBER.fullmatch, classes)) and classes != [str(label) for label in range(len(classes))]:
        notes.append(
            f"the labels {classes[0]} to {classes[-1]} are numbers, and become the classes 0 to "
            f"{len(classes) - 1} in numeric order"
        )
    return LabelTable(
        paths=rows.cells["image"],
        labels=[label_by_name[name] for name in labels],
        parts=parts or ["train"] * len(labels),
        groups=rows.cells.get("group"),
        classes=classes,
        notes=notes,
        is_split=parts is not None,
    )


def ordered_classes(names: Collection[str]) -> list[str]:
    """Returns the names of classes in the order of their ids: by number if all are numbers, else by name."""
    if all(map(_NUMBER.fullmatch, names)):
        return sorted(names, key=lambda name: (float(name), name))
    return sorted(names)


def _chosen_columns(table: CsvTable, columns: TableColumns) -> tuple[dict[str, int], list[str]]:
    """Returns the index of each column that is used, by what it has, and remarks for the user.

    Raises:
        DataError: a column is missing, or several could be meant.
    """
    kinds: dict[str, int] = {}
    for kind, name in (("image", columns.image), ("label", columns.label), ("split", columns.split)):
        index = _named_column(table, name, f"--{kind}") if name is not None else _usual_column(table, kind)
        if index is not None:
            kinds[kind] = index
    if columns.group is not None:
        index = _column_index(table, columns.group)
        if index is not None:
            kinds["group"] = index
        elif "(" in columns.group:
            group_pattern(columns.group)
        else:
            raise _missing_column(table, columns.group, "--group")
    if len({kinds["image"], kinds["label"]}) < 2:
        raise DataError(f"{table.file}: the column {table.columns[kinds['image']]!r} is image and label")
    text = ", ".join(f"{kind} {table.columns[index]!r}" for kind, index in kinds.items())
    notes = [f"columns: {text}"]
    usual_groups = [name for name in table.columns if _plain_name(name) in _GROUP_NAMES]
    if columns.group is None and usual_groups:
        notes.append(f"--group {usual_groups[0]!r} would keep images with the same value in one list")
    return kinds, notes


def _column_index(table: CsvTable, name: str) -> int | None:
    """Returns the index of a column, by its name or by its name in any case; None if there is none.

    Raises:
        DataError: there are several.
    """
    names = list(table.columns)
    matches = [i for i, column in enumerate(names) if column == name.strip()]
    matches = matches or [i for i, column in enumerate(names) if column.lower() == name.strip().lower()]
    if len(matches) > 1:
        raise DataError(f"{table.file}: {len(matches)} columns are named {name!r}")
    return matches[0] if matches else None


def _named_column(table: CsvTable, name: str, option: str) -> int:
    index = _column_index(table, name)
    if index is None:
        raise _missing_column(table, name, option)
    return index


def _missing_column(table: CsvTable, name: str, option: str) -> DataError:
    nearest = nearest_spelling(name, table.columns)
    hint = f"; did you mean {nearest!r}?" if nearest else ""
    return DataError(
        f"{table.file}: expected a column as {option}, received {name!r}{hint}; "
        f"the columns are {excerpt_of([repr(column) for column in table.columns])}"
    )


def _usual_column(table: CsvTable, kind: str) -> int | None:
    """Returns the index of the column with a usual name.

    Raises:
        DataError: there are several, or there is none and the column is needed.
    """
    matches = [i for i, column in enumerate(table.columns) if _plain_name(column) in _USUAL_NAMES[kind]]
    if len(matches) > 1:
        names = " and ".join(repr(table.columns[i]) for i in matches[:3])
        raise DataError(f"{table.file}: the columns {names} could be the {kind}: name one with --{kind}")
    if not matches and kind != "split":
        raise DataError(
            f"{table.file}:1: no column has a usual name for the {kind}, such as {_USUAL_NAMES[kind][0]!r}: "
            f"name one with --{kind}; the columns are {excerpt_of([repr(name) for name in table.columns])}"
        )
    return matches[0] if matches else None


def _plain_name(name: str) -> str:
    return _SEPARATORS.sub("", name.casefold())


def _check_cells(table: CsvTable, kinds: dict[str, int], rows: _Rows) -> None:
    """Strips the cells of all columns but that of the paths.

    Raises:
        DataError: a cell is empty.
    """
    for kind, index in kinds.items():
        cells = rows.cells[kind]
        if kind != "image":
            cells = rows.cells[kind] = [cell.strip() for cell in cells]
        empty_indices = [i for i, cell in enumerate(cells) if not cell]
        if empty_indices:
            lines = [f"line {rows.lines[i]}" for i in empty_indices[:4]]
            raise DataError(
                f"{table.file}: {len(empty_indices):,} of {len(cells):,} rows have no value in the column "
                f"{table.columns[index]!r}: {excerpt_of(lines, len(empty_indices))}"
            )


def _problem(file: Path, rows: _Rows, indices: Sequence[int], words: str) -> DataError:
    """Returns an error about some rows, with their number and the first few of them."""
    shown_rows = [f"line {rows.lines[i]}: {rows.cells['image'][i]}" for i in indices[:4]]
    excerpt = excerpt_of(shown_rows, len(indices))
    return DataError(f"{file}: {len(indices):,} of {len(rows.lines):,} rows {words}: {excerpt}")


def _relative_paths(file: Path, root: Path, rows: _Rows) -> list[str]:
    """Returns the paths relative to the root, without ``.`` and ``..``.

    Raises:
        DataError: a path leads out of the root.
    """
    prefixes = tuple(os.path.join(path, "") for path in (os.path.abspath(root), os.path.realpath(root)))
    paths = rows.cells["image"]
    outside_indices = []
    for i, path in enumerate(paths):
        is_normal = path[:1] != "/" and "./" not in path and "//" not in path  # most paths
        if is_normal or is_address(path):
            continue
        normal_path = os.path.normpath(path)
        if os.path.isabs(normal_path):
            prefix = next((prefix for prefix in prefixes if normal_path.startswith(prefix)), None)
            normal_path = normal_path[len(prefix) :] if prefix else ".."
        if normal_path.split(os.sep, 1)[0] == "..":
            outside_indices.append(i)
        paths[i] = path if normal_path == ".." else normal_path
    if outside_indices:
        words = f"have paths outside of the folder {root}; give a folder of all images as --image-root"
        raise _problem(file, rows, outside_indices, words)
    return paths


def _without_repeated_rows(file: Path, rows: _Rows) -> list[str]:
    """Leaves out rows that repeat an earlier one, and returns a remark if there are any.

    Raises:
        DataError: an image has two labels, parts or groups.
    """
    paths = rows.cells["image"]
    if len(set(paths)) == len(paths):
        return []
    first_indices: dict[str, int] = {}
    repeated_indices = [i for i, path in enumerate(paths) if first_indices.setdefault(path, i) != i]
    for kind, words in (("label", "labels"), ("split", "parts"), ("group", "groups")):
        cells = rows.cells.get(kind)
        if cells is None:
            continue
        conflicts = [i for i in repeated_indices if cells[i] != cells[first_indices[paths[i]]]]
        if conflicts:
            raise _problem(file, rows, conflicts, f"have an image of an earlier row, with other {words}")
    shown_rows = [f"line {rows.lines[i]}: {paths[i]}" for i in repeated_indices[:4]]
    rows.without(repeated_indices)
    return [
        f"{len(repeated_indices):,} rows repeat an earlier one and count once: "
        f"{excerpt_of(shown_rows, len(repeated_indices))}"
    ]


def _parts(table: CsvTable, rows: _Rows, columns: TableColumns, notes: list[str]) -> list[str] | None:
    """Returns the part of each row; None if no column has parts.

    A column with a usual name is left out if its values are no parts.

    Raises:
        DataError: a value of the column that the user has named is no part, or no row is for training.
    """
    words = rows.cells.get("split")
    if words is None:
        return None
    part_by_word = {word: part_of_word(word) for word in set(words)}
    unknown_indices = [i for i, word in enumerate(words) if part_by_word[word] is None]
    if unknown_indices:
        word = words[unknown_indices[0]]
        if columns.split is None:
            notes.append(f"the column of parts is not used, because of the value {word!r}; see --split")
            return None
        expected = f"are in no part: expected a word such as train, val or test, received {word!r}"
        raise _problem(table.file, rows, unknown_indices, expected)
    parts = [part_by_word[word] or "" for word in words]
    if "train" not in parts:
        raise DataError(f"{table.file}: no row is in the training part, by the column of parts")
    return parts


def _check_files(file: Path, root: Path, rows: _Rows) -> list[str]:
    """Checks that the images exist, and returns remarks. Adds the extension if all paths lack the same one.

    Raises:
        DataError: files of images are missing.
    """
    paths = rows.cells["image"]
    prefix = os.path.join(root, "")
    missing_indices = [i for i, path in enumerate(paths) if not os.path.isfile(prefix + path)]
    if not missing_indices:
        return []
    first_path = paths[missing_indices[0]]
    if problem := url_problem(first_path):
        raise DataError(f"{file}:{rows.lines[missing_indices[0]]}: {problem}")
    if len(missing_indices) == len(paths):
        for extension in sorted(IMAGE_EXTENSIONS):
            if os.path.isfile(f"{prefix}{first_path}{extension}"):
                rows.cells["image"] = [f"{path}{extension}" for path in paths]
                return [
                    f"the paths have no extension: {extension} is added",
                    *_check_files(file, root, rows),
                ]
    raise _problem(file, rows, missing_indices, f"have images that are missing in {root}")
