"""Errors of a command: one line if a user can do something about it, otherwise a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# An exit handler stands for a destructor of a collective library, which may wait for the other ranks for ever.
COMMAND = f"""
import atexit, sys
sys.path.insert(0, {str(ROOT)!r})
from ppxcls import cli
import ppxcls
ppxcls.TrainingError
atexit.register(lambda: print("the exit handlers run"))

def main():
    raise {{error}}

cli.run_command(main)
"""


def run(error: str, tmp_path: Path, world_size: int = 1) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "command.py"
    script.write_text(COMMAND.format(error=error))
    variables = {"PADDLE_TRAINERS_NUM": str(world_size), "PADDLE_TRAINER_ID": "1" if world_size > 1 else "0"}
    command = [
        sys.executable,
        "-c",
        f"import os, runpy; os.environ.update({variables!r}); runpy.run_path({str(script)!r}, run_name='x')",
    ]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_unexpected_error_has_a_traceback(world_size: int, tmp_path: Path) -> None:
    """One of several ranks leaves at once, because its exit handlers may wait for the other ranks."""
    result = run("ZeroDivisionError('a fault')", tmp_path, world_size)
    assert result.returncode == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert "ZeroDivisionError: a fault\n" in result.stderr
    last = "rank 1: error: an unexpected ZeroDivisionError; its traceback is above\n"
    assert result.stderr.endswith(last) == (world_size > 1)
    assert ("the exit handlers run" in result.stdout) == (world_size == 1)


def test_a_full_memory_is_a_line_with_advice(tmp_path: Path) -> None:
    error = "RuntimeError('C++ Traceback\\n\\nResourceExhaustedError: Out of memory error on GPU 0.\\n')"
    result = run(error, tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: out of memory: ResourceExhaustedError: Out of memory error on GPU 0.; use")
    assert "--find-batch" in line
    assert "Arch.recompute" in line
