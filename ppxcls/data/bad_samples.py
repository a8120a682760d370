"""Skips unreadable samples, lists them, and stops the run if there are too many."""

from __future__ import annotations

import threading
from pathlib import Path

from ppxcls.data.dataset import Dataset
from ppxcls.data.errors import DataError
from ppxcls.system.logs import logger
from ppxcls.system.paths import printable


class BadSamples:
    """The file of the samples that were left out, one line each: ``list:line<tab>path<tab>reason``.

    A resumed run continues the file, and a new run moves it aside with the others of the earlier run. Every
    process adds its own samples.

    Args:
        file: ``bad_samples.txt`` in the run's folder.
        dataset: that the samples belong to.
        max_share: largest share of the data set's samples; with more, the run stops.
    """

    def __init__(self, file: Path, dataset: Dataset, max_share: float) -> None:
        self.file = file
        self._dataset = dataset
        self._max_share = max_share
        self._lock = threading.Lock()

    def add(self, index: int, error: DataError) -> None:
        """List a sample that is not listed yet.

        Raises:
            DataError: too many of the data set's samples are listed.
            OSError: the file can't be written.
        """
        line = printable(self._dataset.line(index))
        with self._lock:
            known = {row.split("\t", 1)[0] for row in self._rows()}
            if line in known:
                return
            logger.warning(f"left out: {error}")
            path = self._dataset.listed(index)
            with open(self.file, "a", encoding="utf-8") as stream:
                stream.write("\t".join(map(printable, (line, path, str(error)))) + "\n")
            prefix = printable(f"{self._dataset.source}:")
            count = 1 + sum(row.startswith(prefix) for row in known)
        if count > self._max_share * len(self._dataset):
            total = f"{count:,} of {len(self._dataset):,} samples of {self._dataset.source}"
            raise DataError(
                f"{total} can't be read, more than Global.max_bad_share = {self._max_share:g}: see {self.file}"
            )

    def _rows(self) -> list[str]:
        try:
            return self.file.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
