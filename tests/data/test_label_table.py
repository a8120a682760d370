"""Labels from a table in CSV: its columns, and every kind of row that a table can hold."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

import pytest

import ppxcls
from ppxcls.data.groups import read_groups
from ppxcls.data.held_out import PARTS
from ppxcls.data.label_table import LabelTable, TableColumns, ordered_classes, read_label_table
from ppxcls.data.list_index import ListIndex
from ppxcls.data.tables import open_table
from tests.conftest import run_tool

NAMES = [
    "a b.jpg",
    'c "d".jpg',
    "e\nf.jpg",
    "=1+1.jpg",
    "g,h;i.jpg",
    "日本 é.jpg",
    " j.jpg",
    "-k.jpg",
    "l.jpg ",
]


def read(folder: Path, text: str | bytes, *names: str, **columns: str) -> LabelTable:
    """Writes a table and its images, and reads it."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_label_table(folder / "labels.csv", folder, TableColumns(**columns))


def written(rows: list[list[str]], delimiter: str = ",") -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_every_name_survives(encoding: str, delimiter: str, tmp_path: Path) -> None:
    labels = ["cat", 'dog "x"', "=cmd()", "élan", "a,b;c"]
    rows = [[name, labels[i % 5]] for i, name in enumerate(NAMES)]
    table = read(tmp_path, written([["file_name", "Class"], *rows], delimiter).encode(encoding), *NAMES)
    assert table.paths == NAMES
    assert [table.classes[label] for label in table.labels] == [label for _, label in rows]
    assert table.classes == sorted(labels)
    assert table.groups is None
    assert not table.is_split


def test_lists_of_a_table_hold_every_name(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).touch()
    (tmp_path / "labels.csv").write_text(
        written([["image", "label"], *([name, "x"] for name in NAMES)]), encoding="utf-8"
    )
    ppxcls.make_lists(tmp_path / "labels.csv", tmp_path / "lists", val_share=0)
    index = ListIndex(tmp_path / "lists/train_list.txt")
    assert [index.path(i) for i in range(len(index))] == [
        f"./{name}" if name[0] == " " else name for name in NAMES
    ]


@pytest.mark.parametrize(
    ("header", "columns", "used"),
    [
        ("image,label", {}, (0, 1)),
        ("Label,File Name", {}, (1, 0)),
        ("id,filepath,breed,CATEGORY", {}, (1, 3)),
        ("id, path, target", {}, (1, 2)),
        ("image,path,label", {"image": "path"}, (1, 2)),
        ("image,label,class", {"label": "CLASS"}, (0, 2)),
        ("a,b,c", {"image": "b", "label": "a"}, (1, 0)),
    ],
)
def test_columns(header: str, columns: dict[str, str], used: tuple[int, int], tmp_path: Path) -> None:
    cells = ["other"] * (header.count(",") + 1)
    for index, value in zip(used, ("x.jpg", "cat"), strict=True):
        cells[index] = value
    separator = ", " if ", " in header else ","
    table = read(tmp_path, f"{header}\n{separator.join(cells)}\n", "x.jpg", **columns)
    assert (table.paths, table.classes) == (["x.jpg"], ["cat"])
    names = [name.strip() for name in header.split(",")]
    assert table.notes[0].startswith(f"columns: image {names[used[0]]!r}, label {names[used[1]]!r}")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "2"], ["2", "9", "10"]),
        (["0", "1", "2", "10"], ["0", "1", "2", "10"]),
        (["1.0", "-3", "0.5"], ["-3", "0.5", "1.0"]),
        (["10", "9", "cat"], ["10", "9", "cat"]),
        (["Zebra", "ant", "Élan"], ["Zebra", "ant", "Élan"]),
        (["9" * 5000, "1"], ["1", "9" * 5000]),
        (["²", "1"], ["1", "²"]),
    ],
)
def test_the_order_of_the_classes(labels: list[str], classes: list[str]) -> None:
    assert ordered_classes(labels) == classes


def test_numbers_that_are_no_ids_are_mentioned(tmp_path: Path) -> None:
    table = read(tmp_path, "image,label\na.jpg,2\nb.jpg,10\n", "a.jpg", "b.jpg")
    assert table.labels == [0, 1]
    assert "the labels 2 to 10 are numbers, and become the classes 0 to 1 in numeric order" in table.notes
    assert len(read(tmp_path, "image,label\na.jpg,0\nb.jpg,1\n").notes) == len(table.notes) - 1


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["train", "val", "test"], ["train", "val", "test"]),
        (["Training", "valid", "holdout"], ["train", "val", "val"]),
        (["tr", "validation", "TEST"], ["train", "val", "test"]),
        (["train", "dev", "训练"], ["train", "val", "train"]),
    ],
)
def test_words_of_parts(words: list[str], parts: list[str], tmp_path: Path) -> None:
    rows = "".join(f"{i}.jpg,cat,{word}\n" for i, word in enumerate(words))
    table = read(tmp_path, f"image,label,split\n{rows}", *(f"{i}.jpg" for i in range(3)))
    assert table.parts == parts
    assert table.is_split


def test_a_column_of_other_words_is_left_out(tmp_path: Path) -> None:
    table = read(tmp_path, "image,label,split\na.jpg,x,pea\n", "a.jpg")
    assert not table.is_split
    assert "the column of parts is not used, because of the value 'pea'; see --split" in table.notes


def test_paths_are_relative_to_the_root(tmp_path: Path) -> None:
    (tmp_path / "images/deep").mkdir(parents=True)
    absolute = tmp_path / "images/b.jpg"
    text = f"image,label\nimages/a.jpg,x\n{absolute},y\nimages/deep/../c.jpg,x\n./images/d.jpg,y\n"
    names = [f"images/{name}.jpg" for name in "abcd"]
    assert read(tmp_path, text, *names).paths == names
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    table = read_label_table(tmp_path / "labels.csv", link, TableColumns())
    assert table.paths == names, "the absolute path is inside the real folder"


def test_a_missing_extension_is_added(tmp_path: Path) -> None:
    table = read(tmp_path, "image,label\na,x\nb,y\n", "a.png", "b.png")
    assert table.paths == ["a.png", "b.png"]
    assert "the paths have no extension: .png is added" in table.notes
    with pytest.raises(
        ppxcls.DataError, match="1 of 3 rows have images that are missing in .*: line 4: c.png"
    ):
        read(tmp_path, "image,label\na,x\nb,y\nc,x\n")


def test_repeated_rows_count_once(tmp_path: Path) -> None:
    table = read(tmp_path, "image,label\na.jpg,x\nb.jpg,y\n./a.jpg,x\n", "a.jpg", "b.jpg")
    assert table.paths == ["a.jpg", "b.jpg"]
    assert "1 rows repeat an earlier one and count once: line 4: a.jpg" in table.notes


def test_a_column_of_groups_is_mentioned_and_used(tmp_path: Path) -> None:
    text = "image,label,Patient ID\na.jpg,x,1\nb.jpg,y, 2\n"
    assert any("--group 'Patient ID'" in note for note in read(tmp_path, text, "a.jpg", "b.jpg").notes)
    assert read(tmp_path, text, group="patient id").groups == ["1", "2"]
    assert read(tmp_path, text, group="(.)[.]jpg").groups is None, "it is for the paths"


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("", {}, ":1: expected the names of the columns, received none"),
        ("\n\n", {}, ":1: expected the names of the columns, received none"),
        ("image,label\n", {}, "the table has no rows below the names of its columns"),
        ("a.jpg,cat\nb.jpg,dog\n", {}, ":1: no column has a usual name for the image, such as 'image'"),
        ("image,kind\na.jpg,x\n", {}, "no column has a usual name for the label.* the columns are 'image'; 'kind'"),
        ("image,path,label\na.jpg,b,x\n", {}, "the columns 'image' and 'path' could be the image: name one with --image"),
        ("image,label\na.jpg,x\n", {"label": "lable"}, "expected a column as --label, received 'lable'; did you mean 'label'"),
        ("image,label\na.jpg,x\n", {"group": "patient"}, "expected a column as --group, received 'patient'"),
        ("image,label\na.jpg,x\n", {"group": "(a)(b)"}, "one pair of parentheses"),
        ("image,label\na.jpg,x\n", {"label": "image"}, "the column 'image' is image and label"),
        ("image,label,label\na.jpg,x,y\n", {"label": "label"}, "2 columns are named 'label'"),
        ("image,label\na.jpg,\nb.jpg,y\na.jpg, \n", {}, "2 of 3 rows have no value in the column 'label': line 2; line 4"),
        ("image,label\n,x\n", {}, "1 of 1 rows have no value in the column 'image': line 2"),
        ("image,label\na.jpg,x\na.jpg,y\n", {}, "1 of 2 rows have an image of an earlier row, with other labels: line 3: a.jpg"),
        ("image,label,split\na.jpg,x,train\na.jpg,x,val\n", {}, "with other parts: line 3: a.jpg"),
        ("image,label,p\na.jpg,x,1\na.jpg,x,2\n", {"group": "p"}, "with other groups: line 3: a.jpg"),
        ("image,label\nnone.jpg,x\na.jpg,x\ngone.jpg,x\n", {}, "2 of 3 rows have images that are missing in .*: line 2: none.jpg; line 4: gone.jpg"),
        ("image,label\n.,x\n", {}, "1 of 1 rows have images that are missing"),
        ("image,label\n../a.jpg,x\n", {}, "1 of 1 rows have paths outside of the folder"),
        ("image,label\n/etc/passwd,x\na.jpg,x\n", {}, "1 of 2 rows have paths outside .* give a folder of all images as --image-root: line 2"),
        ("image,label\nhttps://example.org/a.jpg,x\n", {}, "labels.csv:2: expected a file, received a URL; download it first"),
        ("image,label,part\na.jpg,x,train\nb.jpg,x,7\n", {"split": "part"}, "1 of 2 rows are in no part: expected a word such as train, val or test, received '7': line 3"),
        ("image,label,split\na.jpg,x,val\n", {}, "no row is in the training part"),
        ("image,label\na.jpg\n", {}, ":2: expected 2 cells as in the first line, received 1"),
        ("image,label\na.jpg,x,y\n", {}, ":2: expected 2 cells as in the first line, received 3"),
        ('image,label\na.jpg,x\n"b.jpg,y\nc.jpg,z\n', {}, ":3: not a row of a table in CSV: unexpected end of data"),
        ('image,label\n"a"b.jpg,x\n', {}, ":2: not a row of a table in CSV"),
        (f"image,label\n{'a' * 200_000},x\n", {}, ":2: not a row of a table in CSV: field larger than field limit"),
        ("image,label\na.jpg,\xe9\n".encode("latin-1"), {}, ":2: not UTF-8: "),
        (b"PK\x03\x04\x14\x00\x06\x00\xff\xff", {}, "expected a text, received a ZIP archive, or a document in one"),
        (b"image,label\na\0.jpg,x\n", {}, "received a file with NUL characters"),
        (b"\xff" * 100, {}, ":1: not UTF-8"),
    ],
)  # fmt: skip
def test_refused_tables(text: str | bytes, columns: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ppxcls.DataError, match=message) as error:
        read(tmp_path, text, "a.jpg", "b.jpg", **columns)
    assert "\n" not in str(error.value)


def test_empty_rows_and_cells_are_left_out(tmp_path: Path) -> None:
    table = read(tmp_path, "image,label\r\n\r\na.jpg,x,,\r\n,\r\nb.jpg,y\r\n\r\n", "a.jpg", "b.jpg")
    assert table.paths == ["a.jpg", "b.jpg"]


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    for name, message in (
        ("pipe.csv", "not a regular file"),
        ("loop.csv", "can't be read"),
        ("no.csv", "no such table"),
    ):
        with pytest.raises(ppxcls.DataError, match=message):
            open_table(tmp_path / name)


def test_the_command_lists_a_table_with_parts_and_groups(tmp_path: Path) -> None:
    rows = []
    for i in range(40):
        part = "test" if i >= 30 else "train"
        rows.append([f"{i}.jpg", ("ant", "bee")[i % 2], f"p{i // 2}", part])
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / f"images/{i}.jpg").write_text(str(i))
    (tmp_path / "t.csv").write_text(written([["file", "label", "patient", "split"], *rows]))
    options = ["--image-root", tmp_path / "images", "--group", "patient"]
    result = run_tool("lists", tmp_path / "t.csv", "-o", tmp_path / "lists", *options)
    assert result.returncode == 0, result.stderr
    assert "columns: image 'file', label 'label', split 'split', group 'patient'" in result.stdout
    indexes = [ListIndex(tmp_path / f"lists/{part}_list.txt") for part in PARTS]
    assert [len(index) for index in indexes] == [24, 6, 10]
    patients = [{int(index.path(i).split(".")[0]) // 2 for i in range(len(index))} for index in indexes]
    assert sum(map(len, patients)) == len(set().union(*patients)) == 20
    result = run_tool("lists", tmp_path / "t.csv", "-o", tmp_path / "lists")
    assert result.returncode == 1
    assert "40 of 40 rows have images that are missing" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_class_that_only_judges_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.jpg").touch()
    (tmp_path / "t.csv").write_text("image,label,split\na.jpg,x,train\nb.jpg,y,test\n")
    with pytest.raises(
        ppxcls.DataError, match="a class of the test part that is not in the training part: 'y'"
    ):
        ppxcls.make_lists(tmp_path / "t.csv", tmp_path / "lists")


@pytest.mark.parametrize("options", [{"folds": 2}, {"group": "(a)"}, {"label": "x"}, {"image_root": "x"}])
def test_a_file_of_labels_allows_no_other_options(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        ppxcls.DataError,
        match="labels.txt: a file of labels allows no columns, groups, folds and image_root",
    ):
        ppxcls.make_lists(tmp_path, tmp_path / "lists", labels="labels.txt", **options)


def test_groups_of_a_table_are_found_by_the_paths_of_the_list(tmp_path: Path) -> None:
    """A path that begins with a blank is another text in the list."""
    for name in NAMES:
        (tmp_path / name).touch()
    rows = [["image", "label", "g"], *([name, "x", str(i)] for i, name in enumerate(NAMES))]
    (tmp_path / "labels.csv").write_text(written(rows), encoding="utf-8")
    ppxcls.make_lists(tmp_path / "labels.csv", tmp_path / "lists", val_share=0, group="g")
    index = ListIndex(tmp_path / "lists/train_list.txt")
    groups = read_groups(tmp_path / "lists/groups.csv")
    assert groups == {index.path(i): str(i) for i in range(len(index))}


@pytest.mark.parametrize("options", [{"image": "x"}, {"label": "x"}, {"split": "x"}, {"image_root": "x"}])
def test_options_of_tables_are_refused_for_folders(options: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    with pytest.raises(ppxcls.DataError, match=f"{next(iter(options))}='x' is for a table in CSV"):
        ppxcls.make_lists(tmp_path, tmp_path / "lists", **options)


def test_a_large_table_is_read(tmp_path: Path) -> None:
    """All rows but the first of each label name one image, so no file needs to exist."""
    (tmp_path / "a.jpg").touch()
    rows = "".join(f"./a.jpg,{i % 1000},p{i % 2000}\n" for i in range(200_000))
    with pytest.raises(ppxcls.DataError, match="199,800 of 200,000 rows have an image of an earlier row"):
        read(tmp_path, f"image,label,patient\n{rows}", group="patient")
