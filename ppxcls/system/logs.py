"""Log lines to the terminal and to ``train.log``, figures to ``metrics.jsonl``; imports nothing of the package."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")

logger = logging.getLogger("ppxcls")
logger.propagate = False


class _TerminalHandler(logging.Handler):
    """Writes above a progress bar that may be on the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class _FileHandler(logging.FileHandler):
    """A log file without which training goes on: on a full disk its lines are lost, and the terminal says so once."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, encoding="utf-8")
        self._failed = False

    def emit(self, record: logging.LogRecord) -> None:
        if not os.path.exists(self.baseFilename):  # the folder was removed under the run
            self.close()  # opened again by the next line
            self._reopen()
        super().emit(record)

    def _reopen(self) -> None:
        try:
            os.makedirs(os.path.dirname(self.baseFilename), exist_ok=True)
            self.stream = self._open()
        except OSError:
            self.stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  the handler closes it

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._failed:
            self._failed = True
            tqdm.write(f"warning: {self.baseFilename}: {sys.exc_info()[1]}; lines of the log are lost", file=sys.stderr)


def set_up_logging(rank: int = 0, file: Path | None = None) -> None:
    """Log to standard output and, where given, to a file; ranks beyond the first say warnings and errors only.

    Raises:
        OSError: the file can't be written.
    """
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [_TerminalHandler()]
    if file is not None and rank == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(_FileHandler(file))
    prefix = "" if rank == 0 else f"[rank {rank}] "
    formatter = logging.Formatter(f"[%(asctime)s] %(name)s %(levelname)s: {prefix}%(message)s", "%Y/%m/%d %H:%M:%S")
    for handler in handlers:
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)


class JsonLines:
    """A file of JSON objects, one a line, each whole and written once.

    Where a line can't be written (a full disk), it is kept and written before the next one: a warning says so.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._waiting: list[bytes] = []

    def start(self, keep: Callable[[dict[str, Any]], bool] | None) -> None:
        """Begin a new file, moving an earlier run's to ``<name>.old``, or keep of it the objects that ``keep`` admits.

        Raises:
            OSError: the file can't be written.
        """
        if not self.file.exists():
            return
        if keep is None:
            self.file.replace(self.file.with_name(self.file.name + ".old"))
            return
        kept = []
        for line in self.file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if keep(json.loads(line)):
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):  # cut off in the middle
                continue
        temporary = self.file.with_name(self.file.name + ".new")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(self.file)

    def append(self, values: dict[str, Any]) -> None:
        """Append one object; a number that JSON does not have becomes null."""
        safe = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._waiting.append((json.dumps(safe, ensure_ascii=False) + "\n").encode())
        try:
            self.flush()
        except OSError as error:
            logger.warning(f"{self.file}: {error.strerror}; {len(self._waiting)} lines wait to be written")

    def flush(self) -> None:
        """Write what waits.

        Raises:
            OSError: it can't be written; nothing of it is.
        """
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

    def sync(self) -> None:
        """Write what waits, through to the disk.

        Raises:
            OSError: it can't be written.
        """
        self.flush()
        if self.file.exists():
            with open(self.file, "rb") as stream:
                os.fsync(stream.fileno())


class Curves:
    """VisualDL's curves; where they can't be written, a warning says so and the run goes on without.

    Args:
        folder: where they go; None for nowhere.

    Raises:
        ImportError: VisualDL is not installed.
    """

    def __init__(self, folder: Path | None) -> None:
        self._writer: Any = None
        if folder is not None:
            try:
                from visualdl import LogWriter
            except ImportError:
                raise ImportError("VisualDL is not installed: pip install 'ppxcls[visualdl]'") from None
            self._writer = LogWriter(logdir=str(folder))

    def add(self, name: str, value: float, step: int) -> None:
        """Add a point."""
        if self._writer is None:
            return
        try:
            if not self._is_alive():
                raise OSError("the disk may be full")
            self._writer.add_scalar(name, value, step)
        except OSError as error:
            logger.warning(f"the curves can't be written, the run goes on without: {error}")
            self._writer = None

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None and self._is_alive():
            with contextlib.suppress(OSError):
                self._writer.close()

    def _is_alive(self) -> bool:
        """VisualDL's thread dies of a full disk, and what is put into its queue then waits for ever."""
        try:
            return bool(self._writer._get_file_writer()._async_writer._worker.is_alive())
        except AttributeError:  # its insides are not part of its interface
            return True


def format_figures(values: dict[str, float]) -> str:
    """``top1: 0.78300, CELoss: 1.90000``."""
    return ", ".join(f"{name}: {value:.5f}" for name, value in values.items())


class BatchClock:
    """Time of batches, and of waiting for them, since the last lap."""

    def __init__(self) -> None:
        self.samples = 0
        self._batches = 0
        self._waited = 0.0
        self._start = time.perf_counter()

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; measures how long each is waited for."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            self._batches += 1
            yield batch

    def lap(self) -> dict[str, float]:
        """Seconds a batch, seconds of waiting a batch, and samples a second, since the last lap."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        batches = max(self._batches, 1)
        times = {"batch_cost": elapsed / batches, "reader_cost": self._waited / batches, "ips": self.samples / elapsed}
        self.samples = self._batches = 0
        self._waited, self._start = 0.0, time.perf_counter()
        return times
