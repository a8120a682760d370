"""Training output: a progress bar of one line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from ppxcls.train.run_log import small_curve
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("values", "curve"),
    [([], ""), ([2.0], "▁"), ([3.0, 3.0], "▁▁"), ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"), ([10.0, 0.0], "█▁")],
)
def test_the_small_curve(values: list[float], curve: str) -> None:
    assert small_curve(values) == curve


def test_a_bar_on_a_terminal(small: Callable[..., Path]) -> None:
    file = small(**{"Global.epochs": 2})
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    environment = {**os.environ, "NO_COLOR": "1"}
    command = [sys.executable, "tools/train.py", "-c", str(file)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other end of the terminal is closed
            break
        if not part:
            break
        shown += part
    assert process.wait() == 0
    text = shown.decode(errors="replace")
    bars = [line for line in text.split("\r") if line.startswith("epoch 2/2")]
    assert bars
    last = next(bar for bar in reversed(bars) if "loss " in bar)
    for words in ("top1 0.", " images/s, 0:00:0", " left"):
        assert words in last
    assert any(bar in last for bar in "▁█")
    assert "\x1b[3" not in text, "no colours"
