"""The predictions of an evaluation for each sample.

They are collected on the device, gathered exactly from all processes, and written to ``predictions.csv``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
from paddle.nn import functional

from ppxcls.data.dataset import Dataset
from ppxcls.system import distributed
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import write_text

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
_MAX_TOP_CLASSES = 5
NOT_FINITE = "the network's output has numbers that are not finite (NaN or infinity)"


@dataclass(frozen=True)
class Predictions:
    """A network's predictions for the samples of a data set.

    Attributes:
        samples: indices of the samples in the data set, int64 [n]; unreadable samples are not included.
        classes: the k most probable classes of each sample, in descending order, int64 [n, k].
        scores: probabilities of ``classes``, float64 [n, k].
        label_scores: probability of each sample's label, float64 [n].
    """

    samples: Array
    classes: Array
    scores: Array
    label_scores: Array


class PredictionTable:
    """Collects predictions batch by batch. The host waits for the device only in ``gathered``.

    Args:
        size: number of samples in the data set.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._parts: list[tuple[Array, paddle.Tensor]] = []

    def add(self, samples: Array, logits: paddle.Tensor, labels: paddle.Tensor) -> None:
        """Adds the predictions of a batch.

        Args:
            samples: indices of the samples in the data set, [n].
            logits: output of the network, [n, class_num].
            labels: labels of the samples, int64 [n].
        """
        probabilities = functional.softmax(logits.astype("float32"), axis=-1)
        scores, classes = paddle.topk(probabilities, min(_MAX_TOP_CLASSES, probabilities.shape[-1]), axis=-1)
        label_scores = paddle.take_along_axis(probabilities, labels.reshape([-1, 1]), axis=-1)
        # float32 represents class ids below 2**24 exactly.
        self._parts.append(
            (samples, paddle.concat([label_scores, scores, classes.astype("float32")], axis=-1))
        )

    def reset(self) -> None:
        """Empties the table."""
        self._parts = []

    def gathered(self) -> Predictions:
        """Returns the predictions of all processes and empties the table. All processes must call it."""
        local_width = self._parts[0][1].shape[-1] if self._parts else 0  # 0 if this process has no samples
        width_sum, process_count = distributed.sum_over_processes(
            np.array([local_width, bool(self._parts)], float)
        )
        table = np.zeros((self._size, 1 + int(width_sum / max(process_count, 1))))
        if self._parts:
            samples = np.concatenate([samples for samples, _ in self._parts])
            table[samples, 0] = 1  # each sample is evaluated by one process only
            table[samples, 1:] = paddle.concat([part for _, part in self._parts]).numpy()
        self._parts = []
        table = distributed.sum_over_processes(table.reshape(-1)).reshape(table.shape)
        samples = np.flatnonzero(table[:, 0])
        label_scores, (scores, classes) = table[samples, 1], np.split(table[samples, 2:], 2, axis=1)
        return Predictions(samples, classes.astype(np.int64), scores, label_scores)


def write_predictions(file: Path, predictions: Predictions, dataset: Dataset, names: Sequence[str]) -> None:
    """Writes a CSV file with a row for each sample and the columns ``COLUMNS``.

    Args:
        file: CSV file to write.
        predictions: predictions for samples of the data set.
        dataset: data set with the files and labels of the samples.
        names: class names in the order of the class ids; empty to leave the names blank.

    Raises:
        OSError: the file can't be written.
    """
    class_name = names.__getitem__ if names else lambda _: ""
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
    for sample, label, classes, scores, label_score in rows:
        first_columns = [
            class_name(label),
            classes[0],
            class_name(classes[0]),
            f"{scores[0]:.6g}",
            f"{label_score:.6g}",
        ]
        last_columns = [" ".join(map(str, classes)), " ".join(f"{score:.6g}" for score in scores)]
        writer.writerow([dataset.path(sample), label, *first_columns, *last_columns])
    write_text(file, text.getvalue())
