"""Groups of images, such as patients: they stay in one list or fold, and ``check`` fails if they do not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppxcls
from ppxcls.data.group_split import divide_groups, fold_numbers, joined_groups
from ppxcls.data.groups import GROUPS_FILE, group_pattern, groups_by_pattern, groups_text, read_groups
from ppxcls.data.held_out import PARTS, Shares, hold_out, hold_out_folds
from ppxcls.data.list_content import list_files
from ppxcls.data.list_index import ListIndex
from tests.conftest import run_tool

PATIENT = r"p(\d+)_"


def tree(seed: int) -> tuple[list[tuple[str, int]], dict[str, str]]:
    """Returns samples of a random tree, and the group of each path. Each group has one class or several."""
    rng = np.random.default_rng(seed)
    class_num, group_num = int(rng.integers(1, 6)), int(rng.integers(6, 40))
    samples, groups = [], {}
    for number in range(int(rng.integers(20, 200))):
        group = int(rng.integers(group_num))
        is_mixed = seed % 2 and rng.random() < 0.3
        label = int(rng.integers(class_num)) if is_mixed else group % class_num
        path = f"{label}/p{group}_{number}.jpg"
        samples.append((path, label))
        groups[path] = str(group)
    return samples, groups


def parts_of_groups(parts: dict[str, list[tuple[str, int]]], groups: dict[str, str]) -> dict[str, set[str]]:
    places: dict[str, set[str]] = {}
    for part, samples in parts.items():
        for path, _ in samples:
            places.setdefault(groups[path], set()).add(part)
    return places


@pytest.mark.parametrize("first_seed", range(0, 200, 50))
def test_no_group_of_a_random_tree_is_in_two_lists(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 50):
        samples, groups = tree(seed)
        parts = hold_out(
            {"train": samples, "val": [], "test": []}, Shares(0.1, 0.2), seed=seed, groups=groups
        )
        assert sorted(itertools.chain.from_iterable(parts.values())) == sorted(samples)
        assert all(len(places) == 1 for places in parts_of_groups(parts, groups).values()), seed
        for label in {label for _, label in samples}:
            group_count = len({groups[path] for path, sample_label in samples if sample_label == label})
            labels_by_part = [{label for _, label in parts[part]} for part in PARTS]
            count = sum(label in labels for labels in labels_by_part)
            # Groups of one class can always be divided so. Mixed groups of this seed can, too.
            assert count == min(group_count, 3), (seed, label)


def test_groups_of_one_image_have_the_exact_shares() -> None:
    samples = [(f"{i}.jpg", i % 4) for i in range(400)]
    parts = hold_out(
        {"train": samples, "val": [], "test": []},
        Shares(0.1, 0.2),
        seed=0,
        groups={path: path for path, _ in samples},
    )
    for part, count in (("train", 70), ("val", 10), ("test", 20)):
        assert np.bincount([label for _, label in parts[part]]).tolist() == [count] * 4


def test_large_groups_do_not_spoil_the_shares() -> None:
    """One group has half of all images, and a hundred have the other half."""
    names = ["large"] * 100 + [str(i) for i in range(100)]
    division = divide_groups([0] * 200, names, shares=(0.7, 0.1, 0.2), seed=0)
    assert set(division[:100]) == {0}
    assert np.bincount(division).tolist() == [140, 20, 40]


@pytest.mark.parametrize("seed", range(40))
def test_few_mixed_groups_are_divided_as_well_as_possible(seed: int) -> None:
    """Against all divisions: as many classes as possible train, then choose, then judge."""
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(0, 3, 12), rng.integers(0, 5, 12)
    division = divide_groups(
        labels.tolist(), [str(group) for group in groups], shares=(0.7, 0.1, 0.2), seed=seed
    )

    def class_counts(parts: Any) -> list[int]:
        return [len(set(labels[np.asarray(parts)[groups] == part].tolist())) for part in range(3)]

    part_by_group = [
        int(division[groups == group][0]) if (groups == group).any() else 0 for group in range(5)
    ]
    assert class_counts(part_by_group) == max(map(class_counts, itertools.product(range(3), repeat=5)))


@pytest.mark.parametrize("seed", range(5))
def test_folds_are_scikit_learns(seed: int, tmp_path: Path) -> None:
    model_selection = pytest.importorskip("sklearn.model_selection")
    samples, groups = tree(seed)
    labels, names = [label for _, label in samples], [groups[path] for path, _ in samples]
    for is_grouped in (True, False):
        kind = model_selection.StratifiedGroupKFold if is_grouped else model_selection.StratifiedKFold
        splitter = kind(4, shuffle=True, random_state=seed)
        splits = splitter.split(labels, labels, names if is_grouped else None)
        expected = [held_out.tolist() for _, held_out in splits]
        folds = hold_out_folds(samples, 4, seed=seed, root=tmp_path, groups=groups if is_grouped else None)
        assert [[samples.index(sample) for sample in fold["val"]] for fold in folds] == expected
        for fold in folds:
            assert sorted(fold["train"] + fold["val"]) == sorted(samples)


@pytest.mark.parametrize(
    ("names", "folds", "message"),
    [
        (["a", "b", "c"] * 4, 4, "expected from 2 to 3 folds, because of 3 groups"),
        ([str(i) for i in range(6)], 7, "expected from 2 to 3 folds, because of 6 images"),
        ([str(i) for i in range(6)], 1, "received 1"),
        ([str(i) for i in range(6)], -1, "received -1"),
    ],
)
def test_impossible_folds(names: list[str], folds: int, message: str) -> None:
    pytest.importorskip("sklearn")
    with pytest.raises(ppxcls.DataError, match=message):
        fold_numbers([i % 2 for i in range(len(names))], names, folds, seed=0)


def test_copies_join_groups() -> None:
    groups = {"a": "1", "b": "2", "c": "2", "d": "3", "e": "4"}
    assert joined_groups(list("abcde"), {"a": "a", "b": "a"}, groups) == ["1", "1", "1", "3", "4"]
    assert joined_groups(list("abcde"), {"c": "c", "d": "c", "e": "c"}, groups) == ["1", "2", "2", "2", "2"]
    assert joined_groups(list("abc"), {"a": "a", "b": "a"}, None) == ["a", "a", "c"]


def photos(folder: Path) -> Path:
    """Writes files of 2 classes and 10 patients, 2 files each. The patient 9 has a copy of one of patient 0."""
    for label, name in enumerate(("ant", "bee")):
        (folder / name).mkdir(parents=True)
        for patient in range(label, 20, 2):
            for number in range(2):
                (folder / f"{name}/p{patient}_{number}.jpg").write_text(f"{patient:>5}{number}")
    (folder / "bee/p9_0.jpg").write_bytes((folder / "bee/p1_0.jpg").read_bytes())
    return folder


def test_lists_of_a_folder_keep_patients_and_copies_apart(tmp_path: Path) -> None:
    data = photos(tmp_path / "p")
    ppxcls.make_lists(data, tmp_path / "lists", val_share=0.2, test_share=0.2, group=PATIENT)
    groups = read_groups(tmp_path / "lists" / GROUPS_FILE)
    assert groups is not None
    assert groups["ant/p0_1.jpg"] == "0"
    indexes = {part: ListIndex(tmp_path / f"lists/{part}_list.txt") for part in PARTS}
    paths = {part: {index.path(i) for i in range(len(index))} for part, index in indexes.items()}
    places = parts_of_groups({part: [(path, 0) for path in names] for part, names in paths.items()}, groups)
    assert len(places) == 20
    assert all(len(parts) == 1 for parts in places.values())
    assert places["1"] == places["9"], "copies"
    ppxcls.make_lists(data, tmp_path / "lists")
    assert not (tmp_path / "lists" / GROUPS_FILE).exists(), "the new lists have no groups"


def test_the_command_writes_folds_and_removes_those_of_an_earlier_call(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    data = photos(tmp_path / "p")
    for count in (4, 3):
        result = run_tool("lists", data, "-o", tmp_path / "lists", "--folds", str(count), "--group", PATIENT)
        assert result.returncode == 0, result.stderr
    assert "40 images in 20 groups, which stay together" in result.stdout
    assert "fold_4/val_list.txt of an earlier call was removed" in result.stdout
    names = sorted(file.name for file in (tmp_path / "lists/fold_1").iterdir())
    assert names == ["class_names.txt", "groups.csv", "train_list.txt", "val_list.txt"]
    held_out: list[str] = []
    for number in (1, 2, 3):
        index = ListIndex(tmp_path / f"lists/fold_{number}/val_list.txt")
        held_out += [index.path(i) for i in range(len(index))]
    assert sorted(held_out) == sorted(f"{file.parent.name}/{file.name}" for file in data.glob("*/*"))
    assert not (tmp_path / "lists/fold_4/train_list.txt").exists()


def test_lists_and_folds_replace_each_other(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    data, output = photos(tmp_path / "p"), tmp_path / "lists"
    ppxcls.make_lists(data, output, group=PATIENT)
    plain_names = {file.relative_to(output) for file in list_files(output)}
    (output / "notes.txt").touch()
    summary = ppxcls.make_lists(data, output, folds=2)
    assert f"{output}/train_list.txt of an earlier call was removed" in summary.notes
    assert {file.parent.name for file in list_files(output)} == {"fold_1", "fold_2"}
    assert sorted(file.name for file in output.iterdir()) == ["fold_1", "fold_2", "notes.txt"]
    ppxcls.make_lists(data, output)
    assert {file.relative_to(output) for file in list_files(output)} == plain_names


def test_the_images_that_judge_are_in_no_fold(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    ppxcls.make_lists(photos(tmp_path / "p"), tmp_path / "lists", folds=2, test_share=0.2, group=PATIENT)
    texts = [(tmp_path / f"lists/fold_{k}/test_list.txt").read_text() for k in (1, 2)]
    assert texts[0] == texts[1]
    for k in (1, 2):
        for part in ("train", "val"):
            lines = (tmp_path / f"lists/fold_{k}/{part}_list.txt").read_text().splitlines()
            assert not set(lines) & set(texts[0].splitlines())


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("p[0-9]+", "expected a regular expression with one pair of parentheses"),
        ("(p)([0-9]+)", "expected a regular expression with one pair of parentheses"),
        ("p([0-9+", "is no regular expression"),
        (r"q(\d+)", "finds no group in 40 of 40 paths: ant/p0_0.jpg"),
        (r"ant/p(\d+)", "finds no group in 20 of 40 paths: bee/"),
        (r"p(\d*)1_", "finds no group in"),
        ("(ant|bee)", "no group can be held out: 2 groups, and each class is in one of them only"),
    ],
)
def test_refused_patterns(group: str, message: str, tmp_path: Path) -> None:
    data = photos(tmp_path / "p")
    with pytest.raises(ppxcls.DataError, match=message):
        ppxcls.make_lists(data, tmp_path / "lists", group=group)
    assert not (tmp_path / "lists").exists()


def test_parts_that_share_a_group_are_refused(tmp_path: Path) -> None:
    photos(tmp_path / "p/train")
    photos(tmp_path / "p/val")
    with pytest.raises(
        ppxcls.DataError, match="20 groups have images in several parts of the data set: 0: 2 in train"
    ):
        ppxcls.make_lists(tmp_path / "p", tmp_path / "lists", group=PATIENT)


def test_groups_survive_their_file(tmp_path: Path) -> None:
    groups = {'a "b",c.jpg': "=1+1", "d\ne.jpg": "x\ty", "é\udcff.jpg": "患者 7", "f.jpg ": "'"}
    text = groups_text(groups, groups)
    (tmp_path / GROUPS_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_groups(tmp_path / GROUPS_FILE) == groups
    assert read_groups(tmp_path / "none.csv") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,patient\na,1\n", ":1: expected the columns image,group"),
        ("image,group\na\n", ":2: expected 2 cells as in the first line, received 1"),
        ("image,group\na,1\nb,\n", ":3: expected an image and its group, received an empty cell"),
        ("image,group\na,1\na,2\n", ":3: the image of this line has another group already"),
        ('image,group\n"a,1\n', ":2: not a row of a table in CSV"),
        ("", ":1: expected the names of the columns, received none"),
        ("SECRET=1\n", ":1: expected the columns image,group"),
        ("image,group\na\0,1\n", "received a file with NUL characters"),
    ],
)
def test_damaged_files_of_groups(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / GROUPS_FILE).write_text(text)
    with pytest.raises(ppxcls.DataError, match=message) as error:
        read_groups(tmp_path / GROUPS_FILE)
    assert "SECRET" not in str(error.value)


def test_check_fails_on_a_group_on_both_sides(
    write_config: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    lists = {}
    for mode, name in (("Train", "train"), ("Eval", "val")):
        lists[mode] = tmp_path / f"{name}_list.txt"
        lists[mode].write_bytes((images / f"{name}_list.txt").read_bytes())
    paths = [f"DataLoader.{mode}.dataset.cls_label_path" for mode in lists]
    config = ppxcls.load_config(write_config(**dict(zip(paths, map(str, lists.values()), strict=True))))
    kind = "group in training and evaluation"
    assert ppxcls.check_data(config, progress_bar=False).errors == 0
    report = ppxcls.check_data(config, progress_bar=False, group=r"/0*(\d+)\.")
    assert len(report.findings[kind]) == report.errors == 7
    first_line = f"0: 1 in {lists['Train']} (train/0000.png), 1 in {lists['Eval']} (val/0000.png)"
    assert report.findings[kind][0] == first_line
    groups = {"train/0001.png": "a", "train/0002.png": "a", "val/0003.png": "a", "val/0004.png": "b"}
    (tmp_path / GROUPS_FILE).write_text(groups_text(groups, groups))
    report = ppxcls.check_data(config, progress_bar=False)
    assert report.findings[kind] == [
        f"a: 2 in {lists['Train']} (train/0001.png, ...), 1 in {lists['Eval']} (val/0003.png)"
    ]
    assert report.findings["images without a group"] == [
        f"{lists['Train']}: 10 of 12",
        f"{lists['Eval']}: 5 of 7",
    ]
    assert report.errors == 1


def test_a_pattern_finds_the_group_of_a_path() -> None:
    assert groups_by_pattern(["video_12/0.jpg"], group_pattern(r"(video_\d+)/")) == {
        "video_12/0.jpg": "video_12"
    }
