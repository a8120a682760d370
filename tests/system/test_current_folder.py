"""The commands and their processes import nothing from the current folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppxcls.system import current_folder
from tests.conftest import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("json", "numpy", "runpy", "typing"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('from the current folder')\n")
    return tmp_path


def outcome_of(command: list[str], folder: Path, root: str = str(ROOT)) -> str:
    environment = {**os.environ, "PYTHONPATH": root}
    result = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=folder, env=environment, timeout=100
    )
    return result.stdout + result.stderr


@pytest.mark.parametrize("version", [sys.version_info, (3, 10)])
def test_programs_and_modules(
    folder: Path, version: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(current_folder.sys, "version_info", version)
    program = current_folder.code_command("import json, sys; print(json.dumps(sys.argv[1:]), '' in sys.path)")
    module = current_folder.module_command("json.tool")
    monkeypatch.undo()
    assert outcome_of([*program, "a"], folder) == '["a"] False\n'
    (folder / "data").write_text("[1]")
    assert outcome_of([*module, "--compact", "data"], folder) == "[1]\n"


def test_the_package_as_a_module(folder: Path) -> None:
    assert "Xception41" in outcome_of([sys.executable, "-m", "ppxcls", "list"], folder)
    assert "Xception41" in outcome_of([sys.executable, "-mppxcls", "list"], folder)


def test_a_checkout_in_the_current_folder(tmp_path: Path) -> None:
    """The package is found in the current folder, and its neighbours come last."""
    (tmp_path / "ppxcls").symlink_to(ROOT / "ppxcls")
    (tmp_path / "yaml.py").write_text("raise SystemExit('from the current folder')\n")
    assert "Xception41" in outcome_of([sys.executable, "-m", "ppxcls", "list"], tmp_path, root="")


def test_modules_of_another_program_stay(tmp_path: Path) -> None:
    """``python -m mine`` of a user's own package keeps its folder."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/__init__.py").write_text("import ppxcls\n")
    (tmp_path / "mine/__main__.py").write_text("import beside\nprint(beside.value)\n")
    (tmp_path / "beside.py").write_text("value = 'found'\n")
    assert outcome_of([sys.executable, "-m", "mine", "-m", "ppxcls"], tmp_path) == "found\n"


def test_a_notebook_keeps_its_folder(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit('from the current folder')\n")
    code = "import sys, ppxcls; ppxcls.load_config; print(sys.path.index(''), 'site-packages' in sys.modules['yaml'].__file__)"
    assert outcome_of([sys.executable, "-c", code], tmp_path) == "0 True\n"
