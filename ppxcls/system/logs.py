"""Writes log lines to the terminal and to ``train.log``."""

from __future__ import annotations

import io
import logging
import os
import sys
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from ppxcls.system.appended_files import append_descriptor
from ppxcls.system.environment import launched_rank
from ppxcls.system.paths import MAX_MESSAGE_LENGTH, one_line

_MAX_FACT_LENGTH = 2000  # characters of a message that is no problem, such as all settings of an evaluation
logger = logging.getLogger("ppxcls")
logger.propagate = False


def _as_one_line(record: logging.LogRecord) -> bool:
    """Makes the message of a record one printable line of bounded length, before any handler gets it."""
    max_length = MAX_MESSAGE_LENGTH if record.levelno >= logging.WARNING else _MAX_FACT_LENGTH
    record.msg, record.args = one_line(record.getMessage(), max_length), None
    return True


logger.addFilter(_as_one_line)


class _TerminalHandler(logging.Handler):
    """Writes lines above a progress bar, if the terminal shows one."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        # A notebook or a test may have closed the stream of an earlier command.
        is_open = self._stream is not None and not self._stream.closed
        stream = self._stream if is_open and self._stream else sys.stdout
        tqdm.write(self.format(record), file=stream)
        stream.flush()


class _FileHandler(logging.FileHandler):
    """A log file that does not stop a run if it can't be written.

    On a full disk its lines are lost, and the terminal reports it once.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(file, encoding="utf-8")
        self._has_failed = False

    def _open(self) -> io.TextIOWrapper:
        """Opens the file. A link out of the run's folder is refused."""
        return open(append_descriptor(Path(self.baseFilename)), "a", encoding="utf-8")

    def emit(self, record: logging.LogRecord) -> None:
        if not os.path.exists(self.baseFilename):  # the folder was removed during the run
            self.close()  # the next line opens it again
            self._reopen()
        super().emit(record)

    def _reopen(self) -> None:
        try:
            os.makedirs(os.path.dirname(self.baseFilename), exist_ok=True)
            self.stream = self._open()
        except OSError:
            self.stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  the handler closes it

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._has_failed:
            self._has_failed = True
            tqdm.write(
                f"warning: {self.baseFilename}: {sys.exc_info()[1]}; log lines are lost",
                file=sys.stderr,
            )


class _EarlyLines(logging.Handler):
    """Keeps the lines that are logged before the log file of a run can be opened."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def warn_once(message: str) -> None:
    """Logs a warning about something that all processes of a job notice. Only rank 0 logs it."""
    if launched_rank() == 0:
        logger.warning(message)


def set_up_logging(
    rank: int = 0, file: Path | None = None, stream: TextIO | None = None, *, is_file_later: bool = False
) -> None:
    """Sets up log lines to the terminal and to a file. Ranks other than 0 log warnings and errors only.

    Args:
        rank: number of this process.
        file: log file, which only rank 0 writes; None for no file.
        stream: stream of the terminal; None for standard output.
        is_file_later: True if the next call names the log file. It then gets the lines from now on too.

    Raises:
        OSError: the file can't be written.
    """
    early_records = [
        record
        for handler in logger.handlers
        if isinstance(handler, _EarlyLines)
        for record in handler.records
    ]
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [_TerminalHandler(stream)]
    if file is not None and rank == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(_FileHandler(file))
    if is_file_later and rank == 0:
        handlers.append(_EarlyLines())
    prefix = "" if rank == 0 else f"[rank {rank}] "
    formatter = logging.Formatter(
        f"[%(asctime)s] %(name)s %(levelname)s: {prefix}%(message)s", "%Y/%m/%d %H:%M:%S"
    )
    for handler in handlers:
        handler.setFormatter(formatter)
        logger.addHandler(handler)
        if isinstance(handler, _FileHandler):
            for record in early_records:
                handler.handle(record)
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
