"""Corrections of labels: the table, and the lists that it changes."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

import ppxcls
from ppxcls.cli.lists import run_lists
from ppxcls.data.corrections import Correction, apply_corrections, corrections_text, read_corrections
from tests.conftest import run_tool

TRAIN = "a 1.jpg 0\n./ b.jpg 1\nc\0d.jpg 2\ne.jpg 0\n"
HEADER = "image,label,new_label,action\n"


def lists(folder: Path, names: str = "0 ant\n1 bee\n2 élan, old\n") -> Path:
    folder.mkdir(parents=True)
    (folder / "train_list.txt").write_text(TRAIN)
    (folder / "val_list.txt").write_text("f.jpg 2\n")
    (folder / "groups.csv").write_text("image,group\nf.jpg,1\n")
    if names:
        (folder / "class_names.txt").write_text(names, encoding="utf-8")
    return folder


def table(folder: Path, text: str) -> Path:
    (folder / "corrections.csv").write_text(text, encoding="utf-8")
    return folder / "corrections.csv"


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    rows = [
        Correction('a "b",c.jpg', "ant", "=bee", 2),
        Correction("c\nd.jpg", "drop", None, 3),
        Correction("é.jpg", "1", "drop", 5),
    ]
    assert read_corrections(table(tmp_path, corrections_text(rows))) == rows


def test_the_command_writes_new_lists_beside_the_old_ones(tmp_path: Path) -> None:
    folder = lists(tmp_path / "lists")
    rows = 'a 1.jpg,ant,"élan, old",\n"c\nd.jpg","élan, old",,drop\nf.jpg,2,bee,relabel\ne.jpg,ant,ant,\n'
    result = run_tool("lists", folder, "--apply", table(tmp_path, HEADER + rows))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        f"{folder}_corrected/train_list.txt: 3 lines; of 4, 1 changed, 1 dropped",
        f"{folder}_corrected/val_list.txt: 1 lines; of 1, 1 changed, 0 dropped",
    ]
    assert (tmp_path / "lists_corrected/train_list.txt").read_text() == "a 1.jpg 2\n./ b.jpg 1\ne.jpg 0\n"
    assert (tmp_path / "lists_corrected/val_list.txt").read_text() == "f.jpg 1\n"
    assert (folder / "train_list.txt").read_text() == TRAIN, "the list is not changed"
    for name in ("class_names.txt", "groups.csv"):
        assert (tmp_path / "lists_corrected" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--apply c.csv --folds 3", "expected --apply with SOURCE and perhaps --output"),
        ("--apply c.csv --val-share 0.3", "expected --apply with SOURCE and perhaps --output"),
        ("--apply c.csv --test-share 0.3", "expected --apply with SOURCE and perhaps --output"),
        ("--apply c.csv --seed 1", "expected --apply with SOURCE and perhaps --output"),
        ("--apply c.csv --group (a)", "expected --apply with SOURCE and perhaps --output"),
        ("-o new --labels l.txt --image-root a", "expected --labels with SOURCE and --output"),
        ("-o new --labels l.txt --seed 1", "expected --labels with SOURCE and --output"),
    ],
)
def test_options_that_would_have_no_effect(
    options: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["ppxcls", "lists", *options.split()])
    with pytest.raises(SystemExit):
        run_lists(argparse.ArgumentParser())
    assert message in capsys.readouterr().err


def test_files_of_other_lists_are_not_replaced(tmp_path: Path) -> None:
    folder, other = lists(tmp_path / "lists"), lists(tmp_path / "other", names="0 x\n1 y\n")
    corrections = table(tmp_path, HEADER + "e.jpg,ant,bee,\n")
    with pytest.raises(ppxcls.DataError, match="other/class_names.txt differs from .*lists/class_names.txt"):
        apply_corrections(folder / "train_list.txt", corrections, other / "new.txt")
    assert (other / "class_names.txt").read_text() == "0 x\n1 y\n"
    assert not (other / "new.txt").exists()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="expected a folder for the results"):
        apply_corrections(folder, corrections, tmp_path / "file")


def test_one_list(tmp_path: Path) -> None:
    folder = lists(tmp_path / "lists", names="")
    corrections = table(tmp_path, "Image;Label;New label\ne.jpg;0;7\n")
    summary = apply_corrections(folder / "train_list.txt", corrections)
    new_list = folder / "train_list_corrected.txt"
    assert summary.lists == {str(new_list): 4}
    assert new_list.read_text() == TRAIN.replace("e.jpg 0", "e.jpg 7")
    apply_corrections(folder / "train_list.txt", corrections, tmp_path / "new/list.txt")
    assert (tmp_path / "new/list.txt").read_text() == new_list.read_text()


def test_lists_of_folds(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        lists(tmp_path / f"lists/fold_{number}")
    summary = apply_corrections(
        tmp_path / "lists", table(tmp_path, HEADER + "f.jpg,2,ant,\n"), tmp_path / "new"
    )
    assert list(summary.lists) == [
        str(tmp_path / f"new/fold_{number}/{part}_list.txt")
        for number in (1, 2, 10)
        for part in ("train", "val")
    ]
    assert (tmp_path / "new/fold_10/val_list.txt").read_text() == "f.jpg 0\n"


def test_a_class_without_training_images_is_mentioned(tmp_path: Path) -> None:
    summary = apply_corrections(lists(tmp_path / "lists"), table(tmp_path, HEADER + "./ b.jpg,bee,ant,\n"))
    assert "without images in the training list: 1 classes: bee" in summary.notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\ne.jpg,ant\n", ":1: expected the columns image,label,new_label and perhaps action, received no new_label"),
        (HEADER, "the table has no rows"),
        (HEADER + "e.jpg,ant,,\n", ":2: expected a new label, or drop as action; received neither"),
        (HEADER + "e.jpg,ant,bee,drop\n", ":2: expected no new label with drop, received 'bee'"),
        (HEADER + "e.jpg,ant,bee,remove\n", ":2: expected relabel, drop or delete as action, received 'remove'"),
        (HEADER + "e.jpg,,bee,\n", ":2: expected an image and its label, received an empty cell"),
        (HEADER + "e.jpg,ant,bee,\ne.jpg,ant,,drop\n", ":3: line 2 has another correction of this image"),
        (HEADER + "e.jpg,ant,bee,\nx.jpg,ant,bee,\n", "1 of 2 rows name images that are not in .*: line 3: x.jpg"),
        (HEADER + "e.jpg,bee,ant,\n", "1 rows do not fit .*: line 2: e.jpg has the label 'ant' in the list, and 'bee' in the table"),
        (HEADER + "e.jpg,wasp,ant,\n", "1 rows do not fit"),
        (HEADER + "e.jpg,ant,Bee,\n", ":2: 'Bee' is no class of .*; did you mean 'bee'?"),
        (HEADER + "e.jpg,ant,3,\n", ":2: '3' is no class of"),
        (HEADER + "f.jpg,2,,delete\n", "no image would remain in the list"),
        ("\0", "NUL characters"),
    ],
)  # fmt: skip
def test_refused_corrections(text: str, message: str, tmp_path: Path) -> None:
    folder = lists(tmp_path / "lists")
    with pytest.raises(ppxcls.DataError, match=message) as error:
        apply_corrections(folder, table(tmp_path, text))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "lists_corrected").exists()


def test_the_list_itself_is_not_replaced(tmp_path: Path) -> None:
    folder = lists(tmp_path / "lists")
    corrections = table(tmp_path, HEADER + "e.jpg,ant,bee,\n")
    for source, output in ((folder, folder), (folder / "train_list.txt", folder / "train_list.txt")):
        with pytest.raises(ppxcls.DataError, match="is the list itself, which must not change"):
            apply_corrections(source, corrections, output)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ppxcls.DataError, match="no lists, such as train_list.txt"):
        apply_corrections(tmp_path / "empty", corrections)
