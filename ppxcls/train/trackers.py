"""Where the figures of a run go: ``metrics.jsonl`` always, and what ``Global.trackers`` names."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ppxcls.checkpoints.progress import Progress
from ppxcls.config.registry import Registry
from ppxcls.system.logs import logger
from ppxcls.system.whole_files import read_regular, write_text

_MOST_BYTES = 1 << 32  # of metrics.jsonl
NO_CURVE = {"batch_cost", "reader_cost", "eta", "samples", "num_samples", "bad_samples"}


class Tracker(Protocol):
    """Takes the figures of a run, in its first process. Only ``log`` has to be written.

    A tracker that can't go on says so in a warning and lets the run go on.

    Attributes:
        files: names of the files and folders that it writes into the run's folder. A new run moves them aside with
            the earlier one. Files to which an attribute of type ``Path`` leads need not be declared.
    """

    files: Sequence[str] = ()

    def start(self, progress: Progress) -> None:  # noqa: ARG002  not every tracker prepares itself
        """Prepare for a run that goes on from here; what was logged after this place will be logged again.

        Raises:
            OSError: there is no place to write to.
        """
        return

    def log(self, kind: str, place: dict[str, int], figures: dict[str, Any]) -> None:
        """Take the figures of one line.

        Args:
            kind: ``train`` or ``eval``.
            place: ``epoch``, ``step``, and of training ``iter``.
            figures: by name, in the order of the log line.
        """

    def flush(self) -> None:
        """Write everything through to the disk, before a checkpoint is written.

        It is called by another thread than ``log``.

        Raises:
            OSError: it can't be written, so there is no room for a checkpoint either.
        """
        return

    def close(self) -> None:
        """The run has ended."""
        return


TRACKERS: Registry[Tracker] = Registry("tracker", provided=("folder",), base=Tracker)


class JsonLines(Tracker):
    """A file of JSON objects, one a line, each whole and written once.

    A line that can't be written, because the disk is full, is kept and written before the next one; a warning
    says so.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._waiting: list[bytes] = []
        self._lock = threading.Lock()  # the loop appends, and the thread that saves flushes

    def start(self, progress: Progress) -> None:
        """Keep the lines that stand before this place of the run.

        Raises:
            OSError: the file can't be written.
        """

        def is_before(line: dict[str, Any]) -> bool:
            if line["kind"] == "eval":  # the evaluation of an epoch that is not done is still to come
                return bool(line["epoch"] < progress.epoch)
            return (line["epoch"], line["iter"]) < (progress.epoch, progress.batches_done)

        if self.file.exists():
            self.keep(is_before)

    def keep(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        """Leave only the lines whose objects meet the condition.

        Raises:
            OSError: the file can't be read or written.
        """
        kept = []
        for line in read_regular(self.file, _MOST_BYTES).decode(errors="replace").split("\n"):
            try:
                if condition(json.loads(line)):
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError, RecursionError):  # cut off in the middle, or not ours
                continue
        write_text(self.file, "".join(kept))

    def log(self, kind: str, place: dict[str, int], figures: dict[str, Any]) -> None:
        """Append a line."""
        self.append({"kind": kind, **place, **figures})

    def append(self, values: dict[str, Any]) -> None:
        """Append one object; a number that JSON does not have becomes null."""
        safe = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        line = (json.dumps(safe, ensure_ascii=False) + "\n").encode()
        try:
            with self._lock:
                self._waiting.append(line)
                self._write()
        except OSError as error:
            logger.warning(f"{self.file}: {error.strerror}; {len(self._waiting)} lines wait to be written")

    def _write(self) -> None:
        """Write what waits: all of it, or nothing and raise OSError."""
        if not self._waiting:
            return
        with open(self.file, "ab", buffering=0) as stream:
            end = stream.tell()
            data = b"".join(self._waiting)
            try:
                written = stream.write(data)
                if written < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.file))
            except OSError:
                stream.truncate(end)
                raise
        self._waiting.clear()

    def flush(self) -> None:
        """Write what waits, through to the disk.

        Raises:
            OSError: it can't be written.
        """
        with self._lock:
            self._write()
        if self.file.exists():
            with open(self.file, "rb") as stream:
                os.fsync(stream.fileno())
