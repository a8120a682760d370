"""Patterns of files: what matches, and how many names are looked at."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import pytest

from ppxcls.system import patterns
from ppxcls.system.patterns import PatternError, fixed_folder, matching_files, may_match


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a/1.jpg", "a/b/2.jpg", "a/b/.hidden.jpg", "a/.hidden/3.jpg", "c/4.png", "5.jpg", "a/b/c/6"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("a", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "pattern",
    [
        *("*", "*.jpg", "*/*.jpg", "**", "**/*", "**/*.jpg", "a/**", "a/**/*.jpg", "./a/*", "a/../*/?.jpg"),
        *("[ac]/*", "**/b/**/*", "a/b/.*", "a/.*/*", "nothing*", "a/1.jpg/*", "*/b/2.jpg", "a/**/c/**"),
    ],
)
def test_the_same_files_match_as_for_glob(pattern: str, tree: Path) -> None:
    for path in (pattern, str(tree / pattern)):
        files = {file for file in glob.glob(path, recursive=True) if os.path.isfile(file)}
        assert matching_files(path) == sorted(files)


def test_the_number_of_names_is_bounded(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(matching_files("**/*.jpg")) == 5
    monkeypatch.setattr(patterns, "MAX_NAMES", 10)
    assert matching_files("a/b/*.jpg") == ["a/b/2.jpg"]
    with pytest.raises(
        PatternError, match=r"^\*\*/\*\.jpg: no end after 10 names; name a folder or a narrower"
    ):
        matching_files("**/*.jpg")


def test_a_config_is_loaded_with_a_look_at_one_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned_folders: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: scanned_folders.append(folder) or scandir(folder))
    assert fixed_folder("a/b/*/x/*") == "a/b"
    assert may_match("a/b/*/nothing/**/nothing")
    assert not may_match("a/n*/*")
    assert not may_match("nothing/*")
    assert may_match("**")
    assert scanned_folders == ["a/b", "a", "nothing", "."]
