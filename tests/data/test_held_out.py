"""Three lists: the images that train, those that choose the best epoch, and those that judge the result."""

from __future__ import annotations

import os
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

import ppxcls
from ppxcls.data.held_out import PARTS, Shares, first_copy_by_path, hold_out
from ppxcls.data.list_index import ListIndex
from tests.conftest import run_tool


def fill(folder: Path, counts: dict[str, int]) -> Path:
    """Writes files with the name of an image; all differ, and all have one size, so that they are compared."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.jpg").write_text(f"{name:>20} {number:>5}")
    return folder


def paths_by_part(lists: Path) -> dict[str, list[str]]:
    """Returns the paths of each list that is there."""
    indexes = {
        part: ListIndex(lists / f"{part}_list.txt")
        for part in PARTS
        if (lists / f"{part}_list.txt").is_file()
    }
    return {part: [index.path(i) for i in range(len(index))] for part, index in indexes.items()}


def class_counts(paths: list[str]) -> Counter[str]:
    return Counter(path.split("/")[-2] for path in paths)


@pytest.mark.parametrize(
    ("folders", "sources"),
    [
        ({"ant": 20, "bee": 20}, {"train": "", "val": "", "test": ""}),
        ({"train/ant": 20, "train/bee": 20}, {"train": "train", "val": "train", "test": "train"}),
        (
            {"train/ant": 20, "train/bee": 20, "val/ant": 5, "val/bee": 5},
            {"train": "train", "val": "train", "test": "val"},
        ),
        (
            {"train/ant": 20, "train/bee": 20, "test/ant": 5, "test/bee": 5},
            {"train": "train", "val": "train", "test": "test"},
        ),
        (
            {"train/ant": 20, "train/bee": 20, "val/ant": 4, "test/ant": 5, "test/bee": 5},
            {"train": "train", "val": "val", "test": "test"},
        ),
    ],
)
def test_which_folder_trains_chooses_and_judges(
    folders: dict[str, int], sources: dict[str, str], tmp_path: Path
) -> None:
    data = fill(tmp_path / "p", folders)
    ppxcls.make_lists(data, tmp_path / "lists", val_share=0.1, test_share=0.2)
    parts = paths_by_part(tmp_path / "lists")
    for part, source in sources.items():
        assert {path.split("/")[0] if source else "" for path in parts[part]} == {source}, part
    for first, second in combinations(PARTS, 2):
        assert not set(parts[first]) & set(parts[second])
    every_path = {f"{name}/{number}.jpg" for name, count in folders.items() for number in range(count)}
    assert {path for paths in parts.values() for path in paths} == every_path
    if sources["val"] == sources["train"]:
        assert class_counts(parts["val"]) == {"ant": 2, "bee": 2}
    if sources["test"] == sources["train"]:
        assert class_counts(parts["test"]) == {"ant": 4, "bee": 4}


def test_lists_without_a_share_for_test_are_two(tmp_path: Path) -> None:
    """The evaluation part stays the evaluation part; so do the samples of the split with the same seed."""
    data = fill(tmp_path / "p", {"train/ant": 9, "val/ant": 3})
    ppxcls.make_lists(data, tmp_path / "lists")
    parts = paths_by_part(tmp_path / "lists")
    assert set(parts) == {"train", "val"}
    assert {path.split("/")[0] for path in parts["val"]} == {"val"}


@pytest.mark.parametrize(
    ("count", "expected_counts"),
    [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (4, (2, 1, 1)), (8, (5, 1, 2)), (100, (70, 10, 20))],
)
def test_classes_with_few_images(count: int, expected_counts: tuple[int, int, int], tmp_path: Path) -> None:
    data = fill(tmp_path / "p", {"many": 10, "few": count})
    made = ppxcls.make_lists(data, tmp_path / "lists", val_share=0.1, test_share=0.2)
    parts = paths_by_part(tmp_path / "lists")
    assert tuple(class_counts(parts[part])["few"] for part in PARTS) == expected_counts
    assert tuple(class_counts(parts[part])["many"] for part in PARTS) == (7, 1, 2)
    assert ("without images in the test list: 1 classes: few" in made.notes) is (count < 3)
    assert ("without images in the evaluation list: 1 classes: few" in made.notes) is (count < 2)


def test_copies_stay_in_one_list(tmp_path: Path) -> None:
    data = fill(tmp_path / "p", {"ant": 30, "bee": 30})
    for number in range(30):  # each picture of a bee three times, one of them as a link
        os.link(data / f"bee/{number}.jpg", data / f"bee/{number}_copy.jpg")
        (data / f"bee/{number}_link.jpg").symlink_to(f"{number}.jpg")
    for seed in range(5):
        ppxcls.make_lists(data, tmp_path / "lists", val_share=0.2, test_share=0.3, seed=seed)
        pictures = {
            part: {(data / path).read_text() for path in paths}
            for part, paths in paths_by_part(tmp_path / "lists").items()
        }
        for first, second in combinations(PARTS, 2):
            assert not pictures[first] & pictures[second], seed
        assert class_counts(paths_by_part(tmp_path / "lists")["test"]) == {"ant": 9, "bee": 27}


def test_a_picture_with_two_labels_stays_in_the_training_list(tmp_path: Path) -> None:
    """It can't judge. If all images of a class are such pictures, the class is still trained."""
    data = fill(tmp_path / "p", {"ant": 10, "bee": 0})
    for number in range(5):
        (data / f"bee/{number}.jpg").write_bytes((data / f"ant/{number}.jpg").read_bytes())
    ppxcls.make_lists(data, tmp_path / "lists", val_share=0.3, test_share=0.3)
    parts = paths_by_part(tmp_path / "lists")
    assert class_counts(parts["train"])["bee"] == 5
    assert {f"ant/{number}.jpg" for number in range(5)} <= set(parts["train"])
    assert class_counts(parts["test"]) == class_counts(parts["val"]) == {"ant": 2}


def test_only_files_of_one_size_are_read(tmp_path: Path) -> None:
    for name, text in {"a": "one", "b": "two", "c": "one", "d": "three", "e": "one"}.items():
        (tmp_path / name).write_text(text)
    assert first_copy_by_path(tmp_path, [*"abcde", "gone"]) == dict.fromkeys("ace", "a")


def test_the_split_depends_on_the_seed_alone() -> None:
    parts = {"train": [(f"{i}.jpg", i % 3) for i in range(60)], "val": [], "test": []}
    splits = [hold_out(parts, Shares(0.1, 0.2), seed=seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1]
    assert splits[0]["test"] != splits[2]["test"]
    assert Counter(label for _, label in splits[0]["test"]) == {0: 4, 1: 4, 2: 4}


@pytest.mark.parametrize(
    ("val_share", "test_share", "message"),
    [
        (-0.1, 0.0, "a share for evaluation from 0 to below 1, received -0.1"),
        (0.1, 1.0, "a share for test from 0 to below 1, received 1"),
        (0.6, 0.4, "a sum below 1, received 0.6 for evaluation and 0.4 for test"),
        (0.1, float("nan"), "a share for test from 0 to below 1, received nan"),
    ],
)
def test_refused_shares(val_share: float, test_share: float, message: str, tmp_path: Path) -> None:
    data = fill(tmp_path / "p", {"ant": 3, "bee": 3})
    with pytest.raises(ppxcls.DataError, match=message):
        ppxcls.make_lists(data, tmp_path / "lists", val_share=val_share, test_share=test_share)
    assert not (tmp_path / "lists").exists()


def test_lists_of_paddlex_are_cut_too(tmp_path: Path) -> None:
    data = fill(tmp_path / "p", {"images": 20})
    (data / "labels.txt").write_text("ant\nbee\n")
    (data / "train.txt").write_text("".join(f"images/{i}.jpg {i % 2}\n" for i in range(16)))
    (data / "val.txt").write_text("".join(f"images/{i}.jpg {i % 2}\n" for i in range(16, 20)))
    ppxcls.make_lists(data, tmp_path / "lists", val_share=0.25, test_share=0.2)
    parts = paths_by_part(tmp_path / "lists")
    assert parts["test"] == [f"images/{i}.jpg" for i in range(16, 20)]
    assert [len(parts[part]) for part in PARTS] == [12, 4, 4]


def test_the_command_prints_who_judges(tmp_path: Path) -> None:
    data = fill(tmp_path / "p", {"train/ant": 10, "train/bee": 10, "val/ant": 2, "val/bee": 2})
    result = run_tool("lists", data, "-o", tmp_path / "lists", "--val-share", "0.2", "--test-share", "0.2")
    assert result.returncode == 0, result.stderr
    assert "the evaluation part judges the result, because there is no test part" in result.stdout
    assert "20% of the training images are held out to choose the best epoch" in result.stdout
    assert f"{tmp_path}/lists/test_list.txt: 4 lines" in result.stdout
