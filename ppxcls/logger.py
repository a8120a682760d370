"""Log lines to the terminal and to ``train.log``, figures to ``metrics.jsonl``; imports nothing of the package."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Iterator
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
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    prefix = "" if rank == 0 else f"[rank {rank}] "
    formatter = logging.Formatter(f"[%(asctime)s] %(name)s %(levelname)s: {prefix}%(message)s", "%Y/%m/%d %H:%M:%S")
    for handler in handlers:
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)


def append_json_line(file: Path, values: dict[str, Any]) -> None:
    """Append one JSON object as a line; a number that JSON does not have becomes null.

    Raises:
        OSError: the file can't be written.
    """
    safe = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    with open(file, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(safe, ensure_ascii=False) + "\n")


def start_json_lines(file: Path, step: int) -> None:
    """Prepare a file of JSON lines for a run that begins after an optimizer step.

    From step 0, what an earlier run wrote is moved to ``<name>.old``. Later, lines beyond the step are dropped: the run that was
    cut off had written them, and they are about to be written again.

    Raises:
        OSError: the file can't be written.
    """
    if not file.exists():
        return
    if step == 0:
        file.replace(file.with_name(file.name + ".old"))
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):  # cut off in the middle
            continue
    temporary = file.with_name(file.name + ".new")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(file)


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
