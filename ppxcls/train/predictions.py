"""The predictions of an evaluation, sample by sample: collected on the device, gathered exactly, written as ``predictions.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.nn import functional

from ppxcls.data.dataset import Dataset
from ppxcls.system import distributed
from ppxcls.system.whole_files import write_text

COLUMNS = (
    "file",
    "label",
    "label_name",
    "predicted",
    "predicted_name",
    "score",
    "label_score",
    "top_ids",
    "top_scores",
)
_MOST_CLASSES = 5

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Predictions:
    """What a network says of the samples of a data set.

    Attributes:
        samples: numbers of the samples, int64 [n]; without unreadable ones.
        classes: the best classes, the best first, int64 [n, k].
        scores: their probabilities, float64 [n, k].
        label_scores: the probability of each sample's own label, float64 [n].
    """

    samples: Array
    classes: Array
    scores: Array
    label_scores: Array


class PredictionTable:
    """Collects predictions batch by batch. Nothing waits for the device until the end.

    Args:
        size: number of samples in the data set.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._parts: list[tuple[Array, paddle.Tensor]] = []

    def add(self, samples: Array, logits: paddle.Tensor, labels: paddle.Tensor) -> None:
        """Args: samples: their numbers, [n]; logits: [n, class_num]; labels: int64 [n]."""
        probabilities = functional.softmax(logits.astype("float32"), axis=-1)
        scores, classes = paddle.topk(probabilities, min(_MOST_CLASSES, probabilities.shape[-1]), axis=-1)
        own = paddle.take_along_axis(probabilities, labels.reshape([-1, 1]), axis=-1)
        self._parts.append(
            (samples, paddle.concat([own, scores, classes.astype("float32")], axis=-1))
        )  # ids below 2**24 are exact

    def gathered(self) -> Predictions:
        """Those of all processes, which all call it. The table is empty afterwards."""
        own_width = self._parts[0][1].shape[-1] if self._parts else 0  # a process may have no sample
        total, processes = distributed.sum_over_processes(np.array([own_width, bool(self._parts)], float))
        table = np.zeros((self._size, 1 + int(total / max(processes, 1))))
        for samples, part in self._parts:
            table[samples, 0] = 1  # each sample is evaluated by one process
            table[samples, 1:] = part.numpy()
        self._parts = []
        table = distributed.sum_over_processes(table.reshape(-1)).reshape(table.shape)
        samples = np.flatnonzero(table[:, 0])
        own, (scores, classes) = table[samples, 1], np.split(table[samples, 2:], 2, axis=1)
        return Predictions(samples, classes.astype(np.int64), scores, own)


def write_predictions(file: Path, predictions: Predictions, dataset: Dataset, names: Sequence[str]) -> None:
    """Write a row for each sample, with the columns ``COLUMNS``.

    Args:
        file: the file.
        predictions: of the data set.
        dataset: gives files and labels.
        names: of the classes, in the order of the ids; empty for no names.

    Raises:
        OSError: it can't be written.
    """
    name = names.__getitem__ if names else lambda _: ""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    labels = dataset.labels[predictions.samples].tolist()
    rows = zip(
        predictions.samples.tolist(),
        labels,
        predictions.classes.tolist(),
        predictions.scores.tolist(),
        predictions.label_scores.tolist(),
        strict=True,
    )
    for sample, label, classes, scores, own in rows:
        best = [name(label), classes[0], name(classes[0]), f"{scores[0]:.6g}", f"{own:.6g}"]
        tops = [" ".join(map(str, classes)), " ".join(f"{score:.6g}" for score in scores)]
        writer.writerow([dataset.path(sample), label, *best, *tops])
    write_text(file, text.getvalue())
