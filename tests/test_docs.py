"""The documentation: generated pages are current, the site builds without warnings, and the examples work."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import ppxcls
from ppxcls.config.paddleclas import ALTERNATIVES
from ppxcls.config.registry import registries
from tests.conftest import ROOT, load_script, run_tool

DOCS = ROOT / "docs"


def rows(page: str) -> list[list[str]]:
    """Returns the cells of all tables of a page, without separator rows."""
    lines = re.findall(r"^\| (.+) \|$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]
    return [row for row in cells if not set(row[0]) <= {"-", " "}]


def test_the_generated_page_is_current() -> None:
    """``python scripts/write_reference.py`` writes the page."""
    assert (DOCS / "refused.md").read_text(encoding="utf-8") == load_script("write_reference").refused()


def texts_of_the_code() -> str:
    """Returns all string literals of the package, with … for formatted values."""
    texts = []
    for file in (ROOT / "ppxcls").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append(
                    "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_troubleshooting_quotes_real_messages() -> None:
    known = texts_of_the_code()
    quotes = [quote for row in rows("troubleshooting.md") for quote in re.findall(r"`([^`]+)`", row[0])]
    assert len(quotes) > 30
    for quote in quotes:
        for part in re.split(r"…\??", quote):
            assert part.strip() in known, f"{quote}: {part!r} is in no message"


@pytest.fixture(scope="module")
def zensical() -> list[str]:
    pytest.importorskip("zensical", reason="Zensical is not installed")
    return [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]


def test_the_site_builds_without_a_warning(zensical: list[str], tmp_path: Path) -> None:
    """Builds a copy, so that no files are left in the repository."""
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    result = subprocess.run(zensical, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    menu = (tmp_path / "site/runs.html").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert f"{page.stem}.html" in menu or page.stem in ("runs", "index"), f"{page.name} is in no menu"
    (tmp_path / "docs/keras.md").write_text("[nowhere](nowhere.md)")
    result = subprocess.run(zensical, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert result.returncode != 0


def test_the_plugin_of_the_documentation_trains(tmp_path: Path) -> None:
    page = (DOCS / "extending.md").read_text(encoding="utf-8")
    files = re.findall(r"^`(\S+)`:\n\n```\w+\n(.+?)^```", page, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == ["my_parts.py", "mine.yaml"]
    for name, text in files:
        (tmp_path / name).write_text(text)
    command = [sys.executable, str(ROOT / "tools/train.py"), "--trust", "-c", "mine.yaml"]
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=200)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "output/TwoLayers/diary.txt").read_text().startswith("epoch 1: ")
    wrong = subprocess.run(
        [*command, "-o", "Arch.widht=3"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=200,
    )
    assert wrong.returncode == 2
    assert "did you mean 'width'?" in wrong.stderr


def snippets(page: str) -> list[str]:
    """Returns the pieces of YAML in the cells of a page's tables."""
    starts = ("Arch", "Global", "Optimizer", "Loss", "DataLoader", "EMA", "AMP")
    found = [piece for row in rows(page) for piece in re.findall(r"`([^`]+)`", row[1])]
    return [
        piece
        for piece in found
        if piece.startswith(starts) and ": " in piece and "FILE" not in piece and "…" not in piece
    ]


@pytest.mark.parametrize("page", ["timm.md", "keras.md", "imagenet.md"])
def test_the_yaml_in_the_tables_is_valid(page: str, write_config: Callable[..., Path]) -> None:
    pieces = snippets(page)
    assert len(pieces) > (3 if page != "imagenet.md" else 0)
    for piece in pieces:
        key, _, text = piece.partition(": ")
        value = yaml.safe_load(text)
        extra = {"name": "Momentum", "lr": {"name": "Cosine", "learning_rate": 0.1}}
        if key == "Optimizer":
            value = {**extra, **value}
        if key == "Arch":
            value = {"name": "xception41", **value}
        if key == "Optimizer.layer_decay":
            key, value = (
                "Optimizer",
                {"name": "AdamW", "weight_decay": 0.1, "lr": extra["lr"], "layer_decay": value},
            )
        ppxcls.load_config(
            write_config(),
            [f"{key}={yaml.safe_dump(value, default_flow_style=True).strip().removesuffix('...')}"],
        )


@pytest.mark.parametrize("page", ["timm.md", "keras.md"])
def test_the_components_in_the_tables_exist(page: str) -> None:
    known = {name for registry in registries().values() for name in registry.names()}
    named = {
        word
        for row in rows(page)
        for piece in re.findall(r"`([^`]+)`", row[1])
        for word in re.findall(
            r"(?:^|name: |\{)([A-Z][a-z]+[A-Z]\w+|Cosine|Step|Piecewise|Lamb|AdamW|Momentum|RMSProp)\b", piece
        )
    }
    assert len(named) > 8
    assert named - known <= {"DataLoader"}, named - known


def test_the_keys_of_paddleclas_are_what_the_table_says(write_config: Callable[..., Path]) -> None:
    schema = (DOCS / "reference.md").read_text(encoding="utf-8")
    table = [row for row in rows("paddleclas.md") if row[1] in ("same", "other", "refused")]
    keys = [(key, row[1]) for row in table for key in re.findall(r"`([^`]+)`", row[0])]
    assert len(keys) > 50
    for key, fate in keys:
        last = key.rpartition(".")[2]
        if fate == "refused":
            assert last in ALTERNATIVES, key
        elif last not in ("Train", "Eval", "loader"):
            assert f"| `{last}` |" in schema or f"### {key}" in schema or last == "name", key


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda f: f.name)
def test_the_files_that_the_pages_name_exist(page: Path) -> None:
    for path in re.findall(
        r"(?<![\w/.])((?:configs|tools|scripts)/[\w./]+\.(?:yaml|py|sh))", page.read_text(encoding="utf-8")
    ):
        assert (ROOT / path).exists(), path


def test_find_lr_is_what_the_page_says(small: Callable[..., Path]) -> None:
    assert "--find-lr" in run_tool("tools/train.py", "--help").stdout
    assert "--find-lr" in (DOCS / "photographs.md").read_text(encoding="utf-8")
