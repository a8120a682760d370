"""Every row of ``docs/troubleshooting.md`` has a case, and the page gives the right exit codes."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.troubleshooting.desk import CASES, NEAR, PAGE, Desk


def rows() -> list[list[str]]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")
    ]
    return [row for row in cells if row[0] != "message" and not row[0].startswith("---")]


def row_text(row: list[str]) -> str:
    return row[0].replace("`", "")


def test_every_row_of_the_page_has_its_case() -> None:
    for file in Path(__file__).parent.glob("test_*.py"):
        importlib.import_module(f"tests.troubleshooting.{file.stem}")  # this file may run alone
    texts = [row_text(row) for row in rows()]
    assert len(texts) > 35
    assert [text for text in texts if not any(phrase in text for phrase in CASES)] == []
    assert [phrase for phrase in CASES if not any(phrase in text for text in texts)] == []
    assert NEAR.keys() <= CASES.keys()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["train", "-c", "none.yaml"], 2),
        (["train", "-c", "FILE", "-o", "DataLoader.Train.dataset.cls_label_path=x"], 1),
    ],
)
def test_the_exit_codes_of_the_page(words: list[str], code: int, desk: Desk) -> None:
    file = desk.config()
    result = desk.command(*[file if word == "FILE" else word for word in words])
    assert result.code == code
    assert f"- {code}: " in PAGE.read_text(encoding="utf-8")
    assert len(result.errors.strip().splitlines()) == 1
