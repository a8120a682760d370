"""Writes predictions in one of three forms."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from typing import Any, Literal, TextIO

from ppxcls.deploy.predict import Prediction
from ppxcls.system.paths import printable

Format = Literal["paddleclas", "csv", "jsonl"]


class Writer:
    """Writes predictions as they come.

    Args:
        kind: ``paddleclas``, one list of dictionaries per batch as PaddleClas prints it; ``csv``; ``jsonl``,
            one object per line.
        stream: to write to.
    """

    def __init__(self, kind: Format, stream: TextIO = sys.stdout) -> None:
        self._kind, self._stream = kind, stream
        self._csv = csv.writer(stream, lineterminator="\n")
        if kind == "csv":
            self._csv.writerow(["file_name", "rank", "class_id", "label_name", "score"])

    def write(self, predictions: Sequence[Prediction]) -> None:
        """Write predictions that have no error."""
        rows = [self._row(p) for p in predictions]
        if self._kind == "paddleclas" and rows:
            print(rows, file=self._stream)
        elif self._kind == "jsonl":
            for row in rows:
                print(_json(row), file=self._stream)
        elif self._kind == "csv":
            for p in predictions:
                names = p.label_names or [""] * len(p.class_ids)
                for rank, (index, name, score) in enumerate(
                    zip(p.class_ids, names, p.scores, strict=True), 1
                ):
                    self._csv.writerow([printable(p.file), rank, index, printable(name), score])

    def _row(self, prediction: Prediction) -> dict[str, Any]:
        labels = {"label_names": prediction.label_names} if prediction.label_names else {}
        return {
            "class_ids": prediction.class_ids,
            "scores": prediction.scores,
            "file_name": prediction.file,
            **labels,
        }


def _json(row: dict[str, Any]) -> str:
    """JSON of one printable line.

    Python's ``json`` reads names of any bytes back; ``os.fsencode`` gives the bytes.
    """
    text = json.dumps(row, ensure_ascii=False)
    return text if text == printable(text) else json.dumps(row)
