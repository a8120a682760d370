"""The shape of the package: imports go down only, files stay short, tools stay thin."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import ppxcls
from tests.conftest import ROOT, load_script

# The rooms, one row each. A module imports from its own room and from rooms in lower rows.
ROWS = [
    ["__main__"],
    ["cli", "__init__"],
    ["fitting", "serving"],
    ["tuning"],
    ["deploy", "reports"],
    ["build"],
    ["train"],
    ["models", "packed"],
    ["data", "checkpoints"],
    ["config", "ops"],
    ["system", "_version"],
]
# Who may import or read a Config: beside these, components get checked blocks and plain values.
CONFIG_READERS = {
    "config",
    "build",
    "deploy/build.py",
    "tuning/build.py",
    "fitting",
    "reports",
    "__init__.py",
}
# Sections whose names no other object has as an attribute.
SECTIONS = {"Global", "AMP", "EMA", "Arch", "DataLoader", "Infer", "run_folder", "own_folder"}
RANK = {name: row for row, names in enumerate(ROWS) for name in names}
FILES = sorted((ROOT / "ppxcls").rglob("*.py"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def unit(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imported(file: Path) -> list[str]:
    modules = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ppxcls":
            names = (
                [f"ppxcls.{alias.name}" for alias in node.names] if node.module == "ppxcls" else [node.module]
            )
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


def test_no_module_has_the_name_of_a_standard_one() -> None:
    """With the package's own folder first on the path, as an editor's "run this file" has it, it would be
    imported instead."""
    assert not {file.stem for file in FILES} & set(sys.stdlib_module_names)
    command = [sys.executable, str(ROOT / "ppxcls/cli/__init__.py")]
    result = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr


def test_no_name_has_two_meanings() -> None:
    """Two classes or constants of one name, in different modules.

    Layers of the networks are their family's own.
    """
    homes: dict[str, list[str]] = {}
    for file in FILES:
        if file.parent.name != "models":
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.ClassDef):
                    homes.setdefault(node.name, []).append(file.name)
    assert len(homes) > 50
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_some_imports_are_seen() -> None:
    assert "ppxcls.config.registry" in imported(ROOT / "ppxcls/train/losses.py")
    assert "ppxcls.system" in imported(ROOT / "ppxcls/cli/__init__.py")


def uses_of_a_config(file: Path) -> set[str]:
    """Names by which a module imports ``Config`` or a section of it, or reads one."""
    uses = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in (
            "ppxcls.config.sections",
            "ppxcls.config.load",
        ):
            uses |= {alias.name for alias in node.names} - {"RUN_CONFIG", "RUN_MARK", "plain"}
        elif isinstance(node, ast.Attribute) and node.attr in SECTIONS:
            uses.add(node.attr)
    return uses


def test_few_modules_read_a_config() -> None:
    readers = {
        str(file.relative_to(ROOT / "ppxcls")): uses for file in FILES if (uses := uses_of_a_config(file))
    }
    assert {"build/trainer.py", "deploy/build.py", "tuning/build.py", "reports/record.py"} <= readers.keys()
    others = {file: uses for file, uses in readers.items() if not {file, file.split("/")[0]} & CONFIG_READERS}
    assert others == {}


LINES = 60  # of a function, from which on one looks again


@pytest.mark.parametrize(
    "file", FILES + sorted((ROOT / "tools").glob("*.py")), ids=lambda f: str(f.relative_to(ROOT))
)
def test_nothing_is_evaluated(file: Path) -> None:
    """No ``eval`` and no ``exec``.

    A long function is a warning, because a limit would press it rather than divide it.
    """
    for node in ast.walk(ast.parse(file.read_text())):
        assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("eval", "exec"))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            if length > LINES:
                warnings.warn(f"{file.name}: {node.name} has {length} lines", stacklevel=1)


def test_checkpoints_and_configs_need_no_paddle() -> None:
    without_paddle = [file for file in FILES if file.parent.name in ("checkpoints", "config")]
    assert len(without_paddle) > 10
    for file in [
        *without_paddle,
        *(ROOT / f"ppxcls/system/{name}.py" for name in ("environment", "kernels")),
    ]:
        packages = {name.split(".")[0] for name in top_level_imports(file)}
        assert not packages & {"paddle", "cv2"}, file


def top_level_imports(file: Path) -> list[str]:
    names = []
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return names


def test_the_version_stands_once() -> None:
    assert importlib.metadata.version("ppxcls") == ppxcls.__version__
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    assert f"## {ppxcls.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_reference_of_the_keys_is_current() -> None:
    """``python scripts/write_reference.py`` writes it."""
    module = load_script("write_reference")
    page = module.reference()
    assert (ROOT / "docs/reference.md").read_text(encoding="utf-8") == page
    for key in ("`hang_timeout`", "### Xception41", "### RandomErasing", "### ReduceOnPlateau", "`plugins`"):
        assert key in page


@pytest.mark.parametrize("file", PAGES, ids=lambda f: f.name)
def test_links_of_the_documentation_lead_somewhere(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert targets or file.name not in ("README.md", "CONTRIBUTING.md")
    for target in targets:
        assert (file.parent / target).exists(), target
    for path in re.findall(r"`((?:ppxcls|scripts|tests|tools|configs)/[\w./]+\.\w+)`", text):
        assert (ROOT / path).exists(), path


def test_the_main_line_can_be_read_in_one_sitting() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    order = text[text.index("The code reads best in this order") :].split("\n\n")[0]
    files = re.findall(r"`([\w./]+\.\w+)`", order)
    assert "ppxcls/train/learner.py" in files
    assert "ppxcls/build/trainer.py" in files
    total = sum(len((ROOT / file).read_text().splitlines()) for file in files)
    assert total <= 1200
