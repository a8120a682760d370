"""A cache is used only if no other user can change its files."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ppxcls.system import own_folders
from ppxcls.system.own_folders import (
    UnsafeFolderError,
    cache_folder,
    file_problem,
    folder_problem,
    own_folder,
)
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="this system has no owners of files")
needs_root = pytest.mark.skipif(getattr(os, "getuid", int)() != 0, reason="only root can give files away")
STRANGER = 65534
Texts = Callable[[], list[str]]


@pytest.fixture(autouse=True)
def _fresh_choice() -> Iterator[None]:
    cache_folder.cache_clear()
    yield
    cache_folder.cache_clear()


def test_a_new_folder_is_private(tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "a/b")
    assert folder == Path(os.path.realpath(tmp_path)) / "a/b"
    assert [f.stat().st_mode & 0o777 for f in (folder, folder.parent)] == [0o700, 0o700]
    assert own_folder(folder) == folder


def test_a_umask_without_limits_changes_nothing(tmp_path: Path) -> None:
    previous_mask = os.umask(0)
    try:
        folder = own_folder(tmp_path / "a/b")
    finally:
        os.umask(previous_mask)
    assert folder_problem(folder) is None


@pytest.mark.parametrize(
    ("mode", "is_safe"), [(0o700, True), (0o755, True), (0o777, False), (0o1777, False), (0o702, False)]
)
def test_a_folder_that_others_can_write(mode: int, is_safe: bool, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    problem = folder_problem(Path(os.path.realpath(folder)))
    assert (problem is None) == is_safe
    if not is_safe:
        with pytest.raises(UnsafeFolderError, match="cache can be written by everybody"):
            own_folder(folder)


@pytest.mark.parametrize(("mode", "is_safe"), [(0o777, False), (0o1777, True)])
def test_a_parent_that_others_can_write(mode: int, is_safe: bool, tmp_path: Path) -> None:
    """In a folder with a sticky bit, only the owner of an entry can replace it."""
    parent = tmp_path / "parent"
    (parent / "cache").mkdir(parents=True)
    (parent / "cache").chmod(0o700)
    parent.chmod(mode)
    assert (folder_problem(Path(os.path.realpath(parent)) / "cache") is None) == is_safe


def test_a_group_with_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_folder(tmp_path / "cache")
    folder.chmod(0o770)
    for is_private in (True, False):
        monkeypatch.setattr(own_folders, "_is_private_group", lambda group, answer=is_private: answer)
        assert (folder_problem(folder) is None) == is_private
    assert "can be written by group" in str(folder_problem(folder))


@needs_root
def test_an_access_list_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_folder(tmp_path / "cache")
    folder.chmod(0o770)
    monkeypatch.setattr(own_folders, "_is_private_group", lambda group: True)
    monkeypatch.setattr(os, "getxattr", lambda path, name: b"another user")
    assert "can be written by group" in str(folder_problem(folder))


@needs_root
@pytest.mark.parametrize("owned_part", ["", "cache", "cache/deep"])
def test_a_folder_of_another_user(owned_part: str, tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "cache/deep")
    os.chown(tmp_path / owned_part, STRANGER, STRANGER)
    with pytest.raises(UnsafeFolderError, match="belongs to user"):
        own_folder(folder)


@needs_root
def test_a_link_leads_to_the_folder_that_is_checked(tmp_path: Path) -> None:
    strangers_folder = tmp_path / "strangers"
    strangers_folder.mkdir()
    os.chown(strangers_folder, STRANGER, STRANGER)
    (tmp_path / "link").symlink_to(strangers_folder)
    with pytest.raises(UnsafeFolderError, match="strangers belongs to user"):
        own_folder(tmp_path / "link")


@needs_root
def test_files_of_others(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch(0o600)
    assert file_problem(file.stat()) is None
    file.chmod(0o666)
    assert file_problem(file.stat()) == "it can be written by everybody"
    file.chmod(0o600)
    os.chown(file, STRANGER, STRANGER)
    assert "belongs to" in str(file_problem(file.stat()))
    assert file_problem(tmp_path.stat()) == "it is not a regular file"


def test_the_choice_of_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_warnings: Texts) -> None:
    wanted_folder = tmp_path / "shared"
    wanted_folder.mkdir()
    wanted_folder.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    for _ in range(2):
        assert cache_folder("packs", str(wanted_folder)) == tmp_path / "home/ppxcls/packs"
    (line,) = new_warnings()
    assert line == (
        f"{wanted_folder} can be written by everybody, so {tmp_path}/home/ppxcls/packs is used for the cache of packs"
    )


def test_a_relative_home_of_caches_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder may be a stranger's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("packs") == tmp_path / "home/.cache/ppxcls/packs"


@pytest.mark.parametrize("home", ["file", "file/below", "a\udcffb"])
def test_a_home_that_is_no_folder(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / home))
    folder = cache_folder("packs")
    assert (folder is None) == home.startswith("file")


@needs_root
def test_a_folder_that_can_not_be_written_is_passed_over_in_silence() -> None:
    """Such as the packages of a system, for a user."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "root").mkdir(mode=0o755)
        (folder / "home").mkdir(mode=0o755)
        os.chown(folder / "home", STRANGER, STRANGER)
        code = (
            "import grp, os, pwd\n"
            "from ppxcls.system.own_folders import cache_folder\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            f"print(cache_folder('kernels', '{folder}/root/cache'))"
        )
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "XDG_CACHE_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.stderr == ""
        assert result.stdout.strip() == f"{folder}/home/ppxcls/kernels"
