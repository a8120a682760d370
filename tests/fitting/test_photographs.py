"""The three lists of ``fit``: which photographs train, choose and judge, and what never meets."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from ppxcls.data.errors import DataError
from ppxcls.data.held_out import Shares
from ppxcls.data.list_index import ListIndex
from ppxcls.fitting.photographs import (
    DEFAULT_SHARES,
    TEST_LIST,
    TRAIN_LIST,
    VAL_LIST,
    Photographs,
    check_photographs,
    list_photographs,
)
from ppxcls.system.logs import set_up_logging


def photographs(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Writes different pictures into folders."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 256, (8, 8, 3), np.uint8)
            cv2.imwrite(str(folder / name / f"{number}.png"), image)
    return folder


def paths_in(lists: Path, name: str) -> list[str]:
    index = ListIndex(lists / name)
    return [index.path(i) for i in range(len(index))]


def listed(root: Path, lists: Path, shares: Shares | None = None) -> Photographs:
    set_up_logging()
    return list_photographs(root, lists, shares=shares or DEFAULT_SHARES)


def test_the_default_shares(tmp_path: Path) -> None:
    data = photographs(tmp_path / "p", {"ant": 40, "bee": 20})
    result = listed(data, tmp_path / "lists")
    assert [len(paths_in(tmp_path / "lists", name)) for name in result.list_names] == [42, 6, 12]
    assert result.list_names == [TRAIN_LIST, VAL_LIST, TEST_LIST]


def test_other_shares_change_the_digest(tmp_path: Path) -> None:
    data = photographs(tmp_path / "p", {"ant": 20, "bee": 20})
    first = listed(data, tmp_path / "a", Shares(0.1, 0.2))
    assert listed(data, tmp_path / "b", Shares(0.1, 0.2)).digest == first.digest
    assert listed(data, tmp_path / "c", Shares(0.1, 0.3)).digest != first.digest
    assert len(paths_in(tmp_path / "c", TEST_LIST)) == 12


def test_another_photograph_that_judges_changes_the_digest(tmp_path: Path) -> None:
    data = photographs(
        tmp_path / "p", {f"{part}/{name}": 6 for part in ("train", "test") for name in ("ant", "bee")}
    )
    first = listed(data, tmp_path / "a")
    cv2.imwrite(str(data / "test/bee/new.png"), np.zeros((8, 8, 3), np.uint8))
    assert listed(data, tmp_path / "b").digest != first.digest


def test_too_few_photographs_to_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = photographs(tmp_path / "p", {"ant": 2, "bee": 2})
    assert listed(data, tmp_path / "lists").list_names == [TRAIN_LIST, VAL_LIST]
    assert "no photographs are held out to judge the result" in capsys.readouterr().out
    data = photographs(tmp_path / "q", {"ant": 1, "bee": 1})
    with pytest.raises(DataError, match="each class needs at least two"):
        listed(data, tmp_path / "other")


def test_without_a_share_the_evaluation_part_chooses(tmp_path: Path) -> None:
    data = photographs(
        tmp_path / "p", {f"{part}/{name}": 4 for part in ("train", "val") for name in ("ant", "bee")}
    )
    result = listed(data, tmp_path / "lists", Shares(0.1, 0.0))
    assert result.list_names == [TRAIN_LIST, VAL_LIST]
    assert {path.split("/")[0] for path in paths_in(tmp_path / "lists", VAL_LIST)} == {"val"}


def test_a_picture_of_your_own_parts_stays_in_the_last_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Judging goes before choosing, and choosing before training."""
    parts = {f"{part}/{name}": 5 for part in ("train", "val", "test") for name in ("ant", "bee")}
    data = photographs(tmp_path / "p", parts)
    copies = {
        **{"train/ant/0.png": "test/ant/0.png", "train/ant/1.png": "val/ant/1.png"},
        **{"val/bee/2.png": "test/bee/2.png", "train/bee/3.png": "train/bee/4.png"},
    }
    for copy, original in copies.items():
        (data / copy).write_bytes((data / original).read_bytes())
    result = listed(data, tmp_path / "lists")
    check_photographs(result)
    assert set(png_files(data)) - set(listed_paths(tmp_path / "lists")) == {
        "train/ant/0.png",
        "train/ant/1.png",
        "val/bee/2.png",
    }
    assert len(paths_in(tmp_path / "lists", TEST_LIST)) == 10
    pictures = {
        name: {(data / path).read_bytes() for path in paths_in(tmp_path / "lists", name)}
        for name in result.list_names
    }
    assert not pictures[TEST_LIST] & (pictures[TRAIN_LIST] | pictures[VAL_LIST])
    assert not pictures[VAL_LIST] & pictures[TRAIN_LIST]
    assert "or of the part that chooses: train/ant/0.png = test/ant/0.png" in capsys.readouterr().out


def png_files(data: Path) -> list[str]:
    return [str(file.relative_to(data)) for file in data.rglob("*.png")]


def listed_paths(lists: Path) -> list[str]:
    return [path for name in (TRAIN_LIST, VAL_LIST, TEST_LIST) for path in paths_in(lists, name)]


def test_unreadable_photographs_do_not_judge(tmp_path: Path) -> None:
    parts = {f"{part}/{name}": 4 for part in ("train", "test") for name in ("ant", "bee")}
    data = photographs(tmp_path / "p", parts)
    (data / "test/ant/1.png").write_bytes(b"no image")
    check_photographs(listed(data, tmp_path / "lists"))
    assert len(paths_in(tmp_path / "lists", TEST_LIST)) == 7
    for file in (data / "test").rglob("*.png"):
        file.write_bytes(str(file).encode())
    with pytest.raises(DataError, match=f"no image of {TEST_LIST} remains"):
        check_photographs(listed(data, tmp_path / "other"))


def test_a_training_part_of_copies_alone_is_refused(tmp_path: Path) -> None:
    data = photographs(
        tmp_path / "p", {f"{part}/{name}": 3 for part in ("train", "test") for name in ("ant", "bee")}
    )
    for file in (data / "test/bee").iterdir():
        (data / "train/bee" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(
        DataError, match="no training image of the class 'bee' can be read, or all are copies"
    ):
        check_photographs(listed(data, tmp_path / "lists"))
