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
# Last column of a written file. Files of earlier versions lack it.
TEMPERATURE = "temperature"
_MAX_TOP_CLASSES = 5
_MAX_LOGITS = 1 << 24  # of a calibration, 64 MB; 16,777 images of 1,000 classes
NOT_FINITE = "the network's output has numbers that are not finite (NaN or infinity)"


@dataclass(frozen=True)
class Predictions:
    """A network's predictions for the samples of a data set.

    Attributes:
        samples: indices of the samples in the data set, int64 [n]; unreadable samples are not included.
        classes: the k most probable classes of each sample, in descending order, int64 [n, k].
        scores: probabilities of ``classes``, float64 [n, k].
        label_scores: probability of each sample's label, float64 [n].
        plain_scores: probability of the best class without a temperature, float64 [n].
        losses: cross-entropy of each sample, float64 [n].
        plain_losses: cross-entropy of each sample without a temperature, float64 [n].
        temperature: divisor of the logits.
    """

    samples: Array
    classes: Array
    scores: Array
    label_scores: Array
    plain_scores: Array
    losses: Array
    plain_losses: Array
    temperature: float = 1.0


class PredictionTable:
    """Collects predictions batch by batch. The host waits for the device only in ``gathered``.

    Args:
        size: number of samples in the data set.
        keeps_logits: True to keep all logits on the device until ``reset``, for ``gathered_logits``.

    Attributes:
        temperature: divisor of the logits. If the logits are kept, it may change before ``gathered``.
    """

    def __init__(self, size: int, *, keeps_logits: bool = False) -> None:
        self.temperature = 1.0
        self._size = size
        self._keeps_logits = keeps_logits
        self._parts: list[tuple[Array, paddle.Tensor]] = []
        self._logits: list[tuple[Array, paddle.Tensor, paddle.Tensor]] = []

    def add(self, samples: Array, logits: paddle.Tensor, labels: paddle.Tensor) -> None:
        """Adds the predictions of a batch.

        Args:
            samples: indices of the samples in the data set, [n].
            logits: output of the network, [n, class_num].
            labels: labels of the samples, int64 [n].
        """
        if self._keeps_logits:
            self._logits.append((samples, logits.astype("float32"), labels))
        else:
            self._parts.append((samples, self._columns(logits.astype("float32"), labels)))

    def _columns(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Returns a row for each sample: facts about the label, scores, classes, float32 [n, columns]."""
        has_temperature = self.temperature != 1
        divided_logits = logits / self.temperature if has_temperature else logits
        probabilities = functional.softmax(divided_logits, axis=-1)
        scores, classes = paddle.topk(probabilities, min(_MAX_TOP_CLASSES, probabilities.shape[-1]), axis=-1)
        label_ids = labels.reshape([-1, 1])
        label_scores = paddle.take_along_axis(probabilities, label_ids, axis=-1)
        losses = _cross_entropy(divided_logits, label_ids)
        plain_scores, plain_losses = scores[:, :1], losses
        if has_temperature:
            plain_scores = functional.softmax(logits, axis=-1).max(axis=-1, keepdim=True)
            plain_losses = _cross_entropy(logits, label_ids)
        # float32 represents class ids below 2**24 exactly.
        columns = [label_scores, plain_scores, losses, plain_losses, scores, classes.astype("float32")]
        return paddle.concat(columns, axis=-1)

    def reset(self) -> None:
        """Empties the table."""
        self._parts, self._logits = [], []

    def gathered(self) -> Predictions:
        """Returns the predictions of all processes. All processes must call it. Only logits stay."""
        for samples, logits, labels in self._logits:
            self._parts.append((samples, self._columns(logits, labels)))
        local_width = self._parts[0][1].shape[-1] if self._parts else 0  # 0 if this process has no samples
        table = np.zeros((self._size, 1 + _common_width(local_width)))
        if self._parts:
            samples = np.concatenate([samples for samples, _ in self._parts])
            table[samples, 0] = 1  # each sample is evaluated by one process only
            table[samples, 1:] = paddle.concat([part for _, part in self._parts]).numpy()
        self._parts = []
        table = distributed.sum_over_processes(table.reshape(-1)).reshape(table.shape)
        samples = np.flatnonzero(table[:, 0])
        label_scores, plain_scores, losses, plain_losses = table[samples, 1:5].T
        scores, classes = np.split(table[samples, 5:], 2, axis=1)
        return Predictions(
            samples=samples,
            classes=classes.astype(np.int64),
            scores=scores,
            label_scores=label_scores,
            plain_scores=plain_scores,
            losses=losses,
            plain_losses=plain_losses,
            temperature=self.temperature,
        )

    def gathered_logits(self, max_values: int = _MAX_LOGITS) -> tuple[Array, Array]:
        """Returns the kept logits of all processes, and their labels. All processes must call it.

        If there are very many, it returns those of samples at equal distances in the data set. A list that is
        sorted by class keeps its shares of the classes.

        Args:
            max_values: largest number of logits.

        Returns:
            Logits, float32 [n, class_num], and labels, int64 [n], in the order of the samples.
        """
        width = _common_width(self._logits[0][1].shape[-1] if self._logits else 0)
        row_count = min(self._size, max(max_values // max(width, 1), 1))
        rows = np.full(self._size, -1)
        rows[np.linspace(0, self._size - 1, row_count).round().astype(int)] = np.arange(row_count)
        table = np.zeros((row_count, 2 + width))
        for samples, logits, labels in self._logits:
            is_chosen = rows[samples] >= 0
            if is_chosen.any():
                places = rows[samples[is_chosen]]
                table[places, 0] = 1
                table[places, 1] = labels.numpy()[is_chosen]
                table[places, 2:] = logits.numpy()[is_chosen]
        table = distributed.sum_over_processes(table.reshape(-1)).reshape(table.shape)
        table = table[table[:, 0] > 0]
        return table[:, 2:].astype(np.float32), table[:, 1].astype(np.int64)


def _common_width(local_width: int) -> int:
    """Returns the width of the rows of all processes. A process without samples has the width 0."""
    counts = np.array([local_width, bool(local_width)], float)
    width_sum, process_count = distributed.sum_over_processes(counts)
    return int(width_sum / max(process_count, 1))


def _cross_entropy(logits: paddle.Tensor, label_ids: paddle.Tensor) -> paddle.Tensor:
    """Returns the cross-entropy of each row, [n, 1], for class ids [n, 1].

    Paddle's ``log_softmax`` takes minutes on a CPU for 400,000 classes.
    """
    differences = logits - logits.max(axis=-1, keepdim=True)
    log_sums = differences.exp().sum(axis=-1, keepdim=True).log()
    return log_sums - paddle.take_along_axis(differences, label_ids, axis=-1)


def write_predictions(file: Path, predictions: Predictions, dataset: Dataset, names: Sequence[str]) -> None:
    """Writes a CSV file with a row for each sample and the columns ``COLUMNS`` and ``TEMPERATURE``.

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
    writer.writerow([*COLUMNS, TEMPERATURE])
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
        last_columns = [
            " ".join(map(str, classes)),
            " ".join(f"{score:.6g}" for score in scores),
            f"{predictions.temperature:.6g}",
        ]
        writer.writerow([dataset.path(sample), label, *first_columns, *last_columns])
    write_text(file, text.getvalue())
