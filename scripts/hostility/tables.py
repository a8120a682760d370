"""Tables in CSV from somebody else: labels of images, groups beside a list, and corrections."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from hostility.cases import Case, Outcome, call, message_problem, refusal_problem

from ppxcls.data.corrections import apply_corrections
from ppxcls.data.groups import GROUPS_FILE, read_groups
from ppxcls.data.make_lists import make_lists

PROMISE = "A table that can't be used is an error of one short line that names the file, in seconds"
Check = tuple[Outcome, str | None]
_HEADERS = {"labels": b"image,label\n", "groups": b"image,group\n", "corrections": b"image,label,new_label\n"}
# Content below the names of the columns, or a whole file if it begins with a mark.
_ROWS = {
    "a quote that never ends": b'"a' + b"\na" * 1000,
    "a quote that ends too early": b'"a"b,c\n',
    "a cell of 1 MB": b"a" * (1 << 20) + b",b\n",
    "a million empty cells": b"," * 1_000_000 + b"x\n",
    "a NUL": b"a\0,b,c\n",
    "escape codes in a name": b"\x1b]0;title\x07\x1b[2J,x,x\n",
    "letters from right to left": "\u202egpj.exe,x,x\n".encode(),
    "a formula": b'=HYPERLINK("http://x"),x,x\n',
    "a path to another folder": b"../../etc/passwd,x,x\n",
    "an absolute path": b"/etc/passwd,x,x\n",
    "an address": b"https://127.0.0.1/a.jpg,x,x\n",
    "a path of 70,000 characters": b"a/" * 35_000 + b",x,x\n",
    "a row of another width": b"a\n",
    "carriage returns alone": b"a,b\ra,c\ra\r",
}
_FILES = {
    "nothing": b"",
    "blank lines": b"\n" * 1000,
    "a ZIP archive": b"PK\x03\x04\x14\x00\x06\x00" + bytes(range(256)),
    "random bytes": bytes((i * 7919) % 251 for i in range(10_000)),
    "Latin-1": "image,label\né.jpg,x\n".encode("latin-1"),
    "half a character of UTF-16": b"\xff\xfei\0m\0a",
    "a header of a million names": b",".join(b"a%d" % i for i in range(1_000_000)) + b"\n",
    "a header of one name of 1 MB": b"a" * (1 << 20),
    "a shadow file": b"root:$y$j9TMARK$MARKabc:19000:0:99999:7:::\n",
}
_PLACES: dict[str, Callable[[Path], object]] = {
    "a folder": lambda file: file.mkdir(),
    "a pipe": os.mkfifo,
    "a link to itself": lambda file: file.symlink_to(file.name),
    "a link to an endless device": lambda file: file.symlink_to("/dev/zero"),
}
_MAX_SECONDS = 30.0


def cases() -> Iterator[Case]:
    """Returns the cases: each content and each kind of file as each kind of table, and a large table."""
    for kind, header in _HEADERS.items():
        for description, rows in _ROWS.items():
            run = functools.partial(_content, kind, header + rows)
            yield Case(f"{kind}: {description}", run, is_quick=True)
        for description, data in _FILES.items():
            yield Case(f"{kind}: {description}", functools.partial(_content, kind, data), is_quick=True)
        for description, make in _PLACES.items():
            yield Case(f"{kind}: {description}", functools.partial(_place, kind, make), is_quick=True)
    yield Case("labels: a million rows", _million_rows)
    yield Case("labels: a quote over 300 MB", _long_quote)


def _content(kind: str, data: bytes, folder: Path) -> Check:
    file = _file(kind, folder)
    file.write_bytes(data)
    return _checked(kind, file)


def _place(kind: str, make: Callable[[Path], object], folder: Path) -> Check:
    file = _file(kind, folder)
    make(file)
    return _checked(kind, file)


def _file(kind: str, folder: Path) -> Path:
    return folder / (GROUPS_FILE if kind == "groups" else f"{kind}.csv")


def _checked(kind: str, file: Path) -> Check:
    """Reads a table as its command does. Groups with a strange name are groups, too."""
    if kind == "labels":
        outcome = call(make_lists, file, file.parent / "lists")
    elif kind == "groups":
        outcome = call(read_groups, file)
    else:
        (file.parent / "train_list.txt").write_text("b.jpg 0\n")
        outcome = call(apply_corrections, file.parent / "train_list.txt", file)
    if "MARK" in outcome.errors and kind == "groups":
        return outcome, "the message has text of a file that the user has not named"
    if kind == "groups" and outcome.code == 0:
        return outcome, None
    problem = refusal_problem(outcome, file.name)
    return outcome, problem or _line_problem(outcome.errors)


def _line_problem(errors: str) -> str | None:
    if len(errors.splitlines()) != 1 or not errors.isprintable():
        return f"not one printable line: {errors[:100]!r}"
    return message_problem(errors)


def _million_rows(folder: Path) -> Check:
    """Labels of a million images that do not exist, so that all rows are read and compared."""
    rows = b"".join(b"images/%d.jpg,%d\n" % (i, i % 1000) for i in range(1_000_000))
    return _timed(folder, b"image,label\n" + rows)


def _long_quote(folder: Path) -> Check:
    return _timed(folder, b'image,label\n"' + b"a\n" * 150_000_000)


def _timed(folder: Path, data: bytes) -> Check:
    outcome, problem = _content("labels", data, folder)
    if problem is None and outcome.seconds > _MAX_SECONDS:
        problem = f"{outcome.seconds:.0f} s"
    return outcome, problem
