"""Class-name files: every recognised form and encoding, and one-line errors for unusable files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import ppxcls
from ppxcls.data.class_names import IMAGENET_NAMES_FILE, class_name_lines, read_class_names

NAMES = ["tench, Tinca tinca", "élan", "蜜蜂"]
TEXT = "".join(f"{i} {name}\n" for i, name in enumerate(NAMES))


def read(tmp_path: Path, content: bytes | str, count: int | None = 3, name: str = "names.txt") -> list[str]:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_class_names(tmp_path / name, count)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
def test_every_unicode_encoding(encoding: str, tmp_path: Path) -> None:
    assert read(tmp_path, TEXT.encode(encoding)) == NAMES


@pytest.mark.parametrize(
    "text", ["0\ta b\n1\tc\n", "0 a b\n1 c\n", "0,a b\n1, c\n", "1 c\r\n\r\n0   a b\r\n", "00 a b\n01 c"]
)
def test_forms_of_a_line(text: str, tmp_path: Path) -> None:
    assert read(tmp_path, text, 2) == ["a b", "c"]


def test_the_packaged_names() -> None:
    names = read_class_names(IMAGENET_NAMES_FILE, 1000)
    assert (names[0], names[999].split(",")[0]) == ("tench, Tinca tinca", "toilet tissue")


def test_one_name_a_line_as_paddlex_writes(tmp_path: Path) -> None:
    assert read(tmp_path, "ant\nbee eater\n", 2, "labels.txt") == ["ant", "bee eater"]
    assert read(tmp_path, "0 ant\n1 bee\n", None, "labels.txt") == ["ant", "bee"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            TEXT.encode("latin-1", "replace").replace(b"\xe9", b"\xe9"),
            r"names.txt:2: not UTF-8: .* at byte \d+$",
        ),
        (TEXT.encode("utf-16")[:-1], r"names.txt:\d: not UTF-16: truncated data"),
        ("0 a\n1 b\n", r"names.txt: expected the names of 3 classes, received 2$"),
        ("0 a\n1 b\n2 c\n3 d\n", r"expected the names of 3 classes, received 4$"),
        ("0 a\n1 b\n3 c\n", r"names.txt: expected each id from 0 to 2, received no 2$"),
        ("1 a\n2 b\n3 c\n", r"expected each id from 0 to 2, received no 0$"),
        ("0 a\n1 b\n1 c\n", r"names.txt:3: the id of this line has a name already$"),
        ("0 a\nb\n2 c\n", r"names.txt:2: expected 'id name', received 1 word, no number \(length 1\)$"),
        ("0 a\n1\n2 c\n", r"names.txt:2: expected 'id name', received 1 word, a number \(length 1\)$"),
        ("-1 a\n0 b\n1 c\n", r"names.txt:1: expected 'id name'"),
        ("² a\n", r"names.txt:1: expected 'id name'"),
        (
            "9" * 5000 + " a\n",
            r"names.txt:1: expected 'id name', received 2 words, the first a number, the last no number",
        ),
        ("", r"expected class names, received none$"),
    ],
)
def test_refused(content: bytes | str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ppxcls.DataError, match=message) as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    reasons = {
        "none.txt": "no such file of class names",
        "": "it is a folder",
        "pipe.txt": "it is not a regular file",
    }
    for name, reason in reasons.items():
        with pytest.raises(ppxcls.DataError, match=reason):
            read_class_names(tmp_path / name, 3)


def test_names_that_are_written_are_read(tmp_path: Path) -> None:
    names = ["a", " b ", "c\nd", "\x1b[2J", "\udce9", "   ", "e\tf", "7", ",g", "\xa0h", "i, j"]
    file = tmp_path / "class_names.txt"
    file.write_text(class_name_lines(names), encoding="utf-8")
    expected = ["a", "' b '", r"c\nd", r"\x1b[2J", r"\xe9", "'   '", r"e\tf", "7", "',g'", r"'\xa0h'", "i, j"]
    assert read_class_names(file, 11) == expected
