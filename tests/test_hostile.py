"""The quick cases of ``scripts/hostile.py`` keep their promises, and its table counts them."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SURFACES = sorted(
    file.stem for file in (ROOT / "scripts/hostility").glob("*.py") if file.stem not in ("cases", "__init__")
)


@pytest.mark.parametrize("surface", SURFACES)
def test_the_quick_cases_of_each_surface_keep_the_promise(surface: str) -> None:
    result = subprocess.run(
        [sys.executable, "scripts/hostile.py", surface, "--quick"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    count, held_count = map(int, re.findall(rf"^{surface} +(\d+) +(\d+)", result.stdout, re.MULTILINE)[0])
    assert count == held_count > 0
