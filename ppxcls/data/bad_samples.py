"""Skips unreadable samples, lists them, and stops the run if there are too many."""

from __future__ import annotations

import threading
from pathlib import Path

from ppxcls.data.dataset import Dataset
from ppxcls.data.errors import DataError
from ppxcls.system.appended_files import append_descriptor
from ppxcls.system.atomic_files import named_errors, read_regular
from ppxcls.system.logs import logger
from ppxcls.system.paths import printable

_MAX_FILE_BYTES = 1 << 30


class BadSamples:
    """The file that lists the skipped samples, one per line: ``list:line<tab>path<tab>reason``.

    A resumed run appends to the file. A new run moves it aside with the other files of the earlier run. Every
    process adds its own samples.

    Args:
        file: path of ``bad_samples.txt`` in the run's folder.
        dataset: data set that contains the samples.
        max_share: largest share of unreadable samples in the data set, 0 to 1; the run stops above it. One
            unreadable sample is always allowed, unless the share is 0.
    """

    def __init__(self, file: Path, dataset: Dataset, max_share: float) -> None:
        self.file = file
        self._dataset = dataset
        self._max_share = max_share
        self._lock = threading.Lock()

    def add(self, index: int, error: DataError) -> None:
        """Adds a sample to the file, unless it is listed already.

        Raises:
            DataError: too many of the data set's samples are listed.
            OSError: the file can't be written.
        """
        line = printable(self._dataset.line(index))
        with self._lock:
            listed_lines = {row.split("\t", 1)[0] for row in self._rows()}
            if line in listed_lines:
                return
            logger.warning(f"left out: {error}")
            path = self._dataset.listed(index)
            with open(append_descriptor(self.file), "a", encoding="utf-8") as stream, named_errors(self.file):
                stream.write("\t".join(map(printable, (line, path, str(error)))) + "\n")
            prefix = printable(f"{self._dataset.source}:")
            count = 1 + sum(row.startswith(prefix) for row in listed_lines)
        sample_count = len(self._dataset)
        if count > self._max_count(sample_count):
            count_text = f"{count:,} of {sample_count:,} samples of {self._dataset.source}"
            raise DataError(
                f"{count_text} can't be read, more than Global.max_bad_share = {self._max_share:g}: "
                f"see {self.file}; 'ppxcls check' finds all of them"
            )

    def _max_count(self, sample_count: int) -> float:
        """Returns the largest number of unreadable samples in a data set of this size."""
        return max(self._max_share * sample_count, 1.0) if self._max_share else 0.0

    def _rows(self) -> list[str]:
        try:
            return read_regular(self.file, _MAX_FILE_BYTES).decode("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise DataError(f"{self.file}: {error}") from None
