"""What the cases of ``docs/troubleshooting.md`` have in common: a user's files and command line.

Each case causes the message of its row by a real command, does what the page advises, and checks that this
ends as promised. What can't be caused on this machine (a GPU, several hosts) is as near to it as possible:
the function that makes the message runs, and ``NEAR`` says what stands for the row.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ppxcls import cli
from ppxcls.cli import verbs
from tests.conftest import ROOT, SMALL_NETWORK, small_config, write_images

PAGE = ROOT / "docs/troubleshooting.md"
SMALL = {"Arch": {"name": "SmallNetwork"}, "Global.plugins": [SMALL_NETWORK]}


@dataclass
class Result:
    """Outcome of a command: exit code, and its output of both streams."""

    code: int
    text: str
    errors: str


class Desk:
    """What a user has: images, a YAML, and the command line. The commands run in this process."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.capfd = capfd
        self.data = write_images(folder / "data", 12)
        write_images(self.data, 7, seed=1, name="val")
        self.run = folder / "output/SmallNetwork"
        monkeypatch.chdir(folder)

    def config(self, **keys: Any) -> str:
        content = small_config(self.data, self.folder / "output", **{**SMALL, **keys})
        file = self.folder / "config.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return str(file)

    def command(self, *words: str | Path) -> Result:
        def leave(message: str, code: int) -> None:
            print(message, file=sys.stderr)
            raise SystemExit(code)

        code: Any = 0
        with self.monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["ppxcls", *map(str, words)])
            patch.setattr(cli, "_exit", leave)
            patch.setattr(warnings, "showwarning", warnings.showwarning)
            try:
                verbs.main()
            except SystemExit as end:
                code = end.code or 0
        out, errors = self.capfd.readouterr()
        return Result(int(code), out + errors, errors)

    def fails(self, *words: str | Path, code: int = 1) -> str:
        """Runs a command that must fail with this exit code. Returns its last line, which is the message."""
        result = self.command(*words)
        assert result.code == code, result.text
        assert "Traceback" not in result.text
        return result.errors.strip().splitlines()[-1]

    def works(self, *words: str | Path) -> str:
        """Runs a command that must succeed. Returns its output."""
        result = self.command(*words)
        assert result.code == 0, result.text
        return result.text


Case = Callable[..., None]  # of a Desk, and of other fixtures
# The name of the case of each row, by a phrase of the row's first cell.
CASES: dict[str, str] = {}
# Rows that can't be caused on this machine, and what stands for them.
NEAR = {
    "this Paddle has no kernels for": "the function that makes the message, with another card's name",
    "Paddle transposes the input of each batch norm": "the start of a job, which is told that it has a GPU",
    "expected 'NCHW' with Global.deterministic": "a config for a GPU, which is checked before the device",
    'the system says "No space left on device"': "the device /dev/full in the place of a file on a full disk",
    "gradients were not finite in": "a loss scaler that skips, because Paddle turns its own off on a CPU",
    "out of memory": "an error of a network that has the words of Paddle's",
    "this host's name resolves to": "the function that makes the message, with another name of the host",
    "differs from the network by": "the output of ONNX Runtime, to which a thousandth is added",
}


def case(phrase: str) -> Callable[[Case], Case]:
    """Says that a test is the case of the row whose first cell contains this phrase."""

    def register(function: Case) -> Case:
        assert phrase not in CASES
        CASES[phrase] = function.__name__
        return function

    return register
