"""Reads ``folds.json``: the figures of each fold of ``fit --folds``. A stranger may have written it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppxcls.data.errors import DataError
from ppxcls.reports.run_files import read_own_file
from ppxcls.system.json_text import is_number, read_json

FORMAT = 1
IMAGE_COUNT = "num_samples"  # name of the number of images of a fold among its figures
_MAX_BYTES = 1 << 20
_MAX_FOLDS, _MAX_FIGURES = 1000, 1000
_MAX_NAME_LENGTH = 200  # characters
_MAX_VALUE = 1e100
_COUNTS = (IMAGE_COUNT, "num_groups", "bad_samples")


@dataclass(frozen=True)
class FoldMean:
    """A figure of all folds.

    Attributes:
        name: name of the figure.
        values: value of each fold; None if the figure is not defined there.
        mean: mean of the defined values.
        spread: their standard deviation, with the divisor n - 1; None for a single value.
    """

    name: str
    values: list[float | None]
    mean: float
    spread: float | None

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:.4f}"
        return f"{self.name} {self.mean:.4f}{spread}"


@dataclass(frozen=True)
class FoldFile:
    """The content of ``folds.json``.

    Attributes:
        figure: name of the figure that chose the best epoch of each fold.
        folds: figures of each fold by name, None for one that is not defined; among them the number of
            images, ``IMAGE_COUNT``.
    """

    figure: str
    folds: Sequence[dict[str, float | None]]

    @property
    def means(self) -> list[FoldMean]:
        """Mean and spread of each figure that is defined in a fold; the figure that chose comes first."""
        names = dict.fromkeys([self.figure, *(name for fold in self.folds for name in fold)])
        means = []
        for name in names:
            values = [fold.get(name) for fold in self.folds]
            defined_values = [value for value in values if value is not None]
            if name in _COUNTS or not defined_values:
                continue
            spread = statistics.stdev(defined_values) if len(defined_values) > 1 else None
            means.append(FoldMean(name, values, statistics.fmean(defined_values), spread))
        return means


def read_folds(file: Path) -> FoldFile | None:
    """Returns the content of ``folds.json``; None if there is no such file.

    Raises:
        DataError: the file can't be read, or a value is invalid. The message contains no text of the file.
    """
    data = read_own_file(file, _MAX_BYTES)
    if data is None:
        return None
    try:
        values = read_json(data, is_nan_null=True)
    except ValueError as error:
        raise DataError(f"{file}: not the figures of folds: {error}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT or not _is_name(values.get("figure")):
        raise DataError(f"{file}: expected an object with {FORMAT} as 'format', and a name as 'figure'")
    folds = values.get("folds")
    if not isinstance(folds, list) or not 2 <= len(folds) <= _MAX_FOLDS or not all(map(_is_fold, folds)):
        raise DataError(f"{file}: expected 2 to {_MAX_FOLDS:,} objects with numbers or null as 'folds'")
    return FoldFile(values["figure"], folds)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_NAME_LENGTH and value.isprintable()


def _is_fold(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= _MAX_FIGURES
        and all(
            _is_name(name) and (number is None or (is_number(number) and abs(number) <= _MAX_VALUE))
            for name, number in value.items()
        )
    )
