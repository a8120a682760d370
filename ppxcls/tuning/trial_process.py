"""Runs one trial in a process of its own, and follows its evaluations."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppxcls.system.appended_files import append_descriptor
from ppxcls.system.json_text import is_count, is_number, read_json
from ppxcls.system.paths import one_line

_POLL_SECONDS = 0.2
_MAX_END_BYTES = 1 << 14  # bytes at the end of a trial's output that may contain its error
_MAX_REASON_LENGTH = 400  # characters
_PARENT_DEATH_SIGNAL = 1  # of Linux's prctl
WORSE, TIME_OVER, STOPPED = "worse than others", "time over", "stopped"


@dataclass(frozen=True)
class TrialEnd:
    """The end of a trial's process.

    Attributes:
        code: exit code; negative for the number of a signal.
        cause: reason why it was told to end: ``WORSE``, ``TIME_OVER`` or ``STOPPED``; empty if it ended by
            itself.
    """

    code: int
    cause: str

    @property
    def has_saved(self) -> bool:
        """True if the training has ended after a save, not before it began to note signals."""
        return self.code != -signal.SIGTERM


class EvaluationLines:
    """The evaluations in a ``metrics.jsonl`` to which a run appends.

    A run that resumes replaces the file by one without the lines of the steps that it computes again. Each
    epoch is reported once.

    Args:
        file: the run's file, which need not exist yet.
        figure: name of the figure to report.
    """

    def __init__(self, file: Path, figure: str) -> None:
        self._file = file
        self._figure = figure
        self._offset = 0
        self._identity: tuple[int, int] | None = None
        self._epochs: set[int] = set()

    def new_figures(self) -> list[tuple[int, float]]:
        """Returns epoch and figure of each new evaluation. Figures that are not finite are left out."""
        try:
            with open(self._file, "rb") as stream:
                status = os.fstat(stream.fileno())
                identity = (status.st_dev, status.st_ino)
                if identity != self._identity or status.st_size < self._offset:
                    self._identity, self._offset = identity, 0
                stream.seek(self._offset)
                data = stream.read()
        except OSError:  # not written yet
            return []
        whole_lines = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole_lines)
        figures = []
        for line in whole_lines.splitlines():
            row = None
            with contextlib.suppress(ValueError):
                row = read_json(line, is_nan_null=True)
            if not isinstance(row, dict) or row.get("kind") != "eval":
                continue
            epoch: Any = row.get("epoch")
            figure: Any = row.get(self._figure)
            if is_count(epoch) and epoch not in self._epochs:
                self._epochs.add(epoch)
                if is_number(figure):
                    figures.append((epoch, float(figure)))
        return figures


def run_process(
    words: Sequence[str],
    output: Path,
    *,
    lines: EvaluationLines,
    observe: Callable[[int, float], bool],
    end_time: float,
    is_stopped: Callable[[], bool],
) -> TrialEnd:
    """Runs a command, and tells it to save and end if there is a reason.

    Args:
        words: words of the command.
        output: file to which its output is appended.
        lines: evaluations of its run.
        observe: function that gets epoch and figure of each evaluation, and returns True to end the trial.
        end_time: time on the monotonic clock at which it is told to end.
        is_stopped: function that returns True if this process was told to end.

    Raises:
        OSError: the process can't be started, or its output can't be written.
        KeyboardInterrupt: Ctrl-C; the process has saved and ended before.
    """
    with os.fdopen(append_descriptor(output), "ab") as stream:
        # A session of its own, so that Ctrl-C at the terminal lets it save.
        process = subprocess.Popen(  # noqa: S603  the user's own command
            words,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent() if sys.platform == "linux" else None,  # noqa: PLW1509
        )
    cause = ""
    try:
        while True:
            code = _code_after_pause(process)
            for epoch, figure in lines.new_figures():
                if not cause and observe(epoch, figure):
                    cause = WORSE
                    process.terminate()
            if not cause and (is_stopped() or time.monotonic() >= end_time):
                cause = STOPPED if is_stopped() else TIME_OVER
                process.terminate()
            if code is not None:
                return TrialEnd(code, cause)
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _code_after_pause(process: subprocess.Popen[bytes]) -> int | None:
    """Waits for a moment; returns the exit code, or None if the process still runs."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(_POLL_SECONDS)
    return None


def _end_with_parent() -> Callable[[], None]:
    """Returns a function for the new process: it gets SIGTERM if this process is killed.

    Without it, a killed study would leave a training behind, which holds the device and its folder.
    """
    library = ctypes.CDLL(None)

    def ask_system() -> None:
        library.prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)

    return ask_system


def failure_reason(output: Path, code: int) -> str:
    """Returns why a trial failed, in one line: the error in its output, or else how it ended."""
    end = f"signal {-code}" if code < 0 else f"exit code {code}"
    if code == -getattr(signal, "SIGKILL", 9):
        end += ", as if the machine had no memory left"
    text = ""
    with contextlib.suppress(OSError), open(output, "rb") as stream:
        stream.seek(max(stream.seek(0, os.SEEK_END) - _MAX_END_BYTES, 0))
        text = stream.read().decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error: " in line or "Error: " in line]
    words = f"{end}: {errors[-1]}" if errors else end
    return one_line(words, _MAX_REASON_LENGTH)
