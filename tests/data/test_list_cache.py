"""Long lists that the processes of a host share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ppxcls
from ppxcls.data import list_cache, list_index
from ppxcls.data.list_index import ListIndex
from tests.conftest import ROOT

TEXT = "\ufeffa b/é.jpg 3\r\n\n  c.png\t 12\n" + "".join(f"folder {i % 7}/{i}.jpg {i % 50}\n" for i in range(999)) + "last.jpg 7"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the files; every list is long."""
    monkeypatch.setattr(list_index, "LEAST_BYTES", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/ppxcls/lists"


def written(folder: Path, text: str = TEXT.replace("\t", "")) -> Path:
    (folder / "list.txt").write_text(text, encoding="utf-8", newline="")
    return folder / "list.txt"


def rows(index: ListIndex) -> list[tuple[str, int, str]]:
    return [(index.path(i), int(index.labels[i]), index.line(i)) for i in range(len(index))]


def test_a_shared_list_is_the_list(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path)
    first, second = ListIndex(file), ListIndex(file)
    (kept,) = cache.glob("*.list")
    assert isinstance(second.labels.base, np.memmap) or isinstance(second.labels, np.memmap)
    monkeypatch.setattr(list_index, "LEAST_BYTES", 1 << 40)
    own = ListIndex(file)
    assert rows(first) == rows(second) == rows(own)
    assert first.digest() == second.digest() == own.digest()
    assert first.first_outside(tmp_path) is None
    assert len(own) == 1002
    assert kept.stat().st_size < 2 * file.stat().st_size + 64


def test_it_is_parsed_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path)
    ListIndex(file)
    monkeypatch.setattr(ListIndex, "_parsed", lambda *_: pytest.fail("parsed again"))
    assert len(ListIndex(file)) == 1002


def test_another_list_or_delimiter_is_parsed_anew(cache: Path, tmp_path: Path) -> None:
    ListIndex(written(tmp_path))
    assert rows(ListIndex(written(tmp_path, "x.jpg 1\n")))[0][:2] == ("x.jpg", 1)
    assert rows(ListIndex(written(tmp_path, "x 1.jpg,2\n"), ","))[0][:2] == ("x 1.jpg", 2)
    assert len(list(cache.glob("*.list"))) == 3
    ListIndex(written(tmp_path, "y.jpg 1\n"))
    assert len(list(cache.glob("*.list"))) == 3, "those that were used last"


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "count"])
def test_a_damaged_file_is_made_again(cache: Path, tmp_path: Path, damage: str) -> None:
    file = written(tmp_path)
    expected = rows(ListIndex(file))
    (kept,) = cache.glob("*.list")
    data = kept.read_bytes()
    kept.unlink()  # the arrays of the index above hold the old file
    wrong = {"cut": data[:-3], "empty": b"", "other": b"x" * len(data), "count": data[:24] + b"\xff" * 8 + data[32:]}
    kept.write_bytes(wrong[damage])
    assert rows(ListIndex(file)) == expected
    assert kept.read_bytes() == data


def test_an_invalid_list_leaves_no_file(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ppxcls.DataError, match=r"list.txt:2: expected"):
        ListIndex(written(tmp_path, "a.jpg 1\nb.jpg\n"))
    with pytest.raises(ppxcls.DataError, match="no samples"):
        ListIndex(written(tmp_path, "\n\n"))
    assert [f.suffix for f in cache.iterdir() if f.suffix != ".lock"] == []


def test_without_a_place_the_list_is_in_the_own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_index, "LEAST_BYTES", 1)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(ListIndex(written(tmp_path))) == 1002
    monkeypatch.setattr(list_cache, "HAS_TURNS", False)
    assert len(ListIndex(written(tmp_path))) == 1002


def test_several_processes_make_one_file(cache: Path, tmp_path: Path) -> None:
    file = written(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from ppxcls.data import list_index\nlist_index.LEAST_BYTES = 1\n"
        f"index = list_index.ListIndex({str(file)!r})\nprint(len(index), index.path(1001))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0] for process in processes] == ["1002 last.jpg\n"] * 4
    assert len(list(cache.glob("*.list"))) == 1
    assert not list(cache.glob("*.new"))


def test_a_list_that_changes_while_it_is_copied(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read as a short list would be."""
    file = written(tmp_path)
    turn = list_cache.turn

    def changed(lock: Path) -> object:
        written(tmp_path, "new.jpg 5\n")
        return turn(lock)

    monkeypatch.setattr(list_cache, "turn", changed)
    assert rows(ListIndex(file)) == [("new.jpg", 5, f"{file}:1")]
    assert not list(cache.glob("*.list"))
