"""The files of ``infer --features``: the features as ``.npy``, and the names of the images beside them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ppxcls.data.errors import DataError
from ppxcls.deploy.predict import Prediction
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import whole_output, write_output
from ppxcls.system.paths import printable

_SUFFIX = ".npy"


def names_file(file: Path) -> Path:
    """Returns the file of the names beside a file of features.

    Raises:
        DataError: the file of features has another suffix than ``.npy``.
    """
    if file.suffix != _SUFFIX:
        raise DataError(f"--features: expected a file with the suffix .npy, received {str(file)!r}")
    return file.with_suffix(".csv")


def refuse_one_file(predictions: str, features: str) -> None:
    """Refuses a file of predictions that would be replaced by the features or by their names.

    Args:
        predictions: file of ``--output``.
        features: ``.npy`` file of ``--features``.

    Raises:
        DataError: two of the files are one.
    """
    for file in (Path(features), names_file(Path(features))):
        if os.path.realpath(file) == os.path.realpath(predictions):
            raise DataError(
                f"--output: expected another file than {str(file)!r}, which --features writes, "
                f"received {predictions!r}"
            )


class FeatureRows:
    """Collects the features of predictions in memory, and writes both files."""

    def __init__(self) -> None:
        self._rows: list[Array] = []
        self._names: list[str] = []

    def add(self, predictions: Iterable[Prediction]) -> None:
        """Adds predictions of a predictor that gives features. Those with an error have none."""
        for prediction in predictions:
            if prediction.features is not None:
                self._rows.append(prediction.features)
                self._names.append(prediction.file)

    def write(self, file: Path) -> None:
        """Writes float32 [N, F] to a ``.npy`` file, and N names to the ``.csv`` file beside it.

        Raises:
            OSError: a file can't be written.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file_name"])
        writer.writerows([printable(name)] for name in self._names)
        write_output(names_file(file), text.getvalue())
        features = np.stack(self._rows) if self._rows else np.zeros((0, 0))
        with whole_output(file) as stream:
            np.lib.format.write_array(stream, features.astype(np.float32), allow_pickle=False)
