"""The doctor reports a sound installation, and every kind of broken installation in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_tool


def lines_of(folder: Path, *arguments: str, **variables: str) -> tuple[int, dict[str, list[str]]]:
    """Returns the exit code and the texts by name. Modules of the folder precede the installed ones."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **variables}
    result = run_tool("doctor", *arguments, env=environment)
    assert result.stderr == ""
    assert "Traceback" not in result.stdout
    found: dict[str, list[str]] = {}
    for line in result.stdout.splitlines()[:-1]:
        found.setdefault(line[5:17].strip(), []).append(f"{line[:3].strip()}: {line[18:]}")
    return result.returncode, found


@pytest.mark.every_paddle
def test_a_sound_installation(tmp_path: Path) -> None:
    code, found = lines_of(tmp_path)
    assert code == 0, found
    assert next(iter(found)) == "ppxcls"
    assert {"packages", "images", "threads", "disk", "shared", "Paddle", "cpu"} <= found.keys()
    assert "s per step of Xception41, 8 images of 96 px" in found["cpu"][0]


@pytest.mark.parametrize(
    ("module", "text", "name", "expected"),
    [
        (
            "paddle",
            "raise ImportError('libcudnn.so.9: cannot open shared object file')",
            "Paddle",
            "libcudnn.so.9: cannot open",
        ),
        ("paddle", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "Paddle", "ended by signal 11"),
        (
            "paddle",
            "__version__ = '2.4.0'",
            "Paddle",
            "ppxcls needs PaddlePaddle 2.6 or newer; 2.4.0 is installed",
        ),
        (
            "cv2",
            "raise ImportError('libGL.so.1: cannot open shared object file')",
            "images",
            "ImportError: libGL.so.1: cannot",
        ),
        ("simplejpeg", "raise OSError('bad\\x1b[31m wheel')", "images", r"OSError: bad\x1b[31m wheel"),
    ],
)
def test_what_is_broken_is_a_line(module: str, text: str, name: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(text)
    code, found = lines_of(tmp_path)
    assert code == 1
    bad = [line for line in found[name] if line.startswith("BAD: ")]
    assert any(expected in line for line in bad), found


def test_a_disk_that_can_not_be_written(tmp_path: Path) -> None:
    code, found = lines_of(tmp_path, "--output", str(tmp_path / "none"))
    assert code == 1
    assert found["disk"][0].startswith("BAD: FileNotFoundError")
