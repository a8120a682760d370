"""Receivers of a run's metrics: ``metrics.jsonl`` in every run, and the trackers of ``Global.trackers``."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ppxcls.checkpoints.progress import Progress
from ppxcls.config.registry import Registry
from ppxcls.system.appended_files import append_descriptor
from ppxcls.system.atomic_files import read_regular, write_text
from ppxcls.system.json_text import json_text
from ppxcls.system.logs import logger

_MAX_FILE_BYTES = 1 << 32  # largest metrics.jsonl that is read
NAMES_WITHOUT_CURVE = {"batch_cost", "reader_cost", "eta", "samples", "num_samples", "bad_samples"}


class Tracker(Protocol):
    """Receives the metrics of a run, in its first process. A subclass must define only ``log``.

    If a tracker fails during the run, it should log a warning, and the run should continue.

    Attributes:
        files: names of the files and folders in the run's folder that it writes. A new run moves them aside
            together with the earlier run. A file is found without this if an attribute is its ``Path``.
    """

    files: Sequence[str] | str = ()

    def start(self, progress: Progress) -> None:  # noqa: ARG002  not every tracker prepares itself
        """Prepares for a run that starts at this progress.

        Metrics that were logged for later steps will be logged again.

        Args:
            progress: progress of the run; ``step`` is 0 in a new run.

        Raises:
            OSError: the tracker can't write.
        """
        return

    def log(self, kind: str, place: dict[str, int], figures: dict[str, Any]) -> None:
        """Receives the metrics of one log line.

        Args:
            kind: ``train`` or ``eval``.
            place: position in the run: ``epoch``, ``step`` and, for ``train``, ``iter``.
            figures: metrics by name, in the order of the log line.
        """

    def flush(self) -> None:
        """Writes all metrics to the disk, before a checkpoint is written.

        It is called in a different thread than ``log``.

        Raises:
            OSError: the metrics can't be written, so a checkpoint can't be written either.
        """
        return

    def close(self) -> None:
        """Closes the tracker at the end of the run."""
        return


TRACKERS: Registry[Tracker] = Registry(
    "tracker", program_parameters=("folder",), base=Tracker, optional_members=("files",)
)


class JsonLines(Tracker):
    """A file with one JSON object per line. Each line is complete and is written once.

    If a line can't be written, for example because the disk is full, a warning is logged. The line is kept in
    memory and written before the next line.

    Args:
        file: file to write.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._pending_lines: list[bytes] = []
        self._lock = threading.Lock()  # the loop appends, and the thread that saves checkpoints flushes

    def start(self, progress: Progress) -> None:
        """Removes the lines that were logged after this progress.

        Raises:
            OSError: the file can't be read or written.
        """

        def is_before(line: dict[str, Any]) -> bool:
            if line["kind"] == "eval":  # an unfinished epoch will be evaluated again
                return bool(line["epoch"] < progress.epoch)
            return (line["epoch"], line["iter"]) < (progress.epoch, progress.batches_done)

        if self.file.exists():
            self.keep(is_before)

    def keep(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        """Removes all lines except those that meet a condition.

        Args:
            condition: function of a line's object that returns True to keep the line.

        Raises:
            OSError: the file can't be read or written.
        """
        try:
            text = read_regular(self.file, _MAX_FILE_BYTES).decode(errors="replace")
        except ValueError as error:
            raise OSError(errno.EINVAL, str(error), str(self.file)) from None
        lines = []
        for line in text.split("\n"):
            try:
                if condition(json.loads(line)):
                    lines.append(line + "\n")
            except (ValueError, KeyError, TypeError, RecursionError):  # incomplete, or written by others
                continue
        write_text(self.file, "".join(lines))

    def log(self, kind: str, place: dict[str, int], figures: dict[str, Any]) -> None:
        """Appends a line with the metrics."""
        self.append({"kind": kind, **place, **figures})

    def append(self, values: dict[str, Any]) -> None:
        """Appends one object. Numbers that JSON can't represent, such as NaN, become null."""
        line = (json_text(values) + "\n").encode()
        try:
            with self._lock:
                self._pending_lines.append(line)
                self._write()
        except OSError as error:
            logger.warning(
                f"{self.file}: {error.strerror}; {len(self._pending_lines)} lines wait to be written"
            )

    def _write(self) -> None:
        """Writes all pending lines. If that fails, it writes none of them and raises OSError."""
        if not self._pending_lines:
            return
        with open(append_descriptor(self.file), "ab", buffering=0) as stream:
            end = stream.seek(0, os.SEEK_END)
            data = b"".join(self._pending_lines)
            try:
                byte_count = stream.write(data)
                if byte_count < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.file))
            except OSError:
                stream.truncate(end)
                raise
        self._pending_lines.clear()

    def flush(self) -> None:
        """Writes all pending lines to the disk.

        Raises:
            OSError: the lines can't be written.
        """
        with self._lock:
            self._write()
        if self.file.exists():
            with open(append_descriptor(self.file), "ab") as stream:
                os.fsync(stream.fileno())
