"""Writes predictions in one of three formats."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from typing import Any, Literal, TextIO

from ppxcls.deploy.answer_limits import NO_LIMITS, AnswerLimits
from ppxcls.deploy.predict import Prediction
from ppxcls.system.json_text import json_text
from ppxcls.system.paths import printable

Format = Literal["paddleclas", "csv", "jsonl"]
_COLUMNS = ("file_name", "rank", "class_id", "label_name", "score")


class Writer:
    """Writes predictions to a stream as they are computed.

    Args:
        kind: output format: ``paddleclas`` for one list of dictionaries per batch, as PaddleClas prints it;
            ``csv``; or ``jsonl`` for one object per line.
        stream: text stream for the output.
        limits: limits of the predictions. What they say has columns of its own in ``csv``.
    """

    def __init__(self, kind: Format, stream: TextIO = sys.stdout, limits: AnswerLimits = NO_LIMITS) -> None:
        self._kind = kind
        self._stream = stream
        self._csv_writer = csv.writer(stream, lineterminator="\n")
        if kind == "csv":
            self._csv_writer.writerow([*_COLUMNS, *limits.promises])

    def write(self, predictions: Sequence[Prediction]) -> None:
        """Writes predictions, none of which may have an error."""
        rows = [self._row(prediction) for prediction in predictions]
        if self._kind == "paddleclas" and rows:
            print(rows, file=self._stream)
        elif self._kind == "jsonl":
            for row in rows:
                print(_json(row), file=self._stream)
        elif self._kind == "csv":
            for prediction in predictions:
                names = prediction.label_names or [""] * len(prediction.class_ids)
                limit_cells = _limit_cells(prediction)
                for rank, (index, name, score) in enumerate(
                    zip(prediction.class_ids, names, prediction.scores, strict=True), 1
                ):
                    self._csv_writer.writerow(
                        [printable(prediction.file), rank, index, printable(name), score, *limit_cells]
                    )

    def _row(self, prediction: Prediction) -> dict[str, Any]:
        labels = {"label_names": prediction.label_names} if prediction.label_names else {}
        return {
            "class_ids": prediction.class_ids,
            "scores": prediction.scores,
            "file_name": prediction.file,
            **labels,
            **limit_entries(prediction),
        }


def limit_entries(prediction: Prediction) -> dict[str, Any]:
    """Returns what the limits say about an image, by name; nothing if nobody asks."""
    entries = {
        "known": prediction.is_known,
        "class_set": prediction.class_set,
        "class_set_names": prediction.class_set_names,
    }
    return {key: value for key, value in entries.items() if value is not None}


def _limit_cells(prediction: Prediction) -> list[str]:
    """Returns the cells of what the limits say. The ids of a set are separated by spaces."""
    is_known, class_set = prediction.is_known, prediction.class_set
    cells = [] if is_known is None else [str(is_known).lower()]
    return cells if class_set is None else [*cells, " ".join(map(str, class_set))]


def _json(row: dict[str, Any]) -> str:
    """Returns a row as one printable line of JSON.

    File names may contain any bytes. Python's ``json`` reads such names back; ``os.fsencode`` gives the
    bytes.
    """
    text = json_text(row)
    return text if text == printable(text) else json_text(row, is_ascii=True)
