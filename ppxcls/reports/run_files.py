"""Reads the files of a run that a report shows. A stranger may have written them.

An error gives the file and the line, and no part of the content, which may be another file's.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ppxcls.calibration.record import LARGEST_TEMPERATURE
from ppxcls.data.errors import DataError
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import read_inside, reason_of
from ppxcls.system.json_text import is_count, is_number, read_json
from ppxcls.train.predictions import COLUMNS, TEMPERATURE

_MAX_METRICS_BYTES, _MAX_METRICS_LINES = 1 << 28, 1_000_000
_MAX_LINE_BYTES, _MAX_LINE_KEYS = 1 << 20, 1000
_MAX_PREDICTIONS_BYTES, _MAX_PREDICTIONS = 1 << 30, 2_000_000
_MAX_NUMBER = 1e100  # a larger metric could not be drawn
_MAX_NAME_LENGTH = 200  # characters in the name of a metric
_MAX_PATH_LENGTH = 1 << 15  # characters in the path of an image
_CLASS_ID = re.compile(r"[0-9]{1,9}")
_NUMBER = re.compile(r"[0-9.eE+-]{1,40}")
_COUNTS = ("epoch", "step", "iter", "samples")


@dataclass(kw_only=True)
class Samples:
    """The predictions of an evaluation, as in ``predictions.csv``.

    Attributes:
        files: image files of the samples.
        labels, predicted_ids: label and predicted class of each sample, int64 [n].
        scores: probability of the predicted class, float64 [n].
        label_scores: probability of the label, float64 [n].
        top_ids: best classes of each sample, up to five.
        runner_up_scores: probability of the second-best class, float64 [n]; None if a sample lacks it.
        temperatures: divisor of the logits of each sample, float64 [n]; None if it is not known.
    """

    files: list[str]
    labels: Array
    predicted_ids: Array
    scores: Array
    label_scores: Array
    top_ids: list[list[int]]
    runner_up_scores: Array | None = None
    temperatures: Array | None = None

    def __len__(self) -> int:
        return len(self.files)


def joined_samples(parts: Sequence[Samples]) -> Samples:
    """Returns the predictions of several evaluations together."""
    runner_up_scores = [part.runner_up_scores for part in parts if part.runner_up_scores is not None]
    return Samples(
        files=[file for part in parts for file in part.files],
        labels=np.concatenate([part.labels for part in parts]),
        predicted_ids=np.concatenate([part.predicted_ids for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        label_scores=np.concatenate([part.label_scores for part in parts]),
        top_ids=[ids for part in parts for ids in part.top_ids],
        runner_up_scores=np.concatenate(runner_up_scores) if len(runner_up_scores) == len(parts) else None,
    )


def read_own_file(file: Path, max_bytes: int) -> bytes | None:
    """Returns the content of a file in a run's folder; None if there is no such file.

    Raises:
        DataError: the file can't be read, is too large, is no regular file, or is a link out of the folder.
    """
    try:
        return read_inside(file, [file.parent], max_bytes)
    except FileNotFoundError:
        if os.path.lexists(file):
            raise DataError(f"{file}: a link to a file that does not exist") from None
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: can't be read: {reason_of(error)}") from None


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Returns the objects of ``metrics.jsonl``; none if there is no such file.

    A killed run may have cut the last line, so that line is left out if it is incomplete.

    Raises:
        DataError: the file can't be read, or a line is invalid.
    """
    data = read_own_file(file, _MAX_METRICS_BYTES) or b""
    if data.count(b"\n") > _MAX_METRICS_LINES:
        raise DataError(f"{file}: more than {_MAX_METRICS_LINES:,} lines")
    rows = []
    *lines, last_line = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(_metrics_row(line))
            except ValueError as error:
                raise DataError(f"{file}:{number}: not a line of metrics: {error}") from None
    if last_line.strip():
        with contextlib.suppress(ValueError):
            rows.append(_metrics_row(last_line))
    return rows


def _metrics_row(line: bytes) -> dict[str, Any]:
    """Returns the object of a line. Raises ValueError if a key is missing, or a value is invalid."""
    if len(line) > _MAX_LINE_BYTES:
        raise ValueError(f"it has {len(line):,} bytes; the limit is {_MAX_LINE_BYTES:,}")
    row = read_json(line, is_nan_null=True)
    if not isinstance(row, dict):
        raise ValueError("expected an object")
    if len(row) > _MAX_LINE_KEYS:
        raise ValueError(f"it has {len(row):,} keys; the limit is {_MAX_LINE_KEYS:,}")
    if row.get("kind") not in ("train", "eval"):
        raise ValueError("expected 'train' or 'eval' as 'kind'")
    for key in _COUNTS:
        is_required = key in ("epoch", "step")
        if (is_required or key in row) and not is_count(row.get(key)):
            raise ValueError(f"expected a whole number from 0 as '{key}'")
    for key, value in row.items():
        if len(key) > _MAX_NAME_LENGTH or not key.isprintable():
            raise ValueError(f"expected a printable name of up to {_MAX_NAME_LENGTH} characters as a key")
        if key != "kind" and value is not None and not (is_number(value) and abs(value) <= _MAX_NUMBER):
            raise ValueError(f"expected a number or null as '{key}'")
    return row


def read_samples(file: Path, count: int) -> Samples | None:
    """Returns the predictions in ``predictions.csv``; None if there is no such file, or no row in it.

    Args:
        file: CSV file.
        count: number of classes.

    Raises:
        DataError: the file can't be read, or a row is invalid.
    """
    data = read_own_file(file, _MAX_PREDICTIONS_BYTES)
    if data is None:
        return None
    if data.count(b"\n") > _MAX_PREDICTIONS:
        raise DataError(f"{file}: more than {_MAX_PREDICTIONS:,} lines")
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = list(_prediction_rows(reader, count))
    except (ValueError, csv.Error) as error:
        raise DataError(f"{file}:{max(reader.line_num, 1)}: not a row of predictions: {error}") from None
    if not rows:
        return None
    labels, predicted_ids = (np.array([row[i] for row in rows], np.int64) for i in (1, 2))
    scores, label_scores = (np.array([row[i] for row in rows], np.float64) for i in (3, 4))
    return Samples(
        files=[row[0] for row in rows],
        labels=labels,
        predicted_ids=predicted_ids,
        scores=scores,
        label_scores=label_scores,
        top_ids=[row[5] for row in rows],
        runner_up_scores=_array_of_all([row[6] for row in rows]),
        temperatures=_array_of_all([row[7] for row in rows]),
    )


def _array_of_all(values: Sequence[float | None]) -> Array | None:
    """Returns the numbers, float64 [n]; None if one is missing."""
    return None if None in values else np.array(values, np.float64)


def _prediction_rows(
    reader: Iterator[list[str]], count: int
) -> Iterator[tuple[str, int, int, float, float, list[int], float | None, float | None]]:
    """Yields file, label, predicted class, two scores, best classes, second-best score, and temperature.

    The scores are those of the predicted class and of the label. The second-best score is None if there is
    one class, and the temperature is None in files of earlier versions.
    """
    columns = tuple(next(reader, ()))
    if columns not in (COLUMNS, (*COLUMNS, TEMPERATURE)):
        raise ValueError(f"expected the columns {','.join((*COLUMNS, TEMPERATURE))}")
    for row in reader:
        if len(row) != len(columns):
            raise ValueError(f"expected {len(columns)} columns, received {len(row):,}")
        values = dict(zip(columns, row, strict=True))
        if not values["file"] or "\0" in values["file"] or len(values["file"]) > _MAX_PATH_LENGTH:
            raise ValueError("expected the path of an image as 'file'")
        top_ids = [_class_id(word, "top_ids", count) for word in values["top_ids"].split(" ", 5)]
        top_scores = values["top_scores"].split(" ", 2)
        yield (
            values["file"],
            _class_id(values["label"], "label", count),
            _class_id(values["predicted"], "predicted", count),
            _probability(values["score"], "score"),
            _probability(values["label_score"], "label_score"),
            top_ids,
            _probability(top_scores[1], "top_scores") if len(top_scores) > 1 else None,
            _temperature(values.get(TEMPERATURE)),
        )


def _class_id(word: str, column: str, count: int) -> int:
    if not _CLASS_ID.fullmatch(word) or int(word) >= count:
        raise ValueError(f"expected a class from 0 to {count - 1} as '{column}'")
    return int(word)


def _number(word: str) -> float:
    """Returns the number in a cell; -1 if there is none."""
    try:
        return float(word) if _NUMBER.fullmatch(word) else -1.0
    except ValueError:
        return -1.0


def _temperature(word: str | None) -> float | None:
    if word is None:
        return None
    number = _number(word)
    if not 0 < number <= LARGEST_TEMPERATURE:
        raise ValueError(f"expected a number above 0, up to {LARGEST_TEMPERATURE:g}, as '{TEMPERATURE}'")
    return number


def _probability(word: str, column: str) -> float:
    number = _number(word)
    if not 0 <= number <= 1.001:  # it was rounded
        raise ValueError(f"expected a number from 0 to 1 as '{column}'")
    return number
