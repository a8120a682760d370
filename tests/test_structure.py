"""The shape of the package: imports go down only, files stay short, tools stay thin."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

# The rooms, one row each. A module imports from its own room and from rooms in lower rows.
ROWS = [
    ["cli", "__init__"],
    ["deploy"],
    ["build"],
    ["train"],
    ["models"],
    ["data", "checkpoints"],
    ["config", "ops", "system"],
]
RANK = {name: row for row, names in enumerate(ROWS) for name in names}
FILES = sorted((ROOT / "ppxcls").rglob("*.py"))


def unit(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imported(file: Path) -> list[str]:
    modules = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ppxcls":
            names = [f"ppxcls.{alias.name}" for alias in node.names] if node.module == "ppxcls" else [node.module]
            modules += [name for name in names if unit(name) in RANK]
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names if alias.name.startswith("ppxcls.")]
    return modules


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_down(file: Path) -> None:
    own = file.relative_to(ROOT / "ppxcls").parts[0].removesuffix(".py")
    assert own in RANK, f"{own} has no row"
    for module in imported(file):
        other = unit(module)
        assert other == own or RANK[other] > RANK[own], f"{file.name} imports {module}"


def test_some_imports_are_seen() -> None:
    assert "ppxcls.config.registry" in imported(ROOT / "ppxcls/train/losses.py")
    assert "ppxcls.system" in imported(ROOT / "ppxcls/cli.py")


@pytest.mark.parametrize("file", FILES + sorted((ROOT / "tools").glob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_sizes(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= (40 if file.parent.name == "tools" else 400)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 <= 60, node.name
            assert not any(isinstance(n, ast.Call) and getattr(n.func, "id", "") in ("eval", "exec") for n in ast.walk(node))


def test_the_main_line_can_be_read_in_one_sitting() -> None:
    files = ["configs/Xception41.yaml", "tools/train.py", "ppxcls/build.py", "ppxcls/train/trainer.py", "ppxcls/models/xception.py"]
    total = sum(len((ROOT / file).read_text().splitlines()) for file in files)
    assert total <= 1000
